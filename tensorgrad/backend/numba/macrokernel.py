"""Matrix products: the loops around the microkernel, and the split of a product over threads.

The five loops are those of BLIS (Van Zee and van de Geijn 2015; Goto and van de Geijn 2008, "Anatomy of
High-Performance Matrix Multiplication"), from the outside:

    columns of c, NC at a time
      depth, KC at a time            a block of b is packed into panels of NR columns: it stays in the third-level cache
        rows of a, MC at a time      a block of a is packed where its rows are not contiguous: second-level cache
          panels of b                a panel stays in the first-level cache while all rows of the block pass by
            MR rows of a             the microkernel: MR x NR results in registers

The two inner loops are the macrokernel. Chapter 09 has a picture of the blocks (chapters/09_efficiency.ipynb).
"""

from typing import Any

from numba import types
from numba.extending import overload

from tensorgrad.backend.numba.compile import inline, noinline
from tensorgrad.backend.numba.dot_products import dots, group_size
from tensorgrad.backend.numba.microkernel import MR, microkernel, nr_of, round_up
from tensorgrad.backend.numba.pack import PANEL_PADDING, ROW_PADDING, aligned, pack_panels, pack_transposed
from tensorgrad.backend.numba.parallel import ALONE, prange
from tensorgrad.backend.numba.strided import array, contiguous_row, strided

MIN_PARALLEL_MULTIPLICATIONS = 2**19  # in a smaller product, waking the other threads costs more than they save
MC = 72  # rows of a block of a, a multiple of MR, and
KC = 384  # its columns: 0.1 megabytes of float32. So high is a panel of b, too: 24 KB, with AVX-512 48 KB
NC = 512  # columns of a block of b: at most 0.8 megabytes, since threads and other programs share that cache
MAX_DOT_BYTES = 16  # columns left beside full panels, 4 of float32: so few are faster as dot products than as a panel


@inline
def store(x: Any, y: Any, add: bool) -> None:
    """y = x, or y += x with `add`, for the rows and columns that y has; x may have more."""
    for i in range(y.shape[0]):
        xi, yi = x[i], contiguous_row(y[i])
        for j in range(yi.size):
            yi[j] = yi[j] + xi[j] if add else xi[j]


def pack_block(b: Any, first: int, last: int, left: int, right: int, panels: Any) -> None:
    """Pack b[first:last, left:right]. An overload packs quantised weights, which are no array of numbers."""
    pack_panels(b[first:last, left:right], panels)


overload(pack_block)(
    lambda b, first, last, left, right, panels: (
        (lambda b, first, last, left, right, panels: pack_panels(b[first:last, left:right], panels))
        if isinstance(b.dtype, types.Float)
        else None
    )
)


@noinline
def macrokernel(a: Any, panels: Any, columns: Any, c: Any, edge: Any, add: bool) -> None:
    """c (m, n) = a (m, k) @ b, or += with `add`; b (k, n) is packed: its last r columns are the rows of columns (r, k).

    The others are in panels (n / nr, k, nr), where n is rounded up to nr, as m is to MR. Rows of a and of columns are
    contiguous. edge (MR, nr): where results go that c has no room for.
    """
    (m, n), k, nr, r = c.shape, a.shape[1], panels.shape[2], len(columns)
    for column in range(0, n - r, nr):
        for row in range(0, m, MR):
            if row + MR <= m and column + nr <= n:
                microkernel(a, row, 0, k, panels, column // nr, c, row, column, add)
            else:
                microkernel(a, row, 0, k, panels, column // nr, edge, 0, 0, False)
                store(edge, c[row : row + MR, column : column + nr], add)
    for j in range(r):
        for row in range(0, m, group_size((j,))):
            products = dots(columns, (j,), a, row, 0)
            for i in range(min(len(products), m - row)):
                c[row + i, n - r + j] = products[i] + (c[row + i, n - r + j] if add else 0)


@noinline
def gemm(a: Any, b: Any, c: Any, bias: Any, add: bool) -> None:
    """c = a @ b, or c += a @ b with `add`, plus bias (n) on every row unless it is empty; on one thread.

    a (m, k) and b (k, n) may have any strides; bias and the rows of c (m, n) must be contiguous. Contiguous rows of a
    are read in place, but for the last ones if they are fewer than MR.
    """
    m, k = a.shape
    n, nr = c.shape[1], nr_of(c)
    kc, nc, mc = min(KC, k), min(NC, round_up(n, nr)), min(MC, round_up(m, MR))
    b_panels = aligned(nc * (kc + PANEL_PADDING), c).reshape(nc // nr, kc + PANEL_PADDING, nr)
    a_block = aligned(mc * (kc + ROW_PADDING), c).reshape(mc, kc + ROW_PADDING)
    n_dots = n % nr if n % nr * c.itemsize <= MAX_DOT_BYTES else 0
    columns = aligned(n_dots * (kc + ROW_PADDING), c).reshape(n_dots, kc + ROW_PADDING)
    edge = aligned(MR * nr, c).reshape(MR, nr)
    in_place = a.strides[1] == a.itemsize
    for left in range(0, n, NC):
        right = min(left + NC, n)
        for first in range(0, k, KC):
            last = min(first + KC, k)
            adds = add or first > 0
            pack_block(b, first, last, left, right, b_panels)
            narrow = columns[: n_dots if right == n else 0, : last - first]
            for j in range(len(narrow)):
                for i in range(last - first):
                    narrow[j, i] = b_panels[(n - left) // nr, i, j]
            for top in range(0, m, MC):
                bottom = min(top + MC, m)
                packed = top + (bottom - top) // MR * MR if in_place else top  # from this row on
                if packed > top:
                    macrokernel(a[top:packed, first:last], b_panels, narrow, c[top:packed, left:right], edge, adds)
                if packed < bottom:
                    pack_transposed(a[packed:bottom, first:last], a_block)
                    a_block[bottom - packed : round_up(bottom - packed, MR), : last - first] = 0  # see `padded_matrix`
                    macrokernel(a_block[:, : last - first], b_panels, narrow, c[packed:bottom, left:right], edge, adds)
                if bias.size > 0 and last == k:
                    added = contiguous_row(bias[left:right])
                    for i in range(top, bottom):
                        ci = contiguous_row(c[i, left:right])
                        for j in range(ci.size):
                            ci[j] += added[j]


@strided(lambda real: (array(real, 2),) * 3 + (array(real, 1), types.boolean, types.int64))
def parallel_product(a: Any, b: Any, c: Any, bias: Any, add: bool, parts: int, thread: Any = ALONE) -> None:
    """`gemm` on threads: c is split along its longer side into equal parts, one per thread.

    So a thread mostly keeps the rows that it computed before. Which products are summed for an element, and in which
    order, does not depend on the number of parts: any number of threads gives the same bits.
    """
    m, n = c.shape
    nr = nr_of(c)
    n_panels, n_row_groups = round_up(n, nr) // nr, round_up(m, MR) // MR
    for part in prange(parts, thread):
        if m > n:
            start, stop = n_row_groups * part // parts * MR, min(n_row_groups * (part + 1) // parts * MR, m)
            gemm(a[start:stop], b, c[start:stop], bias, add)
        else:
            start, stop = n_panels * part // parts * nr, min(n_panels * (part + 1) // parts * nr, n)
            gemm(a, b[:, start:stop], c[:, start:stop], bias[start:stop], add)


@strided(lambda real: (array(real, 3), array(real, 3), array(real, 3)))
def batched_product(a: Any, b: Any, c: Any, thread: Any = ALONE) -> None:
    """c[i] = a[i] @ b[i] for stacks of matrices (s, m, k), (s, k, n), (s, m, n)."""
    for i in prange(len(c), thread):
        gemm(a[i], b[i], c[i], c[0, 0, :0], False)
