"""Which numbers of a program are wrong: its results and gradients against PyTorch's, statement by statement.

PyTorch computes every statement twice, in the same dtype and in float64, from the operands and the gradient of the
result that the program had there. An element is right if it equals either of the two, with the tolerance of the table
by dtype: a result of PyTorch that is less exact than ours is no error of ours. So errors of earlier statements do not
add up, and what the tape adds up is checked as well.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch
from op_calls import Ref
from torch_calls import Reference

from tensorgrad import Tensor
from tensorgrad.backend.arrays import is_floating, is_half
from tensorgrad.gradcheck.cases import cases
from tensorgrad.gradcheck.precision import MIN_SHARE, TOLERANCE

if TYPE_CHECKING:
    from programs import Program, Statement

INEXACT_INTEGERS = 1e-5  # the tolerance where integers become floating
# How much less exact than the table a result may be, where PyTorch is not exact either: a multiple of PyTorch's error,
# up to a multiple of the tolerance.
SLACK, MOST_SLACK = 4, 30

compared: collections.Counter[str] = collections.Counter()  # statements, by whether or why not they were compared


@dataclass
class Failure:
    """What is wrong (raised, refused, result or gradient), at which statement, and how."""

    kind: str
    where: int
    text: str


def host(value: Any) -> Any:
    """The array of a tensor."""
    return value.data if isinstance(value, Tensor) else value


def requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def operands_of(statement: Statement, values: dict[int, Any]) -> list[Any]:
    return [values[x.number] if isinstance(x, Ref) else x for x in statement.call.operands]


def reference(statement: Statement, values: dict[int, Any], wide: bool) -> Reference | None:
    """PyTorch's computation of a statement; None where it refuses. wide: in float64."""
    operands = operands_of(statement, values)
    needs, arrays = [requires_grad(x) for x in operands], [*map(host, operands)]
    dtypes = {x.dtype for x in arrays if hasattr(x, "dtype") and is_floating(x.dtype)}
    try:
        return Reference(torch, statement.call.op, arrays, statement.call.options, needs, wide)
    except RuntimeError:
        if wide or len(dtypes) < 2:
            return None
    except (TypeError, ValueError, IndexError, NotImplementedError, ZeroDivisionError):
        return None
    coarsest = max(dtypes, key=lambda dtype: TOLERANCE[dtype.name])  # PyTorch does not mix them here
    arrays = [x.astype(coarsest) if hasattr(x, "dtype") and x.dtype in dtypes else x for x in arrays]
    try:
        return Reference(torch, statement.call.op, arrays, statement.call.options, needs, wide)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, ZeroDivisionError):
        return None


# --- where PyTorch is no measure --------------------------------------------------------------------

SUMS = ("sum", "mean", "cumulative_sum", "matmul", "linear", "outer", "tensordot", "einsum", "index_add")
PIECEWISE = ("max", "min", "std", "abs", "relu", "leaky_relu", "minimum", "maximum", "clip", "pow")
NORMS = ("var", "std", "layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")
PRODUCTS = (*NORMS, "linear_cross_entropy", "mlp", "attention", "mse_loss")


def differs(op: str, inputs: list[Any], outputs: list[Any]) -> tuple[str, str] | None:
    """What is not compared and why: "result" and its gradients, or "gradient" alone; None: everything is."""
    floats = [x for x in map(np.asarray, map(host, inputs)) if is_floating(x.dtype)]
    dys = [np.asarray(y.grad) for y in outputs if requires_grad(y) and y.grad is not None]
    has_nan = any(np.isnan(x).any() for x in floats)
    finite = all(np.isfinite(x).all() for x in (*floats, *dys))
    if op == "sign" and has_nan:
        return "result", "sign(nan) is nan in NumPy and in the array API standard, 0 in PyTorch"
    if op == "attention" and not all(np.isfinite(x).all() for x in floats):
        return "result", "attention: a row without a finite score is 0 here, as one without keys"
    if op in SUMS and not finite and any((x == 0).any() for x in (*floats, *dys)):
        return "result", "sums: 0 times infinity is 0 in a BLAS"
    if op in PRODUCTS and any(exceeds_squares(x) for x in floats):
        return "result", "products overflow, in the order that they are computed in"
    if op in NORMS and any(is_far_from_zero(x) for x in floats):
        return "result", "norms: the spread of a row is below the rounding of its mean"
    if op in SUMS and not finite:
        return "gradient", "sums: infinities are added before they are multiplied, or after"
    rounding = max((8 * float(finfo(x.dtype).eps) * np.abs(x).max(initial=0) for x in floats), default=0.0)
    if op == "std" and any((host(y) < rounding).any() for y in outputs):
        return "gradient", "norms: the spread of a row is below the rounding of its mean"
    if op in PIECEWISE and (has_nan or not finite):
        return "gradient", "piecewise: which piece has nan, and 0 times infinity, which PyTorch sets to 0"
    if op == "pow" and any((np.signbit(x) & (x == 0)).any() for x in floats):
        return "gradient", "pow: the sign of infinity at -0, in PyTorch that of 1 / sqrt(-0)"
    if op in (*PRODUCTS, "prod", "swiglu", "binary_cross_entropy_with_logits") and not finite:
        return "gradient", "products: infinity minus or over infinity, where PyTorch takes other terms together"
    squared = (*PRODUCTS, "reciprocal", "divide", "pow", "prod", "swiglu")
    if op in squared and any(exceeds_squares(x) for x in (*floats, *dys)):
        return "gradient", "products overflow, in the order that they are computed in"
    if op == "logsumexp" and any((np.abs(x[np.isfinite(x)]) * finfo(x.dtype).eps > 1).any() for x in floats):
        return "gradient", "logsumexp: from its rounded result, PyTorch gets 1 for each of several equal maxima"
    return None


def exceeds_squares(x: Any) -> bool:
    wide = np.abs(x.astype(np.float64))
    return bool((wide[np.isfinite(wide)] > float(finfo(x.dtype).max) ** 0.5 / 64).any())


def is_far_from_zero(x: Any) -> bool:
    wide = x.astype(np.float64)
    eps = min(float(finfo(x.dtype).eps), float(np.finfo(np.float32).eps))  # half precision is computed in float32
    return bool(np.abs(wide[np.isfinite(wide)]).max(initial=0) * eps * 1e4 > 1)


# --- a whole program --------------------------------------------------------------------------------


@dataclass
class Expected:
    """The parts of a gradient, by each of the two computations (None: it refuses), and their terms' magnitudes."""

    narrow: list[Any] | None = field(default_factory=list)
    wide: list[Any] | None = field(default_factory=list)
    sizes: list[Any] = field(default_factory=list)


def first_wrong(program: Program, values: dict[int, Any]) -> Failure | None:
    """The first result or gradient that is wrong."""
    expected = {i: Expected([dy], [dy]) for i, dy in program.gradients.items()}
    for where, statement in enumerate(program.statements):
        inputs, outputs = operands_of(statement, values), [values[i] for i in statement.outputs]
        what, reason = differs(statement.call.op, inputs, outputs) or ("", "compared")
        compared[reason] += 1
        references = [None if what == "result" else reference(statement, values, wide) for wide in (False, True)]
        wrong = wrong_result(statement, inputs, outputs, [r for r in references if r])
        if wrong:
            return Failure("result", where, wrong)
        add_gradients(statement, outputs, [None, None] if what else references, expected)
    for i, parts in expected.items():
        wrong = wrong_gradient(program, values, i, parts)
        if wrong:
            where = max(j for j, s in enumerate(program.statements) if i in (*s.inputs, *s.outputs))
            return Failure("gradient", where, f"gradient of v{i}: {wrong}")
    return None


def wrong_result(statement: Statement, inputs: list[Any], outputs: list[Any], found: list[Reference]) -> str | None:
    for j, y in enumerate(outputs if found else []):
        size = size_of_terms(statement, inputs, found[-1], j)
        arrays = [r.outputs[j] for r in found if r.outputs[j].shape == y.shape]
        if not arrays:
            return f"result {j} has shape {y.shape}, PyTorch's {found[0].outputs[j].shape}"
        wrong = wrong_dtype(statement, inputs, y, found[0].outputs[j])
        wrong = wrong or compare(host(y), arrays, tolerance_of([*inputs, y]), size)
        if wrong:
            return f"result {j}: {wrong}"
    return None


def size_of_terms(statement: Statement, inputs: list[Any], wide: Reference, j: int) -> Any:
    """What the rounding of a sum is relative to: the sum of its terms' magnitudes; of a spread, the rounded mean's."""
    if statement.call.op in SUMS and wide.wide:
        return wide.of_magnitudes().outputs[j]
    if statement.call.op not in ("var", "std") or not is_floating(inputs[0].dtype):
        return 0.0
    x = np.asarray(host(inputs[0])).astype(np.float64)
    rounding = float(finfo(inputs[0].dtype).eps) * np.abs(x[np.isfinite(x)]).max(initial=0)
    return rounding ** (2 if statement.call.op == "var" else 1) / tolerance_of(inputs)


def wrong_dtype(statement: Statement, inputs: list[Any], y: Any, theirs: Any) -> str | None:
    """Whether a result is floating where PyTorch's is, and of the operands' dtype where they have one."""
    if is_floating(y.dtype) != is_floating(theirs.dtype) or (y.dtype == bool) != (theirs.dtype == bool):
        return f"{y.dtype}, where PyTorch's is of kind {theirs.dtype.kind}"
    dtypes = {host(x).dtype for x in inputs if hasattr(host(x), "dtype")}
    if not is_floating(y.dtype) or len(dtypes) != 1 or not is_floating(dtype := dtypes.pop()):
        return None
    is_loss = cases[statement.call.op].loss and is_half(dtype)
    right = statement.call.options.get("dtype", "float32" if is_loss else dtype.name)
    return None if y.dtype.name == right else f"{y.dtype}, not {right}"


def add_gradients(
    statement: Statement, outputs: list[Any], references: list[Reference | None], expected: dict[int, Expected]
) -> None:
    """Add what a statement sends to its operands, by both computations."""
    dys = [np.asarray(y.grad) if requires_grad(y) and y.grad is not None else None for y in outputs]
    if all(dy is None for dy in dys):
        return
    operands = statement.call.operands
    for side, r in zip(("narrow", "wide"), references, strict=True):
        for x, dx in zip(operands, r.pull(dys) if r else [None] * len(operands), strict=True):
            if isinstance(x, Ref) and (dx is not None or r is None):
                parts = expected.setdefault(x.number, Expected())
                before = getattr(parts, side)
                setattr(parts, side, None if r is None or before is None else [*before, dx])
    if references[1] and statement.call.op in SUMS:
        sizes = references[1].of_magnitudes().pull([dy if dy is None else np.abs(dy) for dy in dys])
        for x, dx in zip(operands, sizes, strict=True):
            if isinstance(x, Ref) and dx is not None:
                expected[x.number].sizes.append(dx)


def wrong_gradient(program: Program, values: dict[int, Any], i: int, parts: Expected) -> str | None:
    value = values[i]
    totals = [[np.asarray(part).astype(np.float64) for part in side] for side in (parts.narrow, parts.wide) if side]
    if not requires_grad(value) or not totals:
        return None
    if value.grad is None:
        return "none arrived"
    if value.grad.shape != value.shape or value.grad.dtype != value.dtype:
        return f"{value.grad.dtype}{value.grad.shape} for a value {value.dtype}{value.shape}"
    used = [s for s in program.statements if i in s.inputs]
    around = [value, *(values[j] for s in used for j in (*s.inputs, *s.outputs))]
    dys = [values[j].grad for s in used for j in s.outputs if requires_grad(values[j]) and values[j].grad is not None]
    size: Any = max(root_mean_square(part) for side in totals for part in side)
    size = max([size, *(MIN_SHARE * root_mean_square(dy) for dy in dys)])
    size = np.maximum(size, sum(parts.sizes)) if parts.sizes else size
    return compare(value.grad, [sum(side) for side in totals], tolerance_of(around), size)


# --- numbers ----------------------------------------------------------------------------------------


def tolerance_of(values: list[Any]) -> float:
    """The table's entry of the coarsest floating dtype."""
    dtypes = {host(x).dtype for x in values if hasattr(host(x), "dtype")}
    return max((TOLERANCE[dtype.name] for dtype in dtypes if is_floating(dtype)), default=INEXACT_INTEGERS)


def root_mean_square(x: Any) -> float:
    x = np.asarray(x).astype(np.float64)
    finite = np.abs(x[np.isfinite(x)])
    largest = finite.max(initial=0.0)
    return float(largest * np.sqrt(np.mean((finite / largest) ** 2))) if largest > 0 else 0.0


def compare(got: Any, expected: list[Any], tolerance: float, size: Any) -> str | None:
    """Where an array equals none of those expected; None where every element equals that of one.

    Errors are relative to the element or, where that is smaller, to the root mean square of all, or to `size`.
    """
    if not got.size:
        return None
    if got.dtype.kind in "biu":
        good = np.logical_or.reduce([got == b for b in expected])
    else:
        good = np.logical_or.reduce([is_close(got, b, tolerance, size, error_of(expected)) for b in expected])
    if good.all():
        return None
    at = np.unravel_index(np.argmin(good), good.shape)
    others = " and ".join(repr(float(b[at])) for b in expected)
    return f"at {tuple(map(int, at))} ours is {float(got[at])!r}, PyTorch's {others}"


def error_of(expected: list[Any]) -> float:
    """The largest error of PyTorch's result in the dtype, if there are both."""
    if len(expected) < 2:
        return 0.0
    errors = np.abs(expected[0] - expected[1])
    return float(errors[np.isfinite(errors)].max(initial=0.0))


def is_close(got: Any, b: Any, tolerance: float, size: Any, error: float) -> Any:
    """For each element, whether it is the expected one; a number beyond the dtype's range is infinite."""
    limits, a = finfo(got.dtype), got.astype(np.float64)
    largest = float(limits.max)
    b = np.where(np.abs(b) > largest * (1 + tolerance), np.copysign(np.inf, b), b)
    allowed = tolerance * np.maximum(np.maximum(np.abs(b), root_mean_square(b)), size)
    allowed = allowed + np.minimum(SLACK * error, MOST_SLACK * allowed) + float(limits.tiny)
    near = np.isfinite(b) & (np.abs(a - b) <= allowed)
    at_the_end = (np.isinf(a) | np.isinf(b)) & (np.sign(a) == np.sign(b))
    at_the_end &= np.minimum(np.abs(a), np.abs(b)) >= largest * (1 - tolerance)
    return near | at_the_end | (a == b) | (np.isnan(a) & np.isnan(b))


def finfo(dtype: Any) -> Any:
    return ml_dtypes.finfo(dtype)
