"""Strategies that draw calls of ops; a registration names the one of its op: see `Draw` in tensorgrad.gradcheck.cases.

Floating operands come in any dtype, and in awkward layouts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np

import tensorgrad as tg


@dataclass
class Floats:
    """A floating operand: its numbers in float64, and how they lie in memory."""

    numbers: Any
    layout: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape  # type: ignore[no-any-return]


@dataclass
class Call:
    """Operands (floating ones get gradients) and options of one call of an op."""

    operands: list[Any]
    options: dict[str, Any] = field(default_factory=dict)

    def arrays(self, dtype: Any = np.float64) -> list[Any]:
        """The operands as NumPy arrays, floats in that dtype; Python numbers as they are."""
        return [lay_out(x.layout, x.numbers.astype(dtype)) if isinstance(x, Floats) else x for x in self.operands]

    def tensors(self, dtype: Any = np.float64) -> list[Any]:
        """The operands as tensors, of which those in floating dtypes require a gradient."""
        floating = [isinstance(x, Floats) for x in self.operands]
        arrays = zip(self.arrays(dtype), floating, strict=True)
        return [tg.Tensor(x, requires_grad) if isinstance(x, np.ndarray) else x for x, requires_grad in arrays]


# --- operands -------------------------------------------------------------------------------------


def normal(rng: np.random.Generator, shape: Any) -> Any:
    return rng.standard_normal(shape)


def with_ties(rng: np.random.Generator, shape: Any) -> Any:
    return rng.integers(-2, 3, shape).astype(np.float64)


def positive(rng: np.random.Generator, shape: Any) -> Any:
    return rng.uniform(0.5, 2, shape)


def nonzero(rng: np.random.Generator, shape: Any) -> Any:
    return positive(rng, shape) * rng.choice([-1, 1], shape)


def few(rng: np.random.Generator, shape: Any) -> Any:
    return rng.choice([-2.0, -0.5, 0.0, 0.5, 1.0, 1.5], shape)


def few_nonzero(rng: np.random.Generator, shape: Any) -> Any:
    return rng.choice([-2.0, -0.5, 0.5, 1.0, 1.5], shape)


def sizes(low: int = 0, high: int = 4) -> Any:
    return st.integers(low, high)


def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 0) -> Any:
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=4)


def lay_out(layout: str, x: Any) -> Any:
    """The same numbers in another order in memory; "stretched" repeats the first of axis 0 with stride 0."""
    if x.ndim == 0 or layout == "plain":
        return x
    if layout == "transposed":
        return np.asfortranarray(x)
    if layout == "reversed":
        backwards = (slice(None, None, -1),) * x.ndim
        return x[backwards].copy()[backwards]
    if layout == "sliced":
        room = np.zeros([2 * n for n in x.shape], x.dtype)
        room[(slice(None, None, 2),) * x.ndim] = x
        return room[(slice(None, None, 2),) * x.ndim]
    assert layout == "stretched"
    return np.broadcast_to(x[:1], x.shape)


LAYOUTS = ["plain", "transposed", "reversed", "sliced", "stretched"]


def generators() -> Any:
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def array(draw: Any, shape: Any, values: Any = normal, layouts: Sequence[str] = LAYOUTS) -> Any:
    return Floats(np.asarray(values(draw(generators()), shape)), draw(st.sampled_from(layouts)))


@st.composite
def unary(draw: Any, values: Any = normal, min_dims: int = 0, **options: Any) -> Any:
    """One operand of any shape; options: a strategy for each."""
    x = draw(array(draw(shapes(min_dims)), values))
    return Call([x], {name: draw(option) for name, option in options.items()})


@st.composite
def binary(draw: Any, a: Any = normal, b: Any = normal) -> Any:
    """Two operands that broadcast together, or one and a Python number."""
    drawn = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3, min_side=0))
    x, y = (draw(array(shape, values)) for shape, values in zip(drawn.input_shapes, (a, b), strict=True))
    scalar = draw(st.sampled_from([None, None, 0, 1]))
    if scalar == 0:
        x = float(a(draw(generators()), ()))
    elif scalar == 1:
        y = float(b(draw(generators()), ()))
    return Call([x, y])


@st.composite
def pairs_of_integers(draw: Any) -> Any:
    drawn = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
    return Call([draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3))) for shape in drawn.input_shapes])


@st.composite
def ternary(draw: Any) -> Any:
    drawn = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3))
    condition, a, b = drawn.input_shapes
    return Call([np.asarray(draw(generators()).random(condition) < 0.5), draw(array(a)), draw(array(b))])


@st.composite
def some_axes(draw: Any, ndim: int) -> Any:
    """None, one axis, or a tuple of several, from either end."""
    if ndim == 0 or draw(st.booleans()):
        return None
    axes = draw(st.lists(st.integers(0, ndim - 1), min_size=1, max_size=ndim, unique=True))
    axes = [a - ndim * draw(st.booleans()) for a in axes]
    return axes[0] if len(axes) == 1 and draw(st.booleans()) else tuple(axes)


@st.composite
def reduction(draw: Any, values: Any = normal, min_side: int = 1) -> Any:
    shape = draw(shapes(min_side=min_side))
    options = {"axis": draw(some_axes(len(shape))), "keepdims": draw(st.booleans())}
    return Call([draw(array(shape, values))], options)


@st.composite
def deviation(draw: Any) -> Any:
    """At least two elements that differ: PyTorch's std has no gradient at 0."""
    shape = draw(shapes(1, min_side=2))
    options = {"axis": draw(some_axes(len(shape))), "keepdims": draw(st.booleans())}
    return Call([draw(array(shape, layouts=LAYOUTS[:-1]))], {"correction": draw(st.sampled_from([0, 1])), **options})


@st.composite
def along_axis(draw: Any, values: Any = normal, min_side: int = 1, **options: Any) -> Any:
    shape = draw(shapes(1, 3, min_side))
    drawn = {name: draw(option) for name, option in options.items()}
    return Call([draw(array(shape, values))], {"axis": draw(st.integers(-len(shape), len(shape) - 1)), **drawn})


@st.composite
def searching(draw: Any, values: Any) -> Any:
    shape = draw(shapes(1, min_side=1))
    axis = draw(st.sampled_from([None, *range(-len(shape), len(shape))]))
    return Call([draw(array(shape, values))], {"axis": axis, "keepdims": draw(st.booleans())})


@st.composite
def reshaping(draw: Any) -> Any:
    shape = draw(shapes())
    new = list(draw(st.permutations([n for n in shape if n != 1] + [1] * draw(st.integers(0, 2)))))
    if new and math.prod(shape) and draw(st.booleans()):
        new[draw(st.integers(0, len(new) - 1))] = -1
    return Call([draw(array(shape))], {"shape": tuple(new)})


@st.composite
def permuting(draw: Any) -> Any:
    shape = draw(shapes())
    return Call([draw(array(shape))], {"axes": tuple(draw(st.permutations(range(len(shape)))))})


@st.composite
def expanding(draw: Any) -> Any:
    shape = draw(shapes())
    return Call([draw(array(shape))], {"axis": draw(st.integers(-len(shape) - 1, len(shape)))})


@st.composite
def squeezing(draw: Any) -> Any:
    shape = draw(shapes(max_dims=4).map(lambda shape: tuple(1 if n == 4 else n for n in shape)))
    ones = [i for i, n in enumerate(shape) if n == 1]
    axes = tuple(draw(st.lists(st.sampled_from(ones), unique=True))) if ones else ()
    return Call([draw(array(shape))], {"axis": draw(st.sampled_from([None, axes]))})


@st.composite
def stretching(draw: Any) -> Any:
    drawn = draw(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=draw(shapes())))
    return Call([draw(array(drawn.input_shapes[0]))], {"shape": drawn.result_shape})


@st.composite
def joining(draw: Any) -> Any:
    shape = list(draw(shapes(1)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    arrays = []
    for n in draw(st.lists(sizes(), min_size=1, max_size=3)):
        shape[axis] = n
        arrays.append(draw(array(tuple(shape))))
    return Call(arrays, {"axis": axis})


@st.composite
def stacking(draw: Any) -> Any:
    shape = draw(shapes())
    arrays = [draw(array(shape)) for _ in range(draw(st.integers(1, 3)))]
    return Call(arrays, {"axis": draw(st.integers(-len(shape) - 1, len(shape)))})


@st.composite
def splitting(draw: Any) -> Any:
    shape = list(draw(shapes(1)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    parts = draw(st.lists(sizes(), min_size=1, max_size=3))
    equal = draw(st.booleans())
    shape[axis] = parts[0] * len(parts) if equal else sum(parts)
    return Call([draw(array(tuple(shape)))], {"sections": len(parts) if equal else parts, "axis": axis})


@st.composite
def tiling(draw: Any) -> Any:
    repetitions = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    return Call([draw(array(draw(shapes(max_dims=2))))], {"repetitions": repetitions})


@st.composite
def repeating(draw: Any) -> Any:
    call = draw(along_axis(min_side=0))
    n = call.operands[0].shape[call.options["axis"]]
    each = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).map(lambda r: np.array(r, np.int64)))
    repeats = draw(st.sampled_from([0, 1, 3, each]))
    if isinstance(repeats, int) and draw(st.booleans()):
        call.options["axis"] = None
    return Call(call.operands, {"repeats": repeats, **call.options})


@st.composite
def flipping(draw: Any) -> Any:
    shape = draw(shapes())
    return Call([draw(array(shape))], {"axis": draw(some_axes(len(shape)))})


@st.composite
def rolling(draw: Any) -> Any:
    shape = draw(shapes())
    axis = draw(some_axes(len(shape)))
    shifts = st.integers(-5, 5)
    shift = draw(st.tuples(*[shifts] * len(axis))) if isinstance(axis, tuple) else draw(shifts)
    return Call([draw(array(shape))], {"shift": shift, "axis": axis})


@st.composite
def padding(draw: Any) -> Any:
    shape = draw(shapes(1))
    pairs = st.tuples(st.integers(0, 2), st.integers(0, 2))
    width = draw(st.one_of(st.integers(0, 2), pairs, st.tuples(*[pairs] * len(shape))))
    return Call([draw(array(shape))], {"pad_width": width, "constant": draw(st.sampled_from([0, 1.5]))})


@st.composite
def indexing(draw: Any) -> Any:
    """An index of slices and ints, of integer arrays, or a mask."""
    shape = draw(shapes(1, 3, 1))
    kind = draw(st.sampled_from(["basic", "integers", "mask"]))
    if kind == "basic":
        key = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    elif kind == "integers":
        key = draw(hnp.integer_array_indices(shape))
    else:
        key = draw(hnp.arrays(bool, shape[: draw(st.integers(1, len(shape)))]))
    return Call([draw(array(shape))], {"key": key})


@st.composite
def taking(draw: Any) -> Any:
    call = draw(along_axis())
    n = call.operands[0].shape[call.options["axis"]]
    indices = draw(hnp.arrays(np.int64, draw(shapes(0, 2)), elements=st.integers(-n, n - 1)))
    return Call([*call.operands, indices], call.options)


@st.composite
def taking_along_axis(draw: Any) -> Any:
    call = draw(along_axis())
    (x,), axis = call.operands, call.options["axis"]
    shape = [draw(st.sampled_from([n, 1])) for n in x.shape]  # an axis of 1 is broadcast
    shape[axis] = draw(sizes())
    indices = draw(hnp.arrays(np.int64, tuple(shape), elements=st.integers(-x.shape[axis], x.shape[axis] - 1)))
    return Call([x, indices], call.options)


@st.composite
def matrices(draw: Any) -> Any:
    signature = "(m?,n),(n,p?)->(m?,p?)"
    drawn = draw(hnp.mutually_broadcastable_shapes(signature=signature, max_dims=2, min_side=0, max_side=3))
    return Call([draw(array(shape)) for shape in drawn.input_shapes])


@st.composite
def contractions(draw: Any) -> Any:
    shared, left, right = (list(draw(shapes(max_dims=2))) for _ in range(3))
    n = len(shared)
    if draw(st.booleans()):
        return Call([draw(array((*left, *shared))), draw(array((*shared, *right)))], {"axes": n})
    place_a = draw(st.permutations(range(n + len(left))))[:n]
    place_b = draw(st.permutations(range(n + len(right))))[:n]
    shape_a, shape_b = left.copy(), right.copy()
    for shape, places in ((shape_a, place_a), (shape_b, place_b)):
        for size, place in sorted(zip(shared, places, strict=True), key=lambda pair: pair[1]):
            shape.insert(place, size)
    return Call([draw(array(tuple(shape_a))), draw(array(tuple(shape_b)))], {"axes": (place_a, place_b)})


EINSUMS = ["ij,jk->ik", "bhtd,bhsd->bhts", "ii->i", "ii", "ij->ji", "i,j->ij", "...ij,...jk->...ik", "ij,ij,ij->",
           "i->", "ijk->k", "ij,jk", "i,i", "ba", "iij->j", "ij,j->i", "i...->...", "...,...->...",
           "ijj,j->ij"]  # fmt: skip


@st.composite
def einsums(draw: Any) -> Any:
    """Terms of drawn sizes; an operand may have size 1 where others are larger."""
    subscripts = draw(st.sampled_from(EINSUMS))
    letters = {c: draw(sizes(1, 3)) for c in sorted(set(subscripts) - set(",->."))}
    dots = draw(shapes(max_dims=2, min_side=1))
    arrays = []
    for term in subscripts.split("->")[0].split(","):
        single = draw(st.sampled_from(["", *(c for c in term if c != "." and term.count(c) == 1)]))
        named = [1 if c == single else letters[c] for c in term.replace("...", "")]
        at = term.find("...")
        arrays.append(draw(array(tuple(named) if at < 0 else (*named[:at], *dots, *named[at:]))))
    return Call([subscripts, *arrays])


@st.composite
def linears(draw: Any) -> Any:
    n, m = draw(sizes()), draw(sizes())
    bias = [draw(array((m,)))] if draw(st.booleans()) else []
    return Call([draw(array((*draw(shapes(max_dims=2)), n))), draw(array((m, n))), *bias])


@st.composite
def mlps(draw: Any) -> Any:
    n, m, p = (draw(sizes()) for _ in range(3))
    biases = [draw(array((size,))) if draw(st.booleans()) else None for size in (m, p)]
    x = draw(array((*draw(shapes(max_dims=2)), n)))
    operands = [x, draw(array((m, n))), biases[0], draw(array((p, m))), biases[1]]
    return Call(operands, {"approximate": draw(st.sampled_from(["none", "tanh"]))})


@st.composite
def normalizing(draw: Any, n_scales: int) -> Any:
    n = draw(sizes(2))
    scales = [draw(array((n,))) for _ in range(draw(st.integers(0, n_scales)))]
    x = draw(array((*draw(shapes(1, 2)), n)))
    return Call([x, *scales], {"eps": draw(st.sampled_from([1e-5, 0.1]))})


@st.composite
def adding(draw: Any, n_scales: int) -> Any:
    call = draw(normalizing(n_scales))
    x, *scales = call.operands
    return Call([x, draw(array(x.shape)), *scales], call.options)


@st.composite
def alike(draw: Any) -> Any:
    shape = draw(shapes())
    return Call([draw(array(shape)), draw(array(shape))])


@st.composite
def embeddings(draw: Any) -> Any:
    n = draw(sizes(1))
    indices = draw(hnp.arrays(np.int64, draw(shapes()), elements=st.integers(0, n - 1)))
    return Call([draw(array((n, draw(sizes())))), indices])


@st.composite
def losses(draw: Any) -> Any:
    n = draw(sizes(1))
    shape = draw(shapes(max_dims=2, min_side=1))
    targets = draw(hnp.arrays(np.int64, shape, elements=st.sampled_from([*range(n), *range(n), -100])))
    targets[(0,) * len(shape)] = draw(st.integers(0, n - 1))  # PyTorch has NaN where all are ignored
    smoothing, reduction = draw(st.sampled_from([0.0, 0.1, 1.0])), draw(st.sampled_from(["mean", "sum", "none"]))
    return Call([draw(array((*shape, n))), targets], {"label_smoothing": smoothing, "reduction": reduction})


@st.composite
def linear_losses(draw: Any) -> Any:
    loss, n = draw(losses()), draw(sizes(1))
    logits, targets = loss.operands
    shape = (*logits.shape[:-1], n)
    return Call([draw(array(shape)), draw(array((logits.shape[-1], n))), targets], loss.options)


@st.composite
def attentions(draw: Any) -> Any:
    n_batch, n_group, shared, n_query, n_key, size = (draw(sizes(1, 3)) for _ in range(6))
    full = (n_batch, n_group * shared, n_query, n_key)
    mask = None
    if draw(st.booleans()):
        mask = draw(generators()).random([draw(st.sampled_from([n, 1])) for n in full]) < 0.7
    arrays = [draw(array((n_batch, n_group * shared, n_query, size)))]
    arrays += [draw(array((n_batch, n_group, n_key, size))) for _ in "kv"]
    scale = draw(st.sampled_from([None, 0.7]))
    return Call(arrays, {"causal": draw(st.booleans()), "mask": mask, "scale": scale})


@st.composite
def rotations(draw: Any) -> Any:
    shape = (*draw(shapes(max_dims=2)), draw(sizes()), 2 * draw(sizes()))
    short = draw(st.integers(0, len(shape) - 2))
    positions = draw(hnp.arrays(np.int64, shape[short:-1], elements=st.integers(0, 2000)))
    return Call([draw(array(shape)), positions], {"base": draw(st.sampled_from([10000.0, 50.0]))})
