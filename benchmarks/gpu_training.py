"""Train GPT-2 124M on a GPU, for gpu_check.py: with tensorgrad, or with PyTorch at its fastest.

    python -m benchmarks.gpu_training CONTENDER INPUTS OUT [--batches 64 4 16 largest] [--stand-in]

CONTENDER is `ours` (each step launched, then as a CUDA graph), `eager` or `compile` (PyTorch with bfloat16 autocast,
F.scaled_dot_product_attention, fused AdamW). A step is nanoGPT's: forward, backward, gradients clipped to a norm of 1,
AdamW. The loss is not read on the host. Both sides use bfloat16 with float32 master weights.
"""

import argparse
import gc
import itertools
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

from benchmarks import common
from benchmarks.configurations import SETUPS, Setup
from benchmarks.gpu_card import Figures, Ours, Theirs, is_out_of_memory
from benchmarks.training import BETAS, GRAD_CLIP, LR, decay_groups

GPT2 = Setup(12, 12, 768, 1024, 50304, bias=True)
STEPS, FIRST_STEPS = 20, 3  # measured; and those whose losses are compared
GRANULE = 8  # of the largest batch
Step = Callable[[], Any]


class Ourselves:
    """tensorgrad."""

    modes = ("launched", "graph")

    def __init__(self, setup: Setup, inputs: str, stand_in: bool) -> None:
        from safetensors.numpy import load_file

        self.card, self.setup = Ours(stand_in), setup
        self.arrays = load_file(inputs)
        self.graph: Any = None

    def make(self, batch: int, mode: str) -> Step:
        """Return a training step on batches of that size, which returns the loss on the card."""
        import tensorgrad as tg
        from gpt.fused import FusedGPT
        from tensorgrad.creation import skip_init
        from tensorgrad.random import Stream, default_generator

        with skip_init():  # drawing 124M weights takes ten seconds
            k, model = self.card.k, FusedGPT(self.setup.model())
        model.load_state_dict({name: x for name, x in self.arrays.items() if name not in ("idx", "targets")})
        model.astype("bfloat16")
        parameters = list(model.parameters())
        optimizer = tg.optim.AdamW(decay_groups(parameters), lr=LR, betas=BETAS, master_weights=True)

        def step(idx: Any, targets: Any) -> tuple[Any, Any]:
            loss = model.loss(idx, targets)
            loss.backward()
            norm, factor = tg.optim.norm_and_factor(parameters, GRAD_CLIP)
            optimizer.step(grad_scale=factor)
            optimizer.zero_grad()
            return loss.data, norm

        run = step
        if mode == "graph":
            optimizer.capturable()
            run = self.graph = k.record(step, lambda n: default_generator.next_step(Stream.DROPOUT, n), tune=True)
        batches = batches_of(self.arrays["idx"], self.arrays["targets"], batch)
        return lambda: run(*k.stage(*next(batches)))[0]

    def close(self) -> None:
        """Return the memory of a recorded step to the card."""
        if self.graph is not None:
            self.graph.close()
            self.graph = None

    def number(self, loss: Any) -> float:
        """The loss on the host."""
        return float(self.card.k.to_numpy(loss))

    def launches(self, step: Step) -> int | None:
        """Launches of a step: of our kernels and of cuBLASLt's."""
        before = self.card.launches
        step()
        return self.card.launches - before


class PyTorch:
    """PyTorch, eager or compiled."""

    def __init__(self, setup: Setup, inputs: str, stand_in: bool, compiled: bool) -> None:
        from safetensors import safe_open

        self.card, self.setup, self.inputs, self.compiled = Theirs(stand_in), setup, inputs, compiled
        self.modes = ("compile",) if compiled else ("eager",)
        with safe_open(inputs, framework="numpy") as arrays:
            self.tokens = arrays.get_tensor("idx"), arrays.get_tensor("targets")

    def make(self, batch: int, mode: str) -> Step:
        """See Ourselves."""
        import torch

        from benchmarks.torch_gpt import TorchGPT, load_weights

        torch._dynamo.reset()
        device = self.card.device
        plain = TorchGPT(self.setup).to(device)
        load_weights(plain, self.inputs)
        parameters = list(plain.parameters())
        optimizer = torch.optim.AdamW(decay_groups(parameters), lr=LR, betas=BETAS, fused=True)
        model = torch.compile(plain, dynamic=False) if self.compiled else plain
        batches = itertools.cycle([self.pinned(pair) for pair in itertools.islice(batches_of(*self.tokens, batch), 4)])

        def step() -> Any:
            idx, targets = (x.to(device, non_blocking=True) for x in next(batches))
            with torch.autocast(device, torch.bfloat16):
                loss = model(idx, targets)[1]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step

    def close(self) -> None:
        """See Ourselves; memory is returned when the step is dropped."""

    def pinned(self, arrays: tuple[Any, ...]) -> list[Any]:
        """In pinned memory of the host, from which the card copies while it computes."""
        tensors = [self.card.torch.from_numpy(x) for x in arrays]
        return tensors if self.card.stand_in else [x.pin_memory() for x in tensors]

    def number(self, loss: Any) -> float:
        """The loss on the host."""
        return float(loss.item())

    def launches(self, step: Step) -> int | None:
        """Kernels that a step starts on the card, as PyTorch's profiler counts them."""
        from torch.profiler import ProfilerActivity, profile

        if self.card.stand_in:
            return None
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            step()
            self.card.torch.cuda.synchronize()
        return sum(event.count for event in seen.key_averages())


def batches_of(idx: Any, targets: Any, batch: int) -> Any:
    """Yield (idx, targets) of that many rows each, taken cyclically from the given ones."""
    import numpy as np

    flat = [x.reshape(-1, x.shape[-1]) for x in (idx, targets)]
    for i in itertools.count():
        rows = np.arange(i * batch, (i + 1) * batch) % len(flat[0])
        yield tuple(np.ascontiguousarray(x[rows]) for x in flat)


def measure(contender: Any, batch: int, mode: str, steps: int) -> dict[str, Any]:
    """Losses of the first steps, then times, memory, launches."""
    gc.collect()  # a model and its compiled form refer to each other
    contender.card.free_memory()
    step = contender.make(batch, mode)
    losses = [contender.number(step()) for _ in range(FIRST_STEPS)]
    launches = contender.launches(step) if mode != "graph" else 1
    times = contender.card.times(step, steps, warm_up=2)
    ms = common.median(times)
    return {
        "batch": batch, "mode": mode, "ms": ms, "spread": common.spread(times), "launches": launches,
        "tokens_per_s": batch * contender.setup.block_size / ms * 1e3, "losses": losses,
        "memory_gib": contender.card.used_gib(), "times_ms": times,
    }  # fmt: skip


def largest_batch(rows: list[dict[str, Any]], total_gib: float) -> int | None:
    """The largest batch that should fit, by a linear fit to the memory of two batches; None if there is no fit."""
    distinct = {row["batch"]: row["memory_gib"] for row in rows if "memory_gib" in row}
    if len(distinct) < 2:
        return None
    (small, low), *_, (large, high) = sorted(distinct.items())
    slope = (high - low) / (large - small)
    if slope <= 0:
        return None
    return int((total_gib * 0.95 - low) / slope + small) // GRANULE * GRANULE


def run(contender: Any, batches: list[str], steps: int, figures: Figures, total_gib: float) -> None:
    """Measure every batch in every mode; a batch that does not fit into memory becomes a row that says so."""
    rows: list[dict[str, Any]] = []
    for asked in batches:
        size = largest_batch(rows, total_gib) if asked == "largest" else int(asked)
        if size is None:
            continue
        for mode in contender.modes:
            row = tried(contender, size, mode, steps)
            if asked == "largest" and "out_of_memory" in row and size > 2 * GRANULE:
                row = tried(contender, size - 2 * GRANULE, mode, steps)
            rows.append(row | {"asked": asked})
            figures.add(rows=rows)


def tried(contender: Any, batch: int, mode: str, steps: int) -> dict[str, Any]:
    try:
        with closing(contender):
            return measure(contender, batch, mode, steps)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"batch": batch, "mode": mode, "out_of_memory": str(error).splitlines()[0][:200]}


def main() -> int:
    parser = argparse.ArgumentParser(description="Train GPT-2 124M on a GPU and time it.")
    parser.add_argument("contender", choices=("ours", "eager", "compile"))
    parser.add_argument("inputs", help="weights and batches, the file of write_inputs")
    parser.add_argument("out", help="the JSON file")
    parser.add_argument("--batches", nargs="+", default=["64", "4", "16", "largest"])
    parser.add_argument("--stand-in", action="store_true", help="no GPU: a tiny model, and times that mean nothing")
    options = parser.parse_args()
    setup, steps = (SETUPS["tiny"], 2) if options.stand_in else (GPT2, STEPS)
    figures = Figures(options.out)
    figures.add(contender=options.contender, rows=[])
    if options.contender == "ours":
        contender: Any = Ourselves(setup, options.inputs, options.stand_in)
        total = contender.card.cupy.cuda.runtime.memGetInfo()[1] / 2**30
    else:
        contender = PyTorch(setup, options.inputs, options.stand_in, options.contender == "compile")
        total = 1.0 if options.stand_in else contender.card.torch.cuda.mem_get_info()[1] / 2**30
    run(contender, options.batches, steps, figures, total)
    return 0


if __name__ == "__main__":
    sys.exit(main())
