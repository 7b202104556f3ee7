"""Sources to documents, in pieces of about a megabyte: text or JSON lines, either of them gzipped.

    folders, patterns, names -> sources -> pieces of bytes -> documents

A piece ends where a token ends too, so the concatenated tokens of the pieces are those of the whole text. The pieces
depend on the sources alone: any number of workers gives the same result, and a preparation can resume at any piece.
"""

import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt.config import UserError
from gpt.data.corpora import (
    CORPORA,
    GZIP_SUFFIX,
    LINES_SUFFIX,
    decode_text,
    file_id,
    find_files,
    normalize_whitespace,
)
from gpt.data.shards import is_prepared

FIELD = "text"  # of a line of JSON: that which holds the text
PIECE_BYTES = 2**20
LOOKAHEAD = 2**20  # how far beyond its size a piece of text may end
MAX_LINE_BYTES = 2**26  # of JSON: a worker holds one line in memory

# A line break between two characters that are certainly not white space: whatever pattern a tokenizer splits text by, a
# chunk ends here. (The excluded bytes end or begin white space beyond ASCII.)
_LINE_END = re.compile(
    rb"[^\s\x1c-\x1f\x80-\x8a\x9f\xa0\xa8\xa9\xaf]\r?\n(?=(?!\xc2|\xe1\x9a|\xe2\x80|\xe2\x81|\xe3\x80\x80)[^\s\x1c-\x1f])"
)
_WORD_END = re.compile(rb"[A-Za-z](?= [A-Za-z])")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Source:
    """A file or a named corpus, with the size and the hash of its contents."""

    name: str
    n_bytes: int  # decompressed
    sha256: str  # of the file, compressed or not

    @property
    def is_lines(self) -> bool:
        """Whether every line is a document in JSON, rather than the whole file being one."""
        return _is_lines(self.name)

    def open(self) -> BinaryIO:
        """Return a stream of its bytes, decompressed."""
        return _open(self.name)


@dataclass(frozen=True)
class Place:
    """Where a piece begins."""

    source: int = 0  # index of the source
    offset: int = 0  # in bytes, decompressed
    line: int = 1


@dataclass(frozen=True)
class Piece:
    """Some bytes of a source: complete documents, or a part of one."""

    name: str  # of the source
    is_lines: bool
    place: Place
    data: bytes
    after: Place  # where the next piece begins
    is_val: bool  # for validation, where the data is split by position


@dataclass(frozen=True)
class Document:
    """A text, or a part of one that is longer than a piece."""

    text: str
    source: int
    line: int  # in its source, counted from 1; with `source` it identifies the document
    begins: bool  # here, and not in an earlier piece


def find_sources(names: Sequence[str]) -> list[str]:
    """Return the corpora and files that names, paths, folders and patterns stand for, in their order.

    Raises UserError where there are none, or where two of them name the same file.
    """
    found: dict[Any, str] = {}
    for name in names:
        for source in [name] if name in CORPORA else map(_file_name, find_files(name)):
            key = source if source in CORPORA else file_id(source)
            if key in found:
                also = f", also as '{found[key]}'" if found[key] != source else ""
                raise UserError(f"data '{source}' is given twice{also}: two of the sources include it")
            found[key] = source
    return list(found.values())


def _file_name(path: Path) -> str:
    return f"./{path}" if str(path) in CORPORA else str(path)  # a file that has the name of a corpus


def load_text(
    source: str | os.PathLike[str] = "shakespeare", *, normalize: bool = False, errors: str = "strict"
) -> str:
    """Return the text of a named corpus, a file, a folder or a glob pattern.

    A name in CORPORA takes precedence (`./kjv` is the file of that name). A folder stands for every file below it that
    ends in .txt, .md or .jsonl, or one of these and .gz, in any case. All documents are joined in the order of their
    paths, with a newline between them; empty ones are left out. Line ends become `\\n` and a byte order mark is
    dropped. normalize: see `normalize_whitespace`. errors: bytes that are not UTF-8 are an error with "strict", become
    U+FFFD with "replace", and are left out with "ignore".

    Raises UserError where the source does not exist or has no text.
    """
    name = os.fspath(source)
    texts = (document.text for file in find_sources([name]) for document in _read_whole(file, errors))
    text = "\n".join(text for text in texts if text)
    text = normalize_whitespace(text) if normalize else text
    if not text:
        raise UserError(f"data {name!r} is empty: give a file with text in it")
    return text


def _read_whole(name: str, errors: str) -> Iterator[Document]:
    with _reading(name), _open(name) as stream:
        data = stream.read()
    yield from documents(Piece(name, _is_lines(name), Place(), data, Place(1), is_val=False), FIELD, errors)


def describe_files(name: str) -> str:
    """Return `3 files: a.txt, b.txt, c.txt` for a folder or a pattern, and an empty string for any other source."""
    if name in CORPORA or is_prepared(name) or os.path.isfile(os.path.expanduser(name)):
        return ""
    files = find_files(name)
    return f"{len(files):,} file{'s' * (len(files) > 1)}: {first_few(map(str, files))}"


def first_few(names: Iterable[str], most: int = 5) -> str:
    """Return `a, b, c, d, e and 7 more`."""
    all_names = list(names)
    more = f" and {len(all_names) - most:,} more" if len(all_names) > most else ""
    return ", ".join(all_names[:most]) + more


def _is_lines(name: str) -> bool:
    return name.lower().removesuffix(GZIP_SUFFIX).endswith(LINES_SUFFIX)


def _is_gzip(name: str) -> bool:
    return name.lower().endswith(GZIP_SUFFIX)


def inspect(name: str, advance: Callable[[int], Any] = lambda n: None) -> Source:
    """Read a source once, to find its size and hash."""
    with _reading(name):
        if name in CORPORA:
            data = _open(name).read()
            return Source(name, len(data), hashlib.sha256(data).hexdigest())
        with open(name, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        advance(size)
        if _is_gzip(name):
            size = 0
            with _open(name) as stream:
                while block := stream.read(PIECE_BYTES):
                    size += len(block)
        return Source(name, size, sha256)


def _open(name: str) -> BinaryIO:
    if name in CORPORA:
        return io.BytesIO(CORPORA[name]().encode())
    if _is_gzip(name):
        return gzip.open(name, "rb")  # type: ignore[return-value]  # it reads as a BinaryIO does
    return open(name, "rb")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"data '{name}' is not a complete gzip file: {error}") from None
    except OSError as error:
        raise UserError(f"data '{name}' cannot be read: {error.strerror or error}") from None


def pieces(
    sources: Sequence[Source], begin: Place = Place(), *, val_from: int | None = None, piece_bytes: int = PIECE_BYTES
) -> Iterator[Piece]:
    """Split all sources into pieces, beginning at a place where a piece begins.

    val_from: the first of all bytes that is for validation; a piece ends there, or at the next place where one can.
    """
    before = sum(source.n_bytes for source in sources[: begin.source])
    for i in range(begin.source, len(sources)):
        place = begin if i == begin.source else Place(i)
        border = None if val_from is None else val_from - before
        yield from _pieces_of(sources[i], place, border, piece_bytes)
        before += sources[i].n_bytes


def _pieces_of(source: Source, place: Place, border: int | None, piece_bytes: int) -> Iterator[Piece]:
    find_end = _end_of_lines if source.is_lines else _end_of_text
    with _reading(source.name), source.open() as stream:
        stream.seek(place.offset)
        buffer = b""
        while True:
            is_val = border is not None and place.offset >= border
            size = piece_bytes if border is None or is_val else min(piece_bytes, border - place.offset)
            buffer, end = find_end(stream, buffer, size, f"data '{source.name}', line {place.line}")
            data, buffer = buffer[:end], buffer[end:]
            is_last = not buffer and not (buffer := stream.read(1))
            after = Place(place.source, place.offset + len(data), place.line + data.count(b"\n") * source.is_lines)
            if is_last and after.offset != source.n_bytes:
                sizes = f"{after.offset} bytes instead of {source.n_bytes}"
                raise UserError(f"data '{source.name}' changed while it was read: {sizes}")
            after = Place(place.source + 1) if is_last else after
            yield Piece(source.name, source.is_lines, place, data, after, is_val)
            if is_last:
                return
            place = after


def _end_of_text(stream: BinaryIO, buffer: bytes, size: int, where: str) -> tuple[bytes, int]:
    """Return the bytes read so far, and where in them a piece of about that size ends."""
    enough = size + LOOKAHEAD
    if len(buffer) < enough:
        buffer += stream.read(enough - len(buffer))
    if len(buffer) <= size:
        return buffer, len(buffer)
    for pattern in (_LINE_END, _WORD_END):
        if match := pattern.search(buffer, max(size - 1, 0)):
            return buffer, match.end()
    end = size
    while end < len(buffer) and (buffer[end] & 0xC0 == 0x80 or buffer[end - 1 : end + 1] == b"\r\n"):
        end += 1  # within a character
    return buffer, end


def _end_of_lines(stream: BinaryIO, buffer: bytes, size: int, where: str) -> tuple[bytes, int]:
    while True:
        end = buffer.find(b"\n", size - 1) + 1
        if end:
            return buffer, end
        if len(buffer) > size + MAX_LINE_BYTES:
            raise UserError(f"{where}: longer than {MAX_LINE_BYTES} bytes; every line is a document")
        more = stream.read(PIECE_BYTES)
        if not more:
            return buffer, len(buffer)
        buffer += more


def documents(piece: Piece, field: str, errors: str) -> Iterator[Document]:
    """Decode the documents of a piece; UserError, naming the file and the line, for what is not a document."""
    if piece.is_lines:
        yield from _documents_of_lines(piece, field, errors)
        return
    text = decode_text(piece.data, piece.name, errors, piece.place.offset)
    begins = piece.place.offset == 0
    yield Document(text.removeprefix("\ufeff") if begins else text, piece.place.source, 1, begins)


def _documents_of_lines(piece: Piece, field: str, errors: str) -> Iterator[Document]:
    offset, line = piece.place.offset, piece.place.line
    for data in io.BytesIO(piece.data):  # bytes.splitlines would also split at a single \r
        text = decode_text(data, piece.name, errors, offset).removeprefix("\ufeff")
        if text.strip():
            yield Document(_text_of(text, piece.name, line, field, errors), piece.place.source, line, True)
        offset, line = offset + len(data), line + 1


def _text_of(written: str, name: str, line: int, field: str, errors: str) -> str:
    where = f"data '{name}', line {line}"
    try:
        values = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: a JSON {type(values).__name__}, not an object with a field {field!r}")
    if field not in values:
        names = ", ".join(sorted(map(str, values))[:8]) or "none"
        raise UserError(f"{where}: no field {field!r}; it has {names}: choose one with --field of gpt data prepare")
    text = values[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} is a {type(text).__name__}, not text")
    if errors == "strict" and (found := _SURROGATE.search(text)):
        what = f"an unpaired UTF-16 surrogate (U+{ord(found[0]):04X})"
        raise UserError(f"{where}: field {field!r} has {what}; give --encoding-errors replace or ignore")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _SURROGATE.sub("\ufffd" if errors == "replace" else "", text)
