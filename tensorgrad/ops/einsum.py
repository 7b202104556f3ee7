"""Einstein summation. The gradient of an operand is an einsum of dy and the other operands."""

import string
from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend

__all__ = ["einsum"]


def _parse(subscripts: str, ndims: list[int]) -> tuple[list[str], str]:
    """Return the letters of every operand and of the output, with letters in place of the ellipsis."""
    text = subscripts.replace(" ", "")
    left, arrow, output = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        raise ValueError(f"einsum: {subscripts!r} has {len(terms)} terms for {len(ndims)} operands")
    free = [c for c in string.ascii_letters if c not in text]
    spans = [ndim - len(term.replace("...", "")) for term, ndim in zip(terms, ndims, strict=True) if "..." in term]
    dots = "".join(free[: max(spans, default=0)])
    full = []
    for term, ndim in zip(terms, ndims, strict=True):
        span = ndim - len(term.replace("...", ""))
        if span < 0 or (span and "..." not in term):
            raise ValueError(f"einsum: term {term!r} of {subscripts!r} does not fit an operand of {ndim} dimensions")
        full.append(term.replace("...", dots[len(dots) - span :]))
    if not arrow:
        named = left.replace(",", "").replace("...", "")
        output = "..." + "".join(sorted(c for c in set(named) if named.count(c) == 1))
    return full, output.replace("...", dots)


@op
def _einsum(k: Backend, *operands: Array, subscripts: str) -> tuple[Array, Any]:
    xp = k.xp
    terms, output = _parse(subscripts, [x.ndim for x in operands])
    y = xp.einsum(",".join(terms) + "->" + output, *map(k.wide, operands), optimize=len(operands) > 2)

    def gradient(i: int) -> Any:
        term, shape = terms[i], operands[i].shape
        others = [j for j in range(len(terms)) if j != i]
        arrays = [operands[j] for j in others]
        reached = set(output).union(*(terms[j] for j in others))
        letters = "".join(dict.fromkeys(term))  # without repetitions
        target = "".join(c for c in letters if c in reached)
        inputs = ",".join([output, *(terms[j] for j in others)])

        def backward(dy: Array) -> Array:
            dx = xp.einsum(inputs + "->" + target, *map(k.wide, [dy, *arrays]), optimize=len(arrays) > 1)
            return _expand(k, dx, target, letters, term, shape)

        return backward

    return k.asarray(y, xp.result_type(*operands)), tuple(gradient(i) for i in range(len(operands)))


def _expand(k: Backend, dx: Array, target: str, letters: str, term: str, shape: tuple[int, ...]) -> Array:
    """Turn a gradient over the letters of `target` into the operand's, of that shape, over those of `term`.

    Axes along which the operand was broadcast are summed, axes along which it was summed are broadcast, and the
    gradient of a repeated letter is written to the diagonal. letters: those of `term` without repetitions.
    """
    xp = k.xp
    sizes = dict(zip(term, shape, strict=True))
    was_broadcast = tuple(axis for axis, c in enumerate(target) if sizes[c] == 1 and dx.shape[axis] != 1)
    dx = dx.sum(axis=was_broadcast, keepdims=True)
    dx = dx.reshape([dx.shape[target.index(c)] if c in target else 1 for c in letters])
    dx = xp.broadcast_to(dx, [sizes[c] for c in letters])
    if len(letters) == len(term):
        return dx
    full = xp.zeros(shape, dx.dtype)
    grid = xp.indices(dx.shape)
    full[tuple(grid[letters.index(c)] for c in term)] = dx
    return full


def einsum(subscripts: str, *operands: Any) -> Any:
    """Products of all operands, summed over the letters that the output does not name; subscripts as numpy.einsum's.

    einsum("bhtd,bhsd->bhts", q, k) is the product of every query with every key. Raises ValueError for subscripts that
    do not fit the operands.
    """
    return _einsum(*operands, subscripts=subscripts)
