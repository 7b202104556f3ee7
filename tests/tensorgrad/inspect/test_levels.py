"""An op at its levels: equal where it should be, refused where it is not, and timed as the clock says."""

from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor
from tensorgrad.backend import load, use_backend
from tensorgrad.backend.cupy.softmax import Softmax
from tensorgrad.inspect import levels as module
from tensorgrad.inspect.levels import LINE_HEADING, Levels, levels
from tensorgrad.random import default_generator


@pytest.fixture(autouse=True)
def on_numpy() -> Any:
    with use_backend("numpy"):
        yield


def numbers(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


def test_all_levels_that_run_here_are_compared_and_timed() -> None:
    found = levels(tg.softmax, numbers(6, 8), rounds=2)
    assert list(found.seconds) == ["plain", "numpy", *(["numba"] if "numba" not in found.left_out else [])]
    assert found.seconds.keys() | found.left_out.keys() == {"plain", "numpy", "numba", "cupy"}
    assert all(seconds[phase] > 0 for seconds in found.seconds.values() for phase in ("forward", "backward"))
    assert found.error["plain"] == found.error["numpy"] == 0 and found.error.get("numba", 0) < 1e-5
    assert (found.op, found.shapes, found.dtype) == ("softmax", "6x8", "float32")


def test_the_gpu_is_a_level(gpu: Any) -> None:
    """The stand-in's events are a millisecond apart, forward and backward."""
    found = levels(tg.softmax, numbers(6, 8), rounds=2)
    assert found.seconds["cupy"] == {"forward": pytest.approx(1e-3), "backward": pytest.approx(2e-3, abs=1e-3)}
    assert 0 < found.error["cupy"] < 1e-5


def test_a_kernel_that_differs_is_refused(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one element of the gradient, on one level."""
    right = Softmax.softmax_backward

    def wrong(self: Any, dy: Any, y: Any, axis: int) -> Any:
        dx = right(self, dy, y, axis)
        dx[3, 5] += 1e-4
        return dx

    monkeypatch.setattr(Softmax, "softmax_backward", wrong)
    with pytest.raises(
        AssertionError, match=r"softmax on cupy: gradient 0 \[3, 5\]: plain .*, here .* > 1e-05, gradcheck"
    ):
        levels(tg.softmax, numbers(6, 8), rounds=1)


def test_the_plain_level_runs_the_plain_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of the numpy backend that is broken is found, since the plain level does not run it."""
    monkeypatch.setattr(type(load("numpy")), "gelu", lambda self, x: x * 2)
    with pytest.raises(AssertionError, match="gelu on numpy: result 0"):
        levels(tg.gelu, numbers(6, 8), rounds=1)


def test_random_ops_draw_the_same_numbers_and_leave_the_generator_alone() -> None:
    before = default_generator.state_dict()
    found = levels(tg.dropout, numbers(60, 80), p=0.5, rounds=1)
    assert max(found.error.values()) < 1e-6
    assert default_generator.state_dict() == before


def test_operands_may_be_tensors_and_integers_and_a_result_a_list() -> None:
    table, x, gain = Tensor(numbers(9, 4), requires_grad=True), numbers(5, 4), numbers(4)
    assert levels(tg.embedding, table, np.array([1, 1, 8]), rounds=1).shapes == "9x4, 3"
    assert table.grad is None
    assert levels(tg.add_layer_norm, x, x, gain, gain, rounds=1).op == "add_layer_norm"
    assert levels(tg.attention.composition, *[numbers(1, 2, 4, 4)] * 3, causal=True, rounds=1).op == "plain_attention"
    with pytest.raises(TypeError, match="levels: no operand has floating-point numbers"):
        levels(tg.softmax, np.arange(3), rounds=1)
    with pytest.raises(TypeError, match="levels: op is a ndarray: give an op or a function"):
        levels(x)


def test_in_half_precision_its_tolerance_counts() -> None:
    found = levels(tg.softmax, numbers(6, 8).astype("float16"), rounds=1)
    assert found.dtype == "float16" and set(found.seconds) >= {"plain", "numpy"}


def test_a_level_without_the_dtype_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(load("numpy")), "lacks", lambda self, what: f"no {what} here" if what == "float32" else None
    )
    found = levels(tg.softmax, numbers(6, 8), rounds=1)
    assert found.left_out["numpy"] == "no float32 here" and "numpy is left out: no float32 here" in found.table()


def example() -> Levels:
    seconds = {"plain": {"forward": 3e-3, "backward": 5e-3}, "numba": {"forward": 1e-3, "backward": 1e-3}}
    return Levels("<b>", "6x8", "float32", seconds, {"plain": 0.0, "numba": 2e-6}, {"cupy": "no GPU & no driver"})


def test_what_is_shown() -> None:
    lines = example().table().splitlines()
    assert lines[0] == "<b>  6x8  float32"
    assert lines[2].split() == ["plain", "3.000", "5.000", "1.00"]
    assert lines[3].split() == ["numba", "1.000", "1.000", "4.00", "2.0e-06"]
    assert lines[4] == "cupy is left out: no GPU & no driver"
    assert example().line().split() == ["<b>", "8.000", "2.000", "2.0e-06", "6x8"]
    assert example().line().index("2.000") + len("2.000") == LINE_HEADING.index("numba ms") + len("numba ms")
    text = example()._repr_html_()
    assert "<b>" not in text and "&lt;b&gt;" in text and "no GPU &amp; no driver" in text


def test_the_backend_is_the_same_afterwards() -> None:
    threads = module.blas.find()
    before = tg.get_backend(), threads and threads.get_num_threads()
    levels(tg.softmax, numbers(6, 8), rounds=1)
    assert (tg.get_backend(), threads and threads.get_num_threads()) == before
