"""Files: the folder lock, which a killed run does not keep, and JSON that is damaged."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.config import UserError
from gpt.files import LOCK, FolderLock, read_json

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from gpt.files import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_error_for_a_second_process_names_the_holder(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with holder(tmp_path) as other:
        who = f"process {other.pid} on {socket.gethostname()}"
        for claim in (lock.check, lock.__enter__):
            with pytest.raises(UserError) as error:
                claim()
            assert str(error.value) == f"{tmp_path}: another run is writing in it: {who}"
        assert (tmp_path / LOCK).read_text() == who + "\n"
        other.communicate("")
    lock.check()
    with lock:
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (tmp_path / LOCK).exists()
    FolderLock(tmp_path).check()
    with FolderLock(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_a_second_lock_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(UserError, match="another run is writing in it"), FolderLock(tmp_path):
        pass


def test_a_lock_on_a_removed_file_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder removes the file after it was opened and before it is locked, so the locked file has no name."""
    (tmp_path / LOCK).touch()
    opening, opened = os.open, []

    def open_late(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opening(path, flags, mode)
        opened.append(descriptor)
        if len(opened) == 1:
            Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_late)
    with FolderLock(tmp_path):
        assert len(opened) == 2
        assert (tmp_path / LOCK).exists()


def test_checking_the_lock_creates_no_file(tmp_path: Path) -> None:
    FolderLock(tmp_path).check()
    FolderLock(tmp_path / "missing").check()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.lock: cannot be locked: No such file or directory"):
        FolderLock(tmp_path / "missing").__enter__()


def test_a_failed_unlock_does_not_hide_the_original_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(UserError, match="cannot be saved"), FolderLock(tmp_path):
        monkeypatch.setattr(Path, "unlink", refuse)
        raise UserError("cannot be saved")
    FolderLock(tmp_path).check()  # the lock itself is released


def test_a_truncated_json_file_is_named_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": "b')
    with pytest.raises(ValueError, match="^not JSON, or damaged: Unterminated string"):
        read_json(tmp_path / "x.json", 100)
