"""From text to batches: split, tokenize, take context windows, shuffle.

    text -> train / validation -> tokens (uint16 or uint32) -> windows -> x, y (B, T) int64

A loader reads its tokens only in windows, so prepared data (`shards`) serves as well as an array.
"""

import json
import math
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from gpt.cache import cached
from gpt.config import UserError
from gpt.data.documents import load_text
from gpt.data.shards import DTYPES, ShardedTokens, dtype_name
from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.tokenizer.cache import code
from tensorgrad.random import Generator, Stream

Array = np.ndarray[Any, Any]
Tokens = Array | ShardedTokens  # (N,) unsigned integers, in memory or on the disk

MIN_CACHED, MAX_CACHED = 2**18, 2**23  # characters of a text: from 20 milliseconds of encoding, to 16 MB of tokens
FIRST_EPOCH = 1 << 31  # of the random counter: epochs use the numbers from it on, and batches those below


class Batches(Protocol):
    """What a run trains on, or validates with: batches of arrays (n, ...), the arguments of its model's loss."""

    unit: str  # such as "tokens"

    @property
    def size(self) -> int:
        """How many of them there are."""

    @property
    def fingerprint(self) -> Any:
        """Bytes, or an array of them, that differ for other data."""

    def draw(self, count: int, step: int) -> tuple[Array, ...]:
        """Return the `count` rows of training step `step`, counted from 0: a pure function of both."""

    def batch(self, step: int) -> tuple[Array, ...]:
        """Return batch `step` of a validation."""


class DataLoader:
    """Batches of context windows from a sequence of tokens: x, y (B, T) int64, where y is x one token later.

    Iterating yields every non-overlapping window once, in a new random order each time; the last batch may be smaller.
    `batch(step)` draws windows that begin anywhere, as nanoGPT does. Both depend only on the tokens, the seed, and the
    epoch or step, so a resumed run sees the same batches as an uninterrupted one.

    Raises UserError where there are too few tokens for one window.
    """

    unit = "tokens"

    def __init__(
        self, tokens: Tokens, *, batch_size: int, block_size: int, seed: int = 0,
        tokenizer: Tokenizer | None = None, name: str = "data",
    ) -> None:  # fmt: skip
        if batch_size < 1 or block_size < 1:
            raise UserError(f"{name}: batch_size {batch_size} and block_size {block_size} must be at least 1")
        if len(tokens) < block_size + 1:
            needs = f"too few for block_size {block_size}, which needs {block_size + 1}"
            raise UserError(f"{name} has {len(tokens)} tokens, {needs}: give a longer text or a smaller block_size")
        self.tokens, self.batch_size, self.block_size = tokens, batch_size, block_size
        self.tokenizer = tokenizer  # the one that made the tokens, to decode them
        self.generator = Generator(seed)
        self.epoch = 0  # of the next iteration

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(self._windows / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Yield every window once, in the order of this epoch."""
        step = FIRST_EPOCH + self.epoch
        self.epoch += 1
        order = self.generator.permutation(self._windows, stream=Stream.DATA, step=step)
        for first in range(0, len(order), self.batch_size):
            starts = order[first : first + self.batch_size] * self.block_size
            yield windows(self.tokens, starts, self.block_size)

    def draw(self, count: int, step: int) -> tuple[Array, Array]:
        """Return `count` random windows: a pure function of (seed, step)."""
        return random_windows(self.tokens, self.block_size, count, self.generator, step)

    def batch(self, step: int) -> tuple[Array, Array]:
        """Return the random batch of iteration `step`: a pure function of (seed, step)."""
        return self.draw(self.batch_size, step)

    @property
    def size(self) -> int:
        """See Batches."""
        return len(self.tokens)

    @property
    def fingerprint(self) -> Any:
        """See Batches."""
        return self.tokens.sha256.encode() if isinstance(self.tokens, ShardedTokens) else self.tokens.data

    @property
    def _windows(self) -> int:
        return (len(self.tokens) - 1) // self.block_size


def windows(tokens: Tokens, starts: Array, block_size: int) -> tuple[Array, Array]:
    """Return the windows of tokens (N,) at `starts`: x and, one token later, y, both (len(starts), T) int64."""
    if isinstance(tokens, ShardedTokens):
        rows = tokens.rows(starts, block_size + 1)  # (B, T + 1)
    else:
        rows = np.asarray(tokens[starts[:, None] + np.arange(block_size + 1)], dtype=np.int64)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def random_windows(tokens: Tokens, block_size: int, count: int, generator: Generator, step: int) -> tuple[Array, Array]:
    """Return `count` windows that begin anywhere, x, y (count, T) int64: a pure function of the seed and the step."""
    end = len(tokens) - block_size  # of the starts, exclusive: y extends one token further
    starts = generator.integers(0, end, (count,), stream=Stream.DATA, step=step)
    return windows(tokens, starts, block_size)


def split_text(text: str, split: float = 0.9) -> tuple[str, str]:
    """Return the first share `split` of the characters, for training, and the rest; UserError unless 0 < split < 1."""
    if not 0 < split < 1:
        raise UserError(f"split must be above 0 and below 1, the share of the text to train on, not {split}")
    n = int(len(text) * split)
    return text[:n], text[n:]


def tokenize(text: str, tokenizer: Tokenizer, *, allow_special: bool = False) -> Array:
    """Return the tokens of a text, (N,), uint16 or uint32.

    <|endoftext|> in it is encoded as ordinary characters, with allow_special as the token.
    """
    return np.array(tokenizer.encode(text, allow_special=allow_special), dtype=dtype_name(tokenizer))


def tokenize_cached(text: str, tokenizer: Tokenizer, *, allow_special: bool = False) -> Array:
    """Return tokenize(...), from the cache on disk if it is there; of a long text only the first time takes long."""
    if not MIN_CACHED <= len(text) <= MAX_CACHED:
        return tokenize(text, tokenizer, allow_special=allow_special)
    dtype = DTYPES[dtype_name(tokenizer)]

    def encode() -> bytes:
        return tokenize(text, tokenizer, allow_special=allow_special).astype(dtype).tobytes()

    settings = json.dumps([tokenizer.to_dict(), allow_special]).encode()
    depends_on = (code(), settings, text.encode(errors="surrogatepass"))
    return np.frombuffer(cached("tokens", depends_on, encode), dtype)


def make_loaders(
    text: str, tokenizer: Tokenizer, *, batch_size: int, block_size: int, split: float = 0.9,
    seed: int = 1337, name: str = "text", allow_special: bool = False,
) -> tuple[DataLoader, DataLoader]:  # fmt: skip
    """Split a text, tokenize both parts and return train_loader, val_loader; UserError as split_text and DataLoader.

    allow_special: see `tokenize`.
    """
    parts = zip(("training", "validation"), split_text(text, split), strict=True)
    train, val = (
        DataLoader(
            tokenize(part, tokenizer, allow_special=allow_special), batch_size=batch_size, block_size=block_size,
            seed=seed, tokenizer=tokenizer, name=f"the {kind} part of {name}",
        )
        for kind, part in parts
    )  # fmt: skip
    return train, val


def spawn_dataloader(
    text_path: str | os.PathLike[str] = "shakespeare", *, batch_size: int = 32, block_size: int = 64,
    tokenizer: Tokenizer | None = None, split: float = 0.9, seed: int = 1337, normalize: bool = False,
) -> tuple[DataLoader, DataLoader]:  # fmt: skip
    """Return train_loader, val_loader for a named corpus, a file, a folder or a glob pattern.

    The default tokenizer has one token for each character of the text; it is the `.tokenizer` of both loaders.
    normalize: see `normalize_whitespace`. Raises UserError as `load_text` and `make_loaders` do.
    """
    text = load_text(text_path, normalize=normalize)
    return make_loaders(
        text, tokenizer or CharTokenizer.train(text), batch_size=batch_size, block_size=block_size,
        split=split, seed=seed, name=f"data {os.fspath(text_path)!r}",
    )  # fmt: skip
