"""The same random numbers for every test, whatever ran before."""

import pytest

import tensorgrad as tg
from tensorgrad.gradcheck.cases import inputs


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_generator", tg.Generator(1))
