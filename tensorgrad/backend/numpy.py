"""The plain mathematics on NumPy, and what NumPy does better another way: block by block, while a block is in cache."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache

import numpy as np

from tensorgrad.backend import blas
from tensorgrad.backend.base import Array, Backend, Dropout, as_rows
from tensorgrad.memory import keep_freed_memory

BLOCK = 2**15  # elements of an elementwise block: all its temporaries stay in the second-level cache
ROWS = 64  # query rows of a block of attention


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class NumpyBackend(Backend):
    """Kernels over NumPy arrays. NumPy lets go of the interpreter while it computes, so blocks run on all cores."""

    name = "numpy"
    xp = np
    array_type = np.ndarray
    threads = cpu_count()  # one number for all CPU backends: `tensorgrad.set_num_threads`

    def activate(self) -> None:
        """Keep freed memory for the next step, and use all threads for a matrix product."""
        keep_freed_memory()
        if (library := blas.find()) is not None:
            library.set_num_threads(self.threads)

    # --- activations: the same mathematics, block by block --------------------------------------

    def silu(self, x: Array) -> Array:
        """x sigmoid(x)."""
        return self._elementwise(super().silu, x)

    def silu_backward(self, dy: Array, x: Array) -> Array:
        """dx of silu."""
        return self._elementwise(super().silu_backward, dy, x)

    def gelu(self, x: Array) -> Array:
        """x times the normal distribution function of x."""
        return self._elementwise(super().gelu, x)

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        """dx of gelu."""
        return self._elementwise(super().gelu_backward, dy, x)

    def gelu_tanh(self, x: Array) -> Array:
        """GPT-2's approximation of gelu."""
        return self._elementwise(super().gelu_tanh, x)

    def gelu_tanh_backward(self, dy: Array, x: Array) -> Array:
        """dx of gelu_tanh."""
        return self._elementwise(super().gelu_tanh_backward, dy, x)

    # --- embedding ------------------------------------------------------------------------------

    def embedding_backward(self, dy: Array, indices: Array, shape: tuple[int, ...]) -> Array:
        """dweight (V, C): every row's dy added to the row it was read from."""
        dweight = np.zeros(shape, self.wide(dy[:0]).dtype)
        self.add_embedding_backward(dweight, dy, indices)
        return dweight

    def add_embedding_backward(self, dweight: Array, dy: Array, indices: Array) -> None:
        """Rows sorted by index and each run summed: the order of the additions is always the same."""
        rows = as_rows(self.wide(dy))
        if rows.size:
            flat = indices.reshape(-1).astype(np.int64) % len(dweight)  # negative indices count from the end
            order = np.argsort(flat, kind="stable")
            distinct, starts = np.unique(flat[order], return_index=True)
            dweight[distinct] += np.add.reduceat(rows[order], starts, axis=0)

    # --- attention: each block of rows meets only the keys that causality lets it see -------------

    def attention(
        self, q: Array, key: Array, v: Array, causal: bool, mask: Array | None, dropout: Dropout | None, scale: float
    ) -> tuple[Array, Array]:
        """softmax(scale q key^T) v for every head, and the logsumexp of every row."""
        if not causal or mask is not None or dropout is not None:
            return super().attention(q, key, v, causal, mask, dropout, scale)
        n_batch, n_head, n_query, _ = q.shape
        y = np.zeros((n_batch, n_query, n_head, v.shape[-1]), q.dtype).transpose(0, 2, 1, 3)
        lse = np.full((n_batch, n_head, n_query, 1), -np.inf, self.wide(q[:0]).dtype)
        for rows, seen in _causal_blocks(n_query, key.shape[2]):
            y[:, :, rows], lse[:, :, rows] = super().attention(
                q[:, :, rows], key[:, :, seen], v[:, :, seen], True, None, None, scale
            )
        return y, lse

    def attention_backward(
        self, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array,
        causal: bool, mask: Array | None, dropout: Dropout | None, scale: float,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dq, dkey, dv."""
        if not causal or mask is not None or dropout is not None:
            return super().attention_backward(dy, q, key, v, y, lse, causal, mask, dropout, scale)
        dq = np.zeros(q.shape, q.dtype)
        dkey, dv = (np.zeros(x.shape, self.wide(x[:0]).dtype) for x in (key, v))
        for rows, seen in _causal_blocks(q.shape[2], key.shape[2]):
            dq[:, :, rows], dkey_part, dv_part = super().attention_backward(
                dy[:, :, rows], q[:, :, rows], key[:, :, seen], v[:, :, seen], y[:, :, rows], lse[:, :, rows],
                True, None, None, scale,
            )  # fmt: skip
            dkey[:, :, seen] += dkey_part
            dv[:, :, seen] += dv_part
        return dq, self.narrow(dkey, key.dtype), self.narrow(dv, v.dtype)

    # --- optimisation ---------------------------------------------------------------------------

    def adamw(
        self, p: Array, g: Array, m: Array, v: Array, *,
        lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
    ) -> None:  # fmt: skip
        """One AdamW step on p, m and v in place."""
        options = {
            "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "step": step,
        }  # fmt: skip
        update = super().adamw

        def block(*parts: Array) -> None:
            update(*parts, **options)  # type: ignore[arg-type]

        self._in_blocks(block, p, g, m, v)

    # --- blocks ---------------------------------------------------------------------------------

    def _elementwise(self, fn: Callable[..., Array], *arrays: Array) -> Array:
        """fn(*arrays) for arrays of one shape, where each element depends on its like only."""
        first = arrays[0]
        if any(x.shape != first.shape or x.dtype != first.dtype for x in arrays) or first.size <= BLOCK:
            return fn(*arrays)
        y = np.empty(first.shape, first.dtype)

        def block(out: Array, *parts: Array) -> None:
            out[...] = fn(*parts)

        self._in_blocks(block, y, *arrays)
        return y

    def _in_blocks(self, fn: Callable[..., None], *arrays: Array) -> None:
        """fn(*parts) for arrays of one size, which it may write into: in blocks where blocks are views of all."""
        if not all(x.flags.c_contiguous for x in arrays) or arrays[0].size <= BLOCK:
            fn(*arrays)
            return
        flat = [x.reshape(-1) for x in arrays]
        parts = [tuple(x[i : i + BLOCK] for x in flat) for i in range(0, flat[0].size, BLOCK)]
        settings = [copy_context() for _ in parts]  # what the caller wants to be warned of: numpy.errstate
        list(thread_pool(self.threads).map(lambda setting, part: setting.run(fn, *part), settings, parts))


@cache
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads for blocks; started as they are needed, then kept."""
    return ThreadPoolExecutor(threads, "tensorgrad")


def _causal_blocks(n_query: int, n_key: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of query rows that see any key, and the keys that their last row sees; the last of all sees every one."""
    for start in range(0, n_query, ROWS):
        stop = min(start + ROWS, n_query)
        if stop + n_key > n_query:
            yield slice(start, stop), slice(0, stop + n_key - n_query)


def create() -> Backend:
    """The backend, for `tensorgrad.backend.load`."""
    return NumpyBackend()
