"""What gradcheck checks besides values: shapes and dtypes, who owns a gradient's memory, repeatability, layouts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from broken_ops import Rule, caught, cube, product, right, tensor

import tensorgrad as tg
from tensorgrad.autograd import op
from tensorgrad.gradcheck.cases.inputs import randn


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda x, y, dy: right(x, y, dy)[:2],
            r"^cubed: the gradient of operand 0 has shape \(2, 4\), the operand \(3, 4\)",
        ),
        (lambda x, y, dy: right(x, y, dy).sum(), r"^cubed: the gradient of operand 0 has shape \(\)"),
        (
            lambda x, y, dy: right(x, y, dy).astype(np.float32),
            "^cubed: the gradient of operand 0 is float32, the operand float64",
        ),
        (lambda x, y, dy: right(x, y, dy).astype(np.int64), "^cubed: the gradient of operand 0 is int64"),
        (lambda x, y, dy: right(x, y, dy).astype(np.longdouble), "^cubed: the gradient of operand 0 is .*128"),
        (lambda x, y, dy: None, "^cubed: the gradient of an operand that requires one is None"),
        (lambda x, y, dy: (right(x, y, dy), dy), "^cubed: 2 gradients for 1 operands"),
    ],
    ids=["shape", "scalar", "float32", "integer", "longdouble", "none", "too many"],
)
def test_a_wrong_shape_dtype_or_number_of_gradients_is_caught(rule: Rule, message: str) -> None:
    caught(message, cube(rule), tensor(3, 4))


def writes(target: str) -> Rule:
    def rule(x: Any, y: Any, dy: Any) -> Any:
        dx = right(x, y, dy)
        {"x": x, "y": y, "dy": dy}[target][...] *= 2
        return dx

    return rule


def test_an_array_that_backward_no_longer_keeps_may_be_written_into() -> None:
    """The second backward recomputes it; a wrong recomputation is caught."""

    def overwriting(recompute: Callable[[Any], Any]) -> Any:
        @op
        def squared(k: Any, x: Any) -> Any:
            saved = [2 * x]

            def backward(dy: Any) -> Any:
                slope = saved.pop() if saved else recompute(x)
                dx = slope * dy
                slope *= 0
                return dx

            return x * x, backward

        return squared

    assert tg.gradcheck(overwriting(lambda x: 2 * x), tensor(3))
    caught("a sliced dy gives input 0 .* another gradient", overwriting(lambda x: 3 * x), tensor(3))


def test_a_backward_that_writes_into_dy_or_a_saved_array_is_caught() -> None:
    caught("^cubed: backward wrote into dy", cube(writes("dy")), tensor(3))
    caught("^cubed: backward wrote into an array that it saved", cube(writes("y")), tensor(3))
    caught("^cubed: backward wrote into an array that it saved", cube(writes("x")), tensor(3))


def test_a_function_that_writes_into_its_input_is_caught() -> None:
    @op
    def clears(k: Any, x: Any, scratch: Any) -> Any:
        scratch += 1
        return 2 * x, (lambda dy: 2 * dy, None)

    caught("^input 1 was written into", clears, tensor(3), tg.Tensor(randn(3)))


def test_random_numbers_of_another_generator_are_caught() -> None:
    numbers = np.random.default_rng(0)

    @op
    def noisy(k: Any, x: Any) -> Any:
        noise = numbers.normal()
        return x * noise, lambda dy: dy * noise

    caught("^result 0 differs between two runs", noisy, tensor(3))
    jitter = cube(lambda x, y, dy: right(x, y, dy) * (1 + 1e-15 * numbers.normal()))
    caught("^the gradient of input 0 differs between two runs", jitter, tensor(30))


def test_a_gradient_that_depends_on_which_inputs_require_one_is_caught() -> None:
    stored: dict[str, Any] = {}

    def da(a: Any, b: Any, dy: Any) -> Any:
        stored["db"] = dy * a
        return dy * b

    def db(a: Any, b: Any, dy: Any) -> Any:
        return stored.pop("db", np.zeros_like(b))

    caught("^the gradient of input 1 differs where no other input wants one", product(da, db), tensor(3), tensor(3))


def test_ignoring_one_use_of_an_input_used_twice_is_caught() -> None:
    half = product(lambda a, b, dy: dy * b, lambda a, b, dy: np.zeros_like(dy))
    caught(r"^input 0 \[\d\], result 0 \[\d\]: numeric", lambda x: half(x, x), tensor(4))
    caught(r"^input 0 \[\d\], result 0 \[\d\]: numeric", lambda x: tg.multiply(x, x.detach()), tensor(4))


def owner(array: Any) -> Any:
    return array if array.base is None else owner(array.base)


def shared(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[..., Any]:
    """a + b with two gradients that are made from one new array."""

    @op
    def total(k: Any, a: Any, b: Any) -> Any:
        def backward(dy: Any) -> Any:
            new = 1 * dy
            return first(new), second(new)

        return a + b, backward

    return total


def whole(x: Any) -> Any:
    return x


def view(x: Any) -> Any:
    return x[...]


def test_a_gradient_that_is_not_the_ops_own_is_caught() -> None:
    saved = np.ones(3)

    @op
    def double(k: Any, x: Any) -> Any:
        return x + x, lambda dy: saved * 2 if saved is None else _fill(saved, 2 * dy)

    def _fill(into: Any, values: Any) -> Any:
        into[...] = values
        return into

    # memory of dy, of a saved array, of a gradient returned before, and of another operand's gradient
    caught("is an array that dy lies in, returned as the op's own", cube(lambda x, y, dy: owner(dy)), tensor(3))
    caught("is an array that the op saved, returned as its own", cube(lambda x, y, dy: y), tensor(3))
    caught("^double: backward wrote into an array that it saved", double, tensor(3))
    for first, second in ((whole, whole), (whole, view), (view, whole)):
        caught("shares its memory with another gradient", shared(first, second), tensor(3), tensor(3))
    assert tg.gradcheck(shared(view, view), tensor(3), tensor(3))  # nobody writes into a view


def test_returning_a_part_of_dy_is_caught_for_an_op_with_several_results() -> None:
    @op
    def twice(k: Any, x: Any) -> Any:
        def backward(dys: Any) -> Any:
            return owner(dys[0]) if dys[1] is None else dys[0] + dys[1]

        return [x * 1, x * 1], backward

    assert tg.gradcheck(twice, tensor(3))
    caught("is an array that dy lies in", lambda x: twice(x)[0], tensor(3))


@pytest.mark.parametrize(
    ("mishandled", "message"),
    [
        (lambda dy: 0 in dy.strides, "^a stride-0 dy gives input 0"),
        (lambda dy: dy.strides[0] < 0, "^a reversed dy gives input 0"),
        (
            lambda dy: dy.base is not None and dy.base.size > dy.size > 0 and 0 not in dy.strides,
            "^a sliced dy gives input 0",
        ),
        (lambda dy: 0 < dy.strides[0] < dy.strides[-1], "^a transposed dy gives input 0"),
    ],
    ids=["stride 0", "reversed", "sliced", "transposed"],
)
def test_a_gradient_that_depends_on_the_layout_of_dy_is_caught(mishandled: Callable[[Any], bool], message: str) -> None:
    rule = cube(lambda x, y, dy: right(x, y, dy) * (2 if mishandled(dy) else 1))
    caught(rf"{message} \[\d, \d\] another gradient: ", rule, tensor(3, 4))


def test_a_result_or_gradient_that_depends_on_the_layout_of_the_input_is_caught() -> None:
    @op
    def scaled(k: Any, x: Any) -> Any:
        factor = 2 if x.flags.c_contiguous else 3
        return factor * x, lambda dy: 2 * dy

    @op
    def doubled(k: Any, x: Any) -> Any:
        factor = 2 if x.flags.c_contiguous else 3
        return 2 * x, lambda dy: factor * dy

    caught("^where inputs are sliced, result 0 is another", scaled, tensor(3, 4))
    caught(r"^where inputs are sliced, input 0 \[\d, \d\] another gradient", doubled, tensor(3, 4))
