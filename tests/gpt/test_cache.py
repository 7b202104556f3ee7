"""What is read from the cache is what was computed from the same things, or else it is computed again."""

import os
import sys
from pathlib import Path

import pytest

from gpt import cache
from gpt.cache import cached
from tensorgrad.backend.cache import sources


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of squares in a cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tensorgrad" / "squares"


def squares(*depends_on: bytes) -> tuple[bytes, bool]:
    """Return the square of the first number, from the cache if it is there, and whether it was computed."""
    computed = []

    def compute() -> bytes:
        computed.append(True)
        return str(int(depends_on[0]) ** 2).encode() * 100

    return cached("squares", depends_on, compute), bool(computed)


def test_the_second_time_it_is_read(folder: Path) -> None:
    assert [squares(b"3", b"a") for _ in range(3)] == [(b"9" * 100, True), (b"9" * 100, False), (b"9" * 100, False)]
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("other", [(b"3", b"b"), (b"3",), (b"3", b"a", b""), (b"3", b"", b"a"), (b"4", b"a")])
def test_it_is_computed_again_where_anything_differs(other: tuple[bytes, ...]) -> None:
    squares(b"3", b"a")
    assert squares(*other) == (b"16" * 100 if other[0] == b"4" else b"9" * 100, True)


def test_another_python_computes_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    squares(b"3")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version", "3.99.0")
        assert squares(b"3")[1]
    assert not squares(b"3")[1]


@pytest.mark.parametrize("damage", ["empty", "cut short", "one bit", "no checksum", "another key's file", "folder"])
def test_a_damaged_file_is_not_used(damage: str, folder: Path) -> None:
    squares(b"3")
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    squares(b"4")
    (other,) = set(folder.iterdir()) - {path}
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({
            "empty": b"", "cut short": whole[:-1], "one bit": whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
            "no checksum": whole.partition(b"\n")[2], "another key's file": other.read_bytes(),
        }[damage])  # fmt: skip
    assert squares(b"3") == (b"9" * 100, True)
    if damage != "folder":
        assert path.read_bytes() == whole
        assert not squares(b"3")[1]


def test_without_a_folder_that_can_be_written(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file in its place")
    assert [squares(b"3") for _ in range(2)] == [(b"9" * 100, True)] * 2


def test_what_fails_leaves_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        squares(b"three")
    assert not folder.exists()


def test_only_the_newest_files_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT_FILES", 3)
    for i in range(5):
        squares(str(i).encode())
        for path in folder.iterdir():  # each is older than the next, also by a coarse clock
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert len(list(folder.iterdir())) == 3
    assert [squares(str(i).encode())[1] for i in (2, 3, 4)] == [False] * 3


def test_sources_are_those_of_modules_and_folders(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "text.md"):
        (tmp_path / name).write_text(name)
    assert sources(tmp_path) == b"a.py\0b.py"
    assert sources(tmp_path / "b.py", tmp_path) == b"b.py\0a.py\0b.py"
