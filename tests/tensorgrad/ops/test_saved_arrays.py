"""The arrays that each op saves for backward, against its registration."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensorgrad.autograd import op, saved_arrays
from tensorgrad.backend import get_backend
from tensorgrad.gradcheck.cases import Case, Example, cases
from tensorgrad.gradcheck.cases.inputs import randn
from tensorgrad.tensor import Tensor

CHECKED = [(case, example) for case in cases.values() for example in case.examples if example.saves is not None]


def saved(case: Case, example: Example, dtype: str) -> list[str]:
    """The arrays that the op's node saves, a word for each: see `Example.saves`."""
    inputs = example.tensors(get_backend(), dtype)
    result = example.run(case.op, *inputs)
    outputs = result if isinstance(result, list) else [result]
    node = outputs[0].node
    named = {letter: x for letter, x in zip("abcdefgh", inputs, strict=False) if isinstance(x, Tensor)}
    first = next(iter(named.values()))
    words = {}  # by memory: views of one array count once
    for array in saved_arrays(node.backward):
        words[id(owner(array))] = word(array, named, [y.data for y in outputs], first, dtype)
    return sorted(words.values())


def word(array: Any, inputs: dict[str, Tensor], outputs: list[Any], first: Tensor, dtype: str) -> str:
    for letter, x in inputs.items():
        if np.may_share_memory(array, x.data):
            return letter
    shape, is_float = str(array.shape).replace(" ", ""), array.dtype.kind == "f"
    if is_float and 2 * array.size < first.size:
        return shape
    if any(np.may_share_memory(array, y) for y in outputs):
        return "y"
    return shape if is_float and array.dtype == dtype else f"{array.dtype}{shape}"


def owner(array: Any) -> Any:
    return owner(array.base) if isinstance(array.base, np.ndarray) else array


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize(("case", "example"), CHECKED, ids=lambda x: x.name)
def test_an_op_saves_exactly_what_its_registration_says(case: Case, example: Example, dtype: str) -> None:
    saves = example.saves_in_half if dtype == "float16" else example.saves
    assert saves is not None and saved(case, example, dtype) == sorted(saves.split())


def test_whatever_a_closure_refers_to_is_found() -> None:
    def keeping(extra: Callable[[Any, Any], Any]) -> list[str]:
        @op
        def halved(k: Any, a: Any) -> Any:
            y = a / 2
            more = extra(a, y)
            return y, lambda dy: dy / 2 if more is not None else dy

        example = Example("", randn(2, 3, 4))
        return saved(Case(halved, [example]), example, "float64")

    assert keeping(lambda a, y: None) == []
    assert keeping(lambda a, y: a[1:]) == ["a"]
    assert keeping(lambda a, y: [(y,)]) == ["y"]
    assert keeping(lambda a, y: a > 1) == ["bool(2,3,4)"]
    assert keeping(lambda a, y: lambda: a * 1) == ["a"]
    assert keeping(lambda a, y: np.sum(a, axis=1)) == ["(2,4)"]
    assert keeping(lambda a, y: [a * 2, a * 3]) == ["(2,3,4)", "(2,3,4)"]  # two arrays of one shape
