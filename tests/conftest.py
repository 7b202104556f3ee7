"""What every test shares: when GPU tests are skipped, how hypothesis behaves, tiny Shakespeare."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tensorgrad import backend

# A deadline would make the outcome depend on how busy the machine is.
settings.register_profile("tensorgrad", settings(), deadline=None)
settings.load_profile("tensorgrad")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    reason = backend.check("cupy") if on_gpu else None
    if reason:
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=f"needs the cupy backend: {reason}"))


@pytest.fixture(scope="session")
def tinyshakespeare_path() -> Path:
    """The text of nanoGPT's experiments, from TENSORGRAD_TINYSHAKESPEARE or beside the repository.

    It is no part of the repository; https://github.com/karpathy/char-rnn has it, as
    data/tinyshakespeare/input.txt.
    """
    root = Path(__file__).parent.parent
    places = [folder / "shared/data/tinyshakespeare.txt" for folder in (root, root.parent)]
    if named := os.environ.get("TENSORGRAD_TINYSHAKESPEARE"):
        places = [Path(named)]
    for place in places:
        if place.is_file():
            return place
    pytest.skip("no tiny Shakespeare here: name the file in TENSORGRAD_TINYSHAKESPEARE")
