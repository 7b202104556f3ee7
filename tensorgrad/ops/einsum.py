"""Einstein summation. The gradient of an einsum is an einsum: the output and that operand change places."""

import string
from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend

__all__ = ["einsum"]


def _parse(subscripts: str, ndims: list[int]) -> tuple[list[str], str]:
    """Explicit letters for every operand and the output, the ellipsis spelled out."""
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
        letters = "".join(dict.fromkeys(term))  # each once, in order
        target = "".join(c for c in letters if c in reached)
        inputs = ",".join([output, *(terms[j] for j in others)])

        def backward(dy: Array) -> Array:
            dx = xp.einsum(inputs + "->" + target, *map(k.wide, [dy, *arrays]), optimize=len(arrays) > 1)
            return _spread(k, dx, target, letters, term, shape)

        return backward

    return k.asarray(y, xp.result_type(*operands)), tuple(gradient(i) for i in range(len(operands)))


def _spread(k: Backend, dx: Array, target: str, letters: str, term: str, shape: tuple[int, ...]) -> Array:
    """A gradient over the letters of `target` as one over `term`: sums stretched, diagonals put back, 1s summed."""
    xp = k.xp
    own = {letter: n for letter, n in zip(term, shape, strict=True)}
    stretched = tuple(axis for axis, c in enumerate(target) if own[c] == 1 and dx.shape[axis] != 1)
    dx = dx.sum(axis=stretched, keepdims=True)
    dx = dx.reshape([dx.shape[target.index(c)] if c in target else 1 for c in letters])
    # a letter that was summed over here alone, or against an operand of size 1: each element got the same dy
    dx = xp.broadcast_to(dx, [own[c] for c in letters])
    if len(letters) == len(term):
        return dx
    full = xp.zeros(shape, dx.dtype)
    grid = xp.indices(dx.shape)
    full[tuple(grid[letters.index(c)] for c in term)] = dx
    return full


def einsum(subscripts: str, *operands: Any) -> Any:
    """Products summed over the letters that the output does not name, as numpy.einsum, ellipsis included.

    einsum("bhtd,bhsd->bhts", q, k) is every query times every key. Raises ValueError where terms and operands differ.
    """
    return _einsum(*operands, subscripts=subscripts)
