"""What is recorded: the gradients of training, for all examples of all ops; formulas, modules, callers, memory."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import nn
from tensorgrad.backend import get_backend
from tensorgrad.gradcheck.cases import Case, cases
from tensorgrad.inspect.formulas import formula_of
from tensorgrad.inspect.recording import record

Data = dict[str, Any]


def shown(steps: record, number: int) -> Any:
    """The numbers of a heat map, (rows, columns), and which of them they are."""
    heat_map = steps.arrays[number]
    values = heat_map["values"]
    return np.frombuffer(base64.b64decode(values["base64"]), values["type"]).reshape(values["shape"]), heat_map


def assert_shown(steps: record, number: int, x: Any) -> None:
    """That a heat map shows x, or a part of it."""
    values, heat_map = shown(steps, number)
    x = np.asarray(x)
    assert heat_map["shape"] == list(x.shape)
    matrix = x.reshape(-1, x.shape[-1] if x.ndim else 1) if x.size else x.reshape(values.shape)
    matrix = matrix if heat_map["rows"] is None else matrix[heat_map["rows"]]
    matrix = matrix if heat_map["columns"] is None else matrix[:, heat_map["columns"]]
    np.testing.assert_array_equal(values, matrix)


def backward_steps(steps: record) -> Iterator[Data]:
    return (step for step in steps.steps if step["phase"] == "backward")


def step_with(case: Case, example: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """One call of an op and its backward: the operands that require a gradient, the results, what backward is given."""
    inputs = example.tensors(get_backend(), np.float64)
    results = example.run(case.op, *inputs)
    results = [y for y in (results if isinstance(results, list | tuple) else [results]) if y.requires_grad]
    rng = np.random.default_rng(0)
    dys = [rng.normal(size=y.shape) for y in results]
    for y, dy in zip(results, dys, strict=True):
        y.backward(tg.asarray(dy), retain_graph=True)
    return [x for x in inputs if isinstance(x, tg.Tensor) and x.requires_grad], results, dys


@pytest.mark.parametrize("case", [case for case in cases.values() if case.gradient], ids=str)
def test_every_gradient_is_the_one_that_training_computes(case: Case) -> None:
    """Bit by bit, for every operand and result; and every op on the way has a formula and its source."""
    for example in case.examples:
        tg.manual_seed(1)
        expected, _, _ = step_with(case, example)
        tg.manual_seed(1)
        with record() as steps:
            leaves, results, dys = step_with(case, example)
        all_sent = [sent for step in backward_steps(steps) for sent in step["outgoing"]]
        sums = {sent["key"]: sent["sum"] for sent in all_sent if "sum" in sent}
        for x, plain in zip(leaves, expected, strict=True):
            np.testing.assert_array_equal(x.grad, plain.grad)
            if x.grad is not None:
                assert_shown(steps, sums[f"{x.node.sequence}.0"], plain.grad)
        given = [n for step in backward_steps(steps) for n in step["incoming"] if n is not None]
        for y, dy in zip(results, dys, strict=True):
            if not y.node.is_leaf:
                assert any(steps.arrays[n]["shape"] == list(y.shape) and np.array_equal(
                    shown(steps, n)[0].reshape(y.shape), dy) for n in given), example  # fmt: skip
        for step in backward_steps(steps):
            formula = steps.ops[steps.rows[step["row"]]["op"]]
            assert formula["forward"], f"{steps.rows[step['row']]['op']}: its docstring does not say what it computes"
            assert formula["gradient"], f"{steps.rows[step['row']]['op']}: its docstring does not say what dx is"
            assert "def " in formula["source"]


def test_results_and_gradients_are_the_same_while_recording() -> None:
    def step() -> tuple[float, list[Any]]:
        tg.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Dropout(0.5), nn.Linear(4, 1))
        loss = model(tg.ones((5, 3))).square().mean()
        loss.backward()
        return loss.item(), [p.grad for p in model.parameters()]

    loss, gradients = step()
    with record():
        recorded_loss, recorded = step()
    assert recorded_loss == loss
    for x, y in zip(gradients, recorded, strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_steps_name_modules_parameters_and_callers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    with record(model) as steps:
        y = model(tg.ones((2, 3))).sum()  # the line that is named
        y.backward()
    assert [(row["op"], row["module"]) for row in steps.rows] == [("linear", "0"), ("tanh", "1"), ("sum", "")]
    caller = steps.rows[0]["caller"]
    assert caller["text"] == "y = model(tg.ones((2, 3))).sum()  # the line that is named"
    assert caller["file"] == "tests/tensorgrad/inspect/test_recording.py"
    linear, tanh = steps.steps[:2]
    assert [(x["name"], x["row"], x.get("leaf")) for x in linear["operands"]] == [
        ("x", None, None), ("weight", None, "0.weight"), ("bias", None, "0.bias"),
    ]  # fmt: skip
    assert [x["row"] for x in tanh["operands"]] == [0]
    phases = [(step["phase"], steps.rows[step["row"]]["op"]) for step in steps.steps[3:]]
    assert phases == [("backward", "sum"), ("backward", "tanh"), ("backward", "linear")]
    sent = steps.steps[-1]["outgoing"]
    assert [(x["operand"], x["leaf"]) for x in sent] == [(1, "0.weight"), (2, "0.bias")]  # x has no gradient


def test_a_module_that_is_called_names_its_parts() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    with record() as steps:
        model(tg.ones((1, 2)))
    assert steps.rows[0]["module"] == "0.0"
    assert steps.steps[0]["operands"][1]["leaf"] == "0.0.weight"


def test_the_memory_is_that_of_the_arrays_that_are_held() -> None:
    x = tg.asarray(np.ones(1000), requires_grad=True)  # 8,000 bytes, given
    with record() as steps:
        y = tg.exp(x)  # saves y
        z = y * y  # saves y, twice
        del y
        total = z.sum()
        del z  # nobody keeps it
        total.backward()
    forward = [step["memory"] for step in steps.steps[:3]]
    assert forward == [{"values": n, "gradients": 0} for n in (8000, 16000, 16008)]
    backward = [step["memory"] for step in steps.steps[3:]]
    assert [m["values"] for m in backward] == [8008, 8008, 8]  # exp was the last to need y
    assert backward[-1]["gradients"] <= 3 * 8000 + 8


def test_an_operand_used_twice_and_a_leaf_with_two_gradients() -> None:
    x = tg.asarray(np.arange(3.0), requires_grad=True)
    with record() as steps:
        (x * x + x).sum().backward()
    add, multiply = steps.steps[-2:]
    assert [sent["operand"] for sent in multiply["outgoing"]] == [0, 1]
    assert_shown(steps, add["outgoing"][1]["sum"], np.ones(3))
    assert_shown(steps, multiply["outgoing"][1]["sum"], 2 * np.arange(3.0) + 1)


def test_a_checkpoint_is_recomputed_and_its_gradients_are_the_same() -> None:
    layer = nn.Linear(3, 3)
    x = tg.asarray(np.ones((2, 3), np.float32), requires_grad=True)
    with record(layer) as steps:
        tg.checkpoint(lambda x: tg.tanh(layer(x)), x).sum().backward()
    phases = [(step["phase"], steps.rows[step["row"]]["op"], step.get("again", False)) for step in steps.steps]
    assert phases == [
        ("forward", "linear", False), ("forward", "tanh", False), ("forward", "sum", False), ("backward", "sum", False),
        ("backward", "checkpoint", False), ("forward", "linear", True), ("forward", "tanh", True),
        ("backward", "tanh", False), ("backward", "linear", False),
    ]  # fmt: skip
    weight = next(sent for sent in steps.steps[-1]["outgoing"] if sent["leaf"] == "weight")
    assert_shown(steps, weight["sum"], layer.weight.grad)


def test_backward_of_what_was_computed_before() -> None:
    y = tg.exp(tg.asarray(np.ones(3), requires_grad=True))
    with record() as steps:
        (2.0 * y).sum().backward()
    assert [steps.rows[step["row"]]["op"] for step in backward_steps(steps)] == ["sum", "multiply", "exp"]
    assert steps.steps[0]["operands"][0]["text"] == "2.0"
    assert steps.ops["exp"]["gradient"] == "dx = dy y."


def test_values_without_a_gradient_are_followed_too() -> None:
    with record() as steps, tg.no_grad():
        x = tg.exp(tg.ones((2,)))
        tg.log(x)
    assert [step["operands"][0]["row"] for step in steps.steps] == [None, 0]
    assert "<iframe" in steps._repr_html_()
    assert steps.page("nothing") != record().page("nothing")


def test_half_precision_integers_and_empty_arrays() -> None:
    with record() as steps:
        x = tg.asarray(np.zeros((0, 3), np.float16), requires_grad=True)
        (x * tg.asarray(np.int64([1, 2, 2**40]))).sum().backward()
    assert_shown(steps, steps.steps[0]["operands"][1]["array"], np.float64([1, 2, 2**40]))


def test_every_op_has_a_formula() -> None:
    for name in tg.ops.__all__:
        formula = formula_of(getattr(tg.ops, name))
        assert formula["forward"] and "def " in formula["source"], f"{name}: no docstring that says what it computes"
    softmax = formula_of(tg.softmax)
    assert softmax["forward"] == "exp(x) / sum exp(x) along an axis: positive numbers that add up to 1."
    assert softmax["gradient"] == "dx = y (dy - sum(y dy))."
    assert softmax["place"].startswith("tensorgrad/ops/softmax.py:")
    assert [kernel.split("(")[0] for kernel in softmax["kernels"]] == ["def softmax", "def softmax_backward"]


def test_quantised_weights_are_named_and_are_no_memory_of_the_computation() -> None:
    weight = tg.Tensor(tg.quantize(np.ones((8, 32), np.float32), "q8_0"))
    x = tg.asarray(np.ones((2, 32), np.float32), requires_grad=True)
    with record() as steps:
        tg.linear(x, weight).sum().backward()
    assert steps.steps[0]["operands"][1]["text"] == "QuantizedArray(q8_0, (8, 32), 272 bytes)"
    assert steps.steps[0]["memory"] == {"values": 2 * 8 * 4, "gradients": 0}


def test_arrays_of_a_gpu_are_shown_as_numbers(gpu: Any) -> None:
    x = tg.asarray(gpu.asarray(np.float32([[1, 2], [3, 4]])), requires_grad=True)
    with record() as steps:
        (x * x).sum().backward()
    assert_shown(steps, steps.steps[0]["results"][0], np.float32([[1, 4], [9, 16]]))
    assert_shown(steps, steps.steps[-1]["outgoing"][1]["sum"], np.float32([[2, 4], [6, 8]]))
    assert steps.steps[0]["memory"]["values"] == 16
