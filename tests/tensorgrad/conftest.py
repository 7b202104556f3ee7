"""The table of ops, and PyTorch where it is installed, for the tests of the engine."""

from collections.abc import Iterator
from typing import Any

import pytest

import tensorgrad as tg
from tensorgrad.autograd import op


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from op_table import ROWS, ROWS_WITHOUT_GRADIENT

    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", ROWS, ids=repr)
    if "row_without_gradient" in metafunc.fixturenames:
        metafunc.parametrize("row_without_gradient", ROWS_WITHOUT_GRADIENT, ids=repr)


@pytest.fixture(scope="session")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")


@pytest.fixture(scope="module")
def numpy_backend() -> Iterator[None]:
    """For tests of the plain mathematics, whichever backend is current."""
    with tg.use_backend("numpy"):
        yield


@pytest.fixture
def logging_op() -> Any:
    """logging_op(calls, name): an op that appends its name to `calls` when its backward runs."""

    def make(calls: list[str], name: str) -> Any:
        @op
        def logged(k: Any, x: Any) -> Any:
            def backward(dy: Any) -> Any:
                calls.append(name)
                return dy * 1

            return x * 1, backward

        return logged

    return make
