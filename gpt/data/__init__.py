"""Text and tokens: from a source to batches (`loaders`)."""

from gpt.corpora import load_text
from gpt.data.loaders import (
    DataLoader,
    Tokens,
    make_loaders,
    random_windows,
    spawn_dataloader,
    split_text,
    tokenize,
    windows,
)

__all__ = ["DataLoader", "Tokens", "load_text", "make_loaders", "random_windows", "spawn_dataloader",
           "split_text", "tokenize", "windows"]  # fmt: skip
