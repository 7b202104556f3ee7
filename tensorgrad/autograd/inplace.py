"""Which arrays are saved for backward, and that none of them was overwritten in between."""

import gc
import itertools
import types
import weakref
from collections.abc import Iterator
from typing import Any

from tensorgrad.autograd.context import Recomputable
from tensorgrad.backend import Array, Backend

next_sequence = itertools.count(1).__next__  # numbers ops and writes in the order in which they happen

_writes: dict[int, tuple[Any, int]] = {}  # id of a memory owner -> (weak reference to it, sequence of the last write)
last_write = 0  # the sequence number of the last write into any array

# What belongs to the program and not to one call of an op: saved_arrays looks into none of it.
_SHARED = (type, types.ModuleType, types.CodeType, Backend, weakref.ref)


def owner(array: Array) -> Array:
    """Return the array that owns the memory of a view; any other array is its own."""
    return owner(array.base) if isinstance(array.base, type(array)) else array


def note_write(array: Array) -> None:
    """Remember that `array` was overwritten: a backward that saved it before will refuse to run."""
    global last_write
    array, last_write = owner(array), next_sequence()
    key = id(array)
    _writes[key] = (weakref.ref(array, lambda _: _writes.pop(key, None)), last_write)


def refuse_overwritten(node: Any, since: int) -> None:
    """Raise RuntimeError where an array that the node saved was written into after sequence number `since`."""
    for array in saved_arrays(node.saved()):
        reference, when = _writes.get(id(owner(array)), (None, 0))
        if when > since and reference is not None and reference() is not None:
            what = f"an array of shape {array.shape} that it saved for backward was overwritten in place"
            raise RuntimeError(f"{node.name}: {what}; write into a copy, or call backward first")


def saved_arrays(value: Any) -> Iterator[Array]:
    """Yield every array that a backward function, or anything else, keeps alive, in closures and objects of any kind.

    What it keeps only to recompute a result does not count.
    """
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        x = waiting.pop()
        if id(x) in seen or isinstance(x, _SHARED):
            continue
        seen.add(id(x))
        if hasattr(x, "dtype") and hasattr(x, "base"):
            yield x
        elif isinstance(x, types.FunctionType):  # not its globals
            waiting += [x.__closure__, x.__defaults__, x.__kwdefaults__]
        elif isinstance(x, Recomputable):
            waiting.append(x.backward)
        else:
            waiting += gc.get_referents(x)
