"""Random programs of ops, layouts and dtypes, on numpy and numba: results and gradients against PyTorch's.

What is wrong is printed as a program of as few statements as it takes; see judging.py for what is right.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from judging import Failure, compared, first_wrong, host, operands_of, reference, requires_grad
from op_calls import CALLS, Call, Draw, Leaf, Ref, numbers

import tensorgrad as tg
from tensorgrad import Tensor, ops

OPERATORS = {
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "pow": operator.pow, "matmul": operator.matmul,
    "negative": operator.neg, "abs": operator.abs, "equal": operator.eq, "not_equal": operator.ne,
    "less": operator.lt, "less_equal": operator.le, "greater": operator.gt, "greater_equal": operator.ge,
    "bitwise_and": operator.and_, "bitwise_or": operator.or_, "bitwise_xor": operator.xor,
    "bitwise_invert": operator.invert,
}  # fmt: skip
LISTS = ("concat", "stack")  # ops of a list of operands


@dataclass
class Statement:
    """A call, how it is written (function, operator or method), and the numbers of its results."""

    call: Call
    spelling: str
    outputs: list[int]

    @property
    def inputs(self) -> list[int]:
        return [x.number for x in self.call.operands if isinstance(x, Ref)]


@dataclass
class Program:
    """Operands by number, statements, and the gradients that backward begins with, by the number of a result."""

    leaves: dict[int, Leaf] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)
    gradients: dict[int, Any] = field(default_factory=dict)


# --- running ----------------------------------------------------------------------------------------


def operand(leaf: Leaf) -> Any:
    """What the program hands to the op."""
    x = leaf.laid_out
    if leaf.kind in ("array", "subclass"):
        return x
    return Tensor(x, leaf.kind == "parameter")


def execute(statement: Statement, values: dict[int, Any]) -> list[Any]:
    """The results of a statement."""
    call = statement.call
    operands = operands_of(statement, values)
    if call.op in LISTS:
        operands = [operands]
    if statement.spelling == "operator":
        result = OPERATORS[call.op](*operands)
    elif statement.spelling == "method":
        result = getattr(operands[0], call.op)(*operands[1:], **call.options)
    else:
        result = getattr(tg if hasattr(tg, call.op) else ops, call.op)(*operands, **call.options)
    return list(result) if isinstance(result, list | tuple) else [result]


def spelling(d: Draw, call: Call, values: dict[int, Any]) -> str:
    tensors = [isinstance(x, Tensor) for x in operands_of(Statement(call, "", []), values)]
    if call.op in OPERATORS and any(tensors) and d.chance(0.5):
        return "operator"
    if tensors[0] and call.op in vars(Tensor) and d.chance(0.5):
        return "method"
    return "function"


def random_program(seed: int) -> tuple[Program, Failure | None]:
    """A program of one to eight statements. Running it on NumPy is how shapes are known: a failure if that raises."""
    rng = np.random.default_rng(seed)
    style = str(rng.choice(["normal", "normal", "ties", "extreme"]))
    program, values = Program(), {}
    drawn: list[Any] = []
    d = Draw(rng, drawn, style)
    with tg.use_backend("numpy"):
        for _ in range(int(rng.integers(1, 9))):
            op = d.one_of(list(CALLS))
            call = CALLS[op](d, op)
            require_tensor(call, drawn)
            for i, leaf in enumerate(drawn):
                if isinstance(leaf, Leaf):
                    program.leaves[i], values[i] = leaf, operand(leaf)
            statement = Statement(call, spelling(d, call, values), [])
            failure, results = attempt(statement, values)
            if results is not None or failure:
                program.statements.append(statement)
            if failure:
                return program, replace(failure, where=len(program.statements) - 1)
            for y in results or []:
                statement.outputs.append(len(drawn))
                values[len(drawn)] = y
                drawn.append(y)
    used = {i for s in program.statements for i in s.inputs}
    for i in (i for s in program.statements for i in s.outputs if i not in used and values[i].requires_grad):
        ends = style if style == "extreme" and d.chance(0.2) else "normal"
        program.gradients[i] = numbers(rng, values[i].shape, values[i].dtype.name, ends)
    return program, None


def require_tensor(call: Call, drawn: list[Any]) -> None:
    """Make the first operand a tensor where none is: an op of arrays alone is NumPy's to compute."""
    operands = [drawn[x.number] for x in call.operands if isinstance(x, Ref)]
    if all(isinstance(x, Leaf) and x.kind in ("array", "subclass") for x in operands):
        operands[0].kind = "constant"


def attempt(statement: Statement, values: dict[int, Any]) -> tuple[Failure | None, list[Any] | None]:
    """The results of a statement; None where it is refused, and a failure unless that is right."""
    try:
        return None, execute(statement, values)
    except Exception as error:
        text, op = f"{type(error).__name__}: {error}", statement.call.op
        if not isinstance(error, TypeError | ValueError | IndexError) or "\n" in str(error):
            return Failure("raised", 0, text), None
        if any(said in text for said in REFUSALS) and str(error).startswith(f"{op}: "):
            return None, None
        if reference(statement, values, wide=False) or reference(statement, values, wide=True):
            return Failure("refused", 0, f"refused what PyTorch computes: {text}"), None
        return None, None


# What NumPy refuses and PyTorch does not, and what is refused by design.
REFUSALS = (
    "have no common dtype",  # float16 and bfloat16
    "did not contain a loop", "numpy boolean",  # arithmetic of bools
    "is no Tensor but",  # the first operand of some losses
)  # fmt: skip


def run(program: Program) -> dict[int, Any]:
    """All values of a program, and its gradients: in `.grad` of every value that requires one."""
    values: dict[int, Any] = {i: operand(leaf) for i, leaf in program.leaves.items()}
    for statement in program.statements:
        for i, y in zip(statement.outputs, execute(statement, values), strict=True):
            values[i] = y
            if y.requires_grad:
                y.retain_grad()
    backward([(values[i], dy) for i, dy in program.gradients.items()])
    return values


def backward(ends: list[tuple[Any, Any]]) -> None:
    """Send a gradient into each result, all at once."""
    if len(ends) == 1:
        ends[0][0].backward(ends[0][1])
    elif ends:
        sum((y * Tensor(dy)).astype("float64").sum() for y, dy in ends).backward()


def check(program: Program, backend: str) -> Failure | None:
    """Run a program on a backend; the first thing that is wrong."""
    with tg.use_backend(backend):
        try:
            values = run(program)
        except Exception as error:
            return Failure("raised", len(program.statements) - 1, f"{type(error).__name__}: {error}")
    return first_wrong(program, values)


# --- shrinking and printing -------------------------------------------------------------------------


def without(program: Program, dropped: int, values: dict[int, Any]) -> Program:
    """The program without a statement, whose results become operands with the values that they had."""
    gone = program.statements[dropped]
    statements = [s for i, s in enumerate(program.statements) if i != dropped]
    used = {i for s in statements for i in s.inputs}
    leaves = {**program.leaves}
    for i in gone.outputs:
        if i in used:
            leaves[i] = Leaf(np.array(host(values[i])), "parameter" if requires_grad(values[i]) else "constant")
    ends = {i for s in statements for i in s.outputs} - used
    gradients = {i: dy for i, dy in program.gradients.items() if i in ends}
    for i in ends - gradients.keys():
        if requires_grad(values[i]) and values[i].grad is not None:
            gradients[i] = np.array(values[i].grad)
    return Program({i: leaf for i, leaf in leaves.items() if i in used}, statements, gradients)


def shrunk(program: Program, backend: str, failure: Failure) -> tuple[Program, Failure]:
    """The program without every statement that the failure does not need."""
    i = len(program.statements) - 1
    while i >= 0 and len(program.statements) > 1:
        try:
            with tg.use_backend(backend):
                smaller = without(program, i, run(program))
            found = check(smaller, backend)
        except Exception:
            found = None
        if found and found.kind == failure.kind:
            program, failure = smaller, found
        i = min(i, len(program.statements)) - 1
    return program, failure


def name(i: int) -> str:
    return f"v{i}"


def literal(x: Any) -> str:
    if isinstance(x, Ref):
        return name(x.number)
    if isinstance(x, np.ndarray):
        return f"np.array({x.tolist()!r}, {x.dtype.name!r})" + (f".reshape({x.shape})" if not x.size else "")
    if isinstance(x, np.generic):
        return f"np.{x.dtype.name}({x.item()!r})"
    if isinstance(x, tuple):
        return f"({', '.join(map(literal, x))}{',' * (len(x) == 1)})"
    return repr(x)


def source(program: Program, backend: str) -> str:
    """The program as Python."""
    lines = [
        "import numpy as np", "from numpy import inf, nan", "import tensorgrad as tg",
        "from op_calls import Leaf  # with tests/fuzz and tests/tensorgrad on the path",
        "from programs import backward, operand", f"tg.use_backend({backend!r})",
    ]  # fmt: skip
    waiting = dict(program.leaves)
    for s in program.statements:
        for i in s.inputs:
            if leaf := waiting.pop(i, None):
                lines.append(f"{name(i)} = operand(Leaf({literal(leaf.array)}, {leaf.kind!r}, {leaf.layout!r}))")
        operands = ", ".join(map(literal, s.call.operands))
        operands = f"[{operands}]" if s.call.op in LISTS else operands
        options = "".join(f", {key}={literal(value)}" for key, value in s.call.options.items())
        result = ", ".join(map(name, s.outputs)) or "_"
        lines.append(f"{result} = tg.{s.call.op}({operands}{options})  # as {s.spelling}")
    ends = ", ".join(f"({name(i)}, {literal(dy)})" for i, dy in program.gradients.items())
    lines += [f"backward([{ends}])"] if ends else []
    return "\n".join(lines)


def failures(seeds: range, backends: tuple[str, ...] = ("numpy", "numba")) -> Iterator[tuple[int, str]]:
    """The seed of every program that is wrong, with a minimal reproduction; then a count of what was compared."""
    compared.clear()
    for seed in seeds:
        with np.errstate(all="ignore"):
            program, failure = random_program(seed)
            for backend in backends:
                found = failure or check(program, backend)
                if found:
                    small, found = (program, found) if failure else shrunk(program, backend, found)
                    yield seed, f"{source(small, backend)}\n# {small.statements[found.where].call.op}: {found.text}"
                    break
    for reason, n in compared.most_common():
        print(f"{n:8,} statements  {reason}")
