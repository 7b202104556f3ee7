"""The plain mathematics on NumPy, and what NumPy does better another way: block by block, while a block is in cache."""

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np

from tensorgrad.backend import blas
from tensorgrad.backend.attention_blocks import attend, attend_backward
from tensorgrad.backend.base import GELU_CUBIC, GELU_SCALE, Array, Backend, Dropout, as_rows, is_half
from tensorgrad.memory import keep_freed_memory

BLOCK = 2**15  # elements of an elementwise block: all its temporaries stay in the second-level cache


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
        return self._elementwise(super().gelu_tanh if is_half(x.dtype) else _gelu_tanh, x)

    def gelu_tanh_backward(self, dy: Array, x: Array) -> Array:
        """dx of gelu_tanh."""
        return self._elementwise(super().gelu_tanh_backward if is_half(x.dtype) else _gelu_tanh_backward, dy, x)

    # --- normalisation, a block of rows at a time ------------------------------------------------

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
        """x (..., n) -> y, and mean and 1/std (..., 1)."""
        if x.ndim < 2 or x.size <= BLOCK or not x.flags.c_contiguous:
            return super().layer_norm(x, weight, bias, eps)
        y = np.empty(x.shape, x.dtype)
        mean, rstd = (np.empty((*x.shape[:-1], 1), self.wide(x[:0]).dtype) for _ in range(2))
        plain = super().layer_norm

        def block(x: Array, y: Array, mean: Array, rstd: Array) -> None:
            y[...], mean[...], rstd[...] = plain(x, weight, bias, eps)

        self._in_blocks_of_rows(block, x, y, mean, rstd)
        return y, mean, rstd

    def layer_norm_backward_x(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None = None
    ) -> Array:
        """dx of layer_norm, plus dsum."""
        given = [dy, x, mean, rstd, *([] if dsum is None else [dsum])]
        if x.ndim < 2 or x.size <= BLOCK or not all(a.flags.c_contiguous for a in given):
            return super().layer_norm_backward_x(dy, x, weight, mean, rstd, dsum)
        dx, plain = np.empty(x.shape, x.dtype), super().layer_norm_backward_x

        def block(dx: Array, dy: Array, x: Array, mean: Array, rstd: Array, dsum: Array | None = None) -> None:
            dx[...] = plain(dy, x, weight, mean, rstd, dsum)

        self._in_blocks_of_rows(block, dx, *given)
        return dx

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
        if not causal or mask is not None or dropout is not None or is_half(q.dtype) or not len(q):
            return super().attention(q, key, v, causal, mask, dropout, scale)
        n_batch, n_head, n_query, _ = q.shape
        y = np.zeros((n_batch, n_query, n_head, v.shape[-1]), q.dtype).transpose(0, 2, 1, 3)
        lse = np.full((n_batch, n_head, n_query, 1), -np.inf, q.dtype)
        self._for_each_sequence(functools.partial(attend, scale), y, lse, q, key, v)
        return y, lse

    def attention_backward(
        self, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array,
        causal: bool, mask: Array | None, dropout: Dropout | None, scale: float,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dq, dkey, dv."""
        if not causal or mask is not None or dropout is not None or is_half(q.dtype) or not len(q):
            return super().attention_backward(dy, q, key, v, y, lse, causal, mask, dropout, scale)
        dq, dkey, dv = (np.zeros(x.shape, x.dtype) for x in (q, key, v))
        self._for_each_sequence(functools.partial(attend_backward, scale), dq, dkey, dv, dy, q, key, v, y, lse)
        return dq, dkey, dv

    def _for_each_sequence(self, fn: Callable[..., None], *arrays: Array) -> None:
        """fn(*parts) for every sequence of a batch, on all threads; then a product is one thread's alone."""
        library = blas.find()
        before = library.get_num_threads() if library is not None else 1
        try:
            if library is not None:
                library.set_num_threads(1)
            self._on_all_threads(fn, list(zip(*arrays, strict=True)))
        finally:
            if library is not None:
                library.set_num_threads(before)

    # --- optimisation ---------------------------------------------------------------------------

    def adamw(
        self, p: Array, g: Array, m: Array, v: Array, *,
        lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
    ) -> None:  # fmt: skip
        """One AdamW step on p, m and v in place."""
        keep, rate = 1 - lr * weight_decay, lr / (1 - beta1**step)
        correction = 1 / math.sqrt(1 - beta2**step)

        def block(p: Array, g: Array, m: Array, v: Array) -> None:
            """The formula of `Backend.adamw`, with two arrays for all that is made on the way."""
            part = (1 - beta1) * g
            m *= beta1
            m += part
            np.multiply(g, g, out=part)
            part *= 1 - beta2
            v *= beta2
            v += part
            np.sqrt(v, out=part)
            part *= correction
            part += eps
            move = rate * m
            move /= part
            p *= keep
            p -= move

        if p.ndim == 0 or is_half(p.dtype) or any(x.dtype != p.dtype for x in (g, m, v)):
            super().adamw(
                p, g, m, v, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, step=step
            )  # fmt: skip
        else:
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
        self._on_all_threads(fn, [tuple(x[i : i + BLOCK] for x in flat) for i in range(0, flat[0].size, BLOCK)])

    def _in_blocks_of_rows(self, fn: Callable[..., None], *arrays: Array) -> None:
        """fn(*parts) for contiguous arrays (..., n) and (..., 1): in blocks of rows."""
        rows = [as_rows(x) for x in arrays]
        step = max(1, BLOCK // rows[0].shape[1])
        self._on_all_threads(fn, [tuple(x[i : i + step] for x in rows) for i in range(0, len(rows[0]), step)])

    def _on_all_threads(self, fn: Callable[..., None], parts: list[tuple[Array, ...]]) -> None:
        """fn(*part) for every part, each thread with a share of them; the caller's is one of the threads."""

        def work(share: list[tuple[Array, ...]]) -> None:
            for part in share:
                fn(*part)

        mine, *others = (parts[i :: self.threads] for i in range(min(self.threads, len(parts))))
        settings = [copy_context() for _ in others]  # what the caller wants to be warned of: numpy.errstate
        pool = thread_pool(self.threads)
        waiting = [pool.submit(setting.run, work, share) for setting, share in zip(settings, others, strict=True)]
        work(mine)
        for share in waiting:
            share.result()


def _gelu_tanh(x: Array) -> Array:
    """x sigmoid(2u), which is the same: see `numba/activation.py`. All in one array, which stays in the cache."""
    y = _minus_two_u(x)
    np.exp(y, out=y)
    y += 1
    return np.divide(x, y, out=y)


def _gelu_tanh_backward(dy: Array, x: Array) -> Array:
    """dy (s + x s (1 - s) d(2u)/dx), with s = sigmoid(2u)."""
    s = _minus_two_u(x)
    np.exp(s, out=s)
    s += 1
    np.reciprocal(s, out=s)
    dx = x * x
    dx *= 3 * GELU_CUBIC * 2 * GELU_SCALE
    dx += 2 * GELU_SCALE
    dx *= x
    dx *= 1 - s
    dx += 1
    dx *= s
    dx *= dy
    return dx


def _minus_two_u(x: Array) -> Array:
    u = np.asarray(x * x)  # of a single number, too
    u *= -2 * GELU_SCALE * GELU_CUBIC
    u -= 2 * GELU_SCALE
    u *= x
    return np.minimum(u, 88, out=u)  # e^88 is the last that float32 holds


@functools.cache
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads for blocks; started as they are needed, then kept."""
    return ThreadPoolExecutor(threads, "tensorgrad")


def create() -> Backend:
    """The backend, for `tensorgrad.backend.load`."""
    return NumpyBackend()
