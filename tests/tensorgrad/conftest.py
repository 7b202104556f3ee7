"""The table of ops, and PyTorch where it is installed, for the tests of the engine."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tensorgrad as tg

sys.path.insert(0, str(Path(__file__).parent))  # op_table and op_references lie next to the tests


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from op_table import ROWS

    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", ROWS, ids=repr)


@pytest.fixture(scope="session")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")


@pytest.fixture(scope="module")
def numpy_backend() -> Iterator[None]:
    """For tests that are about the plain mathematics, whatever backend other tests leave behind."""
    with tg.use_backend("numpy"):
        yield
