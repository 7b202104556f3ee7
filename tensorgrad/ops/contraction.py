"""Sums of products over chosen axes. The gradient of an operand is one of dy and the other operands."""

import string
from collections.abc import Sequence
from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.calls import explained
from tensorgrad.ops.broadcasting import INTEGER, normalize_axis
from tensorgrad.ops.elementwise import multiply

__all__ = ["einsum", "outer", "tensordot"]

Result = tuple[Array, Any]
Axes = int | Sequence[int]


@op
def _tensordot(k: Backend, a: Array, b: Array, *, axes: int | tuple[Axes, Axes]) -> Result:
    if isinstance(axes, INTEGER):
        if not 0 <= axes <= min(a.ndim, b.ndim):
            raise ValueError(f"tensordot: {a.shape} and {b.shape} have no {axes} axes to sum over")
        axes = (range(a.ndim - axes, a.ndim), range(axes))
    over_a, over_b = (
        tuple(normalize_axis("tensordot", i, x.ndim) for i in ([part] if isinstance(part, INTEGER) else part))
        for x, part in zip((a, b), axes, strict=True)
    )
    if [a.shape[i] for i in over_a] != [b.shape[i] for i in over_b]:
        raise ValueError(f"tensordot: {a.shape} over axes {[*over_a]} does not fit {b.shape} over axes {[*over_b]}")
    free_a = tuple(i for i in range(a.ndim) if i not in over_a)
    free_b = tuple(i for i in range(b.ndim) if i not in over_b)
    n_a, n_b = len(free_a), len(free_b)

    def da(dy: Array) -> Array:
        da = k.xp.tensordot(k.wide(dy), k.wide(b), axes=(tuple(range(n_a, n_a + n_b)), free_b))
        # its axes are a's free axes, then a's summed axes in the order of the axes of b that they are paired with
        order = [*free_a, *(over_a[over_b.index(i)] for i in sorted(over_b))]
        return da.transpose(sorted(range(len(order)), key=order.__getitem__))

    def db(dy: Array) -> Array:
        db = k.xp.tensordot(k.wide(a), k.wide(dy), axes=(free_a, tuple(range(n_a))))
        order = [*(over_b[over_a.index(i)] for i in sorted(over_a)), *free_b]
        return db.transpose(sorted(range(len(order)), key=order.__getitem__))

    y = k.xp.tensordot(k.wide(a), k.wide(b), axes=(over_a, over_b))
    return k.asarray(y, k.xp.result_type(a, b)), (da, db)


@explained
def tensordot(a: Any, b: Any, axes: int | tuple[Axes, Axes] = 2) -> Any:
    """The sum of products over pairs of axes: the last `axes` axes of a with the first of b, or two lists of axes.

    The result has a's other axes, then b's.
    da = the products of dy and b, summed over b's other axes; db = those of dy and a, over a's other axes.
    """
    return _tensordot(a, b, axes=axes)


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
    The gradient of each operand is the einsum of dy with the other operands.
    """
    return _einsum(*operands, subscripts=subscripts)


def outer(a: Any, b: Any) -> Any:
    """The products of all pairs: vectors a (m) and b (n) -> (m, n)."""
    if a.ndim != 1 or b.ndim != 1:
        raise ValueError(f"outer: {a.shape} and {b.shape} are not both vectors")
    return multiply(a[:, None], b)
