"""Generation: cached logits equal uncached logits, sampling, and streamed text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorgrad as tg
from gpt.fused import FusedGPT
from gpt.generate import (
    Generation,
    TextWriter,
    generate,
    generate_text,
    start_tokens,
    stream_text,
    stream_texts,
)
from gpt.generate.kvcache import KVCache
from gpt.generate.sampling import Sampling
from gpt.model import GPT
from gpt.tokenizer import BPETokenizer, CharTokenizer

WINDOW, VOCAB = 8, 19
ROWS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=4)


def make_model(vocab_size: int = VOCAB, block_size: int = WINDOW, make: type[GPT] = FusedGPT) -> GPT:
    """A small model with weights far from their initial values, so that every token and position matters."""
    model = make(
        {
            "block_size": block_size,
            "vocab_size": vocab_size,
            "n_layer": 2,
            "n_head": 2,
            "n_embd": 16,
        }
    )
    rng = np.random.default_rng(3)
    for _, p in model.named_parameters():
        p.data = (p.data + 0.4 * rng.standard_normal(p.shape)).astype(np.float32)
    return model


MODEL = make_model()
BOTH_MODELS = pytest.mark.parametrize("model", [make_model(make=GPT), MODEL], ids=["plain", "fused"])


def uncached_logits(model: GPT, ids: Sequence[int]) -> np.ndarray:
    """The logits of the next token, from the last block_size tokens and without a cache."""
    with tg.no_grad():
        logits, _ = model(np.array([ids[-model.config.block_size :]]))
    return logits.numpy()[0, -1]


# --------------------------------------------------------------------------------------------------
# The cache


@BOTH_MODELS
@given(prompts=ROWS, n_steps=st.integers(1, 14), data=st.data())
def test_cached_logits_equal_uncached_logits(model: GPT, prompts: list, n_steps: int, data: st.DataObject) -> None:
    """For prompts of any length, rows that end at any time, and sequences much longer than the window."""
    batch = Generation(model, prompts, max_new_tokens=n_steps)
    tokens = np.random.default_rng(0).integers(VOCAB, size=(n_steps, len(prompts)))
    for step in range(n_steps):
        logits = batch.next_logits()
        assert sorted(logits) == batch.active
        for row in batch.active:
            expected = uncached_logits(model, batch.rows[row])
            np.testing.assert_allclose(logits[row], expected, atol=1e-5, rtol=1e-5)
            batch.rows[row].append(int(tokens[step, row]))
        if len(batch.active) > 1 and data.draw(st.booleans()):
            batch.end(data.draw(st.sampled_from(batch.active)))


def test_shifting_the_cache_past_the_window_gives_other_logits() -> None:
    """Keeping old keys as the window moves would give wrong logits, which the test above would detect."""
    cache = KVCache(MODEL, 1)
    ids = list(range(WINDOW + 1))
    with tg.no_grad():
        MODEL(np.array([ids[:WINDOW]]), cache=cache)
        cache.lengths -= 1  # a naive shift: drop the oldest position and write the newest at the end
        for layer in cache.layers:
            layer.k[:, :, :-1], layer.v[:, :, :-1] = layer.k[:, :, 1:], layer.v[:, :, 1:]
        shifted = MODEL(np.array([ids[WINDOW:]]), cache=cache)[0].numpy()[0, 0]
    assert np.abs(shifted - uncached_logits(MODEL, ids)).max() > 0.1


@BOTH_MODELS
@pytest.mark.parametrize("cuts", [[5], [1, 4], [2, 3], [1, 1, 1, 1, 1]])
def test_a_sequence_in_chunks_gives_the_uncached_logits(model: GPT, cuts: list[int]) -> None:
    cache, offset, ids = KVCache(model, 2), 0, np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    with tg.no_grad():
        for n in cuts:
            logits, _ = model(ids[:, offset : offset + n], cache=cache)
            offset += n
    for row in range(2):
        np.testing.assert_allclose(logits.numpy()[row, 0], uncached_logits(model, ids[row]), atol=1e-5)


@BOTH_MODELS
def test_chunks_extend_rows_of_different_lengths(model: GPT) -> None:
    cache, ids = KVCache(model, 2), np.array([[3, 1, 4, 1], [9, 2, 0, 0]])
    with tg.no_grad():
        model(ids, cache=cache)
        cache.lengths[:] = [4, 2]
        logits, _ = model(np.array([[5, 9, 2], [6, 5, 3]]), cache=cache)
    for row, whole in enumerate(([3, 1, 4, 1, 5, 9, 2], [9, 2, 6, 5, 3])):
        np.testing.assert_allclose(logits.numpy()[row, 0], uncached_logits(model, whole), atol=1e-5)


def test_the_cache_is_not_reallocated() -> None:
    """Keys and values are written in place: no array is allocated or moved while tokens are generated."""
    batch = Generation(MODEL, [[1, 2], [3]], max_new_tokens=WINDOW - 2, temperature=0)
    addresses = set()
    for _ in batch:
        assert batch.cache is not None
        addresses.add(tuple(array.ctypes.data for la in batch.cache.layers for array in (la.k, la.v)))
    assert len(addresses) == 1
    assert batch.cache.layers[0].k.shape == (2, 2, WINDOW, 8)


@pytest.mark.parametrize(("n_new", "capacity"), [(1, 3), (4, 6), (WINDOW, WINDOW), (10**9, WINDOW)])
def test_the_cache_capacity_is_the_number_of_tokens_to_hold(n_new: int, capacity: int) -> None:
    batch = Generation(MODEL, [[1, 2], [3]], max_new_tokens=n_new, temperature=0)
    for step, _ in enumerate(batch):
        if step == 2 * WINDOW:
            break
        if step < min(n_new, WINDOW - 1):
            assert batch.cache is not None and batch.cache.layers[0].k.shape[2] == capacity


def test_a_full_cache_raises_an_error() -> None:
    cache = KVCache(MODEL, 1)
    with tg.no_grad():
        MODEL(np.zeros((1, WINDOW), int), cache=cache)
        with pytest.raises(ValueError, match="the cache has room for 8 tokens per row, not 9"):
            MODEL(np.zeros((1, 1), int), cache=cache)


@BOTH_MODELS
def test_a_cache_is_refused_if_gradients_are_recorded(model: GPT) -> None:
    """It is refused with and without targets, and is not changed."""
    x, cache = np.zeros((1, 2), int), KVCache(model, 1)
    for targets in (x, None):
        with pytest.raises(ValueError, match=r"cache is for generation.* run the model under no_grad\(\)"):
            model(x, targets, cache=cache)
    assert cache.lengths.tolist() == [0]


@BOTH_MODELS
def test_a_token_out_of_range_leaves_the_cache_unchanged(model: GPT) -> None:
    cache = KVCache(model, 1)
    with tg.no_grad(), pytest.raises(IndexError, match=f"{VOCAB}"):
        model(np.array([[0, VOCAB]]), cache=cache)
    assert cache.lengths.tolist() == [0]


@BOTH_MODELS
def test_the_loss_of_a_text_in_cached_chunks_equals_the_whole_loss(model: GPT) -> None:
    """Under no_grad, targets may be given together with a cache."""
    x = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    with tg.no_grad():
        cache = KVCache(model, 2)
        losses = [model(x[:, i : i + 2], x[:, i + 1 : i + 3], cache=cache)[1].item() for i in (0, 2)]
        assert np.mean(losses) == pytest.approx(model.loss(x[:, :4], x[:, 1:]).item(), rel=1e-5)


# --------------------------------------------------------------------------------------------------
# Batches


@given(prompts=ROWS, seed=st.integers(0, 2**64 - 1), temperature=st.sampled_from([0.0, 0.7, 1.5]))
def test_a_row_in_a_batch_equals_the_row_generated_alone(prompts: list, seed: int, temperature: float) -> None:
    options = {"max_new_tokens": 10, "seed": seed, "temperature": temperature, "top_p": 0.9}
    together = generate(MODEL, prompts, eot=0, **options)
    for prompt, row in zip(prompts, together, strict=True):
        assert generate(MODEL, [prompt], eot=0, **options) == [row]


def test_seeds_make_generation_reproducible() -> None:
    def write(seed: object, rows: int = 1) -> list[list[int]]:
        return generate(MODEL, [[1]] * rows, max_new_tokens=20, seed=seed)

    assert write(1) == write(1) != write(2)
    assert write([1, 2], 2) == write(1) + write(2)
    tg.manual_seed(4)
    first, second = write(None, 2), write(None, 2)
    assert first[0] != first[1] and first != second
    tg.manual_seed(4)
    assert write(None, 2) == first


def test_every_backend_generates_the_same_tokens() -> None:
    expected = generate(MODEL, [[1, 2], [3]], max_new_tokens=20, seed=1)
    if tg.backend.check("numba"):
        pytest.skip("numba is not installed")
    with tg.use_backend("numba"):
        assert generate(MODEL, [[1, 2], [3]], max_new_tokens=20, seed=1) == expected


def test_greedy_decoding_chooses_the_most_likely_token() -> None:
    ids = [5]
    for _ in range(2 * WINDOW):
        ids.append(int(uncached_logits(MODEL, ids).argmax()))
    assert generate(MODEL, [[5]], max_new_tokens=2 * WINDOW, temperature=0) == [ids[1:]]


def test_end_of_text_ends_only_its_own_row() -> None:
    prompts = [[5], [7, 2], [11]]
    free = generate(MODEL, prompts, max_new_tokens=20, seed=2)
    eot = free[1][6]  # in the middle of the second row
    expected = [row[: row.index(eot)] if eot in row else row for row in free]
    assert len(expected[1]) < 20
    assert generate(MODEL, prompts, max_new_tokens=20, seed=2, eot=eot) == expected


def test_an_empty_prompt_starts_with_end_of_text_or_token_zero() -> None:
    options = {"max_new_tokens": 5, "temperature": 0}
    assert generate(MODEL, [[]], **options) == generate(MODEL, [[0]], **options)
    from_eot = [t for t in generate(MODEL, [[9]], **options)[0]]
    from_eot = from_eot[: from_eot.index(9)] if 9 in from_eot else from_eot
    assert generate(MODEL, [[]], eot=9, **options) == [from_eot]


def test_no_new_tokens_or_no_prompts_give_empty_results() -> None:
    assert generate(MODEL, [[1], [2]], max_new_tokens=0) == [[], []]
    assert generate(MODEL, [], max_new_tokens=5) == []


def test_generation_changes_neither_the_prompts_nor_the_mode() -> None:
    model, prompt = make_model(), [1, 2]
    for training in (True, False):
        model.train(training)
        for _ in Generation(model, [prompt], max_new_tokens=2):
            assert model.training is training
            assert model(np.array([[1]]))[0].node is not None  # gradients are still recorded here
    assert prompt == [1, 2]


def test_generation_records_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    recording, forward = [], GPT.forward

    def spy(*args: object, **options: object) -> object:
        recording.append(tg.is_grad_enabled())
        return forward(*args, **options)

    monkeypatch.setattr(GPT, "forward", spy)
    generate(MODEL, [[1], [1] * 9], max_new_tokens=2)
    assert recording == [False] * 4 and tg.is_grad_enabled()


def test_generation_uses_no_dropout() -> None:
    model = FusedGPT({**MODEL.config.to_dict(), "dropout": 0.5})
    model.load_state_dict(MODEL.state_dict())
    model.train()
    options = {"max_new_tokens": 20, "temperature": 0}
    assert generate(model, [[1]], **options) == generate(MODEL, [[1]], **options)


# --------------------------------------------------------------------------------------------------
# Choosing a token


def reference_probabilities(
    logits: np.ndarray,
    seen: list[int],
    penalty: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> np.ndarray:
    """The probabilities computed from the definitions, token by token, in Python floats."""
    x = [float(value) for value in logits]
    for token in set(seen):
        x[token] = x[token] * penalty if x[token] < 0 else x[token] / penalty
    weights = [np.exp(value / temperature) for value in x]
    ranked = sorted(range(len(x)), key=lambda token: -weights[token])[:top_k]
    total, kept = sum(weights[token] for token in ranked), []
    for token in ranked:  # until their probabilities sum to top_p
        kept.append(token)
        if sum(weights[token] for token in kept) >= top_p * total:
            break
    mass = sum(weights[token] for token in kept)
    return np.array([weights[t] / mass if t in kept else 0.0 for t in range(len(x))])


@pytest.mark.parametrize(("penalty", "temperature", "top_k", "top_p"), [
    (1.0, 1.0, 9, 1.0), (1.0, 0.5, 9, 1.0), (1.0, 2.0, 4, 1.0), (1.0, 1.0, 9, 0.6),
    (1.7, 1.0, 9, 1.0), (0.5, 1.0, 9, 1.0), (1.7, 1.3, 5, 0.8), (1.7, 1.0, 1, 1.0),
    (0.5, 1.0, 9, 1e-9),
])  # fmt: skip
def test_sampled_frequencies_match_the_reference_probabilities(
    penalty: float, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(5).normal(size=9).astype(np.float32)
    seen, n = [0, 3, 3, 8], 2000
    expected = reference_probabilities(logits, seen, penalty, temperature, top_k, top_p)
    sampling = Sampling(penalty, temperature, top_k, top_p, seed=7)
    [generator] = sampling.row_generators(1)
    drawn = [sampling.choose(logits, seen, generator, step) for step in range(n)]
    counts = np.bincount(drawn, minlength=9)
    assert (counts[expected == 0] == 0).all()
    spread = np.sqrt(n * expected * (1 - expected))
    assert (np.abs(counts - n * expected) <= 4.5 * spread + 1e-9).all()


def test_a_draw_depends_on_its_step_and_not_on_earlier_draws() -> None:
    sampling, logits = Sampling(seed=3), np.zeros(50)
    [generator] = sampling.row_generators(1)
    forwards = [sampling.choose(logits, [], generator, step) for step in range(20)]
    backwards = [sampling.choose(logits, [], generator, step) for step in reversed(range(20))]
    assert forwards == backwards[::-1] and len(set(forwards)) > 5


def test_top_k_keeps_all_tokens_tied_with_the_kth() -> None:
    sampling, logits = Sampling(top_k=2, seed=0), np.array([0.0, 1.0, 1.0, 1.0])
    [generator] = sampling.row_generators(1)
    assert {sampling.choose(logits, [], generator, step) for step in range(100)} == {1, 2, 3}


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-8])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=0)
    [generator] = sampling.row_generators(1)
    assert sampling.choose(np.array([1.0, 3.0, 2.0]), [], generator, 0) == 1


def test_sampling_does_not_change_the_logits() -> None:
    logits = np.array([1.0, -1.0, 2.0])
    sampling = Sampling(2.0, 0.5, 1, 0.5, seed=0)
    sampling.choose(logits, [0, 1], sampling.row_generators(1)[0], 0)
    assert logits.tolist() == [1.0, -1.0, 2.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_logits_raise_an_error(bad: float) -> None:
    sampling = Sampling(seed=0)
    with pytest.raises(FloatingPointError, match="diverged"):
        sampling.choose(np.array([0.0, bad]), [], sampling.row_generators(1)[0], 0)


def test_the_repetition_penalty_covers_the_prompt_and_the_generated_tokens() -> None:
    ids = [3, 3, 5]
    for _ in range(12):
        logits = uncached_logits(MODEL, ids).astype(np.float64)
        for token in set(ids):
            logits[token] *= 3.0 if logits[token] < 0 else 1 / 3.0
        ids.append(int(logits.argmax()))
    options = {"temperature": 0, "repetition_penalty": 3.0}
    assert generate(MODEL, [[3, 3, 5]], max_new_tokens=12, **options) == [ids[3:]]
    assert generate(MODEL, [[3, 3, 5]], max_new_tokens=12, temperature=0) != [ids[3:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0.*not -0.1"),
        ({"temperature": float("nan")}, "temperature .*not nan"),
        ({"temperature": float("inf")}, "temperature .*not inf"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1.*not 0"),
        ({"top_k": 1.5}, "top_k .*not 1.5"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.01}, "top_p .*not 1.01"),
        ({"top_p": float("nan")}, "top_p .*not nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0.*not 0.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty .*not -1.0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, not -1"),
        ({"seed": [1, 2]}, r"one for each of the 1 prompts, not \[1, 2\]"),
        ({"seed": -1}, "seed: -1"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    options = {"max_new_tokens": 1, **options}
    with pytest.raises(ValueError, match=message):
        generate(MODEL, [[1]], **options)
    with pytest.raises(ValueError, match=message):  # at the call, before the first piece is requested
        stream_text(MODEL, CharTokenizer("abc"), "a", **options)


# --------------------------------------------------------------------------------------------------
# Text


class Bytes:
    """The simplest tokenizer whose tokens may end inside a character: every token is one byte."""

    stop_ids: frozenset[int] = frozenset()

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode_bytes(self, ids: Sequence[int], *, skip_special: bool = False) -> bytes:
        return bytes(ids)


class Pieces(Bytes):
    """A tokenizer whose tokens are given as a list, so that a test decides where each token ends."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def decode_bytes(self, ids: Sequence[int], *, skip_special: bool = False) -> bytes:
        return b"".join(self.pieces[i] for i in ids)


def written_pieces(pieces: list[bytes], stop: list[str]) -> list[str]:
    writer = TextWriter(Pieces(pieces), stop)
    shown = []
    for token in range(len(pieces)):
        if writer.stopped:
            break
        shown.append(writer.push(token))
    return [*shown, writer.finish()]


def test_characters_are_never_split() -> None:
    cut = [b"a\xc3", b"\xa9", b"\xf0\x9f", b"\x99", b"\x82", b"z"]
    assert written_pieces(cut, []) == ["a", "é", "", "", "🙂", "z", ""]


def test_an_incomplete_character_is_shown_as_one_replacement_character() -> None:
    assert written_pieces([b"a", b"\xf0\x9f"], []) == ["a", "", "\ufffd"]
    assert written_pieces([b"a", b"\xf0", b"b"], []) == ["a", "", "\ufffdb", ""]


def test_a_stop_text_may_span_tokens() -> None:
    assert written_pieces([b"one\n", b"\nRO", b"MEO", b": x"], ["\n\nROMEO:"]) == ["one", "", "", "", ""]
    assert written_pieces([b"one\n", b"\nRO", b"SE"], ["\n\nROMEO:"]) == ["one", "", "\n\nROSE", ""]
    assert written_pieces([b"one\n", b"\nRO"], ["\n\nROMEO:"]) == ["one", "", "\n\nRO"]
    # a partial match of the stop text overlaps the full match
    assert written_pieces([b"aa", b"ab"], ["aab"]) == ["", "a", ""]


def test_the_stop_text_that_is_complete_first_ends_the_text() -> None:
    assert written_pieces([b"abcd"], ["abcd", "bc"]) == ["a", ""]
    assert written_pieces([b"ab", b"cd"], ["abcd", "bc"]) == ["", "a", ""]
    assert written_pieces([b"xabc"], ["bc", "abc"]) == ["x", ""]


@given(
    text=st.text("ab\né🙂", max_size=30),
    stop=st.lists(st.text("ab\né🙂", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_the_text_does_not_depend_on_token_boundaries(text: str, stop: list[str], data: st.DataObject) -> None:
    """The text that is shown always ends before the first stop text."""
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    expected = text
    for end in range(len(text) + 1):  # character by character, until a stop text is complete
        if found := [s for s in stop if text[:end].endswith(s)]:
            expected = text[: end - max(map(len, found))]
            break
    shown = written_pieces(pieces, stop)
    assert "".join(shown) == expected


def test_streamed_text_equals_generated_text() -> None:
    model, tokenizer = make_model(256), Bytes()
    options = {"max_new_tokens": 60, "seed": 8}
    [ids] = generate(model, [tokenizer.encode("Oh, é")], **options)
    text = bytes(ids).decode("utf-8", errors="replace")
    pieces = list(stream_text(model, tokenizer, "Oh, é", **options))
    assert "".join(pieces) == text and len(pieces) > 10 and "" not in pieces
    assert generate_text(model, tokenizer, ["Oh, é", "x"], **options)[0] == text


def test_a_piece_is_streamed_as_soon_as_it_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *a, **o: calls.append(1) or forward(*a, **o))
    tokenizer = CharTokenizer("abcdefghijklmnopqrs")
    pieces = stream_text(make_model(), tokenizer, "abc", max_new_tokens=5, seed=1)
    assert not calls
    next(pieces)
    assert len(calls) == 1
    assert len(list(pieces)) == 4


def test_a_stop_text_ends_only_its_own_row() -> None:
    tokenizer = CharTokenizer("abcdefghijklmnopqrs")
    options = {"max_new_tokens": 25, "seed": 3}
    free = generate_text(MODEL, tokenizer, ["a", "bcd", "e"], **options)
    stop = free[1][4:7]  # three tokens long
    expected = [text.partition(stop)[0] for text in free]
    assert len(expected[1]) <= 4
    assert generate_text(MODEL, tokenizer, ["a", "bcd", "e"], stop=stop, **options) == expected
    pieces = list(stream_texts(MODEL, tokenizer, ["a", "bcd", "e"], stop=[stop, "??"], **options))
    assert ["".join(p for r, p in pieces if r == row) for row in range(3)] == expected


def test_generation_ends_at_a_stop_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = CharTokenizer("abcdefghijklmnopqrs")
    first = generate_text(MODEL, tokenizer, ["a"], max_new_tokens=1, seed=3)[0]
    calls = []
    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *a, **o: calls.append(1) or forward(*a, **o))
    assert generate_text(MODEL, tokenizer, ["a"], max_new_tokens=9, seed=3, stop=first) == [""]
    assert len(calls) == 1


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ValueError, match="stop must not be an empty text"):
        stream_text(MODEL, CharTokenizer("abc"), "a", max_new_tokens=1, stop="")


def test_a_prompt_with_an_unknown_character_is_refused() -> None:
    with pytest.raises(Exception, match="z"):
        stream_text(MODEL, CharTokenizer("abc"), "az", max_new_tokens=1)


def test_an_empty_prompt_stands_for_a_newline_or_the_first_token() -> None:
    bpe = BPETokenizer.train("to be or not to be", 260)
    assert start_tokens(bpe) == [ord("\n")]
    assert start_tokens(CharTokenizer("\nab")) == [0]
    assert start_tokens(CharTokenizer("\t\nab")) == [1]
    assert start_tokens(CharTokenizer("ab")) == [0]


def test_streamed_text_equals_generated_text_with_a_trained_tokenizer() -> None:
    """With a Unicode prompt, and with tokens that end inside characters."""
    tokenizer = BPETokenizer.train("na\u00efve caf\u00e9 \U0001f642 " * 5, 270)
    model = make_model(tokenizer.vocab_size)
    options = {"max_new_tokens": 40, "seed": 2, "top_k": 50}
    [ids] = generate(model, [tokenizer.encode("caf\u00e9")], eot=tokenizer.eot, **options)
    expected = tokenizer.decode(ids)
    assert "".join(stream_text(model, tokenizer, "caf\u00e9", **options)) == expected


@pytest.mark.parametrize("token", [1.7, "1", None, np.float32(2.0)])
def test_tokens_that_are_not_integers_are_refused(token: object) -> None:
    model = GPT({"block_size": 4, "vocab_size": 5, "n_layer": 1, "n_head": 1, "n_embd": 4})
    with pytest.raises(TypeError, match="integer"):
        generate(model, [[1, token]], max_new_tokens=1)
    assert len(generate(model, [[np.int64(1), np.uint8(2)]], max_new_tokens=1)[0]) == 1


def test_a_string_is_refused_as_the_list_of_prompts() -> None:
    model = GPT({"block_size": 4, "vocab_size": 5, "n_layer": 1, "n_head": 1, "n_embd": 4})
    with pytest.raises(TypeError, match="prompts is one text, 'hello': give a list of texts, or use stream_text"):
        generate_text(model, CharTokenizer.train("hello"), "hello", max_new_tokens=1)


def test_end_of_text_in_a_prompt_is_the_token_only_where_asked() -> None:
    tokenizer = BPETokenizer.train("to be or not to be", 260)
    rows: list[int] = []
    model = GPT({"block_size": 64, "vocab_size": tokenizer.vocab_size, "n_layer": 1, "n_head": 1, "n_embd": 4})
    forward = model.forward

    def watch(ids: object, **options: object) -> object:
        rows.append(np.asarray(ids).shape[-1])
        return forward(ids, **options)

    model.forward = watch
    for allow in (False, True):
        list(stream_text(model, tokenizer, "<|endoftext|>to", max_new_tokens=1, allow_special=allow, temperature=0.0))
    assert rows[1] == len(tokenizer.encode("to")) + 1 < rows[0]
