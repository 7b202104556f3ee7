"""Matrix products: blocks of the right operand in panels, tiles of the result in registers, parts of it on threads.

The blocking is Goto and van de Geijn's (2008, "Anatomy of High-Performance Matrix Multiplication"), without the copy
of the left operand that BLAS makes: a tile reads its rows where they are.
"""

from typing import Any

from numba import types

from tensorgrad.backend.numba.compile import inline, noinline, prange
from tensorgrad.backend.numba.microkernel import MR, microkernel, nr_of, round_up
from tensorgrad.backend.numba.pack import aligned, pack_panels, pack_transposed
from tensorgrad.backend.numba.strided import array, packed_row, strided

MIN_PARALLEL_MULTIPLICATIONS = 2**19  # in a smaller product, waking the other threads costs more than they save
MC = 128  # rows of a block of the left operand, where it is copied
KC = 384  # rows of a block of the right operand,
NC = 384  # and its columns: half a megabyte of float32, which stays in the second-level cache


@inline
def store(x: Any, y: Any, add: bool) -> None:
    """y = x, or y += x, for as many rows and columns as y has."""
    for i in range(y.shape[0]):
        row, own = x[i], packed_row(y[i])
        for j in range(own.size):
            own[j] = own[j] + row[j] if add else row[j]


@noinline
def macrokernel(a: Any, b: Any, c: Any, bias: Any, add: bool) -> None:
    """c = a @ b, or c += a @ b with `add`, plus bias on every row unless it is empty; on one thread.

    a (m, k) and b (k, n) of any strides, c (m, n) with packed rows. A block of b is copied into panels once for all
    rows of a. Those are read as they lie; only rows that are not packed, or fewer than a tile has, are copied first.
    """
    m, n_inner = a.shape
    n, nr = b.shape[1], nr_of(c)
    depth, width, height = min(KC, n_inner), min(NC, round_up(n, nr)), min(MC, round_up(m, MR))
    panels = aligned(width * (depth + 2), c).reshape(width // nr, depth + 2, nr)  # 2: or all begin in one set
    strips = aligned(height * (depth + 16), c).reshape(height, depth + 16)  # of the cache, which has room for 12
    edge = aligned(MR * nr, c).reshape(MR, nr)
    read = a.strides[1] == a.itemsize
    for left in range(0, n, NC):
        right = min(left + NC, n)
        for first in range(0, n_inner, KC):
            last = min(first + KC, n_inner)
            adds = add or first > 0
            pack_panels(b[first:last, left:right], panels)
            for top in range(0, m, MR):
                bottom = min(top + MR, m)
                rows = a[top:bottom, first:last]
                if not read and top % MC == 0:
                    pack_transposed(a[top : min(top + MC, m), first:last], strips)
                if read and bottom - top < MR:
                    pack_transposed(rows, strips)
                if not read or bottom - top < MR:
                    start = 0 if read else top % MC
                    rows = strips[start : start + MR, : last - first]
                for column in range(left, right, nr):
                    p = (column - left) // nr
                    if top + MR <= m and column + nr <= n:
                        microkernel(rows, 0, 0, last - first, panels, p, c, top, column, adds)
                    else:
                        microkernel(rows, 0, 0, last - first, panels, p, edge, 0, 0, False)
                        store(edge, c[top:bottom, column : min(column + nr, n)], adds)
                if bias.size > 0 and last == n_inner:
                    for i in range(top, bottom):
                        own = packed_row(c[i, left:right])
                        for j in range(own.size):
                            own[j] += bias[left + j]


@strided(lambda real: (array(real, 2),) * 3 + (array(real, 1), types.boolean, types.int64))
def parallel_product(a: Any, b: Any, c: Any, bias: Any, add: bool, parts: int) -> None:
    """`multiply`, with the longer side of c cut into equal parts: so rows mostly stay with the thread that made them.

    What is summed for an element does not depend on the parts: any number of threads gives the same bits.
    """
    m, n = c.shape
    nr = nr_of(c)
    n_panels, n_strips = round_up(n, nr) // nr, round_up(m, MR) // MR
    for part in prange(parts):
        if m > n:
            start, stop = n_strips * part // parts * MR, min(n_strips * (part + 1) // parts * MR, m)
            macrokernel(a[start:stop], b, c[start:stop], bias, add)
        else:
            start, stop = n_panels * part // parts * nr, min(n_panels * (part + 1) // parts * nr, n)
            macrokernel(a, b[:, start:stop], c[:, start:stop], bias[start:stop], add)


@strided(lambda real: (array(real, 3), array(real, 3), array(real, 3)))
def batched_product(a: Any, b: Any, c: Any) -> None:
    """c[i] = a[i] @ b[i] for stacks of matrices (s, m, k), (s, k, n), (s, m, n)."""
    for i in prange(len(c)):
        macrokernel(a[i], b[i], c[i], c[0, 0, :0], False)
