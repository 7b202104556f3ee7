"""The contenders of train_step.py: the same training step by tensorgrad and by PyTorch, and its matrix products alone.

A step is nanoGPT's: forward, backward, gradients clipped to a norm of 1, AdamW (matrices decayed by 0.1, betas 0.9 and
0.95), gradients set to None. Each class runs in its own process (see workers.py) and imports only its own library.
"""

import itertools
import math
import shutil
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import common
from benchmarks.configurations import Setup
from benchmarks.workers import Unavailable

LR, BETAS, WEIGHT_DECAY, GRAD_CLIP = 3e-4, (0.9, 0.95), 0.1, 1.0
QUERY_BLOCK = 64  # queries in a block: the bound skips keys that no query of the block may attend to


class Training:
    """Base class of the contenders: batches in turn, and the counters around a step.

    setup: the fields of a Setup. inputs: the file that write_inputs wrote.
    """

    def __init__(self, setup: dict[str, Any], inputs: str, **options: Any) -> None:
        self.setup = Setup(**setup)
        self.prepare(inputs, **options)
        self.batches = itertools.cycle(self.read_batches(inputs))
        common.reset_peak_memory()  # reading the file is not part of training

    def prepare(self, inputs: str, **options: Any) -> None:
        """Create the model and the optimiser."""
        raise NotImplementedError

    def read_batches(self, inputs: str) -> list[tuple[Any, Any]]:
        """[(idx, targets)], each (batch, time)."""
        raise NotImplementedError

    def step(self, idx: Any, targets: Any) -> float:
        """Do one training step; returns the loss before it."""
        raise NotImplementedError

    def update(self) -> None:
        """Clip the gradients, update, and set them to None."""
        self.clip_grad_norm(self.parameters, GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def warm_up(self, steps: int) -> dict[str, Any]:
        """Do the first steps, including compilation. Returns their losses, by which contenders are compared."""
        started = time.perf_counter()
        losses = [self.step(*next(self.batches))]
        first_step_s = time.perf_counter() - started
        losses += [self.step(*next(self.batches)) for _ in range(steps - 1)]
        self.peak_of_warm_up = common.peak_memory()
        common.reset_peak_memory()
        return {"losses": losses, "first_step_s": first_step_s}

    def run(self, steps: int) -> dict[str, Any]:
        """Do a turn. Returns the milliseconds of every step, and page faults and processor time per step."""
        milliseconds = []
        faults, cpu = common.page_faults(), common.cpu_seconds()
        for _ in range(steps):
            started = time.perf_counter()
            loss = self.step(*next(self.batches))
            milliseconds.append((time.perf_counter() - started) * 1e3)
        faults, cpu = common.page_faults() - faults, common.cpu_seconds() - cpu
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")
        return {"ms": milliseconds, "faults": faults / steps, "cpu_ms": cpu / steps * 1e3}

    def memory(self) -> dict[str, float]:
        """The peak memory in MB: from the first step on, and of the steps after the warm-up alone."""
        steady = common.peak_memory()
        return {"peak_mb": max(steady, self.peak_of_warm_up), "steady_peak_mb": steady}


class Ours(Training):
    """tensorgrad."""

    def prepare(self, inputs: str, threads: int, backend: str) -> None:
        """See Training."""
        from safetensors import safe_open

        k = import_tensorgrad(backend, threads).get_backend()
        self.make(self.setup)
        with safe_open(inputs, framework="numpy") as weights:
            for name, p in self.model.named_parameters():  # one at a time, as for PyTorch: all would leave a hole
                p.data[...] = k.asarray(weights.get_tensor(name))

    def make(self, setup: Setup) -> None:
        """Create the model and the optimiser."""
        import tensorgrad as tg
        from gpt.fused import FusedGPT
        from gpt.train.config import TrainConfig
        from gpt.train.kernels import kernels

        self.model = FusedGPT(setup.model())
        self.parameters = list(self.model.parameters())
        self.optimizer = tg.optim.AdamW(decay_groups(self.parameters), lr=LR, betas=BETAS)
        self.norm_and_factor = tg.optim.norm_and_factor
        names = kernels(TrainConfig(tokenizer="char", bias=self.model.config.bias))
        self.compilation = tg.get_backend().compile_ahead(names)

    def read_batches(self, inputs: str) -> list[tuple[Any, Any]]:
        """See Training."""
        from safetensors import safe_open

        with safe_open(inputs, framework="numpy") as arrays:
            return list(zip(arrays.get_tensor("idx"), arrays.get_tensor("targets"), strict=True))

    def step(self, idx: Any, targets: Any) -> float:
        """See Training."""
        if self.compilation is not None:
            self.compilation.wait()
            self.compilation = None
        loss = self.model.loss(idx, targets)
        loss.backward()
        self.update()
        return float(loss.item())

    def update(self) -> None:
        """As gpt/train/step.py: AdamW multiplies the gradients on the way."""
        _, factor = self.norm_and_factor(self.parameters, GRAD_CLIP)
        self.optimizer.step(grad_scale=factor)
        self.optimizer.zero_grad()


class Torch(Training):
    """PyTorch. compiled: torch.compile ("max": with autotuning); fused: the fused AdamW."""

    def prepare(self, inputs: str, threads: int, compiled: str = "", fused: bool = False) -> None:
        """See Training."""
        torch = import_torch(threads)
        from benchmarks.torch_gpt import TorchGPT, load_weights

        if compiled and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise Unavailable("torch.compile needs a C++ compiler: there is no g++, clang++ or c++")
        self.clip_grad_norm = torch.nn.utils.clip_grad_norm_
        model = TorchGPT(self.setup)
        load_weights(model, inputs)
        self.parameters = list(model.parameters())
        options = {"fused": True} if fused else {}
        self.optimizer = torch.optim.AdamW(decay_groups(self.parameters), lr=LR, betas=BETAS, **options)
        mode = "max-autotune-no-cudagraphs" if compiled == "max" else None
        self.model = torch.compile(model, mode=mode) if compiled else model

    def read_batches(self, inputs: str) -> list[tuple[Any, Any]]:
        """See Training."""
        from safetensors import safe_open

        with safe_open(inputs, framework="pt") as arrays:
            return list(zip(arrays.get_tensor("idx"), arrays.get_tensor("targets"), strict=True))

    def step(self, idx: Any, targets: Any) -> float:
        """See Training."""
        loss = self.model(idx, targets)[1]
        loss.backward()
        self.update()
        return float(loss.item())


class Products:
    """The matrix products of a step alone, by NumPy's BLAS into existing memory: a lower bound on the time of a step.

    A linear layer has three (y = x W^T, dx = dy W, dW = dy^T x), attention six for each head, over the blocks of 64
    queries that the causal mask leaves. Recomputing the attention weights in backward is not counted.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        import numpy as np

        self.setup, self.np = Setup(**setup), np
        rng = np.random.default_rng(0)
        n = self.setup.tokens
        self.linears = [
            {
                "weights": [rng.standard_normal((n_out, n_in), np.float32) for _ in range(count)],
                "x": rng.standard_normal((n, n_in), np.float32),
                "dy": rng.standard_normal((n, n_out), np.float32),
                "dx": np.ones((n, n_in), np.float32),
                "y": np.ones((n, n_out), np.float32),
                "dw": np.ones((n_out, n_in), np.float32),
            }
            for n_out, n_in, count in self.setup.linears()
        ]
        heads = (self.setup.batch, self.setup.n_head, self.setup.block_size)
        self.q = rng.standard_normal((*heads, self.setup.n_embd // self.setup.n_head), np.float32)
        self.p = rng.standard_normal((*heads, self.setup.block_size), np.float32)
        self.out = np.ones_like(self.q)

    def gflop(self) -> float:
        """The operations of all products, in 10^9."""
        s = self.setup
        linears = sum(3 * 2 * s.tokens * n_out * n_in * count for n_out, n_in, count in s.linears())
        pairs = sum((rows.stop - rows.start) * rows.stop for rows in self.query_blocks())
        return (linears + s.n_layer * 6 * 2 * s.batch * s.n_embd * pairs) / 1e9

    def query_blocks(self) -> Iterator[slice]:
        """Blocks of queries; those of a block attend to the keys up to its end."""
        size = self.setup.block_size
        return (slice(start, min(start + QUERY_BLOCK, size)) for start in range(0, size, QUERY_BLOCK))

    def run(self, steps: int) -> dict[str, Any]:
        """Do a turn. Returns the milliseconds of all products of a step, and of those of attention."""
        milliseconds, attention = [], []
        for _ in range(steps):
            started = time.perf_counter()
            for linear in self.linears:
                self.multiply_linear(**linear)
            middle = time.perf_counter()
            for _ in range(self.setup.n_layer):
                self.multiply_attention()
            ended = time.perf_counter()
            milliseconds.append((ended - started) * 1e3)
            attention.append((ended - middle) * 1e3)
        return {"ms": milliseconds, "attention_ms": attention}

    def multiply_linear(self, weights: list[Any], x: Any, dy: Any, dx: Any, y: Any, dw: Any) -> None:
        """Forward and backward of the layers of one shape."""
        matmul = self.np.matmul
        for w in weights:
            matmul(x, w.T, out=y)
            matmul(dy, w, out=dx)
            matmul(dy.T, x, out=dw)

    def multiply_attention(self) -> None:
        """Forward and backward of one layer."""
        matmul, q, out = self.np.matmul, self.q, self.out
        for rows in self.query_blocks():
            seen = slice(0, rows.stop)
            p, keys = self.p[:, :, rows, seen], q[:, :, seen]
            for _ in range(2):  # scores = q k^T, dp = dy v^T
                matmul(q[:, :, rows], keys.swapaxes(-1, -2), out=p)
            for _ in range(2):  # y = p v, dq = ds k
                matmul(p, keys, out=out[:, :, rows])
            for _ in range(2):  # dv = p^T dy, dk = ds^T q
                matmul(p.swapaxes(-1, -2), q[:, :, rows], out=out[:, :, seen])


def decay_groups(parameters: list[Any]) -> list[dict[str, Any]]:
    """nanoGPT's parameter groups: weight decay for matrices, none for vectors."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def import_tensorgrad(backend: str, threads: int) -> Any:
    """Import tensorgrad as train.py does, with these threads. Raises Unavailable if the backend cannot run."""
    import tensorgrad as tg
    from tensorgrad.memory import keep_freed_memory

    keep_freed_memory()

    try:
        tg.use_backend(backend)
    except tg.BackendUnavailable as error:
        raise Unavailable(str(error)) from None
    tg.set_num_threads(threads)
    return tg


def import_torch(threads: int) -> Any:
    """Import PyTorch and set its threads. Raises Unavailable if it is not installed."""
    try:
        import torch
    except ImportError:
        raise Unavailable("PyTorch is not installed (pip install torch)") from None
    torch.set_num_threads(threads)
    return torch
