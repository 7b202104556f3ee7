"""One run at a time in a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from gpt.config import UserError

LOCK = "run.lock"  # there while a run is writing in the folder, and after one that was killed

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # far behind the text, which others are to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FolderLock:
    """In a `with`: no other process that asks for the folder's lock gets it.

    The system gives the lock back when the process ends, so one that was killed leaves a file that says who it was,
    and no lock. Raises UserError where another process holds it, naming that process and its machine.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        try:
            self._descriptor = self._acquire(os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be locked: {error.strerror}") from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # where the folder has become read-only it stays, and no error is hidden by that
                self.path.unlink()  # before the lock goes: whoever waits for this file sees it gone
            os.close(self._descriptor)
            self._descriptor = None

    def check(self) -> None:
        """Raise UserError where another process holds the lock; take nothing and make nothing."""
        with suppress(OSError):  # no such file, or one that only the writing itself will show to be impossible
            os.close(self._acquire(os.O_RDWR))

    def _acquire(self, flags: int) -> int:
        while True:
            descriptor = os.open(self.path, flags, 0o666)
            try:
                _try_lock(descriptor)
                if self._is_still(descriptor):
                    return descriptor
            except (BlockingIOError, PermissionError):
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
                os.close(descriptor)
                raise UserError(f"{self.path.parent}: another run is writing in it: {holder}") from None
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is_still(self, descriptor: int) -> bool:
        """Whether the file that was locked is still the one of that name: its last holder may have removed it."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False
