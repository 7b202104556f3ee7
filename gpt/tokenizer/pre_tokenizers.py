"""How a text is split into words before merges are made: the ways that are supported, and their names in files.

A tokenizer.json describes the way in steps, a GGUF file names it. tiktoken takes one pattern, which here stands for all
the steps. Other patterns are refused: they might lose text, or take forever.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gpt.tokenizer.errors import TokenizerError
from gpt.tokenizer.patterns import GPT2_PATTERN, GPT4_PATTERN


@dataclass(frozen=True)
class PreTokenizer:
    """One way to split a text: `pattern` for tiktoken, `names` in GGUF files, `steps` in a tokenizer.json."""

    pattern: str
    names: tuple[str, ...]  # the first one is written
    steps: tuple[dict[str, Any], ...]
    adds_bos: bool = False  # where a GGUF file does not say
    ignore_merges: bool = False  # in a GGUF file, which never says


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


# Llama 3's is GPT-4's, written without possessive quantifiers: both split every text alike.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(GPT2_PATTERN, ("gpt-2", "phi-2"), (_byte_level(True),)),
    # Every digit is a word, and what is between two of them is split as by GPT-2: a text ends before each digit.
    "smollm": PreTokenizer(
        r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?![^\s\p{N}])|\s",
        ("smollm", "starcoder", "refact"),
        ({"type": "Digits", "individual_digits": True}, _byte_level(True)),
    ),
    "llama-bpe": PreTokenizer(
        GPT4_PATTERN, ("llama-bpe", "llama3", "llama-v3"), (_split(_LLAMA3), _byte_level(False)),
        adds_bos=True, ignore_merges=True,
    ),
    "qwen2": PreTokenizer(
        GPT4_PATTERN.replace(r"\p{N}{1,3}+", r"\p{N}"), ("qwen2", "deepseek-r1-qwen"),
        (_split(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), _byte_level(False)),
    ),
}  # fmt: skip


def find_by_name(name: str) -> str:
    """Return the key in PRE_TOKENIZERS for the name in a GGUF file; TokenizerError for one that is not supported."""
    for key, pre in PRE_TOKENIZERS.items():
        if name in pre.names:
            return key
    known = ", ".join(name for pre in PRE_TOKENIZERS.values() for name in pre.names)
    raise TokenizerError(f"pre-tokenizer {name[:40]!r} is not supported: supported are {known}")


def find_by_steps(description: Any) -> str:
    """Return the key in PRE_TOKENIZERS for the pre_tokenizer of a tokenizer.json; TokenizerError for an unknown one."""
    steps = _flatten(description, depth=0)
    for key, pre in PRE_TOKENIZERS.items():
        if steps == [_essentials(step) for step in pre.steps]:
            return key
    given = json.dumps(description, ensure_ascii=True)
    known = ", ".join(PRE_TOKENIZERS)
    raise TokenizerError(f"pre_tokenizer {given[:200]} is not supported: supported are those of {known}")


def _flatten(description: Any, depth: int) -> list[Any]:
    if isinstance(description, dict) and description.get("type") == "Sequence" and depth < 10:
        inner = description.get("pretokenizers")
        return [step for one in (inner if isinstance(inner, list) else []) for step in _flatten(one, depth + 1)]
    return [_essentials(description)]


def _essentials(step: Any) -> Any:
    """Return a step without what does not change the ids."""
    if not isinstance(step, dict):
        return step
    defaults = {"use_regex": True, "invert": False} if step.get("type") == "ByteLevel" else {"invert": False}
    return defaults | {key: value for key, value in step.items() if key != "trim_offsets"}
