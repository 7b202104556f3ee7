"""The shapes of the models that are measured, and the file of weights and batches that every contender reads."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

N_BATCHES = 4  # used in turn, so that no contender overfits a single one
INIT_STD = 0.02


@dataclass(frozen=True)
class Setup:
    """The shape of a GPT in nanoGPT's names, and the batch size."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool
    batch: int = 1

    def describe(self) -> str:
        """One line for the heading of a table."""
        return (
            f"{self.n_layer} layers, {self.n_head} heads, {self.n_embd} wide, block {self.block_size}, "
            f"batch {self.batch}, vocabulary {self.vocab_size}, {'with' if self.bias else 'no'} biases, "
            f"{self.n_params() / 1e6:.4g} M parameters"
        )

    def model(self) -> dict[str, Any]:
        """The fields of GPTConfig."""
        return {name: value for name, value in asdict(self).items() if name != "batch"} | {"dropout": 0.0}

    @property
    def tokens(self) -> int:
        """Tokens in a batch."""
        return self.batch * self.block_size

    def n_params(self) -> int:
        """The number of elements of all weights."""
        return sum(math.prod(shape) for _, shape in parameter_shapes(self))

    def linears(self) -> list[tuple[int, int, int]]:
        """(out, in, count) of the weight matrices of the linear layers."""
        c, n = self.n_embd, self.n_layer
        return [(3 * c, c, n), (c, c, n), (4 * c, c, n), (c, 4 * c, n), (self.vocab_size, c, 1)]

    def memory(self) -> float:
        """Roughly the bytes that a training process needs, to decide how many contenders fit into memory."""
        weights = 4 * 4 * self.n_params()  # the weights, their gradients, two moments
        layers = self.n_layer * self.tokens * (40 * self.n_embd + 3 * self.n_head * self.block_size)
        return 0.5e9 + weights + 4 * (layers + 4 * self.tokens * self.vocab_size)


SETUPS = {
    "A": Setup(4, 4, 128, 64, 65, bias=False, batch=12),  # nanoGPT's run on a CPU
    "B": Setup(6, 6, 384, 256, 65, bias=False, batch=8),  # nanoGPT's Shakespeare
    "C": Setup(12, 12, 768, 256, 50304, bias=True, batch=4),  # GPT-2 124M
    "124M": Setup(12, 12, 768, 1024, 50257, bias=True),  # the same, for generation
    "tiny": Setup(1, 2, 16, 32, 11, bias=True, batch=2),  # to test a benchmark
}


def parameter_shapes(setup: Setup) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every parameter, in nanoGPT's names."""

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (c,)
        if setup.bias:
            yield f"{name}.bias", (c,)

    def linear(name: str, n_out: int, n_in: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (n_out, n_in)
        if setup.bias:
            yield f"{name}.bias", (n_out,)

    c = setup.n_embd
    yield "wte.weight", (setup.vocab_size, c)
    yield "wpe.weight", (setup.block_size, c)
    for i in range(setup.n_layer):
        yield from norm(f"h.{i}.ln_1")
        yield from linear(f"h.{i}.attn.c_attn", 3 * c, c)
        yield from linear(f"h.{i}.attn.c_proj", c, c)
        yield from norm(f"h.{i}.ln_2")
        yield from linear(f"h.{i}.mlp.c_fc", 4 * c, c)
        yield from linear(f"h.{i}.mlp.c_proj", c, 4 * c)
    yield from norm("ln_f")


def write_inputs(path: Path, setup: Setup, seed: int, n_tokens: int | None = None) -> None:
    """Write GPT-2's initial weights and random tokens `idx` and `targets` (N_BATCHES, batch, time) as safetensors.

    n_tokens: the time, if it is not block_size.
    """
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in parameter_shapes(setup):
        if len(shape) > 1:
            std = INIT_STD / math.sqrt(2 * setup.n_layer) if name.endswith("c_proj.weight") else INIT_STD
            arrays[name] = rng.standard_normal(shape, np.float32) * np.float32(std)
        else:
            arrays[name] = np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    batches = (N_BATCHES, setup.batch, n_tokens or setup.block_size)
    arrays["idx"] = rng.integers(0, setup.vocab_size, batches)
    arrays["targets"] = rng.integers(0, setup.vocab_size, batches)
    save_file(arrays, path)
