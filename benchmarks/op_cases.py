"""The kernels that ops.py times, at the shapes of a configuration, by tensorgrad and by PyTorch.

A case is an op, the shapes of its operands, and which of them are integers. Both sides draw the same numbers from it.
"""

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import common
from benchmarks.configurations import Setup, parameter_shapes
from benchmarks.training import BETAS, LR, WEIGHT_DECAY, import_tensorgrad, import_torch

Shape = tuple[int, ...]
UPDATES = ("adamw", "global_norm")  # of the optimiser, without backward
DROPOUT_P = 0.1


@dataclass(frozen=True)
class Case:
    """shapes: of the operands with gradients. integers: (shape, upper limit) of an operand of indices."""

    name: str
    op: str
    shapes: list[Shape]
    integers: tuple[Shape, int] | None = None
    random: bool = False  # results differ between libraries and are not compared


def cases(setup: Setup) -> list[Case]:
    """The kernels of a training step and similar ones, at the shapes of one configuration."""
    c, n, v = setup.n_embd, setup.tokens, setup.vocab_size
    heads = (setup.batch, setup.n_head, setup.block_size, c // setup.n_head)
    vector = [(c,), (c,)] if setup.bias else [(c,)]

    def linear(name: str, n_out: int, n_in: int, bias: bool = setup.bias) -> Case:
        return Case(f"linear {name}", "linear", [(n, n_in), (n_out, n_in), *([(n_out,)] if bias else [])])

    parameters = [shape for _, shape in parameter_shapes(setup)]
    return [
        linear("c_attn", 3 * c, c),
        linear("c_proj", c, c),
        linear("c_fc", 4 * c, c),
        linear("mlp.c_proj", c, 4 * c),
        linear("head", v, c, bias=False),
        Case("attention", "attention", [heads] * 3),
        Case("layer_norm", "layer_norm", [(n, c), *vector]),
        Case("rms_norm", "rms_norm", [(n, c), (c,)]),
        Case("gelu (tanh)", "gelu", [(n, 4 * c)]),
        Case("silu", "silu", [(n, 4 * c)]),
        Case("softmax", "softmax", [(*heads[:3], setup.block_size)]),
        Case("cross_entropy", "cross_entropy", [(n, v)], ((n,), v)),
        Case("linear head + cross_entropy", "linear_cross_entropy", [(n, c), (v, c)], ((n,), v)),
        Case("embedding", "embedding", [(v, c)], ((n,), v)),
        Case("add", "add", [(n, c), (n, c)]),
        Case("dropout", "dropout", [(n, c)], random=True),
        Case("adamw", "adamw", parameters),
        Case("global_norm", "global_norm", parameters),
    ]


def numbers(case: Case) -> tuple[list[Any], Any, Any]:
    """The operands, the indices or None, and a function that draws dy of a shape: NumPy arrays, equal for all."""
    import numpy as np

    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    operands = [rng.standard_normal(shape, np.float32) for shape in case.shapes]
    if case.op.startswith("linear"):
        operands[1] *= np.float32(1 / math.sqrt(case.shapes[1][1]))
    integers = None if case.integers is None else rng.integers(0, case.integers[1], case.integers[0])
    return operands, integers, lambda shape: rng.standard_normal(shape, np.float32)


class Kernels:
    """Base class of both sides: loads one case at a time, times it, and computes a fingerprint of its results."""

    def load(self, case: dict[str, Any]) -> list[float] | None:
        """Create the operands of a case. Returns norms of its results and gradients, None if they are random."""
        integers = case["integers"] and (tuple(case["integers"][0]), case["integers"][1])
        self.case = Case(**{**case, "shapes": [tuple(shape) for shape in case["shapes"]], "integers": integers})
        arrays, indices, make_dy = numbers(self.case)
        self.operands = [self.parameter(x) for x in arrays]
        if self.case.op in UPDATES:
            for p in self.operands:
                self.set_grad(p, make_dy(tuple(p.shape)))
            self.update = self.make_update(self.case.op)
            found = self.update()
            return [float(found)] if self.case.op == "global_norm" else [self.norm(p) for p in self.operands]
        self.forward = self.make_forward(self.case.op, None if indices is None else self.constant(indices))
        y = self.forward()
        self.dy = self.constant(make_dy(tuple(y.shape)))
        self.backward(y, self.dy)
        fingerprint = [self.norm(y), *(self.norm(self.grad(p)) for p in self.operands)]
        self.clear_gradients()
        return None if self.case.random else fingerprint

    def run(self, seconds: float) -> dict[str, Any]:
        """Do a turn of about that many seconds. Returns milliseconds of each forward and backward, and page faults."""
        forward, backward = [], []
        end, faults = time.perf_counter() + seconds, common.page_faults()
        while time.perf_counter() < end or len(forward) < 2:
            started = time.perf_counter()
            y = self.update() if self.case.op in UPDATES else self.forward()
            middle = time.perf_counter()
            forward.append((middle - started) * 1e3)
            if self.case.op not in UPDATES:
                self.backward(y, self.dy)
                backward.append((time.perf_counter() - middle) * 1e3)
                self.clear_gradients()
        faults = (common.page_faults() - faults) / len(forward)
        return {"forward_ms": forward, "backward_ms": backward, "faults": faults}


class Ours(Kernels):
    """tensorgrad, called through its ops, so that the cost of the tape is included."""

    def __init__(self, threads: int, backend: str) -> None:
        self.tg = import_tensorgrad(backend, threads)

    def parameter(self, x: Any) -> Any:
        """A leaf."""
        return self.tg.Tensor(x, requires_grad=True)

    def constant(self, x: Any) -> Any:
        """An array."""
        return self.tg.get_backend().asarray(x)

    def grad(self, p: Any) -> Any:
        """The gradient, a Tensor."""
        return self.tg.Tensor(p.grad)

    def set_grad(self, p: Any, x: Any) -> None:
        """Set a gradient, as backward would."""
        p.grad = x

    def norm(self, x: Any) -> float:
        """The Euclidean norm."""
        return math.sqrt(float((x.numpy().astype("float64") ** 2).sum()))

    def backward(self, y: Any, dy: Any) -> None:
        """Run backward from dy."""
        y.backward(dy)

    def clear_gradients(self) -> None:
        """Set the gradients to None, so that every backward does the same."""
        for p in self.operands:
            p.grad = None

    def make_forward(self, op: str, indices: Any) -> Callable[[], Any]:
        """Return a function that runs the op on the operands of the case."""
        tg, x = self.tg, self.operands
        forwards = {
            "linear": lambda: tg.linear(*x),
            "attention": lambda: tg.attention(*x, causal=True),
            "layer_norm": lambda: tg.layer_norm(*x),
            "rms_norm": lambda: tg.rms_norm(*x),
            "gelu": lambda: tg.gelu(*x, approximate="tanh"),
            "silu": lambda: tg.silu(*x),
            "softmax": lambda: tg.softmax(*x),
            "cross_entropy": lambda: tg.cross_entropy(*x, indices),
            "linear_cross_entropy": lambda: tg.linear_cross_entropy(*x, indices),
            "embedding": lambda: tg.embedding(*x, indices),
            "add": lambda: tg.add(*x),
            "dropout": lambda: tg.dropout(*x, p=DROPOUT_P),
        }
        return forwards[op]

    def make_update(self, op: str) -> Callable[[], Any]:
        """Return a function that runs a step of the optimiser, or computes the norm of clipping."""
        if op == "global_norm":
            return lambda: self.tg.optim.clip_grad_norm(self.operands, math.inf)
        optimizer = self.tg.optim.AdamW(self.operands, lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY)
        return optimizer.step


class Torch(Kernels):
    """PyTorch, eager, with the fused AdamW."""

    def __init__(self, threads: int) -> None:
        self.torch = import_torch(threads)

    def parameter(self, x: Any) -> Any:
        """A leaf."""
        return self.torch.from_numpy(x).requires_grad_()

    def constant(self, x: Any) -> Any:
        """A tensor without a gradient."""
        return self.torch.as_tensor(x)

    def grad(self, p: Any) -> Any:
        """The gradient."""
        return p.grad

    def set_grad(self, p: Any, x: Any) -> None:
        """Set a gradient, as backward would."""
        p.grad = self.torch.from_numpy(x)

    def norm(self, x: Any) -> float:
        """The Euclidean norm."""
        return float(x.detach().double().norm())

    def backward(self, y: Any, dy: Any) -> None:
        """Run backward from dy."""
        y.backward(dy)

    def clear_gradients(self) -> None:
        """Set the gradients to None, so that every backward does the same."""
        for p in self.operands:
            p.grad = None

    def make_forward(self, op: str, indices: Any) -> Callable[[], Any]:
        """Return a function that runs the op on the operands of the case."""
        from torch.nn import functional as F

        x = self.operands
        width = x[0].shape[-1:]
        forwards = {
            "linear": lambda: F.linear(*x),
            "attention": lambda: F.scaled_dot_product_attention(*x, is_causal=True),
            "layer_norm": lambda: F.layer_norm(x[0], width, *x[1:]),
            "rms_norm": lambda: F.rms_norm(x[0], width, x[1], eps=1e-6),
            "gelu": lambda: F.gelu(*x, approximate="tanh"),
            "silu": lambda: F.silu(*x),
            "softmax": lambda: F.softmax(*x, dim=-1),
            "cross_entropy": lambda: F.cross_entropy(*x, indices),
            "linear_cross_entropy": lambda: F.cross_entropy(F.linear(*x), indices),
            "embedding": lambda: F.embedding(indices, *x),
            "add": lambda: x[0] + x[1],
            "dropout": lambda: F.dropout(*x, p=DROPOUT_P),
        }
        return forwards[op]

    def make_update(self, op: str) -> Callable[[], Any]:
        """Return a function that runs a step of the optimiser, or computes the norm of clipping."""
        if op == "global_norm":
            return lambda: self.torch.nn.utils.clip_grad_norm_(self.operands, math.inf)
        optimizer = self.torch.optim.AdamW(self.operands, lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
        return optimizer.step
