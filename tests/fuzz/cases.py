"""Running cases by their seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def failing(check: Callable[[int], Any], seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Yield the seed of every case for which `check` raises an error, and the error."""
    for seed in seeds:
        try:
            check(seed)
        except Exception as error:
            yield seed, f"{type(error).__name__}: {error}"
