"""Files that are either whole or absent, files that are checked when read, and a lock for a folder."""

import hashlib
import importlib.util
import json
import math
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gpt.config import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends, and is removed when it fails.

    Whoever reads `path`, even after a crash, finds the old contents or all of the new ones. The temporary file always
    has the same name, so that one that a killed process left is reused. Raises OSError, with `path` as its filename.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the rename: a crash must not leave the name on half a file
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, values: Mapping[str, Any], *, indent: int = 2) -> None:
    """Write a JSON object, all of it or nothing: see atomic_write."""
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=indent).encode() + b"\n")


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk; Windows cannot do this for folders."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_at(descriptor: int, n_bytes: int, offset: int) -> bytes:
    """Read from an offset of a file that os.open has opened; Windows, which has no pread, moves its position."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, n_bytes, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, n_bytes)


def sha256_of(path: Path) -> str:
    """Return the hash of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_in_package(package: str, path: str) -> Path | None:
    """Return a file or folder inside an installed package, without importing the package; None where there is none."""
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    return next((Path(folder, path) for folder in folders if Path(folder, path).exists()), None)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn every error that a bad file can cause into a UserError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except KeyError as error:
        raise UserError(f"{path}: damaged: no entry {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:200]}") from error


def require_hash(path: Path, sha256: str, manifest: str) -> None:
    """Raise ValueError for a file whose contents are not those that its manifest describes."""
    if sha256_of(path) != sha256:
        raise ValueError(f"damaged: its contents differ from those recorded in {manifest}")


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object; ValueError for anything else, more than max_bytes, nan, infinity or a repeated key."""
    require_regular_file(path)
    if path.stat().st_size > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes, so this program did not write it")
    try:
        values = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=_refuse_constant, parse_float=_parse_finite,
            object_pairs_hook=_refuse_repeated_keys,
        )  # fmt: skip
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON, or damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("does not hold a JSON object")
    return values


def require_regular_file(path: Path) -> None:
    """Raise ValueError for a pipe or a device, which might never end."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _parse_finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large for a number")
    return value


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an entry occurs twice")
    return values


LOCK = "run.lock"  # exists while a process writes into the folder, and remains after one that was killed

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # far beyond the text, which other processes have to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FolderLock:
    """Lock a folder for the duration of a `with` block; UserError, naming the process, where another one has the lock.

    The operating system releases the lock when the process ends; the file of a killed one only says which it was.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        try:
            self._descriptor = self._acquire(os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be locked: {error.strerror}") from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # a folder that became read-only keeps the file; no other error is hidden by that
                self.path.unlink()  # before the lock is released: a process that waits for this file sees it gone
            os.close(self._descriptor)
            self._descriptor = None

    def check(self) -> None:
        """Raise UserError where another process has the lock; acquire nothing and create nothing."""
        with suppress(OSError):  # the file does not exist, or writing will show what is wrong
            os.close(self._acquire(os.O_RDWR))

    def _acquire(self, flags: int) -> int:
        while True:
            descriptor = os.open(self.path, flags, 0o666)
            try:
                _try_lock(descriptor)
                if self._is_current(descriptor):
                    return descriptor
            except (BlockingIOError, PermissionError):
                owner = read_at(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
                os.close(descriptor)
                raise UserError(f"{self.path.parent}: another run is writing in it: {owner}") from None
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        """Whether the locked file still has its name: the previous owner may have removed it in the meantime."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False
