"""Every op is registered, and all examples pass."""

import importlib
import itertools
import pkgutil
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import backend, ops
from tensorgrad.gradcheck.cases import Case, Example, cases
from tensorgrad.gradcheck.cases.case import Frozen
from tensorgrad.gradcheck.cases.inputs import randn
from tensorgrad.gradcheck.run import check, dtypes, run


def unregistered(public: Iterable[str], functions: Iterable[Any]) -> list[str]:
    """What there is to add for every op that lacks it."""
    unlisted = [(fn.__module__, fn.__name__) for fn in functions if fn.__name__ not in public]
    return [
        *(f"{family} has {name}: add it to LATER in tensorgrad/ops/__init__.py" if name in listed(family)
          else f'{family} has {name}: add "{name}" to __all__ there' for family, name in unlisted),
        *(f"tensorgrad.ops has {name}: add Case(ops.{name}, [...]) to its family in tensorgrad/gradcheck/cases/"
          for name in public if name not in cases),
    ]  # fmt: skip


def listed(module: str) -> Iterable[str]:
    """The names in `__all__` of a module."""
    return getattr(sys.modules[module], "__all__", ())


def test_every_op_is_registered() -> None:
    names = [f"tensorgrad.ops.{module.name}" for module in pkgutil.iter_modules(ops.__path__)]
    functions = [fn for family in names for name, fn in vars(importlib.import_module(family)).items()
                 if hasattr(fn, "__wrapped__") and fn.__module__ == family and name[0] != "_"]  # fmt: skip
    assert len(functions) > 90
    assert unregistered([*ops.__all__, *ops.LATER], functions) == []
    assert set(cases) == {*ops.__all__, *ops.LATER}


def test_an_op_that_is_not_registered_is_reported_with_what_to_add() -> None:
    def softminus(x: Any) -> Any:
        return x

    missing = unregistered(["exp", "softminus"], [softminus])
    assert missing == [
        "tensorgrad.ops has softminus: add Case(ops.softminus, [...]) to its family in tensorgrad/gradcheck/cases/"
    ]
    assert unregistered(["exp"], [softminus]) == [f'{__name__} has softminus: add "softminus" to __all__ there']
    assert unregistered(["exp"], [ops.softplus]) == [
        "tensorgrad.ops.elementary has softplus: add it to LATER in tensorgrad/ops/__init__.py"
    ]


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


def test_an_example_in_other_layouts_is_the_same_call() -> None:
    example = Example("example", randn(2, 3), randn(1, 3), 1.5, None, np.arange(3), randn(), axis=1, saves="a")
    plain, *others = example.layouts()
    assert plain is example
    assert [other.name for other in others] == ["example, transposed", "example, sliced", "example, stride 0"]
    transposed, sliced, stretched = (other.inputs for other in others)
    for inputs in (transposed, sliced):
        assert inputs[2:4] == (1.5, None)
        for i in (0, 1, 4, 5):
            np.testing.assert_array_equal(inputs[i], example.inputs[i])
    assert not transposed[0].flags.c_contiguous and sliced[0].strides == (-2 * 6 * 8, -2 * 8)
    np.testing.assert_array_equal(stretched[0], [example.inputs[0][0]] * 2)
    np.testing.assert_array_equal(stretched[1], np.full((1, 3), example.inputs[1][0, 0]))
    assert stretched[0].strides[0] == stretched[1].strides[1] == stretched[4].strides[0] == 0
    assert stretched[5] is example.inputs[5]
    assert all(other.options == {"axis": 1} and other.saves is None for other in others)


def test_a_frozen_input_requires_no_gradient() -> None:
    a, b, n, option = Example("", Frozen(randn(2)), randn(2), np.arange(2), 3.0).tensors(tg.get_backend(), "float32")
    assert [a.requires_grad, b.requires_grad, n.requires_grad] == [False, True, False]
    assert a.dtype == np.float32 and n.dtype == np.int64 and option == 3.0
