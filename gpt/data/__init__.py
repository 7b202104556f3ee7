"""Text and tokens: from a source to batches (`loaders`), by way of the disk where there is much of it (`prepare`)."""

from gpt.data.documents import load_text
from gpt.data.loaders import (
    Array,
    Batches,
    DataLoader,
    Tokens,
    make_loaders,
    random_windows,
    spawn_dataloader,
    split_text,
    tokenize,
    windows,
)

__all__ = ["Array", "Batches", "DataLoader", "Tokens", "load_text", "make_loaders", "random_windows",
           "spawn_dataloader", "split_text", "tokenize", "windows"]  # fmt: skip
