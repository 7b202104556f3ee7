"""Pieces of sources to tokens, in several processes, in order and in bounded memory."""

import hashlib
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

import numpy as np

from gpt.config import UserError
from gpt.data.corpora import normalize_whitespace
from gpt.data.documents import Document, Piece, Place, documents
from gpt.tokenizer import Tokenizer, TokenizerError, tokenizer_from_dict

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Settings:
    """Everything besides its bytes that determines the tokens of a piece."""

    field: str  # of a line of JSON that holds the text
    encoding_errors: str
    seed: int
    val_fraction: float
    by_document: bool  # each document is assigned to a split at random; otherwise the end of all is for validation
    normalize: bool = False
    allow_special: bool = False
    tokenizer: dict[str, Any] | None = None  # its to_dict()
    dtype: str = "<u2"


@dataclass
class Part:
    """What a piece adds to one split."""

    tokens: bytes
    begins: bool  # with a new document, rather than in the middle of one
    n_documents: int  # that begin here
    n_bytes: int  # of text, as UTF-8


@dataclass(frozen=True)
class Encoded:
    """The result of a piece: its part of each split, training first."""

    size: int  # of the piece
    after: Place  # where the next piece begins
    parts: tuple[Part, Part]
    n_empty: int  # documents without a character, which are skipped


class Encoder:
    """Encodes pieces."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokenizer = None if settings.tokenizer is None else tokenizer_from_dict(settings.tokenizer)

    def documents(self, piece: Piece) -> Iterator[Document]:
        """Yield the documents of a piece."""
        for document in documents(piece, self.settings.field, self.settings.encoding_errors):
            text = normalize_whitespace(document.text) if self.settings.normalize else document.text
            yield replace(document, text=text)

    def characters(self, piece: Piece) -> tuple[int, set[str]]:
        """Return the size of a piece and the set of its characters."""
        return len(piece.data), set().union(*(document.text for document in self.documents(piece)))

    def encode(self, piece: Piece) -> Encoded:
        """Return the tokens of a piece; UserError, naming its file, for a text that the tokenizer cannot encode."""
        assert self.tokenizer is not None
        separator = separator_of(self.tokenizer)
        ids: tuple[list[int], list[int]] = [], []
        parts = Part(b"", True, 0, 0), Part(b"", True, 0, 0)
        n_empty = 0
        for document in self.documents(piece):
            if not document.text:
                n_empty += document.begins
                continue
            is_val = self._is_val(document) if self.settings.by_document else piece.is_val
            part = parts[is_val]
            if not ids[is_val]:
                part.begins = document.begins
            elif separator is not None:
                ids[is_val].append(separator)
            try:
                ids[is_val].extend(self.tokenizer.encode(document.text, allow_special=self.settings.allow_special))
            except TokenizerError as error:
                raise UserError(f"data '{piece.name}', from line {document.line} on: {error}") from None
            part.n_documents += document.begins
            part.n_bytes += len(document.text.encode())
        for part, numbers in zip(parts, ids, strict=True):
            part.tokens = np.array(numbers, self.settings.dtype).tobytes()
        return Encoded(len(piece.data), piece.after, parts, n_empty)

    def _is_val(self, document: Document) -> bool:
        """Draw the split of a document; every part of it is drawn the same."""
        drawn = hashlib.sha256(f"{self.settings.seed} {document.source} {document.line}".encode()).digest()
        return int.from_bytes(drawn[:8]) < self.settings.val_fraction * 2**64


def separator_of(tokenizer: Tokenizer) -> int | None:
    """Return the token between documents: end of text, else a newline; None for a vocabulary without either."""
    if tokenizer.eot is not None:
        return tokenizer.eot
    try:
        return tokenizer.encode("\n")[0]
    except TokenizerError:
        return None

_encoder: Encoder | None = None  # of this worker process


def ordered_map(
    work: Callable[[Encoder, Piece], T], pieces: Iterable[Piece], settings: Settings, workers: int
) -> Generator[T]:
    """Yield the result of an encoder's method for every piece, in order; with workers=1 in this process.

    At most a few pieces per worker are in flight. Raises UserError where a worker is killed or cannot start.
    """
    if workers == 1:
        encoder = Encoder(settings)
        yield from (work(encoder, piece) for piece in pieces)
        return
    # Spawned, not forked: a fork would copy the locks of this process's threads in whatever state they are.
    context = get_context("spawn")
    started = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (settings, started))
    waiting: deque[Future[T]] = deque()
    try:
        for piece in pieces:
            with _interrupts_blocked():  # a worker may start here, and only this process handles Ctrl-C
                waiting.append(pool.submit(_work, work, piece))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        if not started.is_set():
            guard = 'a script that prepares data needs the line `if __name__ == "__main__":` above the call'
            raise UserError(f"no worker process could start: {guard}, or workers=1") from None
        why = "perhaps because memory ran out (fewer --workers need less)"
        raise UserError(f"a worker process was killed, {why}; the same command continues from here") from None
    finally:
        pool.shutdown(cancel_futures=True)


def end_if_importing() -> None:
    """End a worker that is still importing the script that started it, and would prepare the data once more."""
    if getattr(current_process(), "_inheriting", False):
        sys.exit(1)  # its parent says why


def _start_worker(settings: Settings, started: Event) -> None:
    global _encoder
    started.set()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _encoder = Encoder(settings)


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()  # returns when the parent has ended, also where it was killed and could not tell its workers
        os._exit(1)


def _work(work: Callable[[Encoder, Piece], S], piece: Piece) -> S:
    assert _encoder is not None
    return work(_encoder, piece)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block. A process that starts inside never receives it; not on Windows."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
