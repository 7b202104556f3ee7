"""gradcheck catches every kind of broken gradient, every op is registered, and all examples pass."""

import importlib
import itertools
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import backend, ops
from tensorgrad.autograd import op
from tensorgrad.gradcheck import GradcheckError
from tensorgrad.gradcheck import check as gradcheck_module
from tensorgrad.gradcheck.__main__ import main
from tensorgrad.gradcheck.cases import Case, Example, cases, inputs
from tensorgrad.gradcheck.cases.case import Frozen
from tensorgrad.gradcheck.cases.inputs import randn
from tensorgrad.gradcheck.check import measure
from tensorgrad.gradcheck.precision import TOLERANCE
from tensorgrad.gradcheck.run import check, dtypes, run
from tensorgrad.ops.dropout import draw

command_line = sys.modules["tensorgrad.gradcheck.__main__"]


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_generator", tg.Generator(1))


def tensor(*shape: int, dtype: Any = np.float64) -> tg.Tensor:
    return tg.Tensor(randn(*shape).astype(dtype), requires_grad=True)


# --- every op is registered, and all its examples pass -------------------------------------------

def unregistered(public: Iterable[str], functions: Iterable[Any]) -> list[str]:
    """What there is to add for every op that lacks it."""
    unlisted = [fn for fn in functions if fn.__name__ not in public]
    return [
        *(f'{fn.__module__} has {fn.__name__}: add "{fn.__name__}" to __all__ there' for fn in unlisted),
        *(f"tensorgrad.ops has {name}: add Case(ops.{name}, [...]) to its family in tensorgrad/gradcheck/cases/"
          for name in public if name not in cases),
    ]  # fmt: skip


def test_every_op_is_registered() -> None:
    names = [f"tensorgrad.ops.{module.name}" for module in pkgutil.iter_modules(ops.__path__)]
    functions = [fn for family in names for name, fn in vars(importlib.import_module(family)).items()
                 if hasattr(fn, "__wrapped__") and fn.__module__ == family and name[0] != "_"]  # fmt: skip
    assert len(functions) > 90
    assert unregistered(ops.__all__, functions) == []
    assert set(cases) == set(ops.__all__)


def test_an_op_that_is_not_registered_is_reported_with_what_to_add() -> None:
    def softminus(x: Any) -> Any:
        return x

    missing = unregistered(["exp", "softminus"], [softminus])
    assert missing == [
        "tensorgrad.ops has softminus: add Case(ops.softminus, [...]) to its family in tensorgrad/gradcheck/cases/"
    ]
    assert unregistered(["exp"], [softminus]) == [f'{__name__} has softminus: add "softminus" to __all__ there']


def missing(case: Case) -> list[str]:
    """What the examples of an op lack."""
    arrays = [[x for x in example.inputs if isinstance(x, np.ndarray)] for example in case.examples]
    floats = [[x for x in of_example if x.dtype == np.float64] for of_example in arrays]
    checked = [x for of_example in (floats if case.gradient else arrays) for x in of_example]
    names = [example.name for example in case.examples]
    there = {
        "names that differ": len(set(names)) == len(names),
        "an empty array": any(x.size == 0 for x in checked),
        "an array that is not contiguous": any(not x.flags.c_contiguous for x in checked),
    }
    if case.gradient:
        single = any(all(x.size == 1 for x in of_example) for of_example in arrays)
        there |= {
            "a float in every one": all(floats),
            "an input that is used twice": any("used" in name for name in names),
            "a single element": single or case.name in {"var", "std", "rotary_embedding"},  # these need two
            "what backward saves in one, as saves='a y'": any(x.saves is not None for x in case.examples),
        }
    return [what for what, is_there in there.items() if not is_there]


def test_the_examples_of_every_op_cover_what_goes_wrong() -> None:
    assert {case.name: missing(case) for case in cases.values() if missing(case)} == {}


def test_what_examples_lack_is_reported() -> None:
    assert missing(Case(ops.exp, [Example("plain", randn(2))])) == [
        "an empty array", "an array that is not contiguous", "an input that is used twice", "a single element",
        "what backward saves in one, as saves='a y'",
    ]  # fmt: skip
    twice = [Example("twice", randn(0)), Example("twice", randn(4)[::-1])]
    assert missing(Case(ops.less, twice, gradient=False)) == ["names that differ"]
    assert "a float in every one" in missing(Case(ops.exp, [Example("integers", np.arange(2))]))


def test_ops_without_a_gradient_have_a_function_of_numpys() -> None:
    assert [case.name for case in cases.values() if not case.gradient and case.numpy is None] == []


@pytest.mark.parametrize("case", cases.values(), ids=repr)
def test_every_example_passes(case: Case) -> None:
    k = backend.load("numpy")
    with tg.use_backend("numpy"):
        rows = [check(case, example, dtype, k) for example in case.examples for dtype in dtypes()]
    assert [f"{row.example}, {row.dtype}: {row.failure}" for row in rows if row.failure] == []


@pytest.mark.parametrize("name", ["numba", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_every_example_passes_on_the_other_backends(name: str) -> None:
    reason = backend.check(name)
    if reason is not None:
        pytest.skip(reason)
    rows = run(cases.values(), ["float32"], [name])
    assert [f"{row.op}, {row.example}: {row.failure}" for row in rows if row.failure] == []


@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_a_generator_draws_arrays_of_no_dimension_too(draw: str) -> None:
    number = getattr(tg.Generator(1), draw)((), dtype=np.float64)
    assert type(number) is np.ndarray and number.shape == () and number.dtype == np.float64
    assert type(tg.Generator(1).integers(0, 9, ())) is np.ndarray


def test_the_inputs_of_an_example_keep_their_strides_in_every_dtype() -> None:
    x = randn(6, 8)
    layouts = [
        x.T,
        x[::2, 1:4],
        x[::-1, ::-3],
        np.broadcast_to(x[0], (3, 8)),
        (2 * x.T)[1:],
        x[2:2],
        x[3, 4:5].reshape(()),
    ]
    for array, dtype in itertools.product(layouts, ("float64", "float32", "float16")):
        (moved,) = Example("", array).tensors(backend.load("numpy"), dtype)
        assert moved.requires_grad and moved.dtype == dtype
        np.testing.assert_array_equal(moved.numpy(), array.astype(dtype))
        steps = [stride // array.itemsize for stride in array.strides]
        assert [stride // moved.data.itemsize for stride in moved.data.strides] == steps


def test_a_frozen_input_requires_no_gradient() -> None:
    a, b, n, option = Example("", Frozen(randn(2)), randn(2), np.arange(2), 3.0).tensors(tg.get_backend(), "float32")
    assert [a.requires_grad, b.requires_grad, n.requires_grad] == [False, True, False]
    assert a.dtype == np.float32 and n.dtype == np.int64 and option == 3.0


# --- right gradients pass --------------------------------------------------------------------------


def test_a_right_gradient_passes() -> None:
    assert tg.gradcheck(tg.matmul, tensor(3, 4), tensor(4, 2)) is True
    assert tg.gradcheck(lambda x: (tg.exp(x) * tg.sin(x)).sum(axis=0), tensor(3, 4), full=True)


def test_inputs_that_want_no_gradient_and_other_values_are_passed_on() -> None:
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


def test_randomness_is_the_same_in_every_call_and_left_as_it_was() -> None:
    tg.manual_seed(5)
    before = tg.random.default_generator.state_dict()
    assert tg.gradcheck(lambda x: tg.dropout(x, p=0.5) * tg.dropout(x, p=0.3), tensor(5, 5))
    assert tg.random.default_generator.state_dict() == before


def test_the_inputs_and_their_gradients_are_left_alone() -> None:
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


# --- wrong gradients do not -----------------------------------------------------------------------

Rule = Callable[[Any, Any, Any], Any]  # (x, y, dy) -> dx


def cube(rule: Rule) -> Callable[..., Any]:
    """x^3 with the gradient that `rule` makes of x, the result and dy."""

    @op
    def cubed(k: Any, x: Any) -> Any:
        y = x * x * x
        return y, lambda dy: rule(x, y, dy)

    return cubed


def product(da: Rule, db: Rule) -> Callable[..., Any]:
    """a b with the gradients that the rules make of a, b and dy."""

    @op
    def product(k: Any, a: Any, b: Any) -> Any:
        return a * b, (lambda dy: da(a, b, dy), lambda dy: db(a, b, dy))

    return product


def right(x: Any, y: Any, dy: Any) -> Any:
    return 3 * x * x * dy


def caught(message: str, fn: Callable[..., Any], *inputs: Any) -> None:
    with pytest.raises(GradcheckError, match=message) as raised:
        tg.gradcheck(fn, *inputs)
    assert "\n" not in str(raised.value)


def one_element(x: Any, y: Any, dy: Any) -> Any:
    dx = right(x, y, dy)
    dx[1, 2] *= -1
    return dx


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


def test_beyond_a_certain_size_no_element_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradcheck_module, "MAX_JACOBIAN", 10)
    caught("^along a random direction: numeric", cube(one_element), tensor(3, 4))


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
def test_a_gradient_of_the_wrong_kind_is_caught(rule: Rule, message: str) -> None:
    caught(message, cube(rule), tensor(3, 4))


def writes(target: str) -> Rule:
    def rule(x: Any, y: Any, dy: Any) -> Any:
        dx = right(x, y, dy)
        {"x": x, "y": y, "dy": dy}[target][...] *= 2
        return dx

    return rule


def test_what_is_given_away_may_be_written_to_if_it_is_made_again() -> None:
    def giving_away(again: Callable[[Any], Any]) -> Any:
        @op
        def squared(k: Any, x: Any) -> Any:
            made = [2 * x]

            def backward(dy: Any) -> Any:
                slope = made.pop() if made else again(x)
                dx = slope * dy
                slope *= 0
                return dx

            return x * x, backward

        return squared

    assert tg.gradcheck(giving_away(lambda x: 2 * x), tensor(3))
    caught("a sliced dy gives input 0 .* another gradient", giving_away(lambda x: 3 * x), tensor(3))


def test_writing_is_caught() -> None:
    caught("^cubed: backward wrote into dy", cube(writes("dy")), tensor(3))
    caught("^cubed: backward wrote into an array that it saved", cube(writes("y")), tensor(3))
    caught("^cubed: backward wrote into an array that it saved", cube(writes("x")), tensor(3))


def test_a_function_that_writes_into_its_input_is_caught() -> None:
    @op
    def clears(k: Any, x: Any, scratch: Any) -> Any:
        scratch += 1
        return 2 * x, (lambda dy: 2 * dy, None)

    caught("^input 1 was written into", clears, tensor(3), tg.Tensor(randn(3)))


def test_randomness_of_its_own_is_caught() -> None:
    numbers = np.random.default_rng(0)

    @op
    def noisy(k: Any, x: Any) -> Any:
        noise = numbers.normal()
        return x * noise, lambda dy: dy * noise

    caught("^result 0 differs between two runs", noisy, tensor(3))
    jitter = cube(lambda x, y, dy: right(x, y, dy) * (1 + 1e-15 * numbers.normal()))
    caught("^the gradient of input 0 differs between two runs", jitter, tensor(30))


def test_a_gradient_that_hangs_on_another_being_wanted_is_caught() -> None:
    left_behind: dict[str, Any] = {}

    def da(a: Any, b: Any, dy: Any) -> Any:
        left_behind["db"] = dy * a
        return dy * b

    def db(a: Any, b: Any, dy: Any) -> Any:
        return left_behind.pop("db", np.zeros_like(b))

    caught("^the gradient of input 1 differs where no other input wants one", product(da, db), tensor(3), tensor(3))


def test_an_input_used_twice_of_which_one_use_is_ignored_is_caught() -> None:
    half = product(lambda a, b, dy: dy * b, lambda a, b, dy: np.zeros_like(dy))
    caught(r"^input 0 \[\d\], result 0 \[\d\]: numeric", lambda x: half(x, x), tensor(4))
    caught(r"^input 0 \[\d\], result 0 \[\d\]: numeric", lambda x: tg.multiply(x, x.detach()), tensor(4))


def owner(array: Any) -> Any:
    return array if array.base is None else owner(array.base)


def shared(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[..., Any]:
    """a + b whose two gradients are made of one new array."""

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
    kept = np.ones(3)

    @op
    def double(k: Any, x: Any) -> Any:
        return x + x, lambda dy: kept * 2 if kept is None else _fill(kept, 2 * dy)

    def _fill(into: Any, values: Any) -> Any:
        into[...] = values
        return into

    # what a gradient lies in that arrived, is saved, was handed over before, or goes to another operand
    caught("is an array that dy lies in, returned as the op's own", cube(lambda x, y, dy: owner(dy)), tensor(3))
    caught("is an array that the op saved, returned as its own", cube(lambda x, y, dy: y), tensor(3))
    caught("^double: backward wrote into an array that it saved", double, tensor(3))
    for first, second in ((whole, whole), (whole, view), (view, whole)):
        caught("shares its memory with another gradient", shared(first, second), tensor(3), tensor(3))
    assert tg.gradcheck(shared(view, view), tensor(3), tensor(3))  # nobody writes into a view


def test_a_part_of_dy_handed_over_by_an_op_with_several_results_is_caught() -> None:
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
def test_a_layout_of_dy_that_is_mishandled_is_caught(mishandled: Callable[[Any], bool], message: str) -> None:
    rule = cube(lambda x, y, dy: right(x, y, dy) * (2 if mishandled(dy) else 1))
    caught(rf"{message} \[\d, \d\] another gradient: ", rule, tensor(3, 4))


def test_a_layout_of_the_input_that_is_mishandled_is_caught() -> None:
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


def test_a_cut_tape_is_caught() -> None:
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


def test_an_error_of_the_function_itself_comes_through() -> None:
    with pytest.raises(ValueError, match="^matmul: "):
        tg.gradcheck(tg.matmul, tensor(2, 3), tensor(2, 3))


# --- precision, against float64 -------------------------------------------------------------------


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
    assert failure(tg.floor, np.rint, x) != ""
    assert failure(tg.argmax, lambda a: np.float64(0), x) == "argmax: the result is int64, not float32"
    assert failure(tg.floor, lambda a: np.zeros(3, bool), x) == "floor: the result is float32, not bool"
    assert "has shape (3,), not (3, 1)" in failure(tg.floor, lambda a: np.floor(a)[:, None], x)
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


# --- the command line -----------------------------------------------------------------------------


def test_the_command_prints_a_table_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--op", "exp", "--op", "less", "--backend", "numpy"]) == 0
    heading, *lines, empty, summary = capsys.readouterr().out.splitlines()
    assert heading.split() == ["op", "example", "dtype", "backend", "error", "worst", "element"]
    assert len(lines) == len(dtypes()) * (len(cases["exp"].examples) + len(cases["less"].examples)) and empty == ""
    assert re.search(r"^exp +3-d +float64 +numpy +\d\.\de-1\d +(input 0 \[|along a random)", "\n".join(lines), re.M)
    assert re.search(r"^less +with ties +float32 +numpy +0$", "\n".join(lines), re.M)
    names = ", ".join(dtypes())
    assert re.fullmatch(
        rf"{len(lines)} checks of \d+ examples of 2 ops on numpy in {names}: all passed, in \d+\.\d s", summary
    )


def test_without_options_every_op_is_checked_on_every_backend_that_runs_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: Case(cases[name].op, cases[name].examples[:1]) for name in ("exp", "log")}
    monkeypatch.setattr(command_line, "cases", few)
    monkeypatch.setattr(backend, "check", lambda name: None if name == "numpy" else "not here")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-2]
    assert [line.split()[0] for line in lines] == ["exp"] * len(dtypes()) + ["log"] * len(dtypes())


def test_a_failure_exits_with_1_and_is_repeated_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken, raising = Example("broken <b>", randn(3, 4)), Example("raising", randn(2), call=lambda op, x: op(x @ x.mT))
    good = Example("good", randn(2), call=lambda op, x: tg.exp(x))
    monkeypatch.setattr(command_line, "cases", {"cubed": Case(cube(one_element), [broken, raising, good])})
    page = tmp_path / "page.html"
    assert main(["--dtype", "float64", "--backend", "numpy", "--html", str(page)]) == 1
    out = capsys.readouterr().out
    assert re.search(
        r"^what failed:\ncubed +broken <b> .*FAILED +input 0 \[1, 2\].*\ncubed +raising .*FAILED +ValueError: ",
        out,
        re.M,
    )
    assert out.splitlines()[-1].startswith("3 checks of 3 examples of 1 ops on numpy in float64: 2 FAILED, in ")
    text = page.read_text(encoding="utf-8")
    assert "2 failed" in text and "broken &lt;b&gt;" in text and "broken <b>" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "sofmax"], "unknown op 'sofmax'; did you mean 'softmax'?"),
        (["--op", "???"], "unknown op '???'"),
        (["--dtype", "float23"], "unknown dtype 'float23'; did you mean 'float32'?"),
        (["--backend", "numpi"], "unknown backend 'numpi': choose auto, numpy, numba, cupy; did you mean 'numpy'?"),
        (["--htm", "x"], "unrecognized arguments: --htm x"),
        (["--html"], "argument --html: expected one argument"),
        (
            ["--op", "exp", "--html", "/no/such/folder/page.html"],
            "cannot write /no/such/folder/page.html: No such file or directory",
        ),
        (["--op", "exp", "--html", "."], "cannot write .: Is a directory"),
    ],
)
def test_a_mistake_exits_with_2_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == f"python -m tensorgrad gradcheck: error: {message}\n" and captured.out == ""


def test_a_backend_that_cannot_run_is_said_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        raise tg.BackendUnavailable("no GPU here: use numpy")

    monkeypatch.setattr(backend, "load", load)
    with pytest.raises(SystemExit, match="2"):
        main(["--backend", "cupy"])
    assert capsys.readouterr().err == "python -m tensorgrad gradcheck: error: no GPU here: use numpy\n"


def test_bfloat16_without_ml_dtypes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert dtypes() == ["float64", "float32", "float16"]
    with pytest.raises(SystemExit, match="2"):
        main(["--dtype", "bfloat16"])
    assert "bfloat16 needs ml_dtypes: pip install ml_dtypes" in capsys.readouterr().err


def test_auto_takes_the_fastest_backend(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "choose", lambda: (backend.load("numpy"), "auto took numpy"))
    assert main(["--op", "exp", "--dtype", "float32", "--backend", "auto", "--backend", "numpy"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(cases["exp"].examples) + 3


class Page(HTMLParser):
    """The text of every table cell and heading, and which elements there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] = self.found.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_every_row_and_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    path.write_text("what was here before")
    assert main(["--op", "softmax", "--op", "argmax", "--html", str(path), "--backend", "numpy"]) == 0
    text = path.read_text(encoding="utf-8")
    page, rows = Page(text), len(dtypes()) * (len(cases["softmax"].examples) + len(cases["argmax"].examples))
    assert page.links == [] and "http" not in text and not re.search(r"%[A-Z]+%", text)
    assert page.found["details"] == 2 and page.found["tr"] == rows + 2 and page.found["circle"] == rows
    assert "All passed" in text and capsys.readouterr().out.splitlines()[-1] in text
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_interrupted_run_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    path = tmp_path / "page.html"
    path.write_text("old")
    monkeypatch.setattr(command_line, "page", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(["--op", "exp", "--dtype", "float64", "--backend", "numpy", "--html", str(path)])
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["page.html"]
