"""What takes long to compute, kept on disk for the next run.

A file is named after a hash of all that its contents depend on. It begins with a hash of this name and the contents, so
that a damaged file, or one with another's name, is not used but written again. All of them may be deleted.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from gpt.files import atomic_write
from tensorgrad.backend.cache import cache_folder

KEPT_FILES = 16  # of each kind: the oldest are deleted


def cached(kind: str, depends_on: Iterable[bytes], compute: Callable[[], bytes]) -> bytes:
    """Return compute(), from the cache if it was computed before from the same bytes, by the same Python."""
    folder, key = cache_folder() / kind, _key(depends_on)
    with suppress(OSError):  # missing
        checksum, _, data = (folder / key).read_bytes().partition(b"\n")
        if checksum == _checksum(key, data):
            return data
    data = compute()
    with suppress(OSError):  # a run does not depend on it
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / key) as file:
            file.write(_checksum(key, data) + b"\n" + data)
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_FILES]:
            path.unlink()
    return data


def _key(depends_on: Iterable[bytes]) -> str:
    parts = (sys.version.encode(), *depends_on)
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def _checksum(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + data).hexdigest().encode()
