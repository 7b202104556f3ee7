"""Trained byte-pair encodings, kept on disk: training takes one to two seconds for Shakespeare."""

import importlib.metadata
import json
from pathlib import Path

from gpt.cache import cached
from gpt.tokenizer import BPETokenizer
from tensorgrad.backend.cache import sources

MIN_CHARACTERS = 2**20  # of a text: training on a shorter one takes no longer than a third of a second


def train_bpe_cached(text: str, vocab_size: int) -> BPETokenizer:
    """Return BPETokenizer.train(text, vocab_size), from the cache if it is there."""
    if len(text) < MIN_CHARACTERS:
        return BPETokenizer.train(text, vocab_size)

    def train() -> bytes:
        return json.dumps(BPETokenizer.train(text, vocab_size).to_dict()).encode()

    depends_on = (code(), str(vocab_size).encode(), text.encode(errors="surrogatepass"))
    return BPETokenizer.from_dict(json.loads(cached("tokenizers", depends_on, train)))


def code() -> bytes:
    """Return the code of all tokenizers, with the versions of the packages that they use."""
    versions = [f"{name} {importlib.metadata.version(name)} ".encode() for name in ("regex", "tiktoken")]
    return b"".join(versions) + sources(Path(__file__).parent)
