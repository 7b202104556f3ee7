"""Algorithms that are kept on disk: found again by the same card and version, and by no other."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from tensorgrad.backend.cupy.tuned import TunedAlgorithms

FOUND = [2**64 - 1, 1, 2, 3, 4, 5, 6, 7]


def tuned(folder: Path, card: str = "NVIDIA H200, 132 multiprocessors", version: int = 130100) -> TunedAlgorithms:
    return TunedAlgorithms(card, version, folder)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tuned(tmp_path).add("a product", FOUND)
    (path,) = tmp_path.iterdir()
    return path


def test_an_algorithm_is_found_again(path: Path) -> None:
    assert path.name == "products-NVIDIA-H200-132-multiprocessors.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = tuned(path.parent)
    assert again.find("a product") == FOUND and again.find("another product") is None
    assert tuned(path.parent, "NVIDIA A100, 108 multiprocessors").find("a product") is None


def test_what_another_process_has_written_stays(path: Path) -> None:
    first, second = tuned(path.parent), tuned(path.parent)
    first.add("its product", [1] * 8)
    second.add("another one", [2] * 8)
    assert tuned(path.parent).algorithms == {"a product": FOUND, "its product": [1] * 8, "another one": [2] * 8}


def test_another_version_is_ignored_with_a_line_and_then_replaced(path: Path) -> None:
    with pytest.warns(UserWarning, match=r"json is for cuBLASLt 130100 on NVIDIA H200.*, not 130200 on .*: prod"):
        newer = tuned(path.parent, version=130200)
    assert newer.find("a product") is None
    newer.add("a product", [3] * 8)
    assert tuned(path.parent, version=130200).algorithms == {"a product": [3] * 8}


def flip(text: str) -> str:
    return text.replace(str(FOUND[0]), str(FOUND[0] - 1))


@pytest.mark.parametrize(
    "damage",
    [flip, lambda text: text[:-20], lambda text: "", lambda text: "[]", lambda text: "null", lambda text: "\0" * 9,
     lambda text: json.dumps({**json.loads(text), "algorithms": None})],
)  # fmt: skip
def test_a_damaged_file_is_ignored_with_a_line_and_then_replaced(damage: Any, path: Path) -> None:
    path.write_text(damage(path.read_text()))
    with pytest.warns(UserWarning, match=r"products-NVIDIA.*json is damaged: products are timed again"):
        found = tuned(path.parent)
    assert found.algorithms == {}
    found.add("a product", FOUND)
    assert tuned(path.parent).algorithms == {"a product": FOUND}


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = tuned(tmp_path / "file" / "folder")
    found.add("a product", FOUND)
    assert found.find("a product") == FOUND


def test_a_file_is_replaced_as_a_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stops in the middle leaves the old one, and nothing beside it."""
    before = path.read_bytes()

    def fail(*names: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    tuned(path.parent).add("another product", FOUND)
    assert [p.read_bytes() for p in path.parent.iterdir()] == [before]
