"""One run at a time in a folder, and a lock that a killed run does not leave behind."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.config import UserError
from gpt.files import LOCK, FolderLock

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


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
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


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (tmp_path / LOCK).exists()
    FolderLock(tmp_path).check()
    with FolderLock(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_within_one_process_too(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(UserError, match="another run is writing in it"), FolderLock(tmp_path):
        pass


def test_the_name_of_a_removed_file_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, its holder ends: what is locked then has no name any more."""
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


def test_to_look_makes_nothing(tmp_path: Path) -> None:
    FolderLock(tmp_path).check()
    FolderLock(tmp_path / "missing").check()
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.lock: cannot be locked: No such file or directory"):
        FolderLock(tmp_path / "missing").__enter__()


def test_a_folder_that_has_become_read_only_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(UserError, match="cannot be saved"), FolderLock(tmp_path):
        monkeypatch.setattr(Path, "unlink", refuse)
        raise UserError("cannot be saved")
    FolderLock(tmp_path).check()  # and the lock itself is given back
