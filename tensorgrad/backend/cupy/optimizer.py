"""The update of all parameters in one launch, and the norm of all gradients in two, without synchronisation.

Kernels get a table of the addresses of all arrays. Tables are cached on the GPU, so nothing is copied in a training
step whose arrays have the same addresses as in the step before.
"""

import math
from collections import OrderedDict
from functools import cached_property
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.kernels import THREADS, Kernels, supported, wide_dtype
from tensorgrad.backend.cupy.launcher import c_type

CHUNK = 16384  # elements per block: CHUNK of optimizer.cu
MAX_TABLES = 64  # that are cached on the GPU

Row = tuple[Array | None, ...]  # the arrays of one parameter
Table = tuple[Array, Array, Array]  # addresses, sizes, chunks


class Optimization(Kernels):
    """The kernels of optimizer.cu."""

    def adamw(self, p: Array, g: Array, m: Array, v: Array, **options: Any) -> None:
        self.adamw_group([p], [g], [m], [v], [None], skip=False, **options)

    def adamw_group(
        self, ps: list[Array], gs: list[Array], ms: list[Array], vs: list[Array], masters: list[Array | None], *,
        skip: bool | Array, grad_scale: float | Array = 1.0, **options: Any,
    ) -> None:  # fmt: skip
        """AdamW on all parameters of a group; a master copy, if any, is updated and then rounded to the parameter.

        skip (bool), lr and grad_scale (float64) and step (int64) may be arrays of one element, which are read when the
        kernel runs.
        """
        if skip is True:
            return
        by_type: dict[tuple[str, str], list[Row]] = {}
        for p, g, m, v, master in zip(ps, gs, ms, vs, masters, strict=True):
            if updatable(p, g, m, v, master):
                by_type.setdefault((c_type(p.dtype), c_type(g.dtype)), []).append((p, self.contiguous(g), m, v, master))
            elif p.size:
                self._plain_update(p, g, m, v, master, skip, {**options, "grad_scale": grad_scale})
        rate, step = options["lr"], options["step"]
        in_memory = [x if isinstance(x, self.array_type) else None for x in (rate, step, skip, grad_scale)]
        given = [np.float64(options[name]) for name in ("beta1", "beta2", "eps", "weight_decay")]
        numbers = (
            np.float64(0 if isinstance(rate, self.array_type) else rate), *given,
            np.int64(0 if isinstance(step, self.array_type) else step), *in_memory,
            np.float64(1 if isinstance(grad_scale, self.array_type) else grad_scale),
        )  # fmt: skip
        for (t, g_type), rows in by_type.items():
            self.launch_over("adamw", rows, {"T": t, "G": g_type}, *numbers)

    def decide(self, flag: bool | Array) -> bool | Array:
        return flag if isinstance(flag, self.array_type) else bool(flag)

    def clip_norm(self, arrays: list[Array], max_norm: float) -> Any:
        """Scale by a factor that is computed on the GPU; the norm stays there, too."""
        norm, factor = self.norm_and_factor(arrays, max_norm)
        self.scale(arrays, factor)
        return norm

    def scale(self, arrays: list[Array], factor: Any) -> None:
        """All arrays times one number, in place; the number may be on the GPU."""
        factor = self.xp.asarray(factor, np.float64)
        for dtype, members in grouped(arrays, in_place=True).items():
            if dtype is None:
                for x in members:
                    x *= factor.astype(x.dtype)
            else:
                self.launch_over("scale", [(x,) for x in members], {"T": c_type(dtype), "G": c_type(dtype)}, factor)

    def global_norm(self, arrays: list[Array]) -> Any:
        """The Euclidean norm of all elements of all arrays together: a scalar on the GPU, of float64."""
        return self.norm_and_factor(arrays, math.inf)[0]

    def norm_and_factor(self, arrays: list[Array], max_norm: float) -> tuple[Array, Array]:
        """Both stay on the GPU: scalars of float64."""
        parts = [self.xp.zeros(1, np.float64)]
        for dtype, members in grouped(arrays, in_place=False).items():
            if dtype is None:
                parts += [(x.astype(np.float64) ** 2).sum().reshape(1) for x in members]
                continue
            partial = self.xp.empty(sum(-(-x.size // CHUNK) for x in members), np.float64)
            rows: list[Row] = [(self.contiguous(x),) for x in members]
            self.launch_over("sum_squares", rows, {"T": c_type(dtype), "G": c_type(dtype)}, partial)
            parts.append(partial)
        together = parts[1] if len(parts) == 2 else self.xp.concatenate(parts)
        norm, factor = self.xp.empty((), np.float64), self.xp.empty((), np.float64)
        self.launcher.launch(
            "optimizer", "norm_and_factor", (1,), (THREADS,),
            (together, np.int32(together.size), np.float64(max_norm), norm, factor),
            defines={"T": "float", "G": "float"},
        )  # fmt: skip
        return norm, factor

    def launch_over(self, kernel: str, rows: list[Row], defines: dict[str, str], *args: Any) -> None:
        """Launch a kernel on all rows of a table: a block for each CHUNK elements of each array."""
        addresses, sizes, chunks = self._table(rows)
        self.launcher.launch(
            "optimizer", kernel, (len(chunks),), (THREADS,), (addresses, sizes, chunks, *args), defines=defines
        )

    @cached_property
    def tables(self) -> OrderedDict[tuple[int, ...], Table]:
        """The cached tables, the most recently used last."""
        return OrderedDict()

    def _table(self, rows: list[Row]) -> Table:
        """The table of these arrays on the GPU, from the cache if no address has changed."""
        key = tuple(number for row in rows for number in (row_size(row), *map(address, row)))
        table = self.tables.pop(key, None)
        if table is None:
            sizes = np.array([row_size(row) for row in rows], np.int64)
            chunks = [(i, j) for i, size in enumerate(sizes) for j in range(-(-int(size) // CHUNK))]
            host = (np.array([[address(x) for x in row] for row in rows], np.uint64), sizes, np.array(chunks, np.int32))
            addresses, sizes, chunks = (self.upload(x) for x in host)
            table = addresses, sizes, chunks
        self.tables[key] = table
        if len(self.tables) > MAX_TABLES:
            self.tables.popitem(last=False)
        return table

    def _plain_update(
        self, p: Array, g: Array, m: Array, v: Array, master: Array | None, skip: bool | Array,
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        """The update by `math.py`, for arrays that no kernel supports; waits for numbers that are on the GPU."""
        if skip:
            return
        numbers = {name: x.item() if hasattr(x, "item") else x for name, x in options.items()}
        super().adamw(p if master is None else master, g, m, v, **numbers)
        if master is not None:
            p[...] = master


def updatable(p: Array, g: Array, m: Array, v: Array, master: Array | None) -> bool:
    """Whether the kernel supports the parameter: contiguous arrays, moments and master in the wide dtype."""
    wide = [x for x in (m, v, master) if x is not None]
    return (
        supported(p)
        and supported(g)
        and g.shape == p.shape
        and all(x.shape == p.shape and x.dtype == wide_dtype(p.dtype) for x in wide)
        and all(x.flags.c_contiguous for x in (p, *wide))
    )


def grouped(arrays: list[Array], in_place: bool) -> dict[Any, list[Array]]:
    """Arrays by dtype, without empty ones; the key None is for arrays that no kernel supports."""
    groups: dict[Any, list[Array]] = {}
    for x in arrays:
        has_kernel = supported(x) and (x.flags.c_contiguous or not in_place)
        if x.size:
            groups.setdefault(x.dtype if has_kernel else None, []).append(x)
    return groups


def address(x: Array | None) -> int:
    """The address of an array; 0 for None."""
    return 0 if x is None else int(x.data.ptr)


def row_size(row: Row) -> int:
    """The number of elements of each array of a row."""
    return int(row[0].size)  # type: ignore[union-attr]
