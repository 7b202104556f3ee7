"""Nested tuples, lists and dicts that hold tensors, and anything else that is passed on as it is."""

from collections.abc import Callable
from typing import Any


def tree_map(fn: Callable[[Any], Any], value: Any, kind: type) -> Any:
    """Return the same structure with fn(x) in place of every x that is an instance of `kind`, in their order."""
    if isinstance(value, kind):
        return fn(value)
    if isinstance(value, dict):
        return {key: tree_map(fn, part, kind) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple takes its parts one by one
        return type(value)(*(tree_map(fn, part, kind) for part in value))
    return type(value)(tree_map(fn, part, kind) for part in value) if isinstance(value, tuple | list) else value


def tree_leaves(value: Any, kind: type) -> list[Any]:
    """Return every instance of `kind` in the structure, in their order."""
    found: list[Any] = []
    tree_map(found.append, value, kind)
    return found
