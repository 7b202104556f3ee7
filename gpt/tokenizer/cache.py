"""Trained byte-pair encodings, kept on disk: training takes one to two seconds for Shakespeare, at each start of a run.

A file is named after a hash of all that it depends on. It holds tokenizer.json after a hash of it, so that a damaged
one is not used but written again. Files that are not used any more may be deleted.
"""

import hashlib
import importlib.metadata
import json
from contextlib import suppress
from pathlib import Path

from gpt.files import atomic_write
from gpt.tokenizer import BPETokenizer, bpe, patterns
from gpt.tokenizer.base import FORMAT_VERSION
from tensorgrad.backend.cache import cache_folder

MIN_CHARACTERS = 2**20  # of a text: training on a shorter one takes no longer than a third of a second


def train_bpe_cached(text: str, vocab_size: int) -> BPETokenizer:
    """Return BPETokenizer.train(text, vocab_size), from the cache if it is there."""
    if len(text) < MIN_CHARACTERS:
        return BPETokenizer.train(text, vocab_size)
    path = cache_folder() / "tokenizers" / f"bpe-{_key(text, vocab_size)}"
    with suppress(OSError, ValueError):  # missing, damaged
        digest, _, written = path.read_bytes().partition(b"\n")
        if digest == _sha256(written).encode():
            return BPETokenizer.from_dict(json.loads(written))
    tokenizer = BPETokenizer.train(text, vocab_size)
    with suppress(OSError):  # a run does not depend on it
        path.parent.mkdir(parents=True, exist_ok=True)
        written = json.dumps(tokenizer.to_dict()).encode()
        with atomic_write(path) as file:
            file.write(_sha256(written).encode() + b"\n" + written)
    return tokenizer


def _key(text: str, vocab_size: int) -> str:
    """A hash of the text and the size, of the code that trains, and of the package that splits the text."""
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (bpe, patterns))
    settings = f"{FORMAT_VERSION} {vocab_size} regex {importlib.metadata.version('regex')} "
    return _sha256(settings.encode() + code + text.encode(errors="surrogatepass"))[:32]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
