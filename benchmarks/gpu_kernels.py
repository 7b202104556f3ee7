"""Every kernel of a training step of GPT-2 124M beside its roofline, for gpu_check.py.

    python -m benchmarks.gpu_kernels OUT [--group GROUP] [--stand-in]

Each group of kernels has a process of its own: after an illegal access to memory, a process can do nothing more on the
GPU, and the other groups are measured all the same. With --group, this process measures that group. Kernels that are
bound by memory are compared with the speed of a copy, matrix products with the speed of a large bfloat16 product; both
are measured first. The operations of attention are those that the causal mask leaves.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.gpu_card import Figures, Ours

WARM_UP = 6  # calls: three by which it is compiled, one that is recorded, and replays


@dataclass(frozen=True)
class Kernel:
    """A call, and its bytes read and written, or its operations."""

    name: str
    call: Callable[[], Any]
    bytes: float = 0
    flop: float = 0


@dataclass(frozen=True)
class Sizes:
    """B sequences of T tokens, H heads of size D, vocabulary V."""

    B: int = 64  # large enough that no array fits into the L2 cache
    T: int = 1024
    H: int = 12
    D: int = 64
    V: int = 50304
    copied: int = 2**30
    product: int = 8192


TINY = Sizes(1, 16, 1, 64, 128, 2**10, 32)


class Bench:
    """Arrays of a GPT's sizes in bfloat16, and the calls on them."""

    def __init__(self, card: Ours, sizes: Sizes) -> None:
        import ml_dtypes
        import numpy as np

        self.card, self.k, self.s, self.np = card, card.k, sizes, np
        self.bf16 = np.dtype(ml_dtypes.bfloat16)
        self.rng = np.random.default_rng(0)

    def draw(self, *shape: int, dtype: Any = None) -> Any:
        """Normally distributed numbers: a block of them, repeated, because drawing all of them takes long."""
        n = math.prod(shape)
        block = self.rng.standard_normal(min(n, 2**20), self.np.float32).astype(dtype or self.bf16)
        return self.k.asarray(self.np.resize(block, n).reshape(shape))

    def copy_speed(self, repeats: int) -> float:
        """GB/s of a copy, read plus written."""
        xp = self.card.cupy
        x, y = xp.zeros(self.s.copied, self.np.uint8), xp.zeros(self.s.copied, self.np.uint8)

        def copy() -> None:
            y[...] = x

        return 2 * self.s.copied / common.median(self.card.times(copy, repeats)) / 1e6

    def product_speed(self, repeats: int) -> float:
        """TFLOP/s of a large bfloat16 product."""
        n = self.s.product
        a, b = self.draw(n, n), self.draw(n, n)
        return 2 * n**3 / common.median(self.card.times(lambda: self.k.matmul(a, b), repeats)) / 1e9

    def attention(self) -> Iterator[Kernel]:
        """Forward and backward, from a packed projection as in the model."""
        s, k = self.s, self.k
        packed = self.draw(s.B, s.T, 3, s.H, s.D)
        q, key, v = (packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        options = (True, None, None, 1 / math.sqrt(s.D))
        y, lse = k.attention(q, key, v, *options)
        dy = self.draw(s.B, s.T, s.H, s.D).transpose(0, 2, 1, 3)
        pairs = s.B * s.H * s.T * (s.T + 1) / 2  # of a query and a key that it attends to
        yield Kernel("attention", lambda: k.attention(q, key, v, *options), flop=4 * pairs * s.D)
        yield Kernel(
            "attention_backward", lambda: k.attention_backward(dy, q, key, v, y, lse, *options), flop=10 * pairs * s.D
        )
        one, size = self.draw(1, s.H, 1, s.D), s.H * s.T * s.D * 2
        yield Kernel("attention over a cache", lambda: k.attention(one, key[:1], v[:1], *options), bytes=2 * size)

    def rows(self) -> Iterator[Kernel]:
        """Kernels that read and write every array once."""
        s, k = self.s, self.k
        n, c = s.B * s.T, s.H * s.D
        x, dy, dsum, weight, bias = *(self.draw(n, c) for _ in range(3)), self.draw(c), self.draw(c)
        wide, dwide = self.draw(n, 4 * c), self.draw(n, 4 * c)
        _, mean, rstd = k.layer_norm(x, weight, bias, 1e-5)
        one = 2 * n * c
        yield Kernel("layer_norm", lambda: k.layer_norm(x, weight, bias, 1e-5), bytes=2 * one)
        yield Kernel("add_layer_norm", lambda: k.add_layer_norm(x, dy, weight, bias, 1e-5), bytes=4 * one)
        given, needs = (dy, x, weight, mean, rstd, dsum), (True, True, True)
        yield Kernel("layer_norm_backward", lambda: k.layer_norm_backward(*given, needs), bytes=4 * one)
        yield Kernel("rms_norm", lambda: k.rms_norm(x, weight, 1e-6), bytes=2 * one)
        yield Kernel("gelu_tanh", lambda: k.gelu_tanh(wide), bytes=8 * one)
        yield Kernel("gelu_tanh_backward", lambda: k.gelu_tanh_backward(dwide, wide), bytes=12 * one)
        yield Kernel("linear_backward_bias", lambda: k.linear_backward_bias(dwide), bytes=4 * one)
        yield Kernel("dropout", lambda: k.dropout(x, (0.1, 1, 1, 1)), bytes=2 * one)
        yield Kernel("add", lambda: x + dy, bytes=3 * one)
        rows = min(n, 4096)
        logits = self.draw(rows, s.V)
        targets = k.asarray(self.rng.integers(0, s.V, rows))
        _, lse = k.cross_entropy(logits, targets, -100, 0.0)
        dlosses = self.card.cupy.ones(rows, self.np.float32)
        yield Kernel("cross_entropy", lambda: k.cross_entropy(logits, targets, -100, 0.0), bytes=2 * rows * s.V)
        yield Kernel(
            "cross_entropy_backward",
            lambda: k.cross_entropy_backward(dlosses, logits, targets, lse, -100, 0.0),
            bytes=4 * rows * s.V,
        )
        table, tokens = self.draw(s.V, c), k.asarray(self.rng.integers(0, s.V, n))
        yield Kernel("embedding", lambda: k.embedding(table, tokens), bytes=2 * one)
        written = 4 * s.V * c
        yield Kernel("embedding_backward", lambda: k.embedding_backward(dy, tokens, table.shape), bytes=one + written)

    def products(self) -> Iterator[Kernel]:
        """The linear layers of a block, and the head."""
        s, k = self.s, self.k
        n, c = s.B * s.T, s.H * s.D
        for name, n_out, n_in in (("c_attn", 3 * c, c), ("c_fc", 4 * c, c), ("mlp.c_proj", c, 4 * c), ("head", s.V, c)):
            rows = min(n, 8192) if name == "head" else n
            x, weight, dy = self.draw(rows, n_in), self.draw(n_out, n_in), self.draw(rows, n_out)
            flop = 2.0 * rows * n_in * n_out
            yield Kernel(f"linear {name}", lambda x=x, w=weight: k.linear(x, w, None), flop=flop)
            yield Kernel(f"dx {name}", lambda dy=dy, w=weight: k.linear_backward_x(dy, w), flop=flop)
            yield Kernel(f"dweight {name}", lambda dy=dy, x=x: k.linear_backward_weight(dy, x), flop=flop)
        x, dy, h, bias = self.draw(n, c), self.draw(n, c), self.draw(n, 4 * c), self.draw(4 * c)
        first, second = self.draw(4 * c, c), self.draw(c, 4 * c)
        flop = 2.0 * n * c * 4 * c
        yield Kernel("linear c_fc, GELU", lambda: k.linear_gelu_tanh(x, first, bias), flop=flop)
        back = lambda: k.linear_gelu_tanh_backward(dy, second, h, h, True)  # noqa: E731
        yield Kernel("dx mlp.c_proj, GELU", back, flop=flop)

    def whole_model(self) -> Iterator[Kernel]:
        """The update of all parameters: those of GPT-2's embedding and of one block."""
        import tensorgrad as tg

        s = self.s
        c = s.H * s.D
        shapes = [(s.V, c), (3 * c, c), (c, c), (4 * c, c), (c, 4 * c), (c,), (c,)]
        parameters = [tg.Tensor(self.draw(*shape), requires_grad=True) for shape in shapes]
        optimizer = tg.optim.AdamW(parameters, lr=1e-4, master_weights=True)
        optimizer.capturable()
        for p in parameters:
            p.grad = self.draw(*p.shape, dtype=self.np.float32)
        n = sum(math.prod(shape) for shape in shapes)
        grads = [p.grad for p in parameters]
        # read: gradient, master weight, two moments; written: those three, and the weight
        yield Kernel("adamw", optimizer.step, bytes=(4 * 4 + 3 * 4 + 2) * n)
        yield Kernel("global_norm", lambda: self.k.global_norm(grads), bytes=4 * n)


GROUPS: dict[str, Callable[[Bench], Iterator[Kernel]]] = {
    "attention": Bench.attention,
    "rows": Bench.rows,
    "products": Bench.products,
    "model": Bench.whole_model,
}
ROOFS = "roofs"  # the speed of a copy and of a large product


def main() -> int:
    parser = argparse.ArgumentParser(description="Time every kernel of a step beside its roofline.")
    parser.add_argument("out", help="the JSON file")
    parser.add_argument("--group", choices=(ROOFS, *GROUPS), help="measure this group in this process")
    parser.add_argument("--stand-in", action="store_true", help="no GPU: tiny shapes, and times that mean nothing")
    options = parser.parse_args()
    if options.group is None:
        return measure_all(Path(options.out), options.stand_in)
    card, figures, repeats = Ours(options.stand_in), Figures(options.out), 2 if options.stand_in else 20
    bench = Bench(card, TINY if options.stand_in else Sizes())
    if options.group == ROOFS:
        copy, product = bench.copy_speed(repeats), bench.product_speed(repeats)
        figures.add(**card.describe(), copy_gb_per_s=copy, product_tflop_per_s=product)
        return 0
    rows: list[dict[str, Any]] = []
    for kernel in GROUPS[options.group](bench):
        rows.append(measure(card, kernel, repeats))
        figures.add(rows=rows)
    return 0


def measure(card: Ours, kernel: Kernel, repeats: int) -> dict[str, Any]:
    """The time of a kernel beside its bytes or operations, or the error that it raised.

    It is replayed from a graph, as in a training step: for the processor, some take longer to launch than to run.
    """

    def call() -> tuple[Any, ...]:
        kernel.call()
        return ()

    try:
        with closing(card.k.record(call, lambda n: 0, tune=True)) as recorded:
            times = card.times(recorded, repeats, warm_up=WARM_UP)
    except Exception as error:  # measure the other kernels all the same
        reason = str(error).splitlines()[0][:200] if str(error) else ""
        return {"kernel": kernel.name, "failure": f"{type(error).__name__}: {reason}"}
    work = {"flop": kernel.flop} if kernel.flop else {"bytes": kernel.bytes}
    return {"kernel": kernel.name, "ms": common.median(times), "spread": common.spread(times), **work}


def measure_all(out: Path, stand_in: bool) -> int:
    """Measure every group in a process of its own; return 0 if all could be measured."""
    figures, rows, failed = Figures(str(out)), [], 0
    for group in (ROOFS, *GROUPS):
        part = out.with_suffix(f".{group}")
        command = [sys.executable, "-m", "benchmarks.gpu_kernels", str(part), "--group", group]
        failed += (code := subprocess.run([*command, *["--stand-in"] * stand_in], cwd=common.ROOT).returncode) != 0
        found = json.loads(part.read_text(encoding="utf-8")) if part.exists() else {}
        part.unlink(missing_ok=True)
        rows += [beside_roof(row, figures.values) for row in found.pop("rows", [])]
        if code:
            rows.append({"kernel": f"the group {group}", "failure": f"its process ended with status {code}"})
        figures.add(**found, rows=rows)
    return int(failed > 0)


def beside_roof(row: dict[str, Any], roofs: dict[str, Any]) -> dict[str, Any]:
    """The row with its speed, and that as a share of what was measured for a copy or a large product."""
    if "failure" in row:
        return row
    if "flop" in row:
        name, speed, roof = "tflop_per_s", row["flop"] / row["ms"] / 1e9, roofs.get("product_tflop_per_s")
    else:
        name, speed, roof = "gb_per_s", row["bytes"] / row["ms"] / 1e6, roofs.get("copy_gb_per_s")
    return row | {name: speed} | ({"share_of_roof": speed / roof} if roof else {})


if __name__ == "__main__":
    sys.exit(main())
