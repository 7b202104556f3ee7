"""A conversation with a model: its history, the tokens of it, and answers in pieces of text.

    conversation = Conversation(model, tokenizer, max_new_tokens=200, temperature=0.2)
    for piece in conversation.answer("What is a tape?"):
        print(piece, end="")

The keys and values of a conversation are kept, so that a turn evaluates only its new tokens.
"""

from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Unpack

import numpy as np

import tensorgrad as tg
from gpt.generate import Generation, TextWriter
from gpt.generate.kvcache import KVCache
from gpt.generate.sampling import SamplingOptions
from gpt.generate.template import ChatTemplate, Message
from gpt.tokenizer import Tokenizer
from gpt.weights import Model

CHUNK_TOKENS = 256  # evaluated at once before an answer: between chunks, the caller can stop it


class Turn(NamedTuple):
    """A message of the user, and the model's answer."""

    question: str
    answer: str


class Conversation:
    """A conversation with a model, which is put into eval mode.

    system: the first message, which says how to answer; None: the template's own, if it has one. An answer ends at one
    of the tokenizer's stop_ids, after max_new_tokens, or where the window ends. When the window is full, the oldest
    turns are dropped. Turn i is sampled with seed + i. Raises TemplateError for a model without a chat template, and
    ValueError for options out of range.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, *, max_new_tokens: int, system: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.template = model, tokenizer, ChatTemplate(tokenizer)
        self.system, self.max_new_tokens, self.options = system, max_new_tokens, options
        Generation(model, [], max_new_tokens=max_new_tokens, **options)  # checks the options
        model.eval()
        self.turns: list[Turn] = []
        self.n_dropped = 0  # turns of this conversation that the model no longer sees
        self.was_cut = False  # whether the last answer ended because it was too long
        self._cache = KVCache(model, 1, capacity=0)
        self._evaluated: list[int] = []  # the tokens whose keys and values are in the cache
        self._generated: list[int] = []  # all tokens of the last turn, as the model saw and generated them
        self._encode([], "")  # a template that always fails does so here

    def reset(self) -> None:
        """Forget all turns."""
        self.turns, self.n_dropped = [], 0

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yield the answer to a message in pieces, some of them empty; closing the iterator ends the answer early.

        The turn belongs to the conversation once the model has generated something. Raises ValueError, before the first
        piece, for a message that the window has no room for, and for one that cannot be encoded.
        """
        ids = with_same_text(self._fit(text), self._generated, self.tokenizer)
        return self._answer(text, ids)

    def _answer(self, text: str, ids: list[int]) -> Generator[str, None, None]:
        yield from self._evaluate(ids)
        room = self.model.config.block_size - len(ids)
        options = self.options.copy()
        if isinstance(seed := options.get("seed"), int):
            options["seed"] = seed + self.n_dropped + len(self.turns)
        batch = Generation(
            self.model, [ids], max_new_tokens=min(self.max_new_tokens, room), stop_ids=self.tokenizer.stop_ids,
            cache=self._cache, **options,
        )  # fmt: skip
        writer, shown = TextWriter(self.tokenizer, ()), ""
        self.was_cut = False
        try:
            for new in batch:
                # In steps, so that whatever interrupts one leaves tokens here that the cache does have.
                self._evaluated += batch.rows[0][len(self._evaluated) : -1]
                piece = writer.push(new[0]) if new else ""
                shown += piece
                yield piece
            self.was_cut = bool(batch.active)
            piece = writer.finish()
            shown += piece
            yield piece
        finally:
            if len(batch.rows[0]) > len(ids):
                self.turns.append(Turn(text, shown))
                self._generated = batch.rows[0]

    def _evaluate(self, ids: list[int]) -> Iterator[str]:
        """Bring all tokens but a last chunk into the cache, which keeps those that it shares with ids."""
        n_shared = next((i for i, (a, b) in enumerate(zip(ids, self._evaluated, strict=False)) if a != b), None)
        n_kept = min(len(ids) - 1, len(self._evaluated)) if n_shared is None else n_shared
        del self._evaluated[n_kept:]
        self._cache.crop(n_kept)
        self._cache.reserve(len(ids))
        for start in range(n_kept, len(ids) - CHUNK_TOKENS, CHUNK_TOKENS):
            yield ""
            chunk = ids[start : start + CHUNK_TOKENS]
            with tg.no_grad():
                self.model.hidden_states(np.array([chunk]), self._cache)
            self._evaluated += chunk
        yield ""

    def _fit(self, text: str) -> list[int]:
        """Return the tokens of the conversation with a new message, without the oldest turns where they do not fit."""
        window = self.model.config.block_size
        limit = window - min(self.max_new_tokens, window // 4)  # the rest is for the answer
        ids = self._encode(self.turns, text)
        if len(ids) <= limit:
            return ids
        alone = len(self._encode([], text))
        if alone > limit:
            what = f"the message is too long: with the system message it makes {alone:,} tokens"
            raise ValueError(f"{what}, and the window of {window:,} has room for {limit:,} beside an answer")
        # To half of the limit, because what follows has to be evaluated again: if one turn were dropped at a time, each
        # later turn would evaluate the whole window.
        enough = max(limit // 2, alone)
        n_dropped = bisect_left(
            range(len(self.turns)), True, key=lambda n: len(self._encode(self.turns[n:], text)) <= enough
        )
        self.turns, self.n_dropped = self.turns[n_dropped:], self.n_dropped + n_dropped
        return self._encode(self.turns, text)

    def _encode(self, turns: Sequence[Turn], text: str) -> list[int]:
        messages: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        messages.append({"role": "user", "content": text})
        return self.template.encode(messages, add_generation_prompt=True)


def with_same_text(ids: list[int], known: list[int], tokenizer: Tokenizer) -> list[int]:
    """Return ids, beginning with those of `known` as far as both are the same text.

    A model may generate other tokens than its text is encoded to, and the cache has those that it generated. Compared
    is what stands between special tokens.
    """
    parts, known_parts = _split_at_special(ids, tokenizer), _split_at_special(known, tokenizer)
    n_same = 0
    for part, known_part in zip(parts, known_parts, strict=False):
        if part[:1] != known_part[:1] or tokenizer.decode(part) != tokenizer.decode(known_part):
            break
        n_same += 1
    return list(chain(*known_parts[:n_same], *parts[n_same:]))


def _split_at_special(ids: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    special, parts = tokenizer.special_ids, list[list[int]]([[]])
    for i in ids:
        if i in special:
            parts.append([])
        parts[-1].append(i)
    return parts
