"""gradcheck passes right gradients, and names the element with the largest error of a wrong one."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from broken_ops import Rule, caught, cube, one_element, product, right, tensor

import tensorgrad as tg
from tensorgrad.gradcheck import GradcheckError
from tensorgrad.gradcheck import check as gradcheck_module
from tensorgrad.gradcheck.cases.inputs import randn
from tensorgrad.gradcheck.check import measure

# --- right gradients pass --------------------------------------------------------------------------


def test_a_right_gradient_passes() -> None:
    assert tg.gradcheck(tg.matmul, tensor(3, 4), tensor(4, 2)) is True
    assert tg.gradcheck(lambda x: (tg.exp(x) * tg.sin(x)).sum(axis=0), tensor(3, 4), full=True)


def test_inputs_that_require_no_gradient_and_other_values_are_passed_on() -> None:
    def fn(x: tg.Tensor, constant: tg.Tensor, indices: tg.Tensor, times: int, note: str) -> tg.Tensor:
        assert note == "a note" and not constant.requires_grad
        return tg.take(x * constant, indices, axis=0) * times

    assert tg.gradcheck(fn, tensor(3, 4), tg.Tensor(randn(4)), tg.Tensor([0, 2, 2]), 2, "a note")


def test_several_results_of_which_some_do_not_depend_on_the_inputs() -> None:
    constant = tg.Tensor(randn(2))
    assert tg.gradcheck(lambda x: tg.split(x, sections=2), tensor(4, 3))
    assert tg.gradcheck(lambda x, y: [x * y, constant, x, x], tensor(3), tensor(3), full=True)


def test_a_tensor_that_an_op_made_can_be_checked() -> None:
    assert tg.gradcheck(tg.exp, tensor(3) * 2)


def test_random_numbers_are_the_same_in_every_call_and_the_generator_is_restored() -> None:
    tg.manual_seed(5)
    before = tg.random.default_generator.state_dict()
    assert tg.gradcheck(lambda x: tg.dropout(x, p=0.5) * tg.dropout(x, p=0.3), tensor(5, 5))
    assert tg.random.default_generator.state_dict() == before


def test_the_inputs_and_their_gradients_are_unchanged() -> None:
    x = tensor(3)
    x.grad = np.arange(3.0)
    before = x.numpy().copy()
    tg.gradcheck(tg.exp, x)
    np.testing.assert_array_equal(x.grad, np.arange(3.0))
    np.testing.assert_array_equal(x.numpy(), before)


def test_the_error_is_that_of_finite_differences() -> None:
    worst = measure(tg.exp, tensor(3, 4), full=True)
    assert 0 < worst.error < 1e-8
    assert re.fullmatch(r"input 0 \[\d, \d\], result 0 \[\d, \d\]|along a random direction", worst.where)


def test_exact_gradients_have_no_worst_element() -> None:
    worst = measure(lambda x: x * 0.0, tensor(3))
    assert (worst.error, worst.where) == (0.0, "")


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
def test_scalars_single_elements_and_empty_arrays(shape: tuple[int, ...]) -> None:
    assert tg.gradcheck(tg.exp, tensor(*shape), full=True)


# --- wrong gradients are caught -----------------------------------------------------------------------


def not_quite(x: Any, y: Any, dy: Any) -> Any:
    dx = right(x, y, dy)
    dx[0, 1] += 0.01 * dy[0, 1]
    return dx


def nan_somewhere(x: Any, y: Any, dy: Any) -> Any:
    return np.where((x == x.max()) & (dy != 0), np.nan, right(x, y, dy))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda x, y, dy: 2 * right(x, y, dy),
            r"^input 0 \[\d, \d\], result 0 \[\d, \d\]: numeric .*, analytic .* > 1e-07",
        ),
        (one_element, r"^input 0 \[1, 2\], result 0 \[1, 2\]: numeric (.*), analytic -\1, relative error "),
        (not_quite, r"^input 0 \[0, 1\], result 0 \[0, 1\]: "),
        (nan_somewhere, "analytic nan, relative error inf"),
        (lambda x, y, dy: right(x, y, dy) + 1e-12, r"a zero dy gives input 0 \[0, 0\] the gradient 1e-12, not 0"),
    ],
    ids=["wrong factor", "wrong sign in one element", "slightly wrong in one element", "nan", "not linear in dy"],
)
def test_a_wrong_number_is_caught(rule: Rule, message: str) -> None:
    tg.gradcheck(cube(right), tensor(3, 4))
    caught(message, cube(rule), tensor(3, 4))


def test_a_wrong_number_among_many_is_caught() -> None:
    caught(r"^input 0 \[0, 1\], result 0 \[0, 1\]: ", cube(not_quite), tensor(20, 20))


def test_a_wrong_number_in_the_second_of_two_inputs_and_results_is_named() -> None:
    wrong = product(lambda a, b, dy: dy * b, lambda a, b, dy: dy * a * 1.5)
    caught(r"^input 2 \[\d\], result 1 \[\d\]: ", lambda a, _, b: [a, wrong(a, b)], tensor(3), None, tensor(3))


def test_the_full_jacobian_finds_what_a_random_direction_may_miss() -> None:
    def rounding(x: Any, y: Any, dy: Any) -> Any:
        dx = right(x, y, dy)
        dx[0, 0] *= 1 + 1e-6
        return dx

    x = tg.Tensor(np.ones((40, 40)), requires_grad=True)
    assert tg.gradcheck(cube(rounding), x, rtol=1e-7 * 3)
    with pytest.raises(GradcheckError, match=r"^input 0 \[0, 0\], result 0 \[0, 0\]: "):
        tg.gradcheck(cube(rounding), x[:3, :3], rtol=1e-7 * 3, full=True)


def test_a_large_jacobian_is_not_computed_to_name_an_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradcheck_module, "MAX_JACOBIAN", 10)
    caught("^along a random direction: numeric", cube(one_element), tensor(3, 4))


# --- what cannot be checked -----------------------------------------------------------------------


def test_results_that_are_detached_are_caught() -> None:
    caught("^no result requires a gradient, though an input does", lambda x: x.detach(), tensor(3))


@pytest.mark.parametrize(
    ("fn", "inputs", "message"),
    [
        (tg.exp, lambda: (tensor(3, dtype=np.float32),), "input 0 is float32; finite differences need float64"),
        (tg.add, lambda: (tensor(3), tg.Tensor(np.ones(3, np.float16))), "input 1 is float16"),
        (tg.exp, lambda: (tg.Tensor(randn(3)),), "no input is a Tensor with requires_grad=True"),
        (lambda x: x.astype(np.float32), lambda: (tensor(3),), "result 0 is float32; finite differences need float64"),
        (lambda x: [x, tg.argmax(x)], lambda: (tensor(3),), "result 1 is int64, which has no gradient"),
        (lambda x: x > 0, lambda: (tensor(3),), "result 0 is bool, which has no gradient"),
        (lambda x: 1.0, lambda: (tensor(3),), "the result is float, not a Tensor or a list of Tensors"),
        (lambda x: [], lambda: (tensor(3),), "the result is an empty list"),
    ],
)
def test_what_cannot_be_checked_is_refused(fn: Any, inputs: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^gradcheck: {message}"):
        tg.gradcheck(fn, *inputs())


def test_an_error_of_the_function_itself_is_raised() -> None:
    with pytest.raises(ValueError, match="^matmul: "):
        tg.gradcheck(tg.matmul, tensor(2, 3), tensor(2, 3))
