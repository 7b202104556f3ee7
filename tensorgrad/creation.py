"""New tensors: filled, enumerated or drawn at random; on the current backend, in float32 unless a dtype is given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from tensorgrad.backend import Array, as_operand, get_backend
from tensorgrad.backend.arrays import real_dtype
from tensorgrad.calls import explained
from tensorgrad.random import Stream, default_generator
from tensorgrad.tensor import Tensor, kernels_of

Shape = int | tuple[int, ...]


@explained
def asarray(data: Any, dtype: Any = None, *, requires_grad: bool = False) -> Tensor:
    """A tensor from an array, which is not copied, a number, or nested lists of numbers.

    A tensor that requires a gradient is returned as it is, or converted to `dtype` by an op.
    """
    if isinstance(data, Tensor) and data.requires_grad:
        return data if dtype is None else data.astype(dtype)
    return Tensor(data, requires_grad, dtype=dtype)


@explained
def zeros(shape: Shape, dtype: Any = np.float32, *, requires_grad: bool = False) -> Tensor:
    """All 0."""
    return Tensor(get_backend().xp.zeros(shape, real_dtype("zeros", dtype)), requires_grad)


@explained
def ones(shape: Shape, dtype: Any = np.float32, *, requires_grad: bool = False) -> Tensor:
    """All 1."""
    return Tensor(get_backend().xp.ones(shape, real_dtype("ones", dtype)), requires_grad)


@explained
def empty(shape: Shape, dtype: Any = np.float32, *, requires_grad: bool = False) -> Tensor:
    """Uninitialised memory."""
    return Tensor(get_backend().xp.empty(shape, real_dtype("empty", dtype)), requires_grad)


@explained
def full(shape: Shape, value: float, dtype: Any = None, *, requires_grad: bool = False) -> Tensor:
    """All `value`; dtype None is float32 for a float, int64 for an int, bool for a bool."""
    _require_real("full", value)
    if dtype is None:
        dtype = np.float32 if isinstance(value, float) else np.asarray(value).dtype
    return Tensor(get_backend().xp.full(shape, value, real_dtype("full", dtype)), requires_grad)


@explained
def zeros_like(x: Tensor, dtype: Any = None, *, requires_grad: bool = False) -> Tensor:
    """All 0, of x's shape, on its backend, and of its dtype unless another is given."""
    return full_like(x, 0, dtype, requires_grad=requires_grad)


@explained
def ones_like(x: Tensor, dtype: Any = None, *, requires_grad: bool = False) -> Tensor:
    """All 1, of x's shape, on its backend, and of its dtype unless another is given."""
    return full_like(x, 1, dtype, requires_grad=requires_grad)


@explained
def empty_like(x: Tensor, dtype: Any = None, *, requires_grad: bool = False) -> Tensor:
    """Uninitialised memory, of x's shape, on its backend, and of its dtype unless another is given."""
    dtype = x.dtype if dtype is None else real_dtype("empty_like", dtype)
    return _beside(x, kernels_of(x).xp.empty(x.shape, dtype), requires_grad)


@explained
def full_like(x: Tensor, value: float, dtype: Any = None, *, requires_grad: bool = False) -> Tensor:
    """All `value`, of x's shape, on its backend, and of its dtype unless another is given."""
    _require_real("full_like", value)
    dtype = x.dtype if dtype is None else real_dtype("full_like", dtype)
    return _beside(x, kernels_of(x).xp.full(x.shape, value, dtype), requires_grad)


def _beside(x: Tensor, data: Array, requires_grad: bool) -> Tensor:
    """A new tensor on x's backend, whichever is the current one."""
    out: Tensor = Tensor.wrap(data)
    out.role, out.requires_grad = "buffer", requires_grad
    return out


def _require_real(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        as_operand(name, value)


@explained
def arange(
    start: float, stop: float | None = None, step: float = 1, dtype: Any = None, *, requires_grad: bool = False
) -> Tensor:
    """start, start + step, ... below stop; arange(n) starts at 0. int64 if all arguments are ints, else float32."""
    start, stop = (0, start) if stop is None else (start, stop)
    if dtype is None:
        dtype = np.int64 if all(isinstance(v, int | np.integer) for v in (start, stop, step)) else np.float32
    return Tensor(get_backend().xp.arange(start, stop, step, dtype=real_dtype("arange", dtype)), requires_grad)


@explained
def linspace(start: float, stop: float, num: int, dtype: Any = np.float32, *, requires_grad: bool = False) -> Tensor:
    """`num` evenly spaced numbers from start to stop, both included."""
    start, stop = as_operand("linspace", start), as_operand("linspace", stop)
    return Tensor(get_backend().xp.linspace(start, stop, num, dtype=real_dtype("linspace", dtype)), requires_grad)


@explained
def eye(n_rows: int, n_cols: int | None = None, dtype: Any = np.float32, *, requires_grad: bool = False) -> Tensor:
    """1 on the diagonal, 0 elsewhere."""
    return Tensor(get_backend().xp.eye(n_rows, n_cols, dtype=real_dtype("eye", dtype)), requires_grad)


@explained
def uniform(
    shape: Shape, low: float = 0.0, high: float = 1.0, dtype: Any = np.float32, *, requires_grad: bool = False
) -> Tensor:
    """Uniformly distributed in [low, high), from the default generator's initialisation stream: see `manual_seed`."""
    dtype = real_dtype("uniform", dtype)
    return Tensor(_drawn(default_generator.uniform, shape, low, high, dtype), requires_grad)


@explained
def normal(
    shape: Shape, mean: float = 0.0, std: float = 1.0, dtype: Any = np.float32, *, requires_grad: bool = False
) -> Tensor:
    """Normally distributed, from the default generator's initialisation stream: see `manual_seed`."""
    dtype = real_dtype("normal", dtype)
    return Tensor(_drawn(default_generator.normal, shape, mean, std, dtype), requires_grad)


_skipping_init: ContextVar[bool] = ContextVar("_skipping_init", default=False)


@contextmanager
def skip_init() -> Iterator[None]:
    """Inside, `normal` and `uniform` draw nothing: their tensors have a shape, but no memory, and cannot be written.

    For a model whose weights come next, by `load_state_dict(weights, assign=True)`.
    """
    token = _skipping_init.set(True)
    try:
        yield
    finally:
        _skipping_init.reset(token)


def _drawn(draw: Callable[..., Array], shape: Shape, first: float, second: float, dtype: Any) -> Array:
    if _skipping_init.get():
        return np.broadcast_to(np.zeros((), dtype), shape)
    return draw(shape, first, second, dtype, stream=Stream.INIT)
