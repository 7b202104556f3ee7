"""Tokenizers of GGUF files: the entries of their metadata that begin with `tokenizer.`, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.tokenizer.convert import as_byte_level, build
from gpt.tokenizer.errors import TokenizerError, require_entry
from gpt.tokenizer.merges import find_merges, to_visible
from gpt.tokenizer.pre_tokenizers import PRE_TOKENIZERS, find_by_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # types of tokens
_PREFIX = "tokenizer.ggml."
_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


def from_metadata(metadata: Mapping[str, Any], *, vocab_size: int | None = None) -> ByteLevelTokenizer:
    """Return the tokenizer that a GGUF file's metadata, as Python values, describe.

    Raises TokenizerError, naming the entry, for what is missing, damaged or not supported.
    """
    entries = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    try:
        kind = require_entry(entries, "model", str)
        if kind != "gpt2":
            raise TokenizerError(f"'model' is {kind[:20]!r}, not gpt2: only byte-level BPE is supported")
        if entries.get("add_eos_token") is True:
            raise TokenizerError("'add_eos_token' is true: a token after every text is not supported")
        pre = find_by_name(require_entry(entries, "pre", str))
        vocabulary, special, added = _sort_tokens(entries)
        roles = {role: require_entry(entries, key, int) for role, key in _ROLES.items() if key in entries}
        adds_bos = entries.get("add_bos_token", PRE_TOKENIZERS[pre].adds_bos) is True
        template = metadata.get("tokenizer.chat_template")
        n = len(entries["tokens"])
        return build(
            vocabulary, require_entry(entries, "merges", list), pre, special=special, added=added, roles=roles,
            ignore_merges=PRE_TOKENIZERS[pre].ignore_merges, add_bos=adds_bos, vocab_size=max(n, vocab_size or 0),
            chat_template=template if isinstance(template, str) else None,
        )  # fmt: skip
    except TokenizerError as error:
        raise TokenizerError(f"{_PREFIX}*: {error}") from error


def _sort_tokens(entries: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Return the ids of ordinary tokens, of special ones, and of those that are always found in a text."""
    tokens, types = require_entry(entries, "tokens", list), require_entry(entries, "token_type", list)
    if len(tokens) != len(types):
        raise TokenizerError(f"there are {len(tokens)} tokens and {len(types)} types of tokens")
    by_type: dict[int, dict[str, int]] = {kind: {} for kind in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED)}
    seen: set[str] = set()
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if not isinstance(token, str):
            raise TokenizerError(f"token {i} is {type(token).__name__}, not str")
        if type(kind) is not int or kind not in by_type:
            raise TokenizerError(f"token {i} is of type {str(kind)[:20]}: supported are 1 to 5")
        if token in seen:
            raise TokenizerError(f"token {i} occurs twice: {token[:20]!r}")
        seen.add(token)
        by_type[kind][token] = i
    return by_type[NORMAL], by_type[UNKNOWN] | by_type[CONTROL], by_type[USER_DEFINED]


def to_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the entries of a GGUF file's metadata from which llama.cpp makes an equal tokenizer.

    Numbers are unsigned, of 32 bits. Raises TokenizerError for a tokenizer of characters, which llama.cpp does not
    know, and for one without eos, instead of which it takes token 11.
    """
    if isinstance(tokenizer, CharTokenizer):
        raise TokenizerError("a tokenizer of type 'char' cannot be written to GGUF, which knows byte-level BPE: "
                             "train with --tokenizer bpe, or export to hf")  # fmt: skip
    byte_level = as_byte_level(tokenizer)
    if byte_level.eot is None:
        raise TokenizerError("a tokenizer without eos cannot be written to GGUF: llama.cpp would take token 11")
    tokens = [f"[PAD{i}]" for i in range(byte_level.vocab_size)]
    types = [UNUSED] * byte_level.vocab_size
    texts = [(i, to_visible(token), NORMAL) for i, token in zip(byte_level.ids, byte_level.tokens, strict=True)]
    texts += [(i, to_visible(token), NORMAL) for i, token in byte_level.unreachable.items()]
    texts += [(i, text, CONTROL) for text, i in byte_level.special.items()]
    texts += [(i, text, USER_DEFINED) for text, i in byte_level.added.items()]
    for i, text, kind in texts:
        tokens[i], types[i] = text, kind
    merges, _ = find_merges(byte_level.tokens)
    metadata = {
        f"{_PREFIX}model": "gpt2",
        f"{_PREFIX}pre": PRE_TOKENIZERS[byte_level.pre].names[0],
        f"{_PREFIX}tokens": tokens,
        f"{_PREFIX}token_type": types,
        f"{_PREFIX}merges": [f"{left} {right}" for left, right in merges],
        f"{_PREFIX}add_bos_token": byte_level.add_bos,
        **{f"{_PREFIX}{_ROLES[role]}": i for role, i in byte_level.roles.items()},
    }
    if byte_level.chat_template is not None:
        metadata["tokenizer.chat_template"] = byte_level.chat_template
    return metadata
