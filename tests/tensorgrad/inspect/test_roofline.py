"""The roofline: FLOPs and bytes against counts by hand, roofs against a machine that is known, times that add up."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor, optim
from tensorgrad.backend import get_backend, use_backend
from tensorgrad.backend.clock import Clock
from tensorgrad.counting import CountedArray, count
from tensorgrad.gradcheck.cases import Case, cases
from tensorgrad.inspect import roofs
from tensorgrad.inspect.roofline import UPDATE_FLOPS, Roofline, Row, _TrafficByKey, roofline
from tensorgrad.inspect.roofs import Measurement, Roof
from tensorgrad.inspect.stopwatch import Key, Stopwatch, faster_half

F = 4  # bytes of a float32


@pytest.fixture(autouse=True)
def on_numpy() -> Any:
    with use_backend("numpy"):
        yield


def leaf(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32), requires_grad=True)


def measured(compute: Callable[[], Tensor], optimizer: Any = None) -> Roofline:
    return roofline(lambda: compute().backward(), optimizer, rounds=2, largest_bytes=2**18)


def row_of(found: Roofline, op: str, phase: str = "forward") -> Row:
    (row,) = (row for row in found.rows if (row.op, row.phase) == (op, phase))
    return row


# --- FLOPs and bytes, by hand -------------------------------------------------------------------


def test_a_product_by_hand() -> None:
    """y = a b with 2 FLOPs for each of m n p products; da = dy b^T and db = a^T dy with as many each."""
    m, n, p = 30, 40, 50
    a, b = leaf(m, n), leaf(n, p)
    found = measured(lambda: tg.matmul(a, b).sum())
    forward, backward = row_of(found, "matmul"), row_of(found, "matmul", "backward")
    assert (forward.flops, forward.bytes) == (2 * m * n * p, F * (m * n + n * p + m * p))
    # dy, the gradient of a sum, is one number that broadcasting repeats
    assert (backward.flops, backward.bytes) == (4 * m * n * p, F * (1 + 2 * m * n + 2 * n * p))
    assert (forward.calls, forward.shapes, forward.dtype) == (1, "30x40, 40x50", "float32")
    assert forward.intensity == forward.flops / forward.bytes


def test_linear_softmax_and_layer_norm_by_hand() -> None:
    rows, n, m = 20, 32, 48
    x, w, b, gain, shift = leaf(rows, n), leaf(m, n), leaf(m), leaf(m), leaf(m)
    found = measured(lambda: (tg.softmax(tg.layer_norm(tg.linear(x, w, b), gain, shift)) * leaf(rows, m)).sum())
    linear, back = row_of(found, "linear"), row_of(found, "linear", "backward")
    assert (linear.flops, linear.bytes) == (2 * rows * n * m + rows * m, F * (rows * n + m * n + m + rows * m))
    assert back.flops == 4 * rows * n * m + (rows - 1) * m  # dx, dweight, and dbias, the sum of dy over the rows
    assert back.bytes == F * (rows * m + 2 * (rows * n + m * n) + m)
    norm = row_of(found, "layer_norm")
    # mean (m - 1 + 1), subtract m, square m, mean m, add eps, root, reciprocal, times 1/std, weight and bias m each
    assert (norm.flops, norm.bytes) == (rows * (7 * m + 3), F * (2 * rows * m + 2 * m + 2 * rows))
    softmax, back = row_of(found, "softmax"), row_of(found, "softmax", "backward")
    assert (softmax.flops, softmax.bytes) == (rows * ((m - 1) + m + m + (m - 1) + m), F * 2 * rows * m)
    assert (back.flops, back.bytes) == (rows * (m + (m - 1) + m + m), F * 3 * rows * m)


def test_causal_attention_counts_the_scores_that_can_be_seen() -> None:
    """Two products over the T (T + 1) / 2 pairs of each head forward; backward those and three more."""
    B, H, T, D = 2, 3, 16, 8
    q, k, v = leaf(B, H, T, D), leaf(B, H, T, D), leaf(B, H, T, D)
    flops = {}
    for causal in (False, True):
        found = measured(lambda causal=causal: tg.attention(q, k, v, causal=causal).sum())
        flops[causal] = row_of(found, "attention").flops, row_of(found, "attention", "backward").flops
        pairs = B * H * (T * (T + 1) // 2 if causal else T * T)
        products = 2 * 2 * pairs * D
        elementwise = flops[causal][0] - products
        assert 4 * pairs < elementwise < 8 * pairs  # scale, subtract, exp, sum, and the like for every score
        assert flops[causal][1] > 5 / 2 * products
        row = row_of(found, "attention")
        assert row.bytes == F * B * H * (4 * T * D + T)  # q, k, v and y, and each row's logsumexp
    assert flops[True][0] / flops[False][0] == pytest.approx((T + 1) / (2 * T), rel=1e-4)


def test_operands_of_other_shapes_are_other_rows_and_the_same_are_added_up() -> None:
    x, w, v = leaf(6, 8), leaf(8, 8), leaf(3, 8)
    found = measured(lambda: tg.linear(tg.linear(tg.linear(x, w), w), v).sum())
    linears = {row.shapes: (row.calls, row.flops) for row in found.rows if (row.op, row.phase) == ("linear", "forward")}
    assert linears == {"6x8, 8x8": (2, 2 * 2 * 6 * 8 * 8), "6x8, 3x8": (1, 2 * 6 * 8 * 3)}


def test_views_have_no_roof() -> None:
    x = leaf(6, 8)
    found = measured(lambda: tg.exp(x.reshape(8, 6)).sum())
    for phase in ("forward", "backward"):
        row = row_of(found, "reshape", phase)
        assert (row.flops, row.bytes, row.share, row.roof) == (0, 0, None, "")
    assert "reshape" not in found.table() and "views" in found.table()


@pytest.mark.parametrize("case", [case for case in cases.values() if case.gradient], ids=str)
def test_every_op_has_its_bytes(case: Case) -> None:
    """At least those of its results; none where they share memory with an operand."""
    for example in case.examples:
        inputs = example.tensors(get_backend(), "float64")
        with _TrafficByKey() as traffic:
            results = example.run(case.op, *inputs)
        results = results if isinstance(results, list | tuple) else [results]
        arrays = [x.data for x in inputs if isinstance(x, Tensor)]
        if any(np.shares_memory(y.data, x) for y in results for x in arrays) or not any(y.size for y in results):
            continue
        assert sum(cost.bytes for cost in traffic.forward.values()) >= sum(y.data.nbytes for y in results)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_the_update_by_hand_and_by_counting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are read, parameters and moments read and written; the arithmetic is that of the plain mathematics."""
    p = leaf(50, 4)
    found = measured(lambda: tg.exp(p).sum(), getattr(optim, name)([p], lr=1e-3))
    row = row_of(found, name, "update")
    n_moments = len(getattr(optim, name).moments)
    assert row.bytes == F * 200 * (1 + 2 * (1 + n_moments))
    assert row.flops == 200 * UPDATE_FLOPS[name]
    assert p.grad is None
    counted = []
    monkeypatch.setattr(count, "add", lambda self, flops, is_matmul: counted.append(flops))
    with count():
        p.data, p.grad = p.data.view(CountedArray), p.data.view(CountedArray) * 1
        optimizer = getattr(optim, name)([p], lr=1e-3)
        counted.clear()
        optimizer.step()
    assert sum(counted) == row.flops


# --- times --------------------------------------------------------------------------------------


class Ticks(Clock):
    """A second for every stamp, and what a test adds."""

    def __init__(self) -> None:
        self.now = 0.0

    def stamp(self) -> float:
        self.now += 1
        return self.now


def test_the_times_of_all_ops_add_up_to_that_of_the_block() -> None:
    clock = Ticks()
    x = leaf(3, 4)
    with Stopwatch(clock) as watch:
        clock.now += 1000  # between the ops
        y = tg.exp(x)
        clock.now += 1000
        tg.multiply(y, y).sum().backward()
    seconds = watch.seconds()
    assert sum(seconds.values()) == clock.now - 1
    assert 2000 < seconds[None] < 2010
    assert watch.calls[Key("multiply", "backward", "3x4, 3x4", "float32")] == 1
    assert watch.calls[Key("accumulate", "backward", "3x4", "float32")] == 4  # two from multiply, one from sum and exp


def test_the_time_of_an_op_is_between_its_beginning_and_its_end() -> None:
    clock = Ticks()

    @tg.autograd.op
    def slow(k: Any, x: Any) -> Any:
        clock.now += 70

        def backward(dy: Any) -> Any:
            clock.now += 500
            return dy

        return x + 0, backward

    x = leaf(2)
    with Stopwatch(clock) as watch:
        slow(x).backward(np.ones(2, np.float32))
    seconds = watch.seconds()
    assert seconds[Key("slow", "forward", "2", "float32")] == 71
    assert seconds[Key("slow", "backward", "2", "float32")] > 500
    assert seconds[None] < 10


def test_ops_inside_a_checkpoint_are_timed_as_their_own() -> None:
    x, w = leaf(3, 4), leaf(5, 4)
    with Stopwatch(Ticks()) as watch:
        tg.checkpoint(tg.linear, x, w).sum().backward()
    calls = {(key.op, key.phase): n for key, n in watch.calls.items() if key is not None}
    assert calls["linear", "forward"] == 2 and calls["linear", "backward"] == 1


def test_the_faster_half_does_not_see_what_interrupts() -> None:
    assert faster_half([3.0, 1000.0, 1.0]) == 2.0
    assert faster_half([7.0]) == 7.0


def test_a_step_is_the_sum_of_its_rows_and_what_is_between() -> None:
    x, w = leaf(30, 40), leaf(40, 40)
    found = measured(lambda: tg.gelu(tg.linear(tg.linear(x, w), w)).sum(), optim.AdamW([x, w]))
    assert found.step_seconds == pytest.approx(found.between_seconds + sum(row.seconds for row in found.rows))
    assert found.between_seconds > 0
    assert [row.seconds for row in found.rows] == sorted((row.seconds for row in found.rows), reverse=True)
    assert row_of(found, "linear").calls == 2
    for row in found.rows:
        if row.share is not None:
            least, name = found.roof.least_seconds(row.flops / row.calls, row.bytes / row.calls)
            assert (row.roof, row.share) == (name, pytest.approx(row.calls * least / row.seconds))


# --- roofs --------------------------------------------------------------------------------------


def test_the_roof_of_a_call_by_hand() -> None:
    roof = Roof(peak=100e9, bandwidth={2**20: 50e9, 2**22: 40e9, 2**24: 10e9})
    assert roof.memory == 10e9
    assert roof.bandwidth_of(100) == 50e9
    assert roof.bandwidth_of(2**21) == pytest.approx(45e9)
    assert roof.bandwidth_of(2**30) == 10e9
    assert roof.least_seconds(1e9, 2**20) == (0.01, "compute")
    assert roof.least_seconds(1, 2**20) == (pytest.approx(2**20 / 50e9), "cache")
    assert roof.least_seconds(1, 2**30) == (pytest.approx(2**30 / 10e9), "memory")


class Machine:
    """A backend that computes nothing: its clock goes on as it would on a machine of known speed."""

    name, xp = "machine", np

    def __init__(self) -> None:
        self.clock, self.interrupt = Ticks(), 0

    def spend(self, seconds: float) -> None:
        self.interrupt += 1
        self.clock.now += seconds + (100.0 if self.interrupt % 5 == 0 else 0)  # another program

    def linear(self, x: Any, w: Any, bias: Any) -> None:
        self.spend(2 * len(x) ** 3 / 1e9)

    def matmul(self, a: Any, b: Any) -> None:
        self.spend(2 * len(a) ** 3 / 5e8)

    def global_norm(self, arrays: list[Any]) -> None:
        self.spend(arrays[0].nbytes / 1e8)

    def scale(self, arrays: list[Any], factor: Any) -> None:
        self.spend(2 * arrays[0].nbytes / (8e8 if arrays[0].nbytes < 2**18 else 3e8))

    number = asarray = staticmethod(lambda x: x)


def test_the_roofs_of_a_known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 GFLOP/s by the faster product; 0.8 GB/s in 128 KB and 0.3 in more, read and written, though only read slower.

    Another program interrupts every fifth call.
    """
    machine: Any = Machine()
    monkeypatch.setattr(machine.clock, "stamp", lambda: machine.clock.now)
    monkeypatch.setattr(roofs, "clock_of", lambda k: machine.clock)
    monkeypatch.setattr(roofs, "TURN_SECONDS", 2.0**17 / 4e8)
    measurement = Measurement(machine, "float32", largest_bytes=2**21)
    for _ in range(3):
        measurement.measure()
    assert measurement.roof.peak == pytest.approx(1e9)
    assert measurement.roof.bandwidth == {
        2**17: pytest.approx(8e8),
        2**19: pytest.approx(3e8),
        2**21: pytest.approx(3e8),
    }


def test_the_roofs_of_this_machine_rise_with_smaller_working_sets() -> None:
    measurement = Measurement(get_backend(), "float32", largest_bytes=2**21)
    measurement.measure()
    first = measurement.roof
    measurement.measure()
    speeds = [measurement.roof.bandwidth[size] for size in sorted(measurement.roof.bandwidth)]
    assert speeds == sorted(speeds, reverse=True) and speeds[-1] > 0
    assert measurement.roof.peak >= first.peak > 0


# --- what is shown ------------------------------------------------------------------------------


def example(n: int = 30) -> Roofline:
    """Many ops of about the same speed, and a view."""
    rng = np.random.default_rng(0)
    rows = [
        Row(
            f"an_op_of_number_{i}",
            ("forward", "backward")[i % 2],
            "8x8",
            "float32",
            1,
            1e9 * a,
            1e9 * b,
            0.1,
            "memory",
            0.5,
        )
        for i, (a, b) in enumerate(rng.uniform(1, 1.5, (n, 2)))
    ]
    view = Row("<b>", "forward", "8x8", "float32", 3, 0, 0, 1e-6)
    seconds = sum(row.seconds for row in rows) + view.seconds + 0.5
    return Roofline(
        [*rows, view], seconds, 0.5, 1.1 * seconds, 100e9, {2**20: 80e9, 2**29: 20e9}, "numpy", 2, "float32"
    )


def test_the_table_has_every_row_and_adds_up() -> None:
    lines = example(3).table().splitlines()
    assert lines[0].split()[:5] == ["op", "phase", "operands", "calls", "ms"]
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert lines[4].split()[:4] == ["1", "views", "3", "0.001"]
    assert lines[5].startswith("   between the ops") and lines[5].split()[-2:] == ["500.000", "62.5%"]
    assert lines[6].split()[:5] == ["the", "step", "6", "800.001", "100.0%"]
    assert "100.0 GFLOP/s in a product, 20.0 GB/s from memory, 80.0 GB/s from a cache" in lines[8]
    assert lines[9].endswith("880.001 ms, 10% more than this sum of the faster halves")
    first = example(3).rows[0]
    assert lines[1].split()[-4:] == [f"{first.flops / 1e8:,.1f}", f"{first.bytes / 1e8:,.1f}", "memory", "50%"]
    shortened = example(3).table(1).splitlines()
    assert shortened[2].split()[:4] == ["2", "more", "2", "200.000"]


def test_in_a_notebook_it_is_a_table_and_a_picture_and_text_stays_text() -> None:
    pytest.importorskip("matplotlib")
    found = example(3)
    found.rows[0].op = "<script>"
    text = found._repr_html_()
    assert "<table>" in text and "data:image/png;base64," in text
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_no_label_covers_another_or_a_point_or_leaves_the_picture(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    ax = example().plot(n_labels=12)
    ax.figure.draw_without_rendering()
    from matplotlib.text import Text

    labels = [text for text in ax.texts if "an_op" in text.get_text()]
    boxes = [Text.get_window_extent(text) for text in labels]
    assert len(boxes) >= 8
    frame = ax.get_window_extent()
    points = [point for dots in ax.collections for point in ax.transData.transform(dots.get_offsets())]
    assert len(points) == 30
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*point) for point in points)
    example().save(tmp_path / "roofline.svg")
    assert (tmp_path / "roofline.svg").stat().st_size > 1000


def test_the_picture_has_the_roofs_and_the_points() -> None:
    pytest.importorskip("matplotlib")
    found = example(4)
    ax = found.plot()
    flat, memory, cache = (line.get_xydata() for line in ax.lines)
    assert flat[:, 1] == pytest.approx([100, 100])
    for line, bandwidth in ((memory, 20), (cache, 80)):
        assert line[:, 1] == pytest.approx(line[:, 0] * bandwidth) and line[-1, 1] == pytest.approx(100)
    points = np.concatenate([np.asarray(collection.get_offsets()) for collection in ax.collections])
    expected = [(row.flops / row.bytes, row.flops / row.seconds / 1e9) for row in found.rows[:4]]
    np.testing.assert_allclose(sorted(points.tolist()), sorted(expected))


def test_it_can_be_drawn_beside_other_pictures() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    left, right = figure.subplots(1, 2)
    assert example(3).plot(left) is left and right.lines[:] == []


def test_everything_is_ready_for_json() -> None:
    import json

    found = json.loads(json.dumps(example(3).as_dict()))
    assert found["rows"][0]["op"] == "an_op_of_number_0" and found["rows"][3]["share"] is None


# --- other backends, mistakes -------------------------------------------------------------------


def test_on_a_gpu_the_counts_are_the_same(gpu: Any) -> None:
    """The stand-in's events are a millisecond apart, whatever happens between them."""

    def step(k: str) -> Roofline:
        with use_backend(k):
            rng = np.random.default_rng(0)
            x, w = (tg.asarray(rng.normal(size=(5, 5)).astype("float32"), requires_grad=True) for _ in range(2))
            return measured(lambda: tg.softmax(tg.linear(x, w)).sum(), optim.AdamW([x, w]))

    found, expected = step("cupy"), step("numpy")
    costs = [{(row.op, row.phase): (row.flops, row.calls) for row in each.rows} for each in (found, expected)]
    assert found.describe().startswith("cupy, float32: at most ") and costs[0] == costs[1]
    assert expected.describe().startswith("numpy, ") and " thread" in expected.describe()
    linear = row_of(found, "linear")
    assert linear.seconds == pytest.approx(1e-3)


def test_a_backward_of_what_was_recorded_before_has_its_time_and_no_shapes() -> None:
    loss = tg.exp(leaf(3, 4)).sum()
    found = roofline(lambda: loss.backward(retain_graph=True), rounds=1, largest_bytes=2**18)
    row = row_of(found, "exp", "backward")
    assert (row.shapes, row.calls, found.dtype) == ("", 1, "float32") and row.seconds > 0


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="roofline: rounds 0 is not at least 1"):
        roofline(lambda: None, rounds=0)
    with pytest.raises(ValueError, match="roofline: the step calls no op"):
        roofline(lambda: None, rounds=1)
    with pytest.raises(TypeError, match="roofline: step is a Tensor: give a function that computes a loss"):
        roofline(tg.asarray(1.0))
