"""Odd data files: read as they are, or refused in one line; preparing leaves nothing half-written."""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt.cli import run
from gpt.config import UserError
from gpt.data.__main__ import main as data_program
from gpt.data.documents import load_text
from gpt.data.shards import MANIFEST, load_prepared
from gpt.files import LOCK

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n"
Made = tuple[str, str | None]  # what to read, and the text that it has to give; None where it may be refused


# --- contents: bytes, and the text that they are; None where that is not for this list to say -------


def plain(rng: random.Random) -> tuple[bytes, str | None]:
    text = TEXT * rng.randrange(1, 4) + rng.choice(["", "é ü 漢字 🙂\n", "\t\f\v", "\u2028", "\x1c", "no line end"])
    return text.encode(), text


def with_mark(rng: random.Random) -> tuple[bytes, str | None]:
    return b"\xef\xbb\xbf" * rng.choice([1, 1, 2]) + TEXT.encode(), None


def line_ends(rng: random.Random) -> tuple[bytes, str | None]:
    return TEXT.replace("\n", rng.choice(["\r\n", "\r", "\r\r\n"])).encode(), None


def encoded(rng: random.Random) -> tuple[bytes, str | None]:
    return ("é" + TEXT).encode(rng.choice(["latin-1", "utf-16", "utf-32", "cp1252", "utf-16-le"])), None


def flipped(rng: random.Random) -> tuple[bytes, str | None]:
    data = bytearray(plain(rng)[0])
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data), None


def nothing(rng: random.Random) -> tuple[bytes, str | None]:
    return rng.choice([b"", b" ", b"\n", b"\n\n\n", b"\x00", b"a", b"\xef\xbb\xbf", b"\xff", b"\r"]), None


def with_nul(rng: random.Random) -> tuple[bytes, str | None]:
    data = bytearray(TEXT.encode())
    data[rng.randrange(len(data))] = 0
    return bytes(data), None


def noise(rng: random.Random) -> tuple[bytes, str | None]:
    return rng.randbytes(rng.randrange(1, 3000)), None


def long_line(rng: random.Random) -> tuple[bytes, str | None]:
    text = rng.choice("aé ") * rng.randrange(1, 50_000)
    return text.encode(), text


def surrogates(rng: random.Random) -> tuple[bytes, str | None]:
    return TEXT.encode() + "\ud800".encode("utf-8", "surrogatepass"), None


CONTENTS: list[Callable[[random.Random], tuple[bytes, str | None]]] = [
    plain, plain, with_mark, line_ends, encoded, flipped, nothing, with_nul, noise, long_line, surrogates,
]  # fmt: skip

ODD_VALUES: list[Any] = [None, 1, 1.5, True, [], {}, ["a"], "", " ", "\ud800", "\x00", "é", "a" * 5000, TEXT]


def json_lines(rng: random.Random) -> tuple[bytes, str | None]:
    """Mostly documents; some lines of another kind."""
    lines = []
    for _ in range(rng.randrange(0, 6)):
        document = {rng.choice(["text", "text", "text", "content", "Text"]): rng.choice([TEXT, TEXT, *ODD_VALUES])}
        odd = [
            json.dumps(rng.choice(ODD_VALUES)), "{", "nan", "[" * 2000, '{"text": "a"} x', "", " ", "\ufeff{}", "\x00",
            '{"text": "a", "text": "b"}', "'text'", '{"text": "\\ud83d\\ude42"}',
        ]  # fmt: skip
        lines.append(json.dumps(document) if rng.random() < 0.8 else rng.choice(odd))
    text = rng.choice(["\n", "\n", "\r\n", "\n\n"]).join(lines) + rng.choice(["", "\n"])
    data = text.encode("utf-8", "surrogatepass")
    return (data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data), None


def compressed(rng: random.Random, data: bytes) -> bytes:
    """gzip, sometimes damaged, in two members, or not gzip at all."""
    packed = gzip.compress(data, mtime=0)
    kind = rng.choice(["whole", "whole", "truncated", "flipped", "two members", "trailing", "not gzip", "empty"])
    if kind == "truncated":
        return packed[: rng.randrange(len(packed))]
    if kind == "flipped":
        damaged = bytearray(packed)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        return bytes(damaged)
    more = {"two members": packed * 2, "trailing": packed + rng.randbytes(5), "not gzip": data, "empty": b""}
    return more.get(kind, packed)


# --- files, folders, links and names ----------------------------------------------------------------

NAMES = [
    "text", "DATA", "~notes", "with space", "ünï", "-", "--out", "kjv", "a*b", "[x]", "{y}", "%s", "$HOME", "a'b", 'q"',
    "a\nb", "\udcff", "." * 3, "very" * 50,
]  # fmt: skip
ENDS = [
    ".txt", ".txt", ".TXT", ".md", "", ".bin", ".txt.gz", ".TXT.GZ", ".jsonl", ".jsonl", ".JSONL", ".jsonl.gz", ".gz",
]  # fmt: skip
KINDS = ["folder", "link", "dangling", "loop", "pattern", "missing", "nested", "pipe", "hidden"]


def one_file(rng: random.Random, folder: Path) -> tuple[Path, str | None]:
    """A file of a random name and kind, and its text."""
    name, end = rng.choice(["text"] * 20 + NAMES), rng.choice(ENDS)
    lower = end.lower()
    data, text = (json_lines if ".jsonl" in lower and rng.random() < 0.8 else rng.choice(CONTENTS))(rng)
    path = folder / f"{name}{end}"
    path.write_bytes(compressed(rng, data) if lower.endswith(".gz") else data)
    return path, text if not lower.endswith(".gz") and ".jsonl" not in lower else None


def make(rng: random.Random, folder: Path) -> Made:
    """A source for a program: a file, a folder, a link, a pattern, or something that is none."""
    path, text = one_file(rng, folder)
    kind = rng.choice(["file"] * 6 + KINDS)
    if kind == "folder":
        for _ in range(rng.randrange(3)):
            one_file(rng, folder)
        return str(folder), None
    if kind == "link":
        (folder / "link.txt").symlink_to(path)
        return str(folder / rng.choice(["link.txt", "."])), None
    if kind == "dangling":
        (folder / "gone.txt").symlink_to("nowhere")
        return str(folder / rng.choice(["gone.txt", "."])), None
    if kind == "loop":
        (folder / "loop").symlink_to(folder)
        (folder / "self.txt").symlink_to("self.txt")
        return str(folder / rng.choice(["loop", "self.txt", "."])), None
    if kind == "pattern":
        return str(folder / rng.choice(["*", "*.txt", "**/*", "[", "?", "*.none"])), None
    if kind == "missing":
        return rng.choice([f"{path}x", "", " ", "\x00", "a" * 300, "/dev/null", str(folder / "no" / "file.txt")]), None
    if kind == "nested":
        (folder / "deep.txt").mkdir()
        shutil.copy(path, folder / "deep.txt")
        return str(folder / rng.choice(["deep.txt", ""])), None
    if kind == "pipe":
        os.mkfifo(folder / "pipe.txt")
        return str(folder / rng.choice(["pipe.txt", ""])), None
    if kind == "hidden":
        (folder / "._text.txt").write_bytes(rng.randbytes(50))
        return str(folder), None
    return str(path), text


# --- the cases --------------------------------------------------------------------------------------


def read(source: str, errors: str) -> str | None:
    """The text of a source; None where it is refused in one line."""
    try:
        return load_text(source, errors=errors)
    except UserError:
        return None


def check(seed: int, folder: Path) -> None:
    """Raises AssertionError, or what a program would have ended with, for a source that is handled wrongly."""
    rng = random.Random(seed)
    sources, out = folder / "sources", folder / "out"
    sources.mkdir(parents=True)
    source, expected = make(rng, sources)
    errors = rng.choice(["strict", "strict", "strict", "replace", "ignore"])
    text = read(source, errors)
    if expected:
        assert text == expected.replace("\r\n", "\n").replace("\r", "\n"), f"{source}: another text was read"
    command = ["prepare", source, "--out", str(out), "--encoding-errors", errors]
    command += ["--tokenizer", "char", "--workers", "1"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = run(lambda: data_program(command), prog="prepare")
        except SystemExit as end:
            status = int(end.code or 0)
    assert status == 0 or said.getvalue().count("error: ") == 1 and said.getvalue().endswith("\n"), said.getvalue()
    prepared = (out / MANIFEST).exists()
    assert prepared == out.exists() == (status == 0), f"{source}: status {status}; in out: {sorted(out.rglob('*'))}"
    left = [path.name for path in out.rglob("*") if path.name.startswith(".") or path.name == LOCK]
    assert not left, f"{source}: left behind {left}"
    if prepared:
        data = load_prepared(str(out), hashes=True)
        parts = [data.tokenizer.decode(split.read(0, len(split)).tolist()) for split in (data.train, data.val)]
        joined = ["".join(parts), "\n".join(parts), "".join(parts).removesuffix("\n")]  # "\n" separates documents
        assert text in joined, f"{source}: other text was prepared than is read"
    else:
        assert not text or not text.strip(), f"{source} can be read, but not prepared: {said.getvalue()}"


def failures(seeds: range) -> Iterator[tuple[int, str]]:
    """The seed of every case that fails, and how."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            try:
                check(seed, Path(folder, str(seed)))
            except Exception as error:
                yield seed, f"{type(error).__name__}: {error}"
            shutil.rmtree(Path(folder, str(seed)))
