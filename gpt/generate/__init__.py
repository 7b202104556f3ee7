"""Generation: batches of prompts of any lengths, as tokens, as text, or as a stream of text.

generate(model, [[1, 2, 3], [4]], max_new_tokens=20, temperature=0.8)    tokens
generate_text(model, tokenizer, ["To be", "Or"], max_new_tokens=20)      texts
stream_text(model, tokenizer, "To be", max_new_tokens=20)                pieces of text, as they are generated
"""

import codecs
import operator
import warnings
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Unpack

import numpy as np

import tensorgrad as tg
from gpt.generate.kvcache import KVCache
from gpt.generate.on_gpu import steps_on_gpu, why_on_host
from gpt.generate.sampling import Sampling, SamplingOptions
from gpt.tokenizer import Tokenizer
from gpt.weights import Model
from tensorgrad.backend import Array


class Generation:
    """The generation of a batch of rows; iterating yields {row: new token} for each step.

    Of a prompt longer than the window, the model sees the last block_size tokens, and the repetition penalty all of
    them. An empty prompt starts from eot, or from token 0 without one. A row ends at eot or one of stop_ids (which are
    not yielded), after max_new_tokens, or by `end(row)`. cache: holds the first tokens of every prompt, all but equally
    many; they are not evaluated again. Raises ValueError for options out of range, TypeError for tokens that are no
    integers.
    """

    def __init__(
        self, model: Model, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eot: int | None = None,
        stop_ids: Collection[int] = (), cache: KVCache | None = None, **options: Unpack[SamplingOptions],
    ) -> None:  # fmt: skip
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, not {max_new_tokens}")
        self.sampling = Sampling(**options)
        self.generators = self.sampling.row_generators(len(prompts))
        start = 0 if eot is None else eot
        # index() refuses a token such as 1.7, which NumPy would round.
        self.rows = [list(map(operator.index, prompt)) or [start] for prompt in prompts]  # prompt and generated tokens
        self.max_length = max(map(len, self.rows), default=0) + max_new_tokens  # of the longest row, at the end
        self.active = list(range(len(prompts)))
        self.model, self.modules = model, list(model.modules())
        self.max_new_tokens, self.stop_ids = max_new_tokens, {eot, *stop_ids}
        self.gpu_steps: Generator[dict[int, int]] | None = None  # the steps that a GPU is taking by itself
        self.only_on_host = why_on_host(model)
        if self.only_on_host:
            warnings.warn(f"the host chooses every token, which is slower: {self.only_on_host}", stacklevel=2)
        self.cache = cache
        self.cached = list(self.active)  # the rows in the cache, in its order
        if cache is not None:
            cache.reserve(self.max_length)

    def __iter__(self) -> Iterator[dict[int, int]]:
        try:
            for step in range(self.max_new_tokens):
                if not self.active:
                    return
                new = self._on_gpu(step) or self._on_host(step)
                for row in self.active:
                    self.rows[row].append(new[row])
                self.active = [row for row in self.active if new[row] not in self.stop_ids]
                yield {row: new[row] for row in self.active}
        finally:
            if self.gpu_steps is not None:
                self.gpu_steps.close()

    def _on_host(self, step: int) -> dict[int, int]:
        return {
            row: self.sampling.choose(logits, self.rows[row], self.generators[row], step)
            for row, logits in self.next_logits().items()
        }

    def _on_gpu(self, step: int) -> dict[int, int]:
        """Return the tokens that a GPU has chosen; {} on a CPU, and for a step that the GPU cannot take by itself."""
        new = None if self.gpu_steps is None else next(self.gpu_steps, None)
        if new is None:
            self.gpu_steps = steps_on_gpu(self, step)
            new = {} if self.gpu_steps is None else next(self.gpu_steps)
        return new

    def end(self, row: int) -> None:
        """Stop generating this row."""
        self.active.remove(row)

    @tg.no_grad()
    def next_logits(self) -> dict[int, Array]:
        """Return the logits (V,) of each active row's next token, as NumPy arrays."""
        window = self.model.config.block_size
        inside = [row for row in self.active if len(self.rows[row]) <= window]
        beyond = [row for row in self.active if len(self.rows[row]) > window]
        training = [module for module in self.modules if module.training]
        for module in training:  # as model.eval(), without traversing the modules for every token
            module.training = False
        try:
            logits = dict(zip(inside, self._extend_cache(inside), strict=True))
            if beyond:
                # Positions are learned and absolute: when the window moves by one token, the position of every token in
                # it changes, and with it every key and value in the cache.
                ids = np.array([self.rows[row][-window:] for row in beyond])  # (rows, block_size)
                logits |= zip(beyond, self._run(ids), strict=True)
        finally:
            for module in training:
                module.training = True
        return logits

    def _extend_cache(self, rows: list[int]) -> Array:
        if not rows:
            self.cache = None
            return ()
        if self.cache is None:
            return self._fill_cache(rows)
        if rows != self.cached:
            self.cache.keep([self.cached.index(row) for row in rows])
            self.cached = rows
        missing = [self.rows[row][n:] for row, n in zip(rows, self.cache.lengths, strict=True)]
        return self._run(np.array(missing), self.cache)

    def _fill_cache(self, rows: list[int]) -> Array:
        self.cache, self.cached = KVCache(self.model, len(rows), self.max_length), rows
        lengths = np.array([len(self.rows[row]) for row in rows])
        ids = np.zeros((len(rows), lengths.max()), dtype=np.int64)  # short rows are padded at the end
        for row, n, padded in zip(rows, lengths, ids, strict=True):
            padded[:n] = self.rows[row]
        logits = self._run(ids, self.cache)
        if (lengths < lengths.max()).any():
            # The last column is padding for the short rows. Drop it, and the last token of every row, and run the last
            # tokens again: now each is at the end of its own row.
            self.cache.lengths[:] = lengths - 1
            logits = self._run(np.array([self.rows[row][-1:] for row in rows]), self.cache)
        return logits

    def _run(self, ids: Array, cache: KVCache | None = None) -> Array:
        with np.errstate(all="ignore"):  # Sampling.choose refuses logits that are not finite
            logits, _ = self.model(ids, cache=cache)  # (B, 1, V)
        return logits.numpy()[:, 0]


def generate(
    model: Model, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eot: int | None = None,
    stop_ids: Collection[int] = (), **options: Unpack[SamplingOptions],
) -> list[list[int]]:  # fmt: skip
    """Return the tokens that follow each prompt, which may differ in length.

    options: temperature, top_k, top_p, repetition_penalty and seed, as in Sampling. See Generation.
    """
    generated: list[list[int]] = [[] for _ in prompts]
    for new in Generation(model, prompts, max_new_tokens=max_new_tokens, eot=eot, stop_ids=stop_ids, **options):
        for row, token in new.items():
            generated[row].append(token)
    return generated


class TextWriter:
    """Decodes tokens to text that can be shown: whole characters, and no part of a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.pending = ""  # may be the beginning of a stop text
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; return the text that can be shown."""
        self.pending += self.utf8.decode(self.tokenizer.decode_bytes([token], skip_special=True))
        return self._release(final=False)

    def finish(self) -> str:
        """Return the pending text, when no token follows."""
        self.pending += "" if self.stopped else self.utf8.decode(b"", final=True)
        return self._release(final=True)

    def _release(self, final: bool) -> str:
        found = [(at + len(text), at) for text in self.stop if (at := self.pending.find(text)) >= 0]
        if found:
            self.stopped = True
            _, start = min(found)  # the stop text that is complete first, as if characters were generated one by one
            shown, self.pending = self.pending[:start], ""
            return shown
        n_pending = 0 if final else max((_overlap(self.pending, text) for text in self.stop), default=0)
        n_shown = len(self.pending) - n_pending
        shown, self.pending = self.pending[:n_shown], self.pending[n_shown:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of text may be the beginning of stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def stream_texts(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[str], *, max_new_tokens: int, stop: str | Sequence[str] = (),
    allow_special: bool = False, **options: Unpack[SamplingOptions],
) -> Iterator[tuple[int, str]]:  # fmt: skip
    """Yield (row, piece of text) as the model generates them.

    A row ends before the first of the stop texts, even one that spans several tokens, and at the tokenizer's stop_ids.
    An empty prompt starts from a line break. allow_special: <|endoftext|> in a prompt is the token. Other special
    tokens are not shown. Otherwise as generate.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts is one text, {prompts[:40]!r}: give a list of texts, or use stream_text for one")
    stop = [stop] if isinstance(stop, str) else list(stop)
    if "" in stop:
        raise ValueError("stop must not be an empty text, which would end the text before its first character")
    rows = [tokenizer.encode(prompt, allow_special=allow_special) or start_tokens(tokenizer) for prompt in prompts]
    # Here, not in the generator function _stream, so that it raises errors at once and not at the first piece.
    batch = Generation(model, rows, max_new_tokens=max_new_tokens, stop_ids=tokenizer.stop_ids, **options)
    return _stream(batch, [TextWriter(tokenizer, stop) for _ in prompts])


def _stream(batch: Generation, writers: list[TextWriter]) -> Iterator[tuple[int, str]]:
    for new in batch:
        for row, token in new.items():
            if piece := writers[row].push(token):
                yield row, piece
            if writers[row].stopped:
                batch.end(row)
    for row, writer in enumerate(writers):
        if piece := writer.finish():
            yield row, piece


def stream_text(
    model: Model, tokenizer: Tokenizer, prompt: str = "", *, max_new_tokens: int, stop: str | Sequence[str] = (),
    allow_special: bool = False, **options: Unpack[SamplingOptions],
) -> Iterator[str]:  # fmt: skip
    """Yield the text that follows one prompt, in pieces of whole characters. See stream_texts."""
    pieces = stream_texts(
        model, tokenizer, [prompt], max_new_tokens=max_new_tokens, stop=stop, allow_special=allow_special, **options
    )
    return (piece for _, piece in pieces)


def generate_text(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[str], *, max_new_tokens: int, stop: str | Sequence[str] = (),
    allow_special: bool = False, **options: Unpack[SamplingOptions],
) -> list[str]:  # fmt: skip
    """Return the text that follows each prompt. See stream_texts."""
    texts = [""] * len(prompts)
    pieces = stream_texts(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, stop=stop, allow_special=allow_special, **options
    )
    for row, piece in pieces:
        texts[row] += piece
    return texts


def start_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens for an empty prompt: a line break, as in nanoGPT; token 0 where it is not in the vocabulary.

    Not eot, which a model trained on one long text has never seen.
    """
    try:
        return tokenizer.encode("\n")
    except ValueError:
        return [0]
