"""What a device can do besides computing kernels: staging, reading numbers back, recording a graph, communicators."""

import importlib
import math
from collections.abc import Callable
from typing import Any

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.math import Math

Function = Callable[..., tuple[Array, ...]]
Advance = Callable[[int], int]


class BackendUnavailable(RuntimeError):
    """A backend that cannot run here; the message says what is missing and what to do, in one line."""


class Backend(Math):
    """A device: the kernels of `Math`, and how arrays and numbers reach it and come back. Subclasses override both."""

    name = "base"
    array_type: type

    def activate(self) -> None:
        """Called when this backend becomes the current one, and when the number of threads has changed."""

    def lacks(self, what: str) -> str | None:
        """Why this backend cannot compute in a dtype, or has no "tf32" or "cuda_graph", in one line; None if it can."""
        if what == "cuda_graph":
            return f"{self.name} is not on a GPU, where a step could be recorded: leave it out, or choose backend cupy"
        if what == "tf32":
            return f"a format of NVIDIA's tensor cores, and {self.name} is not on a GPU: choose float32"
        if what == "bfloat16":
            try:
                importlib.import_module("ml_dtypes")  # NumPy knows the name from then on
            except ModuleNotFoundError:
                return "NumPy has no such numbers without ml_dtypes: pip install ml_dtypes"
        return None

    def set_float32_precision(self, tf32: bool) -> None:
        """Whether products of float32 may round their operands to TF32; only asked where it is not lacking."""

    def to_numpy(self, x: Array) -> Any:
        """The same numbers as a NumPy array on the host."""
        return x

    def compile_ahead(self) -> None:
        """A training step in float32 is to come: compile what takes long, if there is such, beside what comes first."""

    def communicator(self, group: Any) -> Any:
        """The group of processes that arrays of this backend are exchanged by; group: one that exchanges the host's."""
        return group

    def sum_over(self, group: Any, value: Any) -> Any:
        """The sum over a group of processes of what `number` made."""
        return float(group.gather([value]).sum())

    def numbers(self, values: list[Any]) -> list[float]:
        """What `number` made of many arrays, as Python floats; a GPU is waited for once."""
        return [float(x) for x in values]

    def number(self, x: Array) -> Any:
        """The only element of an array: a Python number, or on a GPU the array itself, so that nobody waits for it."""
        return x.item()

    def stage(self, *arrays: Any) -> tuple[Array, ...]:
        """Host arrays on their way to this backend; valid until `stage` was called twice more."""
        return tuple(self.asarray(x) for x in arrays)

    def record(self, fn: Function, advance: Advance) -> Function:
        """`fn(*arrays)` as a CUDA graph: recorded in one of the first calls and then replayed, without a call of fn.

        All that fn changes from call to call has to lie in arrays. advance(n): count n masks of dropout, and return how
        many had been drawn before. Raises BackendUnavailable where there is no GPU.
        """
        raise BackendUnavailable(f"a CUDA graph: {self.lacks('cuda_graph')}")

    def decide(self, flag: bool | Array) -> bool | Array:
        """A flag that kernels act on: its value, or on a GPU the array itself, so that nobody waits for it."""
        return bool(flag)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """An array of this backend, without a copy where it is one already."""
        return self.xp.asarray(x, dtype=dtype)

    def weak_scalars(self, operands: list[Any]) -> list[Any]:
        """The operands, with Python floats as bfloat16 where all arrays are: NumPy would promote them to float32."""
        dtypes = {x.dtype for x in operands if hasattr(x, "dtype") and x.dtype != bool}
        if len(dtypes) != 1 or (dtype := dtypes.pop()).name != "bfloat16":
            return operands
        return [self.xp.asarray(x, dtype) if type(x) is float else x for x in operands]

    def check_indices(self, name: str, indices: Array, n: int, lowest: int | None = None) -> None:
        """Raise IndexError where an index is outside [lowest, n); lowest None is -n, counted from the end."""
        if indices.size and (int(indices.min()) < (-n if lowest is None else lowest) or int(indices.max()) >= n):
            worst = int(indices.max()) if int(indices.max()) >= n else int(indices.min())
            raise IndexError(f"{name}: index {worst} is out of range for {n} entries")

    def adamw_group(
        self, ps: list[Array], gs: list[Array], ms: list[Array], vs: list[Array], masters: list[Array | None], *,
        skip: bool | Array, **options: Any,
    ) -> None:  # fmt: skip
        """`adamw`, with its options, on all parameters of a group, unless `skip` is true.

        Where a parameter has a master, of float32, that is what is updated, and the parameter its rounding.
        """
        if skip:
            return
        numbers = {name: x.item() if hasattr(x, "item") else x for name, x in options.items()}
        for p, g, m, v, master in zip(ps, gs, ms, vs, masters, strict=True):
            self.adamw(p if master is None else master, g, m, v, **numbers)
            if master is not None:
                p[...] = master

    def clip_norm(self, arrays: list[Array], max_norm: float) -> Any:
        """Scale all arrays down together until their norm is at most max_norm; returns what it was, a number.

        A norm that is not finite scales nothing.
        """
        norm = self.global_norm(arrays)
        if math.isfinite(norm) and norm > max_norm:
            self.scale(arrays, max_norm / (norm + 1e-6))  # PyTorch's guard, kept so that results agree
        return norm

