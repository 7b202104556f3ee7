"""Ops in every dtype against float64, ops without a gradient against NumPy, fused ops against their compositions."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from broken_ops import cube

import tensorgrad as tg
from tensorgrad.autograd import op
from tensorgrad.gradcheck.cases import Case, Example
from tensorgrad.gradcheck.cases.case import Frozen
from tensorgrad.gradcheck.cases.inputs import randn
from tensorgrad.gradcheck.precision import TOLERANCE
from tensorgrad.gradcheck.run import check
from tensorgrad.ops.dropout import draw


def failure(op: Callable[..., Any], *inputs: Any, dtype: str = "float32", loss: bool = False, **options: Any) -> str:
    example = Example("", *inputs, **options)
    return check(Case(op, [example], loss=loss), example, dtype, tg.get_backend()).failure


def test_an_op_that_leaves_its_precision_is_caught() -> None:
    @op
    def widened(k: Any, x: Any) -> Any:
        return x.astype(np.float64), lambda dy: dy

    @op
    def widened_backward(k: Any, x: Any) -> Any:
        return x * 2, lambda dy: dy.astype(np.float64) * 2

    @op
    def roughened(k: Any, x: Any) -> Any:
        return x + 1000 - 1000, lambda dy: dy

    assert failure(widened, randn(3)) == "widened: the result is float64, not float32"
    assert "the gradient of operand 0 is float64" in failure(widened_backward, randn(3))
    rough = failure(roughened, np.full(3, 0.1))
    assert re.match(r"result 0 \[0\]: expected 0.1\d*, got 0.09\d*, relative error .* > 1e-05", rough)
    assert failure(roughened, randn(3), dtype="float64") == ""


def test_a_dtype_that_is_an_option_and_that_of_a_loss_are_right() -> None:
    example = Example("", randn(3), dtype=np.float64)
    assert check(Case(tg.astype, [example]), example, "float32", tg.get_backend()).failure == ""
    assert failure(tg.cross_entropy, randn(3), np.array(0), dtype="float16", loss=True) == ""
    assert "float32, not float16" in failure(tg.cross_entropy, randn(3), np.array(0), dtype="float16")


def test_a_result_that_numpy_disagrees_with_is_caught() -> None:
    def failure(op: Callable[..., Any], numpy: Callable[..., Any], *inputs: Any) -> str:
        example = Example("", *inputs)
        return check(Case(op, [example], gradient=False, numpy=numpy), example, "float32", tg.get_backend()).failure

    x = randn(3)
    assert failure(tg.less, np.less, x, x) == ""
    assert failure(tg.less, np.less_equal, x, x).startswith("result 0 [0]: expected 1, got 0")
    assert failure(tg.argsort, lambda a: np.argsort(-a), x).startswith("result 0 [")
    assert failure(tg.argmax, lambda a: np.float64(0), x) == "argmax: the result is int64, not float32"
    assert failure(tg.isfinite, lambda a: np.ones(3, np.float32), x) == "isfinite: the result is bool, not float32"
    assert "has shape (3,), not (3, 1)" in failure(tg.isfinite, lambda a: np.isfinite(a)[:, None], x)
    assert failure(tg.exp, np.exp, x) == "exp: the result requires a gradient, though the op has none"


def test_what_an_example_raises_or_warns_of_is_a_failure_in_its_row() -> None:
    misfit = Example("misfit", randn(2, 3), randn(2, 3))
    row = check(Case(tg.matmul, [misfit]), misfit, "float64", tg.get_backend())
    assert row.error == np.inf and row.failure.startswith("ValueError: matmul: (2, 3) @ (2, 3)")
    assert failure(tg.log, np.array([0.0])).startswith("RuntimeWarning: divide by zero")
    assert failure(cube(lambda x, y, dy: 2 * dy), randn(2), dtype="float64").startswith("input 0 [")


# --- a fused op and the composition that it stands for ---------------------------------------------


def fused(composition: Callable[..., Any]) -> Callable[..., Any]:
    """2 x + dropout(y), fused, with that composition."""

    @op
    def mixed(k: Any, x: Any, y: Any, *, p: float = 0.5) -> Any:
        mask = draw("mixed", p)
        return k.add(2 * x, k.dropout(y, mask)), (lambda dy: 2 * dy, lambda dy: k.dropout(dy, mask))

    mixed.composition = composition  # type: ignore[attr-defined]
    return mixed


def plain(x: Any, y: Any, *, p: float = 0.5) -> Any:
    return 2 * x + tg.dropout(y, p=p)


def test_an_op_that_equals_its_composition_passes_with_the_same_random_numbers() -> None:
    assert failure(fused(plain), randn(3, 4), randn(3, 4), dtype="float64") == ""
    assert failure(fused(plain), randn(3, 4), Frozen(randn(3, 4)), dtype="float64", p=0.2) == ""


@pytest.mark.parametrize(
    ("composition", "message"),
    [
        (lambda x, y, p: plain(x, y, p=p) + 1e-9, r"differs from its composition: result 0 \["),
        (lambda x, y, p: plain(x, y, p=p / 2), "differs from its composition: "),
        (lambda x, y, p: plain(x.detach(), y, p=p) + 0 * x, "differs from its composition: gradient of input 0 "),
        (lambda x, y, p: plain(x, y, p=p) + y - y.detach(), "differs from its composition: gradient of input 1 "),
        (lambda x, y, p: plain(x, y, p=p).sum(), r"the results are .*3, 4.*'float64'.*, its composition's .*\(\), "),
        (lambda x, y, p: [plain(x, y, p=p)] * 2, "the results are "),
    ],
    ids=["value", "random numbers", "no gradient of x", "gradient of y", "shape", "number of results"],
)
def test_a_wrong_composition_is_caught(composition: Callable[..., Any], message: str) -> None:
    options = {"p": 0.5, "dtype": "float64"}
    assert re.match(f"mixed:? {message}", failure(fused(composition), randn(3, 4), randn(3, 4), **options))
    assert "its composition" not in failure(fused(composition), randn(3, 4), randn(3, 4), p=0.5, dtype="float32")


def test_the_composition_is_called_as_the_example_calls_the_op() -> None:
    calls = []

    def counted(x: Any, y: Any, *, p: float = 0.5) -> Any:
        calls.append(p)
        return plain(x, y, p=p)

    twice = Example("twice", randn(3), p=0.25, call=lambda op, x, p: op(op(x, x, p=p), x, p=p))
    assert check(Case(fused(counted), [twice]), twice, "float64", tg.get_backend()).failure == ""
    assert calls == [0.25, 0.25]


def test_the_tolerances_are_few_and_tight() -> None:
    assert TOLERANCE == {"float64": 1e-7, "float32": 1e-5, "float16": 8e-3, "bfloat16": 6.4e-2}
