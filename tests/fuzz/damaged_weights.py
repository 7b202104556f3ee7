"""Damaged and hostile weights: GGUF files and Hugging Face folders, refused in one line or loaded, in little memory."""

import json
import os
import random
import shutil
import struct
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cases import failing
from damaged_checkpoints import header_of, hostile

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig, UserError
from gpt.tokenizer import BPETokenizer
from gpt.weights import build_model, gguf, huggingface
from gpt.weights.initial import load_initial

TEXT = "to be, or not to be: that is the question\n" * 4
MAX_BYTES = 2**27  # of memory: to read a tokenizer.json, half of it is reserved, whatever its size
HUGE = (2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
SHARDED = Path(__file__).parents[1] / "gpt" / "weights" / "transformers" / "llama-sharded"


def make_models(folder: Path) -> list[Path]:
    """Small models in every form."""
    tokenizer = BPETokenizer.train(TEXT, 262)
    shape = {"block_size": 8, "vocab_size": tokenizer.vocab_size, "n_layer": 1, "n_head": 2, "n_embd": 32}
    llama, gpt2 = LlamaConfig(**shape, n_kv_head=1, n_hidden=32), GPTConfig(**shape)
    for config in (llama, gpt2):
        weights = build_model(config).state_dict()
        gguf.write_model(folder / f"{config.type_name}.gguf", config, weights, tokenizer, "f32")
        gguf.write_model(folder / f"{config.type_name}-q4_1.gguf", config, weights, tokenizer, "q4_1")
        huggingface.write_folder(folder / config.type_name, config, weights, tokenizer)
    shutil.copytree(SHARDED, folder / "sharded")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "llama" / name, folder / "sharded")
    return sorted(folder.iterdir())


def damage(rng: random.Random, file: Path) -> None:
    """Change a file: its bytes, mostly those of its header, or a part of its JSON."""
    content = bytearray(file.read_bytes())
    kind = rng.choice(["flip", "truncate", "extend", "number", "number", "json", "json"])
    header = min(len(content), rng.choice([64, 1024, 16384, len(content)]))
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 3, 30])):
            content[rng.randrange(header)] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del content[rng.randrange(len(content)) :]
    elif kind == "extend":
        content += rng.randbytes(rng.randrange(1, 100))
    elif kind == "number":
        at = rng.randrange(max(1, header - 8))
        content[at : at + 8] = struct.pack("<Q", rng.choice([*HUGE, 0, 1, rng.randrange(2**32)]))
    elif file.suffix == ".json":
        content = bytearray(hostile(rng, json.loads(content)))
    elif file.suffix == ".safetensors":
        described, numbers = header_of(file)
        text = hostile(rng, described)
        content = bytearray(struct.pack("<Q", rng.choice([len(text)] * 4 + [*HUGE])) + text + numbers)
    file.write_bytes(content)


class Cases:
    """Copies of the models, each damaged in the way of its seed; `outcomes` counts what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "whole").mkdir()
        self.models = make_models(folder / "whole")
        self.outcomes = {"refused": 0, "loaded": 0}

    def check(self, seed: int) -> None:
        """Raises AssertionError, or what a program would have ended with, where damaged weights are not refused."""
        rng, model = random.Random(seed), self.models[seed % len(self.models)]
        place = self.folder / f"{seed}{model.suffix}"
        (shutil.copytree if model.is_dir() else shutil.copy)(model, place)
        damage(rng, rng.choice(sorted(place.iterdir())) if place.is_dir() else place)
        tracemalloc.start()
        try:
            loaded = load_initial(str(place), quantize=rng.choice(["file", "none", "q8_0"])).build_model()
            assert tracemalloc.get_traced_memory()[1] < MAX_BYTES, f"{tracemalloc.get_traced_memory()[1]:,} bytes"
            with tg.no_grad(), np.errstate(all="ignore"):
                loaded(np.zeros((1, 1), np.int64))
            self.outcomes["loaded"] += 1
        except UserError as error:
            assert str(place) in str(error) and "\n" not in str(error), str(error)
            assert tracemalloc.get_traced_memory()[1] < MAX_BYTES, f"{tracemalloc.get_traced_memory()[1]:,} bytes"
            self.outcomes["refused"] += 1
        finally:
            tracemalloc.stop()
            shutil.rmtree(place) if place.is_dir() else os.unlink(place)


def failures(seeds: range) -> Iterator[tuple[int, str]]:
    """The seed of every case that fails, and how."""
    with tempfile.TemporaryDirectory() as folder, tg.use_backend("numpy"):
        cases = Cases(Path(folder))
        yield from failing(cases.check, seeds)
        print(", ".join(f"{n:,} {what}" for what, n in cases.outcomes.items()))
