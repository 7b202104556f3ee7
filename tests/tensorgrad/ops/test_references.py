"""Random calls of every op: results against NumPy's, results and gradients against PyTorch's."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_table import Row, generators, lay_out

from tensorgrad import Tensor, ops
from tensorgrad.gradcheck.cases import Case, Example
from tensorgrad.gradcheck.cases.inputs import randn

pytestmark = pytest.mark.usefixtures("numpy_backend")
drawn = settings(max_examples=20, deadline=None, derandomize=True)
TOLERANCE = {"float64": 1e-9, "float32": 2e-4}


def results(y: Any) -> list[Any]:
    return list(y) if isinstance(y, list | tuple) else [y]


def backward(outputs: list[Any], dys: list[Any]) -> None:
    """Send one gradient into each result at once."""
    recorded = [(y, dy) for y, dy in zip(outputs, dys, strict=True) if y.requires_grad]
    if len(recorded) == 1:
        recorded[0][0].backward(recorded[0][1])
    elif recorded:
        total = sum((y * Tensor(dy)).sum() for y, dy in recorded)
        total.backward()


def assert_close(got: Any, expected: Any, tolerance: float) -> None:
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@drawn
@given(data=st.data())
def test_forward_equals_numpys(row: Row, data: Any) -> None:
    call = data.draw(row.calls)
    got = results(row.run(*call.tensors(), **call.options))
    expected = results(row.numpy(*call.arrays(), **call.options))
    for y, reference in zip(got, expected, strict=True):
        assert_close(y.numpy(), np.asarray(reference), 1e-6 if y.dtype == np.float32 else 1e-12)


@drawn
@given(dtype=st.sampled_from(["float64", "float32"]), data=st.data())
def test_forward_and_gradients_equal_pytorchs(row: Row, torch: Any, dtype: str, data: Any) -> None:
    call, rng = data.draw(row.calls), data.draw(generators())
    layout = data.draw(st.sampled_from(["plain", "reversed", "stretched"]))
    ours = call.tensors(dtype)
    theirs = [torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x for x in call.arrays(dtype)]
    differentiable = [i for i, x in enumerate(ours) if isinstance(x, Tensor) and x.requires_grad]
    for i in differentiable:
        theirs[i].requires_grad_()
    got = results(row.run(*ours, **call.options))
    expected = results(row.torch(torch, *theirs, **call.options))
    for y, reference in zip(got, expected, strict=True):
        assert str(y.dtype) == str(reference.dtype).removeprefix("torch.")
        assert_close(y.numpy(), reference.detach().numpy(), TOLERANCE[dtype])
    dys = [lay_out(layout, rng.standard_normal(y.shape).astype(y.dtype)) for y in got]
    backward(got, dys)
    torch.autograd.backward(expected, [torch.from_numpy(np.array(dy)) for dy in dys])
    for i in differentiable:
        gradient = ours[i].grad
        assert gradient.dtype == dtype
        assert_close(gradient, theirs[i].grad.numpy(), TOLERANCE[dtype])


@drawn
@given(data=st.data())
def test_an_op_without_a_gradient_equals_numpys(row_without_gradient: Row, data: Any) -> None:
    row, call = row_without_gradient, data.draw(row_without_gradient.calls)
    expected = np.asarray(row.numpy(*call.arrays(), **call.options))
    first, *rest = call.tensors()
    arrays = [x.data if isinstance(x, Tensor) and isinstance(first, Tensor) else x for x in rest]
    for operands in ([first, *rest], [first, *arrays]):
        y = row.run(*operands, **call.options)
        assert not y.requires_grad and y.dtype == expected.dtype and y.shape == expected.shape
        np.testing.assert_array_equal(y.numpy(), expected)


@drawn
@given(data=st.data())
def test_an_op_without_a_strategy_is_called_as_in_its_examples(data: Any) -> None:
    examples = [Example("", randn(2, 3), axis=0), Example("", randn(3), call=lambda op, x: op(x + x))]
    row = Row(Case(ops.softmax, examples))
    call = data.draw(row.calls)
    (x,) = call.arrays()
    np.testing.assert_array_equal(x, examples[0].inputs[0])
    assert call.options == {"axis": 0} and call.tensors("float32")[0].requires_grad
    assert_close(row.run(*call.tensors(), **call.options).numpy(), row.numpy(x, axis=0), 1e-12)
