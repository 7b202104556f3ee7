"""A training step that never waits for the GPU: batches, CUDA graphs, and what changes from step to step.

The stand-in for CuPy records as a CUDA graph does: what is done to memory, and not what it came to. Where the host
looks at a number while a step is recorded, it raises, as CUDA does.
"""

from typing import Any

import numpy as np
import pytest
from fake_cupy import FakeArray, FakeEvent, FakeStream

import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.fused import FusedGPT
from tensorgrad.backend import BackendUnavailable, load
from tensorgrad.backend.cupy.graph import EAGER_RUNS
from tensorgrad.random import Stream, default_generator

SMALL = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16, dropout=0.2, bias=True)


def draws(n: int) -> int:
    return default_generator.next_step(Stream.DROPOUT, n)


class Training:
    """A GPT and its step, with everything that --dtype float16 has."""

    def __init__(self, k: Any, dtype: str, recorded: bool) -> None:
        tg.manual_seed(3)
        self.model = FusedGPT(SMALL)
        self.model.astype(dtype)
        self.optimizer = tg.optim.AdamW(self.model.parameters(), lr=0.0, master_weights=True)
        self.scaler = tg.amp.GradScaler(init_scale=2.0**20, growth_interval=3, enabled=dtype == "float16")
        self.step = self.eager
        if recorded:
            self.optimizer.capturable()
            self.step = k.record(self.eager, draws)
        self.k = k

    def eager(self, x: Any, y: Any) -> Any:
        loss = self.model.loss(x, y)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm, factor = tg.optim.norm_and_factor(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer, grad_scale=factor)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.data, norm

    def run(self, steps: int) -> list[Any]:
        rng, seen = np.random.default_rng(0), []
        for step in range(steps):
            self.optimizer.set_lr(0.01 * (step + 1))
            tokens = rng.integers(0, 11, (3, 9))
            x, y = self.k.stage(tokens[:, :-1], tokens[:, 1:])
            with np.errstate(over="ignore", invalid="ignore"):  # on a GPU nobody warns
                results = self.step(x, y)
            seen.append([float(number) for number in results])
        return seen

    def state(self) -> Any:
        optimizer = self.optimizer.state_dict()
        arrays = {**self.model.state_dict(), **optimizer.pop("state")}
        return {name: x.get().tobytes() for name, x in arrays.items()}, optimizer, self.scaler.state_dict()


@pytest.mark.parametrize(("dtype", "logits"), [("float32", 2**26), ("float32", 22), ("float16", 2**26)])
def test_a_recorded_step_equals_the_eager_one_bit_by_bit(
    gpu: Any, dtype: str, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning rate, step count, dropout masks, loss scale and skipped steps change although fn is not called."""
    monkeypatch.setattr(gpu, "logits_block", logits)
    results = []
    for recorded in (False, True):
        training = Training(gpu, dtype, recorded)
        seen = training.run(EAGER_RUNS + 5)
        results.append((seen, training.state(), default_generator.state_dict()))
    assert repr(results[0]) == repr(results[1])  # where nan is nan
    if dtype == "float16":
        assert 0 < training.optimizer.step_count < EAGER_RUNS + 5  # some were skipped


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_factor_inside_the_update_equals_gradients_that_were_clipped_before(gpu: Any, dtype: str) -> None:
    """Bit by bit, and without a pass over the gradients: they stay as they are."""
    pytest.importorskip("ml_dtypes")
    states = []
    for fused in (False, True):
        training = Training(gpu, dtype, False)
        parameters, optimizer = list(training.model.parameters()), training.optimizer
        optimizer.set_lr(0.1)
        tokens = np.random.default_rng(0).integers(0, 11, (3, 9))
        training.model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        gpu.launcher.launches.clear()
        if fused:
            norm, factor = tg.optim.norm_and_factor(parameters, 0.01)
            optimizer.step(grad_scale=factor)
        else:
            norm = tg.optim.clip_grad_norm(parameters, 0.01)
            optimizer.step()
        assert float(norm) > 0.01
        assert [launch.kernel for launch in gpu.launcher.launches].count("scale") == (0 if fused else 1)
        states.append(training.state())
    assert repr(states[0]) == repr(states[1])


@pytest.mark.parametrize(("kib", "recomputed"), [(6, 0), (3, 2)])
def test_norms_are_kept_where_they_take_less_than_a_256th_of_the_memory(
    kib: int, recomputed: int, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.__dict__.pop("min_recompute_bytes", None)
    monkeypatch.setattr(gpu.xp.cuda.runtime, "memGetInfo", lambda: (0, 256 * kib * 2**10))
    x, scale, weight = (
        tg.Tensor(gpu.asarray(np.ones(shape, np.float32)), requires_grad=True) for shape in ((16, 64), (64,), (64, 64))
    )  # 4 KiB each
    total, y = tg.add_layer_norm(tg.linear(tg.layer_norm(x, scale), weight), x, scale)
    loss = tg.linear(y, weight).sum() + total.sum()
    gpu.launcher.launches.clear()
    loss.backward()
    kernels = [launch.kernel for launch in gpu.launcher.launches]
    assert kernels.count("layer_norm") == recomputed and kernels.count("layer_norm_backward") == 2
    gpu.__dict__.pop("min_recompute_bytes", None)


def test_numbers_beside_half_precision_can_be_recorded(gpu: Any) -> None:
    """The scale of LoRA, for example: a number that is copied from the host could not."""
    pytest.importorskip("ml_dtypes")
    graph = gpu.record(lambda x: ((tg.Tensor(x) * 0.3).data,), draws)
    x = gpu.asarray(np.array([1.0, 2.0], "bfloat16"))
    for _ in range(EAGER_RUNS + 2):
        (y,) = graph(x)
        assert y.dtype.name == "bfloat16"
        np.testing.assert_array_equal(y.get(), np.array([1, 2], "bfloat16") * np.array(0.3, "bfloat16"))


@pytest.mark.parametrize("tune", [False, True])
def test_products_are_tuned_before_a_recording(gpu: Any, tune: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []
    monkeypatch.setattr(gpu, "_milliseconds", lambda run: timed.append(run()) or 1.0)
    gpu.tuned.clear()
    a, b = (gpu.asarray(np.ones((6, n), np.float32)) for n in (5, 4))
    graph = gpu.record(lambda x: (gpu.matmul(x.T, b), gpu.matmul(x.T, x)), draws, tune=tune)
    for _ in range(EAGER_RUNS + 2):
        assert [float(y.sum()) for y in graph(a)] == [5 * 4 * 6, 5 * 5 * 6]
    assert len(timed) == len(gpu.tuned) == (2 if tune else 0)
    assert not gpu.autotune
    graph.close()


def test_the_function_is_not_called_after_the_recording(gpu: Any) -> None:
    calls, state = [], gpu.xp.zeros(2, np.float32)

    def step(x: Any) -> Any:
        calls.append(len(calls))
        state[...] = state + x
        return (state * 10,)

    graph = gpu.record(step, draws)
    results = [graph(gpu.asarray(np.full(2, i, np.float32)))[0].get().tolist() for i in range(1, EAGER_RUNS + 4)]
    assert len(calls) == EAGER_RUNS + 1
    assert results == [[10 * i * (i + 1) / 2] * 2 for i in range(1, EAGER_RUNS + 4)]
    assert graph(gpu.asarray(np.zeros(2, np.float32)))[0] is graph.results[0]
    with pytest.raises(ValueError, match=r"CUDA graph: recorded for arrays \[\(\(2,\), 'float32'\)\], called with"):
        graph(gpu.asarray(np.zeros(3, np.float32)))


def test_a_recorded_step_and_the_stream_of_its_caller_wait_for_each_other(gpu: Any) -> None:
    graph, caller = gpu.record(lambda x: (x + 1,), draws), FakeStream()
    gpu.graph_stream.waited_for.clear()
    x = gpu.asarray(np.ones(2, np.float32))
    with caller:
        for run in range(1, EAGER_RUNS + 3):
            graph(x)
            assert [event.stream for event in gpu.graph_stream.waited_for] == [caller] * run
            assert [event.stream for event in caller.waited_for] == [gpu.graph_stream] * run


def test_a_step_that_waits_for_the_gpu_cannot_be_recorded(gpu: Any) -> None:
    graph = gpu.record(lambda x: (gpu.asarray(float(x.sum())),), draws)
    x = gpu.asarray(np.ones(2, np.float32))
    for _ in range(EAGER_RUNS):
        graph(x)
    with pytest.raises(RuntimeError, match="CUDA graph: the step cannot be recorded: .*not permitted when stream is"):
        graph(x)
    assert not gpu.graph_stream.is_capturing() and gpu.step_offset is None
    with pytest.raises(RuntimeError, match="CUDA graph"):  # and not half of one the next time
        graph(x)


def test_a_recorded_step_draws_the_masks_of_an_eager_one(gpu: Any) -> None:
    """Even if other code drew masks in between."""
    ones = tg.ones((4, 8))

    def step() -> Any:
        return (tg.dropout(tg.dropout(ones, 0.5), 0.5).data,)

    graph = gpu.record(step, draws)
    for run in range(EAGER_RUNS + 4):
        tg.manual_seed(run // EAGER_RUNS)  # the seed is baked in
        default_generator.steps[Stream.DROPOUT] = 1000 * run
        recorded = graph()[0].get()
        if run < EAGER_RUNS + 1:
            seed = run // EAGER_RUNS
        tg.manual_seed(seed)
        default_generator.steps[Stream.DROPOUT] = 1000 * run
        np.testing.assert_array_equal(recorded, step()[0].get())
        assert default_generator.steps[Stream.DROPOUT] == 1000 * run + 2


def test_tables_of_addresses_are_not_uploaded_in_the_recording(gpu: Any) -> None:
    """The graph keeps them alive even if the cache drops them."""
    grads = [gpu.asarray(np.full(n, 2.0, np.float32)) for n in (3, 5)]
    graph = gpu.record(lambda: (gpu.global_norm([x + 0 for x in grads]),), draws)
    values = [float(graph()[0]) for _ in range(EAGER_RUNS + 2)]
    assert values == pytest.approx([np.sqrt(8 * 4)] * (EAGER_RUNS + 2))
    assert graph.tables and gpu.copy_stream.synchronized > 0


def test_a_closed_graph_returns_its_memory(gpu: Any) -> None:
    gpu.xp.get_default_memory_pool().free_all_blocks()
    free = gpu.xp.cuda.runtime.memGetInfo()[0]
    graph, x = gpu.record(lambda x: ((x @ x + 1).sum(),), draws), np.ones((40, 40), np.float32)
    for _ in range(EAGER_RUNS + 2):
        (total,) = graph(gpu.asarray(x))
    assert float(total) == 40 * 40 * 41
    assert gpu.xp.cuda.runtime.memGetInfo()[0] < free
    del total
    graph.close()
    gpu.xp.get_default_memory_pool().free_all_blocks()
    assert gpu.xp.cuda.runtime.memGetInfo()[0] == free
    with pytest.raises(RuntimeError, match="CUDA graph: the step cannot be recorded: it has been closed"):
        graph(gpu.asarray(x))


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(BackendUnavailable, match="a CUDA graph: numpy is not on a GPU, where a step could be"):
        load("numpy").record(lambda: (), draws)


# --- batches --------------------------------------------------------------------------------------


def test_batches_alternate_between_two_slots_in_order(gpu: Any) -> None:
    gpu._slots.clear()
    stream, waited = FakeStream(), gpu.copy_stream.waited_for
    waited.clear()
    with stream:
        batches = [gpu.stage(np.full((2, 3), i), np.full((2, 3), -i)) for i in range(5)]
    assert all(isinstance(x, FakeArray) for batch in batches for x in batch)
    assert [id(batch[0]) for batch in batches] == [id(batches[i % 2][0]) for i in range(5)]
    assert batches[4][0].get().tolist() == [[4] * 3] * 2 and batches[3][1].get().tolist() == [[-3] * 3] * 2
    # what is computed waits for each copy, and a copy for what was computed with the slot that it writes into
    assert len(stream.waited_for) == 5 and {event.stream for event in stream.waited_for} == {gpu.copy_stream}
    # or, at first, with other arrays whose memory it was given
    assert len(waited) == 5 and {event.stream for event in waited} == {stream}
    assert stream.synchronized == 0


def test_pinned_memory_is_overwritten_only_after_it_was_read(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu._slots.clear()
    seen: list[Any] = []
    monkeypatch.setattr(FakeEvent, "synchronize", lambda event: seen.append(event))
    events = []
    for i in range(4):
        gpu.stage(np.full(3, i))
        events.append(next(iter(gpu._slots.values()))[-1].copied)
    assert seen == events[:2]


def test_each_shape_has_its_own_slots(gpu: Any) -> None:
    gpu._slots.clear()
    for shape in ((2, 3), (3, 2), (2, 3)):
        assert gpu.stage(np.ones(shape))[0].shape == shape
    assert sorted(len(slots) for slots in gpu._slots.values()) == [1, 2]


def test_staging_on_a_cpu() -> None:
    x = np.arange(3)
    (staged,) = load("numpy").stage(x)
    assert staged is x
    assert load("numpy").number(np.array(2.5, np.float32)) == 2.5


def test_numbers_on_a_gpu_are_not_synchronised(gpu: Any) -> None:
    x = gpu.xp.ones(())
    assert gpu.number(x) is x
    assert gpu.decide(x) is x and gpu.decide(True) is True
