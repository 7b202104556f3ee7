"""Batches from a text: splitting, tokens, windows, epochs, and one-line user errors."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.config import UserError
from gpt.data import DataLoader, loaders, make_loaders, spawn_dataloader, split_text, tokenize
from gpt.data.documents import load_text
from gpt.data.loaders import tokenize_cached
from gpt.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer, TokenizerError


@pytest.fixture(scope="module")
def tiny(tinyshakespeare_path: Path) -> str:
    return load_text(tinyshakespeare_path)


def loader(n: int = 100, *, batch_size: int = 4, block_size: int = 8, seed: int = 0) -> DataLoader:
    tokens = np.arange(n, dtype=np.uint16)  # each token is its own position
    return DataLoader(tokens, batch_size=batch_size, block_size=block_size, seed=seed)


def error_of(function: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --------------------------------------------------------------------------------------------------
# Published counts


def test_character_counts_of_tiny_shakespeare_are_those_published(tiny: str) -> None:
    tokenizer = CharTokenizer.train(tiny)
    train, val = make_loaders(tiny, tokenizer, batch_size=1, block_size=64)
    assert (tokenizer.vocab_size, len(train.tokens), len(val.tokens)) == (65, 1_003_854, 111_540)
    assert tokenizer.decode([*train.tokens.tolist(), *val.tokens.tolist()]) == tiny


def test_gpt2_token_counts_of_tiny_shakespeare_are_those_published(tiny: str, gpt2: GPT2Tokenizer) -> None:
    train, val = (tokenize(part, gpt2) for part in split_text(tiny))
    assert (len(train), len(val)) == (301_966, 36_059)
    assert train.dtype == val.dtype == np.uint16  # as nanoGPT's prepare.py stores them


# --------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize("split", [0.0, 1.0, -0.1, 90, float("nan")])
def test_a_split_outside_0_to_1_is_refused(split: float) -> None:
    message = error_of(lambda: split_text("ab", split))
    assert message == f"split must be above 0 and below 1, the share of the text to train on, not {split}"


def test_a_text_too_short_for_one_window_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 10)
    train, val = spawn_dataloader(path, batch_size=2, block_size=9)
    assert (len(train.tokens), len(val.tokens)) == (90, 10)
    assert error_of(lambda: spawn_dataloader(path, batch_size=2, block_size=10)) == (
        f"the validation part of data '{path}' has 10 tokens, too few for block_size 10, which "
        "needs 11: give a longer text or a smaller block_size"
    )
    message = error_of(lambda: spawn_dataloader(path, batch_size=2, block_size=100))
    assert message.startswith(f"the training part of data '{path}' has 90 tokens")


@pytest.mark.parametrize("sizes", [(0, 8), (4, 0), (-1, 8)])
def test_sizes_below_1_are_refused(sizes: tuple[int, int]) -> None:
    message = error_of(lambda: loader(batch_size=sizes[0], block_size=sizes[1]))
    assert message.endswith(f"batch_size {sizes[0]} and block_size {sizes[1]} must be at least 1")


# --------------------------------------------------------------------------------------------------
# Splitting and tokens


@given(st.text(), st.floats(0.01, 0.99))
def test_a_split_keeps_the_whole_text(text: str, split: float) -> None:
    train, val = split_text(text, split)
    assert train + val == text
    assert len(train) == int(len(text) * split)


class Numbers:
    """A tokenizer with a vocabulary of a given size: character c is the token ord(c)."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return [ord(character) for character in text]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_tokens_have_the_smallest_sufficient_dtype(vocab_size: int, dtype: type) -> None:
    text = "ab" + chr(vocab_size - 1)
    tokens = tokenize(text, Numbers(vocab_size))  # type: ignore[arg-type]
    assert tokens.dtype == dtype
    assert tokens.tolist() == [97, 98, vocab_size - 1]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The texts that were encoded, with an empty cache for texts of 10 to 99 characters."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loaders, "MIN_CACHED", 10)
    monkeypatch.setattr(loaders, "MAX_CACHED", 99)
    texts: list[str] = []

    def record(text: str, tokenizer: Tokenizer, *, allow_special: bool) -> Any:
        texts.append(text)
        return tokenize(text, tokenizer, allow_special=allow_special)

    monkeypatch.setattr(loaders, "tokenize", record)
    return texts


VERSE = "Shall I compare thee to a summer's day?"  # of letters that conftest's tokenizers know


def test_a_text_is_encoded_once(tokenizer: Tokenizer, encoded: list[str]) -> None:
    expected = tokenize(VERSE, tokenizer)
    for _ in range(3):
        tokens = tokenize_cached(VERSE, tokenizer)
        assert tokens.dtype == expected.dtype
        np.testing.assert_array_equal(tokens, expected)
    assert encoded == [VERSE]


def test_a_text_is_encoded_again_where_anything_differs(
    bpe: BPETokenizer, gpt2: GPT2Tokenizer, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = VERSE + END_OF_TEXT
    other = BPETokenizer([*bpe.tokens[:-1], b"summer's day"])
    cases: list[tuple[str, Tokenizer, bool]] = [
        (text, bpe, False), (text, bpe, True), (text[1:], bpe, False), (text, other, False), (text, gpt2, False),
    ]  # fmt: skip
    for case, tokenizer, allow_special in cases:
        tokens = tokenize_cached(case, tokenizer, allow_special=allow_special)
        np.testing.assert_array_equal(tokens, tokenize(case, tokenizer, allow_special=allow_special))
    assert encoded == [case[0] for case in cases]
    monkeypatch.setattr(loaders, "code", lambda: b"another version of tiktoken")
    tokenize_cached(text, bpe)
    assert len(encoded) == len(cases) + 1


def test_wide_tokens_come_from_the_cache(encoded: list[str]) -> None:
    wide = CharTokenizer("".join(chr(0x10000 + i) for i in range(65537)))
    text = wide.characters[-20:]
    assert [tokenize_cached(text, wide).tolist() for _ in range(2)] == [list(range(65517, 65537))] * 2
    assert encoded == [text]


@pytest.mark.parametrize("text", [VERSE[:9], VERSE * 3])
def test_tokens_of_short_and_long_texts_are_not_kept(
    text: str, bpe: BPETokenizer, encoded: list[str], tmp_path: Path
) -> None:
    np.testing.assert_array_equal(tokenize_cached(text, bpe), tokenize(text, bpe))
    assert encoded == [text]
    assert not list(tmp_path.iterdir())


def test_a_text_that_cannot_be_encoded_is_refused(encoded: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(TokenizerError, match="the vocabulary, of 3 characters, does not have"):
            tokenize_cached(VERSE, CharTokenizer("abc"))
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# Batches


def test_targets_are_the_inputs_shifted_by_one_token() -> None:
    x, y = loader().batch(step=3)
    assert x.shape == y.shape == (4, 8)
    assert x.dtype == y.dtype == np.int64
    assert x.flags.c_contiguous and y.flags.c_contiguous
    np.testing.assert_array_equal(y, x + 1)
    np.testing.assert_array_equal(np.diff(x, axis=1), 1)


def test_a_batch_depends_only_on_the_seed_and_the_step() -> None:
    one, other = loader(1000, seed=7), loader(1000, seed=7)
    list(one)
    one.batch(0)
    np.testing.assert_array_equal(one.batch(5), other.batch(5))
    assert not np.array_equal(one.batch(5), one.batch(6))
    assert not np.array_equal(one.batch(5), loader(1000, seed=8).batch(5))


def test_random_windows_can_start_at_the_first_and_the_last_position() -> None:
    few = loader(11, batch_size=64, block_size=8)  # windows can begin at 0, 1 or 2
    x, y = few.batch(0)
    assert set(x[:, 0].tolist()) == {0, 1, 2}
    assert y.max() == 10


def test_a_text_of_exactly_one_window_is_accepted() -> None:
    least = loader(9, batch_size=2, block_size=8)
    np.testing.assert_array_equal(least.batch(0)[1], [list(range(1, 9))] * 2)
    assert len(least) == len(list(least)) == 1


@given(st.integers(9, 200), st.integers(1, 9), st.integers(1, 8))
def test_an_epoch_contains_every_window_once(n: int, batch_size: int, block_size: int) -> None:
    data = loader(n, batch_size=batch_size, block_size=block_size)
    batches = list(data)
    assert len(batches) == len(data)
    assert all(len(x) == batch_size for x, _ in batches[:-1])
    x = np.concatenate([x for x, _ in batches])
    y = np.concatenate([y for _, y in batches])
    np.testing.assert_array_equal(y, x + 1)
    whole = (n - 1) // block_size * block_size
    np.testing.assert_array_equal(np.sort(x.ravel()), np.arange(whole))


def order(data: DataLoader) -> list[int]:
    return [int(start) for x, _ in data for start in x[:, 0]]


def test_every_epoch_has_its_own_reproducible_order() -> None:
    data = loader(1000)
    first, second = order(data), order(data)
    assert first != sorted(first) and first != second and sorted(first) == sorted(second)
    again = loader(1000)
    again.epoch = 1
    assert order(again) == second


def test_a_memory_mapped_file_gives_the_same_batches(tmp_path: Path) -> None:
    tokens = np.arange(100, dtype=np.uint32)
    tokens.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=np.uint32, mode="r")
    batches = [DataLoader(data, batch_size=4, block_size=8).batch(0) for data in (tokens, mapped)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert type(batches[1][0]) is np.ndarray


def test_spawn_dataloader_builds_loaders_with_the_default_settings() -> None:
    train, val = spawn_dataloader("python-docs")
    x, y = next(iter(train))
    assert x.shape == y.shape == (32, 64)
    assert train.tokenizer is not None and train.tokenizer is val.tokenizer
    text = load_text("python-docs")
    assert train.tokenizer.vocab_size == len(set(text))
    assert train.tokenizer.decode(x[0].tolist()) in text
    assert len(train.tokens) == int(0.9 * len(text))
    assert len(train.tokens) + len(val.tokens) == len(text)


def test_spawn_dataloader_uses_the_given_tokenizer_split_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ab  \n" * 100)
    tokenizer = CharTokenizer.train("\n abcdefgh")
    spawn = partial(spawn_dataloader, path, batch_size=2, block_size=4, tokenizer=tokenizer)
    train, val = spawn(split=0.5)
    assert train.tokenizer is tokenizer
    assert (len(train.tokens), len(val.tokens)) == (250, 250)
    short, _ = spawn(split=0.5, normalize=True)
    assert tokenizer.decode(short.tokens.tolist()) == "ab\n" * 50
    same, other = (spawn(split=0.5, seed=seed)[0] for seed in (1337, 1338))
    np.testing.assert_array_equal(train.batch(0), same.batch(0))
    assert not np.array_equal(train.batch(0), other.batch(0))
