"""What a device can do besides computing kernels: staging, reading numbers back, recording a graph, communicators."""

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.decoder import DecoderMath
from tensorgrad.backend.mlp import MLPMath

Function = Callable[..., tuple[Array, ...]]
Advance = Callable[[int], int]


class BackendUnavailable(RuntimeError):
    """A backend that cannot run here; the message says what is missing and what to do, in one line."""


class Backend(DecoderMath, MLPMath):
    """A device: the kernels of `Math`, and the transfer of arrays and numbers. Subclasses override both."""

    name = "base"
    array_type: type

    def activate(self) -> None:
        """Called when this backend becomes the current one, and when the number of threads changes."""

    def lacks(self, what: str) -> str | None:
        """Why a dtype, "tf32" or "cuda_graph" is not supported, in one line; None if it is."""
        if what == "cuda_graph":
            return f"{self.name} is not on a GPU, where a step could be recorded: give --no-cuda-graph, or backend cupy"
        if what == "tf32":
            return f"a format of NVIDIA's tensor cores, and {self.name} is not on a GPU: choose float32"
        if what == "bfloat16":
            try:
                importlib.import_module("ml_dtypes")  # NumPy knows the name from then on
            except ModuleNotFoundError:
                return "NumPy has no such numbers without ml_dtypes: pip install ml_dtypes"
        return None

    def set_float32_precision(self, tf32: bool) -> None:
        """Set whether float32 products may round their operands to TF32. Called only where `lacks("tf32")` is None."""

    def to_numpy(self, x: Array) -> Any:
        """The same numbers as a NumPy array on the host."""
        return x

    def compile_ahead(self, kernels: Sequence[str]) -> Any:
        """Start to compile kernels for float32, by their names, in other processes: what waits for them, or None."""

    def numpy_products(self) -> Iterable[str]:
        """The kinds of large matrix products that are left to NumPy's library, which computes them faster here.

        A choice between two libraries: results depend on it in their last digits. Measured at the first call.
        """
        return ()

    def leave_products(self, kinds: Iterable[str] | None) -> None:
        """Leave the products of these kinds to NumPy's library and no others; None: measure. TENSORGRAD_PRODUCTS wins.

        Raises ValueError where that variable has neither of its values, numba and numpy.
        """

    def communicator(self, group: Any) -> Any:
        """The process group that exchanges arrays of this backend; group: the one that exchanges host arrays."""
        return group

    def sum_over(self, group: Any, value: Any) -> Any:
        """The sum over a process group of a value that `number` returned."""
        return float(group.gather([value]).sum())

    def numbers(self, values: list[Any]) -> list[float]:
        """Values that `number` returned, as Python floats; waits for a GPU once."""
        return [float(x) for x in values]

    def number(self, x: Array) -> Any:
        """The only element of an array: a Python number, or on a GPU the array itself, to avoid synchronisation."""
        return x.item()

    def stage(self, *arrays: Any) -> tuple[Array, ...]:
        """Copy host arrays to this backend; the results are valid until `stage` has been called twice more."""
        return tuple(self.asarray(x) for x in arrays)

    def record(self, fn: Function, advance: Advance, tune: bool = False) -> Function:
        """`fn(*arrays)` as a CUDA graph: recorded in one of the first calls and then replayed, without calling fn.

        State that fn changes from call to call has to be in arrays. advance(n): count n dropout masks, and return how
        many were drawn before. tune: before the recording, time several algorithms for every product, and keep the
        fastest on disk: the results depend on which it is, in their last digits. Raises BackendUnavailable where there
        is no GPU.
        """
        raise BackendUnavailable(f"a CUDA graph: {self.lacks('cuda_graph')}")

    def decide(self, flag: bool | Array) -> bool | Array:
        """A flag for kernels: its value, or on a GPU the array itself, to avoid synchronisation."""
        return bool(flag)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """An array of this backend; x itself where it is one already."""
        return self.xp.asarray(x, dtype=dtype)

    def weak_scalars(self, operands: list[Any]) -> list[Any]:
        """The operands, with Python floats as bfloat16 if all arrays are bfloat16: NumPy would promote to float32."""
        dtypes = {x.dtype for x in operands if hasattr(x, "dtype") and x.dtype != bool}
        if len(dtypes) != 1 or (dtype := dtypes.pop()).name != "bfloat16":
            return operands
        return [self.asarray(x, dtype) if type(x) is float else x for x in operands]

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

        A parameter in half precision has a float32 master copy, which is updated and then rounded to the parameter.
        """
        if skip:
            return
        numbers = {name: x.item() if hasattr(x, "item") else x for name, x in options.items()}
        for p, g, m, v, master in zip(ps, gs, ms, vs, masters, strict=True):
            self.adamw(p if master is None else master, g, m, v, **numbers)
            if master is not None:
                p[...] = master

    def global_norm(self, arrays: list[Array]) -> float:
        """The Euclidean norm of all elements of all arrays together."""
        total = 0.0
        for x in arrays:
            flat = self.wide(x).reshape(-1)
            total += float(self.xp.vdot(flat, flat))
        return self.root(total, arrays)

    def root(self, squares: float, arrays: list[Array]) -> float:
        """The root of a sum of squares; of squares out of range, the norm of elements divided by the largest one."""
        if 1e-30 < squares < math.inf or math.isnan(squares):
            return math.sqrt(squares)
        largest = max((float(abs(self.wide(x)).max()) for x in arrays if x.size), default=0.0)
        if not 0 < largest < math.inf:
            return largest
        flat = (self.wide(x).reshape(-1) / largest for x in arrays)
        return largest * math.sqrt(sum(float(self.xp.vdot(x, x)) for x in flat))

    def norm_and_factor(self, arrays: list[Array], max_norm: float) -> tuple[Any, Any]:
        """The norm of all arrays, and what makes it max_norm: 1 if it is not larger, or not finite."""
        norm = self.global_norm(arrays)
        return norm, max_norm / (norm + 1e-6) if max_norm < norm < math.inf else 1.0  # PyTorch's guard: results agree

    def clip_norm(self, arrays: list[Array], max_norm: float) -> Any:
        """Multiply all arrays by that factor; returns the norm before."""
        norm, factor = self.norm_and_factor(arrays, max_norm)
        if factor != 1:
            self.scale(arrays, factor)
        return norm
