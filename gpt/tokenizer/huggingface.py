"""Tokenizers of Hugging Face folders: tokenizer.json and tokenizer_config.json, read and written.

Byte-level BPE is supported. What would change the ids otherwise, as a normalizer, is refused by name.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.tokenizer.byte_level import ROLES, ByteLevelTokenizer
from gpt.tokenizer.convert import as_byte_level, build
from gpt.tokenizer.errors import TokenizerError, require_entry
from gpt.tokenizer.merges import find_merges, to_visible
from gpt.tokenizer.pre_tokenizers import PRE_TOKENIZERS, find_by_steps

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # the last two may be missing
MAX_FILE_BYTES = 2**26  # Llama 3's tokenizer.json takes 17 MB

# Of the model: the only values with which tiktoken gives the same ids. Missing and null are among them, too.
_MODEL = {
    "dropout": (0,), "continuing_subword_prefix": ("",), "end_of_word_suffix": ("",), "fuse_unk": (False,),
    "byte_fallback": (False,),
}  # fmt: skip
_ADDED = ("single_word", "lstrip", "rstrip")  # of an added token: must be false


def read_tokenizer(folder: str | Path, *, vocab_size: int | None = None) -> ByteLevelTokenizer:
    """Return the tokenizer of a Hugging Face folder; vocab_size of its model, if that is larger.

    Raises TokenizerError, naming the file and what is wrong or not supported in it.
    """
    contents = {name: _read(Path(folder, name), required=name == FILES[0]) for name in FILES}
    config = _parse(Path(folder, FILES[1]), contents[FILES[1]] or b"{}")
    if contents[FILES[2]] is not None:
        config["chat_template"] = (contents[FILES[2]] or b"").decode(errors="replace")
    path = Path(folder, FILES[0])
    try:
        return from_entries(_parse(path, contents[FILES[0]] or b""), config, vocab_size=vocab_size)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _read(path: Path, required: bool) -> bytes | None:
    try:
        with path.open("rb") as file:
            written = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not required:
            return None
        raise TokenizerError(f"{path}: {error.strerror}") from error
    if len(written) > MAX_FILE_BYTES:
        raise TokenizerError(f"{path}: more than {MAX_FILE_BYTES} bytes, which no tokenizer has")
    return written


def _parse(path: Path, written: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise TokenizerError(f"{path}: holds a JSON {type(entries).__name__}, not an object")
    return entries


def from_entries(
    entries: Mapping[str, Any], config: Mapping[str, Any], *, vocab_size: int | None = None
) -> ByteLevelTokenizer:
    """Return the tokenizer that a tokenizer.json and a tokenizer_config.json describe; TokenizerError if impossible."""
    model = require_entry(entries, "model", dict)
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"model type {str(model['type'])[:20]!r} is not supported: only byte-level BPE is")
    for key, allowed in _MODEL.items():
        if model.get(key) is not None and model[key] not in allowed:
            raise TokenizerError(f"model {key} {str(model[key])[:20]!r} is not supported")
    if entries.get("normalizer") is not None:
        raise TokenizerError(f"normalizer {json.dumps(entries['normalizer'])[:100]} is not supported: only null is")
    pre = find_by_steps(entries.get("pre_tokenizer"))
    special, added = _added_tokens(entries.get("added_tokens") or [])
    vocabulary = _without(require_entry(model, "vocab", dict), special | added)
    first = _first_token(entries.get("post_processor"))
    roles = _roles(config, {**vocabulary, **added, **special})
    if first is not None:
        roles["bos"] = first
    elif config.get("add_bos_token") is True and "bos" not in roles:
        raise TokenizerError("add_bos_token is true, but there is no bos_token")
    template = config.get("chat_template")
    return build(
        vocabulary, require_entry(model, "merges", list), pre, ignore_merges=model.get("ignore_merges") is True,
        special=special, added=added, roles=roles, vocab_size=vocab_size, add_bos=first is not None or
        config.get("add_bos_token") is True, chat_template=template if isinstance(template, str) else None,
    )  # fmt: skip


def _added_tokens(written: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Return the ids of special tokens, and of the other ones that are always found in a text."""
    special: dict[str, int] = {}
    added: dict[str, int] = {}
    for token in written if isinstance(written, list) else [written]:
        if not isinstance(token, dict):
            raise TokenizerError(f"'added_tokens' has {str(token)[:20]!r}, not an object")
        text = require_entry(token, "content", str)
        for key in _ADDED:
            if token.get(key):
                raise TokenizerError(f"added token {text[:20]!r} with {key} is not supported")
        if text in special or text in added:
            raise TokenizerError(f"added token {text[:20]!r} occurs twice")
        (special if token.get("special") else added)[text] = require_entry(token, "id", int)
    return special, added


def _without(vocabulary: dict[str, Any], added: Mapping[str, int]) -> dict[str, int]:
    """Return the vocabulary without the added tokens that it repeats."""
    for text, i in vocabulary.items():
        if type(i) is not int:
            raise TokenizerError(f"the id of token {text[:20]!r} is {str(i)[:20]!r}, not a number")
        if added.get(text, i) != i:
            raise TokenizerError(f"token {text[:20]!r} has two ids, {i} and {added[text]}")
    return {text: i for text, i in vocabulary.items() if text not in added}


def _roles(config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    roles = {}
    for role in ROLES:
        token = config.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in ids:
            roles[role] = ids[text]
    return roles


def _first_token(post_processor: Any) -> int | None:
    """Return the id that a post-processor puts before every text; TokenizerError for one that does anything else."""
    steps = [post_processor]
    if isinstance(post_processor, dict) and post_processor.get("type") == "Sequence":
        steps = post_processor.get("processors") or []
    try:
        steps = [step for step in steps if step is not None and step["type"] != "ByteLevel"]
        if not steps:
            return None
        (template,) = steps
        *before, text = template["single"]
        if template["type"] != "TemplateProcessing" or "Sequence" not in text or len(before) > 1:
            raise ValueError
        if not before:
            return None
        (first,) = template["special_tokens"][before[0]["SpecialToken"]["id"]]["ids"]
        return operator.index(first)
    except (KeyError, TypeError, ValueError):
        given = json.dumps(post_processor)[:200]
        raise TokenizerError(f"post_processor {given} is not supported: only one token before a text is") from None


def to_files(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the contents of the files, by name, from which transformers makes an equal tokenizer."""
    if isinstance(tokenizer, CharTokenizer):
        return {FILES[0]: _char_entries(tokenizer), FILES[1]: {"tokenizer_class": "PreTrainedTokenizerFast"}}
    byte_level = as_byte_level(tokenizer)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, i in byte_level.roles.items():
        config[f"{role}_token"] = byte_level.decode([i])
    if byte_level.chat_template is not None:
        config["chat_template"] = byte_level.chat_template
    return {FILES[0]: _entries(byte_level), FILES[1]: config}


def _entries(tokenizer: ByteLevelTokenizer) -> dict[str, Any]:
    merges, ignore_merges = find_merges(tokenizer.tokens)
    vocabulary = {to_visible(token): i for token, i in zip(tokenizer.tokens, tokenizer.ids, strict=True)}
    vocabulary |= {to_visible(token): i for i, token in tokenizer.unreachable.items()}
    others = [(text, i, True) for text, i in tokenizer.special.items()]
    others += [(text, i, False) for text, i in tokenizer.added.items()]
    vocabulary |= {text: i for text, i, _ in others}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": i, "content": text, **flags, "special": special} for text, i, special in
                         sorted(others, key=lambda token: token[1])],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(PRE_TOKENIZERS[tokenizer.pre].steps)},
        "post_processor": _post_processor(tokenizer),
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
            "vocab": dict(sorted(vocabulary.items(), key=lambda entry: entry[1])), "merges": list(map(list, merges)),
        },
    }  # fmt: skip


def _post_processor(tokenizer: ByteLevelTokenizer) -> dict[str, Any] | None:
    if tokenizer.bos is None:
        return None
    text = tokenizer.decode([tokenizer.bos])
    first, sequence = {"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": text, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {text: {"id": text, "ids": [tokenizer.bos], "tokens": [text]}}
    single = [first, sequence]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, *second], "special_tokens": tokens}


def _char_entries(tokenizer: CharTokenizer) -> dict[str, Any]:
    """Every character is a word, and every word a token; transformers raises an error for any other character."""
    every = {"type": "Split", "pattern": {"Regex": r"(?m:.)"}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": every, "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "unk_token": "", "vocab": {c: i for i, c in enumerate(tokenizer.characters)}},
    }  # fmt: skip
