"""Random calls of every op with a counterpart in PyTorch, for operands that are there or drawn as needed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from op_strategies import EINSUMS, LAYOUTS, lay_out

Rng = np.random.Generator
FLOATS = ("float64", "float32", "float32", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int8", "uint8")


@dataclass(frozen=True)
class Ref:
    """A value of the program, by its number."""

    number: int


@dataclass
class Call:
    """An op, its operands (references, numbers or None) and options."""

    op: str
    operands: list[Any]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Leaf:
    """An operand that no op computes. kind: parameter (requires a gradient), constant, array, subclass or number."""

    array: Any
    kind: str
    layout: str = "plain"

    @property
    def laid_out(self) -> Any:
        """The array, its elements in memory as the layout says."""
        if self.kind == "subclass":
            return self.array.view(Subclass)
        if self.layout == "big-endian":
            return self.array.astype(self.array.dtype.newbyteorder(">"))
        if self.layout == "read-only":
            x = np.array(self.array)
            x.flags.writeable = False
            return x
        return lay_out(self.layout, self.array)


class Subclass(np.ndarray):
    """An array that is more than one of NumPy's."""


def numbers(rng: Rng, shape: tuple[int, ...], dtype: str, style: str) -> Any:
    """Elements: ordinary, small integers (ties and zeros), or the ends of the range."""
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype in INTEGERS:
        return rng.integers(0 if dtype == "uint8" else -3, 5, shape).astype(dtype)
    if style == "ties":
        return np.asarray(rng.integers(-2, 3, shape)).astype(dtype)
    x = np.asarray(rng.standard_normal(shape))
    if style == "extreme":
        import ml_dtypes

        limits = ml_dtypes.finfo(dtype)
        # Nothing is wider than float64 to compare with.
        largest = float(limits.max) / (2**10 if dtype == "float64" else 1)
        ends = [np.inf, -np.inf, np.nan, 0.0, -0.0, largest, -largest, float(limits.tiny),
                float(limits.smallest_subnormal), float(limits.max) ** 0.5, -30.0, 100.0, 1e4]  # fmt: skip
        x = np.where(rng.random(shape) < 0.25, rng.choice(ends, shape), x)
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype)


class Draw:
    """Draws operands and options; `values` are those of the program so far, and grow with every leaf.

    style: how the elements of leaves are chosen, see `numbers`.
    """

    def __init__(self, rng: Rng, values: list[Any], style: str) -> None:
        self.rng, self.values, self.style = rng, values, style
        self.dtype = str(rng.choice(FLOATS))

    # --- choices --------------------------------------------------------------------------------

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def one_of(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def size(self, low: int = 0, high: int = 4) -> int:
        """Mostly 1 or more."""
        low = low if self.chance(0.1) else max(low, 1)
        return int(self.rng.integers(low, high + 1))

    def shape(self, low: int = 0, high: int = 3, min_side: int = 0) -> tuple[int, ...]:
        return tuple(self.size(min_side) for _ in range(int(self.rng.integers(low, high + 1))))

    def axis(self, ndim: int) -> int:
        return int(self.rng.integers(-ndim, ndim))

    def axes(self, ndim: int) -> Any:
        """None, one axis or several, from either end."""
        if ndim == 0 or self.chance(0.3):
            return None
        if self.chance(0.5):
            return self.axis(ndim)
        n = int(self.rng.integers(1, ndim + 1))
        return tuple(int(a) - ndim * self.chance(0.5) for a in self.rng.permutation(ndim)[:n])

    # --- operands -------------------------------------------------------------------------------

    def leaf(self, shape: tuple[int, ...], dtype: str | None = None, *, positive: bool = False) -> Ref:
        """A new operand of this shape; of a floating dtype unless one is given."""
        dtype = dtype or (self.dtype if self.chance(0.85) else str(self.rng.choice(FLOATS)))
        array = numbers(self.rng, shape, dtype, self.style)
        if positive:
            array = np.abs(array) + np.asarray(dtype == "bool" or 0.5).astype(dtype)
        kinds = ["parameter"] * 6 + ["constant", "array", "subclass"] if dtype in FLOATS else ["constant", "array"]
        kind = self.one_of(kinds)
        layout = self.one_of(["plain", *LAYOUTS, "read-only"]) if kind != "subclass" else "plain"
        if kind == "array" and dtype != "bfloat16" and self.chance(0.2):
            layout = "big-endian"
        if layout == "stretched" and array.ndim and not len(array):
            layout = "plain"
        self.values.append(Leaf(array, kind, layout))
        return Ref(len(self.values) - 1)

    def indices(self, shape: tuple[int, ...], low: int, high: int) -> Ref:
        """Integers from `low` to below `high`."""
        array = self.rng.integers(low, max(high, low + 1), shape if high > low else (0, *shape[1:]))
        dtype = self.one_of(["int64", "int64", "int32", "int16", *(["uint8"] if low >= 0 else [])])
        self.values.append(Leaf(np.asarray(array).astype(dtype), self.one_of(["constant", "array"])))
        return Ref(len(self.values) - 1)

    def mask(self, shape: tuple[int, ...]) -> Ref:
        return self.leaf(tuple(n if self.chance(0.8) else 1 for n in shape), "bool")

    def shape_of(self, x: Ref) -> tuple[int, ...]:
        value = self.values[x.number]
        return tuple(value.array.shape if isinstance(value, Leaf) else value.shape)

    def dtype_of(self, x: Ref) -> Any:
        value = self.values[x.number]
        return value.array.dtype if isinstance(value, Leaf) else value.dtype

    def floating(self, suits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> Ref | None:
        """A floating result or operand that is there, the later the likelier; None where none suits."""
        there = [
            i for i, x in enumerate(self.values)
            if (isinstance(x, Leaf) and x.kind == "parameter" or not isinstance(x, Leaf))
            and self.dtype_of(Ref(i)).name in FLOATS and suits(self.shape_of(Ref(i)))
        ]  # fmt: skip
        if not there or self.chance(0.2):
            return None
        return Ref(there[-1] if self.chance(0.6) else self.one_of(there))

    def any(self, low: int = 0, min_side: int = 0, high: int = 4) -> Ref:
        """An operand with `low` to `high` dimensions of `min_side` or more."""


        def suits(shape: tuple[int, ...]) -> bool:
            return low <= len(shape) <= high and min([*shape, min_side]) >= min_side and math.prod(shape) < 300

        return self.floating(suits) or self.leaf(self.shape(low, min(high, 3), min_side))

    def like(self, shape: tuple[int, ...]) -> Ref:
        """An operand of exactly this shape."""
        return (self.chance(0.4) and self.floating(lambda other: other == shape)) or self.leaf(shape)

    def beside(self, x: Ref, dtype: str | None = None) -> Any:
        """An operand that broadcasts with x: a Python or NumPy number, or an array."""
        if dtype is None and self.chance(0.15):
            number = float(self.one_of([0.0, 1.0, 2.0, -1.5, 0.5]))
            return self.one_of([number, int(number), np.float64(number), np.float32(number)])
        shape = self.shape_of(x)
        if self.chance(0.6):
            shape = tuple(1 if self.chance(0.3) else n for n in shape)[int(self.rng.integers(0, len(shape) + 1)) :]
        elif self.chance(0.3) and len(shape) < 3:
            shape = (self.size(1), *shape)
        return self.leaf(shape, dtype) if dtype else self.like(shape)

    def swapped(self, a: Any, b: Any) -> list[Any]:
        return [a, b] if self.chance(0.5) or (not isinstance(b, Ref)) and self.chance(0.5) else [b, a]


# --- a function for each family of ops: its calls ---------------------------------------------------


def unary(d: Draw, op: str) -> Call:
    options: dict[str, Any] = {}
    if op == "gelu":
        options = {"approximate": d.one_of(["none", "tanh"])}
    elif op == "leaky_relu":
        options = {"negative_slope": d.one_of([0.01, 0.3])}
    elif op == "astype":
        options = {"dtype": str(d.rng.choice(FLOATS))}
    return Call(op, [d.leaf(d.shape(), d.one_of([*INTEGERS, "bool"])) if d.chance(0.08) else d.any()], options)


def clip(d: Draw, op: str) -> Call:
    x = d.any()
    limits: list[Any] = [None if d.chance(0.3) else -1.0, None if d.chance(0.3) else d.one_of([0.5, 1.0])]
    if d.chance(0.3):
        limits[int(d.chance(0.5))] = d.leaf(tuple(1 if d.chance(0.3) else n for n in d.shape_of(x)))
    return Call(op, [x, *limits])


def binary(d: Draw, op: str) -> Call:
    if d.chance(0.12):
        x = d.leaf(d.shape(), d.one_of(INTEGERS))
        other = d.one_of(INTEGERS) if op not in ("floor_divide", "remainder", "pow", "divide") else None
        return Call(op, [x, d.beside(x, other)])
    x = d.any()
    return Call(op, d.swapped(x, d.beside(x)))


def logical(d: Draw, op: str) -> Call:
    dtype = d.one_of([*INTEGERS, "bool", "bool"])
    x = d.leaf(d.shape(), dtype)
    return Call(op, [x] if op in ("logical_not", "bitwise_invert") else [x, d.beside(x, dtype)])


def choosing(d: Draw, op: str) -> Call:
    x = d.any()
    condition = d.mask(d.shape_of(x))
    if op == "masked_fill":
        return Call(op, [x, condition, d.one_of([0.0, -1.5, float("-inf")])])
    return Call(op, [condition, *d.swapped(x, d.beside(x))])


def reduction(d: Draw, op: str) -> Call:
    integers = d.chance(0.08)
    may_be_empty = op in ("sum", "prod", "all", "any", "count_nonzero")
    shape = d.shape(min_side=0 if may_be_empty else 1)
    x = d.leaf(shape, d.one_of([*INTEGERS, "bool"])) if integers else d.any(min_side=0 if may_be_empty else 1)
    options = {"axis": d.axes(len(d.shape_of(x))), "keepdims": d.chance(0.5)}
    if op in ("argmax", "argmin") and isinstance(options["axis"], tuple):
        options["axis"] = options["axis"][0]
    if op in ("argmax", "argmin"):
        options["axis"] = None if options["axis"] is None or not d.shape_of(x) else options["axis"]
    if op in ("var", "std"):
        options["correction"] = 0
    return Call(op, [x], options)


def along_axis(d: Draw, op: str) -> Call:
    x = d.any(1, 1)
    options: dict[str, Any] = {"axis": d.axis(len(d.shape_of(x)))} if op != "nonzero" else {}
    if op in ("sort", "argsort"):
        options["descending"] = d.chance(0.5)
    if op == "topk":
        options["k"] = int(d.rng.integers(0, d.shape_of(x)[options["axis"]] + 1))
    return Call(op, [x], options)


def reshaping(d: Draw, op: str) -> Call:
    x = d.any(2 if op in ("matrix_transpose", "tril", "triu", "diagonal") else 0)
    shape = d.shape_of(x)
    n = len(shape)
    options: dict[str, Any] = {}
    if op == "reshape":
        new = [int(k) for k in d.rng.permutation([k for k in shape if k != 1] + [1] * d.chance(0.5))]
        if new and math.prod(shape) and d.chance(0.5):
            new[int(d.rng.integers(len(new)))] = -1
        options = {"shape": tuple(new)}
    elif op == "permute_dims":
        options = {"axes": tuple(int(a) for a in d.rng.permutation(n))}
    elif op == "expand_dims":
        options = {"axis": int(d.rng.integers(-n - 1, n + 1))}
    elif op == "squeeze":
        ones = [i for i, k in enumerate(shape) if k == 1]
        options = {"axis": None if d.chance(0.5) else tuple(ones)}
    elif op == "broadcast_to":
        options = {"shape": (*d.shape(0, 1), *(d.size(1) if k == 1 else k for k in shape))}
    elif op in ("tril", "triu"):
        options = {"diagonal": int(d.rng.integers(-3, 4))}
    elif op == "diagonal":
        options = {"offset": int(d.rng.integers(-3, 4))}
    elif op == "flip":
        options = {"axis": d.axes(n)}
    elif op == "roll":
        axis = d.axes(n)
        each = tuple(int(s) for s in d.rng.integers(-5, 6, len(axis))) if isinstance(axis, tuple) else 0
        options = {"shift": each or int(d.rng.integers(-5, 6)), "axis": axis}
    elif op == "tile":
        options = {"repetitions": tuple(int(r) for r in d.rng.integers(0, 3, int(d.rng.integers(0, 4))))}
    elif op == "moveaxis" and n:
        options = {"source": d.axis(n), "destination": d.axis(n)}
    elif op == "moveaxis":
        return reshaping(d, "flip")
    return Call(op, [x], options)


def padding(d: Draw, op: str) -> Call:
    x = d.any(1)
    pairs = tuple((int(a), int(b)) for a, b in d.rng.integers(0, 3, (len(d.shape_of(x)), 2)))
    return Call(op, [x], {"pad_width": d.one_of([pairs, pairs[0], pairs[0][0]]), "constant": d.one_of([0, 1.5])})


def repeating(d: Draw, op: str) -> Call:
    x = d.any(1)
    axis = d.axis(len(d.shape_of(x)))
    each = d.rng.integers(0, 3, d.shape_of(x)[axis])
    repeats = d.one_of([each, 0, 1, 2])
    return Call(op, [x], {"repeats": repeats, "axis": None if isinstance(repeats, int) and d.chance(0.4) else axis})


def joining(d: Draw, op: str) -> Call:
    x = d.any(op == "concat")
    shape, n = list(d.shape_of(x)), int(d.rng.integers(1, 4))
    axis = d.axis(len(shape)) if op == "concat" else int(d.rng.integers(-len(shape) - 1, len(shape) + 1))
    others = []
    for _ in range(n - 1):
        if op == "concat":
            shape[axis] = d.size()
        others.append(d.like(tuple(shape)))
    return Call(op, [x, *others], {"axis": axis})


def splitting(d: Draw, op: str) -> Call:
    x = d.any(1)
    axis = d.axis(len(d.shape_of(x)))
    n = d.shape_of(x)[axis]
    parts = d.one_of([k for k in range(1, max(n, 1) + 1) if n % k == 0])
    cut = int(d.rng.integers(0, n + 1))
    return Call(op, [x], {"sections": d.one_of([parts, [cut, n - cut], [cut, 0, n - cut]]), "axis": axis})


def indexing(d: Draw, op: str) -> Call:
    x = d.any(1, 1)
    shape = d.shape_of(x)
    kind = d.one_of(["basic", "basic", "integers", "mask", "mixed"])
    if kind == "mask":
        return Call(op, [x], {"key": d.rng.random(shape[: int(d.rng.integers(1, len(shape) + 1))]) < 0.5})
    if kind == "integers":
        several = int(d.rng.integers(1, len(shape) + 1))
        places = d.shape(0, 2, 1)
        return Call(op, [x], {"key": tuple(d.rng.integers(-n, n, places) for n in shape[:several])})
    key: list[Any] = []
    for n in shape[: int(d.rng.integers(1, len(shape) + 1))]:
        start, stop = (d.one_of([None, *range(-n - 1, n + 2)]) for _ in "ab")
        part: list[Any] = [slice(start, stop, d.one_of([None, 1, 2, -1, -2])), int(d.rng.integers(-n, n))]
        key.append(d.one_of([*part, slice(None), *([d.rng.integers(-n, n, 3)] if kind == "mixed" else [])]))
    if kind == "basic" and d.chance(0.3):
        key.insert(int(d.rng.integers(0, len(key) + 1)), d.one_of([None, ...]))
    return Call(op, [x], {"key": tuple(key)})


def taking(d: Draw, op: str) -> Call:
    if op == "embedding":
        weight = d.like((d.size(1), d.size())) if d.chance(0.7) else d.any(2, 1, 2)
        return Call(op, [weight, d.indices(d.shape(0, 2, 1), 0, d.shape_of(weight)[0])])
    x = d.any(1, 1)
    shape = list(d.shape_of(x))
    axis = d.axis(len(shape))
    n = shape[axis]
    if op == "take":
        return Call(op, [x, d.indices(d.shape(0, 2, 1), -n, n)], {"axis": axis})
    if op == "take_along_axis":
        shape[axis] = d.size(1)
        return Call(op, [x, d.indices(tuple(shape), -n, n)], {"axis": axis})
    shape[axis] = d.size(1)
    return Call(op, [x, d.indices((shape[axis],), -n, n), d.like(tuple(shape))], {"axis": axis})


def products(d: Draw, op: str) -> Call:
    if op == "outer":
        return Call(op, [d.any(1, high=1), d.any(1, high=1)])
    x = d.any(1)
    shape = d.shape_of(x)
    n = shape[-1]
    if op == "matmul":
        batch = shape[:-2] if d.chance(0.5) else (1,) * len(shape[:-2])
        other = (n,) if d.chance(0.2) else (*batch, n, d.size()) if d.chance(0.7) else (n, d.size())
        return Call(op, [x, d.like(other)])
    if op == "linear":
        m = d.size()
        return Call(op, [x, d.like((m, n)), *([d.leaf((m,))] if d.chance(0.6) else [])])
    if op == "tensordot":
        k = int(d.rng.integers(0, min(2, len(shape)) + 1))
        return Call(op, [x, d.like((*shape[len(shape) - k :], *d.shape(0, 1)))], {"axes": k})
    m, p = d.size(), d.size()
    biases = [d.leaf((size,)) if d.chance(0.6) else None for size in (m, p)]
    return Call(op, [x, d.like((m, n)), biases[0], d.like((p, m)), biases[1]],
                {"approximate": d.one_of(["none", "tanh"])})  # fmt: skip


def einsum(d: Draw, op: str) -> Call:
    subscripts = d.one_of(EINSUMS)
    sizes = {c: d.size(1, 3) for c in subscripts}
    terms = [[sizes[c] for c in term.replace("...", ".")] for term in subscripts.split("->")[0].split(",")]
    return Call(op, [subscripts, *(d.like(tuple(shape)) for shape in terms)])


def normalizing(d: Draw, op: str) -> Call:
    x = d.any(1, 1)
    scale = (d.shape_of(x)[-1],)
    scales = [d.leaf(scale) for _ in range(int(d.rng.integers(0, 2 if "rms" in op else 3)))]
    residual = [d.like(d.shape_of(x))] if op.startswith("add") else []
    return Call(op, [x, *residual, *scales], {"eps": d.one_of([1e-5, 0.1])})


def gating(d: Draw, op: str) -> Call:
    x = d.any()
    return Call(op, [x, d.like(d.shape_of(x))])


def dropout(d: Draw, op: str) -> Call:
    return Call(op, [d.any()], d.one_of([{"p": 0.0}, {"p": 1.0}, {"p": 0.5, "training": False}]))


def losses(d: Draw, op: str) -> Call:
    x = d.any(1, 1, 3)
    options: dict[str, Any] = {"reduction": d.one_of(["mean", "sum", "none"])}
    if op in ("mse_loss", "binary_cross_entropy_with_logits"):
        return Call(op, [x, d.like(d.shape_of(x))], options)
    if op != "nll_loss":
        options["label_smoothing"] = d.one_of([0.0, 0.0, 0.1, 1.0])
    weight = []
    n = d.shape_of(x)[-1]
    if op == "linear_cross_entropy":
        weight, n = [d.like((d.size(1), n))], 0
        n = d.shape_of(weight[0])[0]
    targets = d.indices(d.shape_of(x)[:-1], 0, n)
    if d.chance(0.3) and d.dtype_of(targets) != np.uint8 and math.prod(d.shape_of(targets)) > 1:
        d.values[targets.number].array.reshape(-1)[-1] = -100
    return Call(op, [x, *weight, targets], options)


def attention(d: Draw, op: str) -> Call:
    n_batch, n_group, shared, n_query, n_key, size = (d.size(1, 3) for _ in range(6))
    q = d.like((n_batch, n_group * shared, n_query, size))
    key, v = (d.like((n_batch, n_group, n_key, size)) for _ in "kv")
    full = (n_batch, n_group * shared, n_query, n_key)
    mask = d.rng.random([n if d.chance(0.7) else 1 for n in full]) < 0.7 if d.chance(0.4) else None
    return Call(op, [q, key, v], {"causal": d.chance(0.5), "mask": mask, "scale": d.one_of([None, 0.7])})


def rotations(d: Draw, op: str) -> Call:
    shape = (*d.shape(1, 3, 1), 2 * d.size(1, 3))
    return Call(op, [d.like(shape), d.indices(shape[-2:-1], 0, 100)], {"base": d.one_of([10000.0, 50.0])})


FAMILIES: dict[Callable[[Draw, str], Call], str] = {
    unary: "negative abs sign floor ceil round exp log sqrt square reciprocal sin cos tanh sigmoid relu silu softplus "
    "gelu log1p expm1 erf leaky_relu astype isnan isinf isfinite",
    clip: "clip",
    binary: "add subtract multiply divide floor_divide remainder pow maximum minimum logaddexp equal not_equal less "
    "less_equal greater greater_equal",
    logical: "logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_invert",
    choosing: "where masked_fill",
    reduction: "sum mean max min prod var std logsumexp argmax argmin all any count_nonzero",
    along_axis: "cumulative_sum softmax log_softmax sort topk argsort nonzero",
    reshaping: "reshape permute_dims matrix_transpose expand_dims squeeze broadcast_to tile moveaxis diagonal flip "
    "roll tril triu",
    padding: "pad",
    repeating: "repeat",
    joining: "concat stack",
    splitting: "split",
    indexing: "getitem",
    taking: "take take_along_axis index_add embedding",
    products: "matmul linear outer tensordot mlp",
    einsum: "einsum",
    normalizing: "layer_norm rms_norm add_layer_norm add_rms_norm",
    gating: "swiglu",
    dropout: "dropout",
    losses: "cross_entropy linear_cross_entropy nll_loss mse_loss binary_cross_entropy_with_logits",
    attention: "attention",
    rotations: "rotary_embedding",
}
CALLS = {op: family for family, ops in FAMILIES.items() for op in ops.split()}
