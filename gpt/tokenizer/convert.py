"""What the formats of published tokenizers share: entries to a tokenizer, and our own tokenizers in their terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt.tokenizer import END_OF_TEXT, BPETokenizer, GPT2Tokenizer, Tokenizer
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.tokenizer.errors import TokenizerError
from gpt.tokenizer.merges import BYTE_OF, Merge, order_of_merges, to_bytes
from gpt.tokenizer.patterns import GPT2_PATTERN

MAX_TOKEN_BYTES = 1024  # the longest published have 256


def build(
    vocabulary: Mapping[str, int], merges: Sequence[Any], pre: str, *, ignore_merges: bool, special: Mapping[str, int],
    added: Mapping[str, int], **options: Any,
) -> ByteLevelTokenizer:  # fmt: skip
    """Return the tokenizer of tokens that are written visibly and of merges: pairs, or two tokens with a space between.

    special and added are not in vocabulary. The options are ByteLevelTokenizer's. Raises TokenizerError.
    """
    for token in vocabulary:
        if not 0 < len(token) <= MAX_TOKEN_BYTES:
            raise TokenizerError(f"token {token[:20]!r} has {len(token)} bytes: 1 to {MAX_TOKEN_BYTES} are supported")
        if not BYTE_OF.keys() >= set(token):
            raise TokenizerError(f"token {token[:20]!r} is not written in the characters that stand for bytes")
    pairs = [_pair(i, merge) for i, merge in enumerate(merges)]
    tokens = order_of_merges(pairs, vocabulary, ignore_merges=ignore_merges)
    reached = set(tokens)
    unreachable = {i: to_bytes(token) for token, i in vocabulary.items() if token not in reached}
    roles = dict(options.pop("roles"))
    if "eos" not in roles and END_OF_TEXT in special:
        roles["eos"] = special[END_OF_TEXT]
    return ByteLevelTokenizer(
        list(map(to_bytes, tokens)), [vocabulary[token] for token in tokens], pre,
        special=special, added=added, unreachable=unreachable, roles=roles, **options,
    )  # fmt: skip


def _pair(i: int, merge: Any) -> Merge:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) and part for part in parts):
        return parts[0], parts[1]
    raise TokenizerError(f"merge {i} is {str(merge)[:40]!r}, not two tokens")


def as_byte_level(tokenizer: Tokenizer) -> ByteLevelTokenizer:
    """Return an equal tokenizer in the terms of published ones; TokenizerError for one that is not byte-level."""
    if isinstance(tokenizer, ByteLevelTokenizer):
        return tokenizer
    if not isinstance(tokenizer, BPETokenizer | GPT2Tokenizer):
        raise TokenizerError(f"a tokenizer of type {tokenizer.type_name!r} is not byte-level BPE")
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.eot)]
    pattern = tokenizer.pattern if isinstance(tokenizer, BPETokenizer) else GPT2_PATTERN
    roles = {"bos": tokenizer.eot, "eos": tokenizer.eot}
    pre = "gpt-2" if pattern == GPT2_PATTERN else "llama-bpe"
    return ByteLevelTokenizer(tokens, range(tokenizer.eot), pre, special={END_OF_TEXT: tokenizer.eot}, roles=roles)
