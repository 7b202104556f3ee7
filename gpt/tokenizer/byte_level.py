"""The tokenizer of a published model: byte-level byte-pair encoding with ids and special tokens of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, SupportsIndex

from gpt.tokenizer.base import Tokenizer, from_base64, to_base64
from gpt.tokenizer.errors import TokenizerError, require_entry, require_ids, require_text
from gpt.tokenizer.patterns import SINGLE_BYTES, split_long_spaces
from gpt.tokenizer.pre_tokenizers import PRE_TOKENIZERS

MAX_VOCAB_SIZE = 2**20  # four times the largest published
MAX_SPECIAL = 10_000  # special and added tokens, which are looked for one by one
ROLES = ("bos", "eos", "unk", "pad")

# Special tokens that end a text or an answer: of GPT-2, of ChatML and of Llama 3.
STOP_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")


class ByteLevelTokenizer(Tokenizer):
    """Byte-level byte-pair encoding by tiktoken, with any ids: gives the same ids as transformers.

    `special` are the tokens that are found in a text with allow_special only, `added` those that always are, each with
    its id. `roles` are the ids of bos, eos, unk and pad. Ids below vocab_size that have no token, as in a vocabulary
    that was padded, are decoded to nothing. So is a byte that the vocabulary lacks (SmolLM2 lacks six control
    characters, and parts of characters that Unicode has not assigned): encoding leaves it out, as transformers does.
    """

    type_name = "byte-level"

    def __init__(
        self, tokens: Sequence[bytes], ids: Sequence[int], pre: str, *, special: Mapping[str, int],
        added: Mapping[str, int] | None = None, unreachable: Mapping[int, bytes] | None = None,
        roles: Mapping[str, int] | None = None, add_bos: bool = False, chat_template: str | None = None,
        vocab_size: int | None = None,
    ) -> None:  # fmt: skip
        """Take the tokens in the order of their merges, with the id of each, and the name of the way to split a text.

        unreachable: ids and bytes of tokens that no text is encoded to. Raises TokenizerError for what is inconsistent.
        """
        self.tokens, self.ids, self.pre = list(tokens), list(ids), pre
        self.special, self.added = dict(special), dict(added or {})
        self.unreachable, self.roles = dict(unreachable or {}), dict(roles or {})
        self.add_bos, self.chat_template = add_bos, chat_template
        used = [*self.ids, *self.special.values(), *self.added.values(), *self.unreachable]
        self._vocab_size = max(used, default=-1) + 1 if vocab_size is None else vocab_size
        self._check(used)

        self.eot = self.roles.get("eos")
        self.bos = self.roles.get("bos") if add_bos else None
        self._bytes = [b""] * self._vocab_size
        for i, token in [*zip(self.ids, self.tokens, strict=True), *self.unreachable.items()]:
            self._bytes[i] = token
        for text, i in (self.special | self.added).items():
            self._bytes[i] = text.encode()
        self._find_added, self._find_all = _finder(self.added), _finder(self.special | self.added)
        self._make_encoding()

    def _check(self, used: list[int]) -> None:
        if self.pre not in PRE_TOKENIZERS:
            raise TokenizerError(f"'pre' is {self.pre[:40]!r}, not {', '.join(PRE_TOKENIZERS)}")
        if not self.tokens or len(self.tokens) != len(self.ids):
            raise TokenizerError(f"there are {len(self.tokens)} tokens and {len(self.ids)} ids of tokens")
        if b"" in self.tokens or len(set(self.tokens)) != len(self.tokens):
            raise TokenizerError("'tokens' holds an empty token, or one token twice")
        if not 0 < self._vocab_size <= MAX_VOCAB_SIZE:
            raise TokenizerError(f"a vocabulary of {self._vocab_size} is not supported: 1 to {MAX_VOCAB_SIZE} are")
        if any(type(i) is not int or not 0 <= i < self._vocab_size for i in (*used, *self.roles.values())):
            raise TokenizerError(f"an id is outside the vocabulary, whose ids are 0 to {self._vocab_size - 1}")
        if len(self.special) + len(self.added) > MAX_SPECIAL:
            raise TokenizerError(f"more than {MAX_SPECIAL} special tokens, which no tokenizer has")
        if len(set(used)) != len(used) or self.special.keys() & self.added.keys():
            raise TokenizerError("two tokens have the same id, or one special token has two")
        for text in (*self.special, *self.added):
            require_text(text)
            if not text:
                raise TokenizerError("a special token is empty")
        if unknown := self.roles.keys() - set(ROLES):
            raise TokenizerError(f"'roles' has {min(unknown)[:20]!r}: the roles are {', '.join(ROLES)}")

    def _make_encoding(self) -> None:
        """Make tiktoken's encoder, in which a token has its place in the order of merges as its id."""
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        missing = [byte for byte in SINGLE_BYTES if byte not in ranks]
        ranks |= {byte: rank for rank, byte in enumerate(missing, len(ranks))}  # tiktoken needs every byte
        pattern = PRE_TOKENIZERS[self.pre].pattern
        self._encoding = tiktoken.Encoding("byte-level", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._missing = b"".join(missing)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    @property
    def stop_ids(self) -> frozenset[int]:
        return super().stop_ids | {self.special[text] for text in STOP_TOKENS if text in self.special}

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        require_text(text)
        find = self._find_all if allow_special else self._find_added
        ids: list[int] = []
        for i, piece in enumerate([text] if find is None else find.split(text)):
            if i % 2:  # what the pattern matched
                ids.append(self.special[piece] if piece in self.special else self.added[piece])
            else:
                ids += self._encode_ordinary(piece)
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        encoded = text.encode()
        if len(encoded.translate(None, self._missing)) < len(encoded):
            return self._encode_without_missing(text)
        return [self.ids[rank] for part in split_long_spaces(text) for rank in self._encoding.encode_ordinary(part)]

    def _encode_without_missing(self, text: str) -> list[int]:
        """Encode a text with bytes that the vocabulary lacks: they are left out after the text is split into words."""
        import regex

        ids = []
        for word in regex.findall(PRE_TOKENIZERS[self.pre].pattern, text):
            if kept := word.encode().translate(None, self._missing):
                ids += [self.ids[rank] for rank in self._encoding._encode_single_piece(kept)]
        return ids

    def decode_bytes(self, ids: Iterable[SupportsIndex], *, skip_special: bool = False) -> bytes:
        numbers = require_ids(ids, self._vocab_size)
        left_out = self.special_ids if skip_special else ()
        return b"".join([self._bytes[i] for i in numbers if i not in left_out])

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "pre": self.pre,
            "vocab_size": self._vocab_size,
            "tokens": to_base64(self.tokens),
            "ids": self.ids,
            "special": self.special,
            "added": self.added,
            "unreachable": dict(zip(map(str, self.unreachable), to_base64(self.unreachable.values()), strict=True)),
            "roles": self.roles,
            "add_bos": self.add_bos,
            "chat_template": self.chat_template,
        }

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        unreachable = require_entry(entries, "unreachable", dict)
        if any(not re.fullmatch(r"[0-9]{1,7}", i) for i in unreachable):
            raise TokenizerError("'unreachable' has a key that is no id")
        template = entries.get("chat_template")
        if not isinstance(template, str | None):
            raise TokenizerError(f"'chat_template' is {type(template).__name__}, not str or null")
        return cls(
            from_base64(require_entry(entries, "tokens", list)),
            require_entry(entries, "ids", list),
            require_entry(entries, "pre", str),
            special=require_entry(entries, "special", dict),
            added=require_entry(entries, "added", dict),
            unreachable=dict(zip(map(int, unreachable), from_base64(list(unreachable.values())), strict=True)),
            roles=require_entry(entries, "roles", dict),
            add_bos=require_entry(entries, "add_bos", bool),
            chat_template=template,
            vocab_size=require_entry(entries, "vocab_size", int),
        )


def _finder(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds the tokens in a text, the longest of those that begin at one place; None for none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
