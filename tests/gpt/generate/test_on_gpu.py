"""Generation on a stand-in for a GPU, a step recorded once and replayed: the tokens are those of NumPy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from fake_memory import FakeCudaError, FakeEvent, FakeStream

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig
from gpt.fused import FusedGPT, FusedLlama
from gpt.generate import Generation, generate, on_gpu, stream_text
from gpt.generate.kvcache import KVCache
from gpt.lora import LoRA, add_lora
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer
from gpt.weights import Model
from tensorgrad.backend import get_backend
from tensorgrad.backend.cupy.graph import EAGER_RUNS

WINDOW, VOCAB = 14, 19
GPT_2 = GPTConfig(block_size=WINDOW, vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=16, bias=True)
WITHOUT_BIAS = GPTConfig(block_size=WINDOW, vocab_size=VOCAB, n_layer=1, n_head=1, n_embd=8, bias=False, gelu="none")
LLAMA = LlamaConfig(block_size=WINDOW, vocab_size=VOCAB, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_hidden=24)
UNTIED = LlamaConfig(block_size=WINDOW, vocab_size=VOCAB, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, n_hidden=8,
                     tied=False)  # fmt: skip
CONFIGS = {"gpt2": GPT_2, "gpt2 without bias": WITHOUT_BIAS, "llama": LLAMA, "llama, untied": UNTIED}
PROMPTS = [[1, 2, 3, 4], [7], [5, 6, 1]]


def make_model(config: Any, make: Any = None) -> Model:
    """A model with weights far from their initial values, so that every token and position matters."""
    make = make or (FusedLlama if isinstance(config, LlamaConfig) else FusedGPT)
    tg.manual_seed(3)
    rng, model = np.random.default_rng(3), make(config)
    with tg.no_grad():
        for _, p in model.named_parameters():
            p.data[...] = p.data + tg.asarray(0.3 * rng.standard_normal(p.shape).astype(np.float32)).data
    return model


def kernels(gpu: Any) -> list[str]:
    return [launch.kernel for launch in gpu.launcher.launches]


@pytest.fixture(autouse=True)
def no_launches(request: pytest.FixtureRequest) -> None:
    if "gpu" in request.fixturenames:
        request.getfixturevalue("gpu").launcher.launches.clear()


def both(config: Any, prompts: list[list[int]], **options: Any) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens by the current backend, and by NumPy."""
    here = generate(make_model(config), prompts, **options)
    with tg.use_backend("numpy"):
        return here, generate(make_model(config), prompts, **options)


@pytest.mark.parametrize("options", [
    {"temperature": 0.0},
    {"seed": [3, 4, 2**40]},
    {"temperature": 0.9, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.3, "seed": 11},
], ids=["greedy", "a seed a row", "all options"])  # fmt: skip
@pytest.mark.parametrize("name", CONFIGS)
def test_the_tokens_are_those_of_numpy(
    gpu: Any, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of several lengths, until the first has filled the window and beyond."""
    on_host, choose = [], Generation._on_host

    def logged(batch: Generation, step: int) -> dict[int, int]:
        on_host.append(get_backend().name)
        return choose(batch, step)

    monkeypatch.setattr(Generation, "_on_host", logged)
    here, there = both(CONFIGS[name], PROMPTS, max_new_tokens=WINDOW + 1, **options)
    assert here == there
    assert {len(row) for row in here} == {WINDOW + 1}
    # the host chooses the first token, and those behind a full window
    assert on_host.count("cupy") == 1 + (WINDOW + 1 - 1 - (WINDOW - len(PROMPTS[0])))
    launched = kernels(gpu)
    n_layer = CONFIGS[name].n_layer
    steps_before_replaying = EAGER_RUNS + 1
    assert launched.count("attention_step") == n_layer * steps_before_replaying
    assert launched.count("linear_rows") == (4 * n_layer + 1) * steps_before_replaying
    assert launched.count("largest") == launched.count("embed_token") == steps_before_replaying


@pytest.mark.parametrize("n_rows", [1, 6])
def test_one_row_and_more_rows_than_the_kernels_take(gpu: Any, n_rows: int) -> None:
    prompts = [[1 + row, 2, 3] for row in range(n_rows)]
    here, there = both(GPT_2, prompts, max_new_tokens=12, seed=list(range(n_rows)))
    assert here == there
    assert ("linear_rows" in kernels(gpu)) is (n_rows == 1)


def test_half_precision_chooses_likely_tokens(gpu: Any) -> None:
    """Rounded, so not always the same ones: each is as likely as the likeliest, to the precision of bfloat16."""
    pytest.importorskip("ml_dtypes")
    here = generate(make_model(GPT_2).astype("bfloat16"), [[1, 2, 3]], max_new_tokens=10, temperature=0.0)
    with tg.use_backend("numpy"), tg.no_grad():
        model = make_model(GPT_2)
        text = [1, 2, 3, *here[0]]
        for n in range(3, len(text)):
            logits = model(np.array([text[:n]]))[0].numpy()[0, 0]
            assert logits[text[n]] > logits.max() - 0.1 * np.abs(logits).max()


def test_a_row_ends_at_its_stop_token_and_what_was_computed_behind_it_is_dropped(gpu: Any) -> None:
    whole, _ = both(GPT_2, PROMPTS, max_new_tokens=12, seed=5)
    for stop in (whole[0][5], whole[1][8]):
        here, there = both(GPT_2, PROMPTS, max_new_tokens=12, seed=5, eot=stop)
        assert here == there
        assert here == [row[: row.index(stop)] if stop in row else row for row in whole]


def test_rows_may_be_ended_and_the_cache_goes_on_from_there(gpu: Any) -> None:
    """As in a conversation, whose cache the next turn continues."""

    def run() -> tuple[list[int], list[int], list[int]]:
        model = make_model(LLAMA)
        cache = KVCache(model, 1, capacity=0)
        first = Generation(model, [[1, 2, 3]], max_new_tokens=9, cache=cache, seed=1)
        for number, _ in enumerate(first):
            if number == 6:
                break  # while steps behind it are queued
        lengths = cache.lengths.tolist()
        cache.crop(6)
        again = Generation(model, [first.rows[0][:6] + [5, 7]], max_new_tokens=9, cache=cache, seed=2)
        assert len(list(again)) == 9
        return first.rows[0], lengths, again.rows[0]

    here = run()
    with tg.use_backend("numpy"):
        assert here == run()


def test_text_is_streamed_while_later_tokens_are_computed(gpu: Any) -> None:
    tokenizer = CharTokenizer.train("abcdefghijklmnopqrs")

    def pieces() -> list[str]:
        return list(stream_text(make_model(GPT_2), tokenizer, "abc", max_new_tokens=14, seed=9, stop="k"))

    here = pieces()
    with tg.use_backend("numpy"):
        assert here == pieces()


def test_the_host_waits_for_the_token_that_it_reads_and_for_no_later_one(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    synchronize = FakeEvent.synchronize
    monkeypatch.setattr(FakeEvent, "synchronize", lambda event: (log.append("read"), synchronize(event)))
    monkeypatch.setattr(FakeStream, "synchronize", lambda stream: log.append("wait for all"))
    step = on_gpu.StepsOnGPU._step
    monkeypatch.setattr(on_gpu.StepsOnGPU, "_step", lambda steps: (log.append("step"), step(steps))[1])
    monkeypatch.setattr("fake_memory.FakeGraph.launch", _logged_launch(log))
    generate(make_model(GPT_2), [[1, 2]], max_new_tokens=12, seed=1)
    steps = ["step"] * 4 + ["launch"] * 8  # the fourth step is recorded, and then launched
    assert [what for what in log if what in ("step", "launch")] == steps
    without = [what for what in log if what != "step"]
    assert without[-(on_gpu.AHEAD + 1) :] == ["read"] * on_gpu.AHEAD + ["wait for all"]  # the last ones, and the end
    assert log.count("wait for all") == 1 and log.count("read") == 11
    queued = read = 0
    for what in log[: -on_gpu.AHEAD - 1]:
        queued, read = queued + (what == "launch"), read + (what == "read")
        assert read <= max(0, queued + EAGER_RUNS - on_gpu.AHEAD)


def _logged_launch(log: list[str]) -> Any:
    from fake_memory import FakeGraph

    launch = FakeGraph.launch
    return lambda graph, stream=None: (log.append("launch"), launch(graph, stream))[1]


def test_logits_that_are_not_finite(gpu: Any) -> None:
    model = make_model(GPT_2)
    batch = Generation(model, [[1, 2]], max_new_tokens=9, seed=1)
    with pytest.raises(FloatingPointError, match="the logits are nan or infinite: the model's training diverged"):
        for number, _ in enumerate(batch):
            if number == 1:
                model.ln_f.weight.data[...] = np.float32(np.nan)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda m: add_lora(m, LoRA(2, 4.0)), "LoRALinear is no part of a fused model"),
    (lambda m: m.astype("float64"), "the kernels need weights of one dtype, float32, float16 or bfloat16, not float64"),
])  # fmt: skip
def test_what_the_gpu_cannot_do_the_host_does_and_says_so(gpu: Any, change: Any, reason: str) -> None:
    model = make_model(GPT_2)
    change(model)
    with pytest.warns(UserWarning, match=f"^the host chooses every token, which is slower: {reason}$"):
        here = generate(model, PROMPTS, max_new_tokens=5, temperature=0.0)
    assert "attention_step" not in kernels(gpu)
    with tg.use_backend("numpy"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert here == generate(make_model(GPT_2), PROMPTS, max_new_tokens=5, temperature=0.0)


def test_a_plain_model_is_run_as_it_is_written(gpu: Any) -> None:
    with pytest.warns(UserWarning, match="GPT is no part of a fused model"):
        generate(make_model(GPT_2, GPT), [[1]], max_new_tokens=3)
    assert "attention_step" not in kernels(gpu)


# --- what would go wrong on a GPU, the stand-in refuses -------------------------------------------


def test_a_step_that_looks_at_a_number_cannot_be_recorded(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = on_gpu.StepsOnGPU._step
    monkeypatch.setattr(on_gpu.StepsOnGPU, "_step", lambda steps: (int(steps.state.position[0]), step(steps))[1])
    with pytest.raises(RuntimeError, match="cannot be recorded: .*not permitted when stream is capturing"):
        generate(make_model(GPT_2), [[1]], max_new_tokens=9)


def test_numbers_of_the_host_do_not_change_after_the_recording(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that took its position from the host would stay where it was recorded."""
    step = on_gpu.StepsOnGPU._step

    def with_position_of_the_host(steps: Any) -> Any:
        steps.state.position.fill(int(steps.cache.lengths[0]))
        return step(steps)

    right, _ = both(GPT_2, [[1]], max_new_tokens=12, temperature=0.0)
    monkeypatch.setattr(on_gpu.StepsOnGPU, "_step", with_position_of_the_host)
    monkeypatch.setattr(on_gpu, "AHEAD", 0)
    wrong = generate(make_model(GPT_2), [[1]], max_new_tokens=12, temperature=0.0)
    n_right = 1 + EAGER_RUNS + 1
    assert wrong[0][:n_right] == right[0][:n_right]
    assert wrong != right


def test_a_token_is_not_there_before_the_host_has_waited(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = gpu.start_reading(gpu.asarray(np.array([3, 4], np.int32)))
    assert read().tolist() == [3, 4]
    monkeypatch.setattr(FakeEvent, "synchronize", lambda event: None)
    assert gpu.start_reading(gpu.asarray(np.array([3, 4], np.int32)))().tolist() == [-1, -1]


def test_a_copy_to_the_host_is_not_recorded(gpu: Any) -> None:
    x, stream = gpu.asarray(np.ones(2, np.int32)), FakeStream()
    with stream:
        stream.begin_capture()
        with pytest.raises(FakeCudaError, match="not permitted"):
            x.get(stream=stream, out=np.empty(2, np.int32), blocking=False)
        stream.end_capture()
    with pytest.raises(AssertionError):  # memory that is not pinned
        x.get(stream=gpu.copy_stream, out=np.empty(2, np.int32), blocking=False)
