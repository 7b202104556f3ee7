"""Check an op in any precision on any backend against the plain mathematics in float64 on NumPy."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorgrad.backend import Array, Backend, load, use_backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.gradcheck import GradcheckError, audit
from tensorgrad.gradcheck.cases import Case, Example
from tensorgrad.gradcheck.differences import Difference, index_text, relative_error
from tensorgrad.gradcheck.probe import Probe
from tensorgrad.random import Generator, default_generator
from tensorgrad.tensor import Tensor

# The largest relative error that is allowed. float64 is compared with finite differences, which are accurate to 1e-9 or
# so; the others with float64 from the same rounded inputs, half precision to 8 units in the last place.
TOLERANCE = {"float64": 1e-7, "float32": 1e-5, "float16": 8e-3, "bfloat16": 6.4e-2}

HALVES = ("float16", "bfloat16")
# The same for a fused op and its composition in float64, which only add in another order.
COMPOSITION_TOLERANCE = 1e-11
MIN_SHARE = 0.25  # of dy, that the error of a gradient is relative to at least: terms that cancel leave their rounding


def compare(case: Case, example: Example, dtype: str, k: Backend) -> Difference:
    """Compare results and gradients of an op in `dtype` on a backend; return the largest error and where it is.

    Raises GradcheckError for a result of the wrong shape or dtype, or one that requires a gradient and should not.
    """
    return (_against_float64 if case.gradient else _against_numpy)(case, example, dtype, k)


def _against_numpy(case: Case, example: Example, dtype: str, k: Backend) -> Difference:
    assert case.numpy is not None
    y = example.run(case.op, *example.tensors(k, dtype))
    expected = np.asarray(example.run(case.numpy, *example.arrays(dtype)))
    if y.requires_grad:
        raise GradcheckError(f"{case.name}: the result requires a gradient, though the op has none")
    _check_dtype(case, y.dtype, np.dtype(dtype) if is_floating(expected.dtype) else expected.dtype)
    return largest_difference("result", [k.to_numpy(y.data)], [expected], 0.0)


def _against_float64(case: Case, example: Example, dtype: str, k: Backend) -> Difference:
    state = default_generator.state_dict()
    call = functools.partial(example.run, case.op)
    with use_backend("numpy"):
        exact = Probe(call, _widened(example, dtype)).record()
    default_generator.load_state_dict(state)
    probe = Probe(call, example.tensors(k, dtype))
    recorded = probe.record()
    recorded.observer = audit.Audit(k)
    for i, y in enumerate(recorded.outputs):
        is_loss = case.loss and i == len(recorded.outputs) - 1 and dtype in HALVES
        _check_dtype(case, y.dtype, np.dtype("float32" if is_loss else example.options.get("dtype", dtype)))
    generator = Generator(1)
    dys = [probe.k.asarray(generator.normal(y.shape, dtype=y.dtype)) for y in recorded.outputs]
    host = [k.to_numpy(dy).astype(np.float64) for dy in dys]
    with use_backend("numpy"):
        expected = exact.pull(host)
    got = recorded.pull(dys)
    for place, dx in zip(probe.places, got, strict=True):
        if dx.dtype != np.dtype(dtype):
            raise GradcheckError(f"{case.name}: the gradient of input {place} is {dx.dtype}, not {dtype}")
    forward = largest_difference("result", recorded.arrays, exact.arrays, 0.0)
    backward = largest_difference("gradient of input", got, expected, MIN_SHARE * root_mean_square(host), probe.places)
    return max(forward, backward, key=lambda difference: difference.error)


def compare_composition(case: Case, example: Example, k: Backend) -> Difference:
    """Compare results and gradients of a fused op with those of `op.composition`, the plain ops that it stands for.

    Both draw the same random numbers. An op without a composition passes. Raises GradcheckError where they differ.
    """
    composition = getattr(case.op, "composition", None)
    if composition is None:
        return Difference(0.0)
    tensors = example.tensors(k, "float64")
    probes = [Probe(functools.partial(example.run, fn), tensors) for fn in (case.op, composition)]
    fused, plain = (probe.record() for probe in probes)
    results = [[(y.shape, y.dtype.name) for y in recorded.outputs] for recorded in (fused, plain)]
    if results[0] != results[1]:
        raise GradcheckError(f"{case.name}: the results are {results[0]}, its composition's {results[1]}")
    host = [Generator(1).normal(y.shape, dtype=y.dtype) for y in fused.outputs]
    dys = [k.asarray(dy) for dy in host]
    size = MIN_SHARE * root_mean_square(host)
    worst = max(
        largest_difference("result", fused.arrays, plain.arrays, 0.0),
        largest_difference("gradient of input", fused.pull(dys), plain.pull(dys), size, probes[0].places),
        key=lambda difference: difference.error,
    )
    if worst.error > COMPOSITION_TOLERANCE:
        raise GradcheckError(f"{case.name} differs from its composition: {worst.describe('composition', 'fused')}")
    return worst


def _widened(example: Example, dtype: str) -> list[Any]:
    """The inputs of an example rounded to a dtype, then as float64 on NumPy."""
    return [
        Tensor(x.data.astype(np.float64), x.requires_grad) if isinstance(x, Tensor) and is_floating(x.dtype) else x
        for x in example.tensors(load("numpy"), dtype)
    ]


def _check_dtype(case: Case, got: Any, expected: Any) -> None:
    if got != expected:
        raise GradcheckError(f"{case.name}: the result is {got}, not {expected}")


def largest_difference(
    what: str, got: list[Array], expected: list[Array], size: float, names: Sequence[int] | None = None
) -> Difference:
    """The largest error, relative to the element or, where that is smaller, to the root mean square of all."""
    worst = Difference(0.0)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a.shape != b.shape:
            raise GradcheckError(f"{what} {i} has shape {a.shape}, not {b.shape}")
        if not a.size:
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        a = np.where(np.isnan(a) & np.isnan(b), 0, a)  # NaN where NaN is expected
        b = np.where(np.isnan(b), 0, b)
        errors = relative_error(a, b, max(size, root_mean_square([b])))
        at = np.unravel_index(np.argmax(errors), errors.shape)
        if errors[at] > worst.error:
            where = f"{what} {names[i] if names else i} {index_text(at)}".strip()
            worst = Difference(float(errors[at]), where, float(a[at]), float(b[at]))
    return worst


def root_mean_square(arrays: list[Array]) -> float:
    values = np.concatenate([x.reshape(-1) for x in arrays])
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(finite * finite))) if finite.size else 0.0
