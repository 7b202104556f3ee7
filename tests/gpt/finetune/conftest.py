"""Calling `python -m gpt finetune` in the folder that a module's fixture `home` has prepared."""

from pathlib import Path
from typing import Any

import pytest

from gpt.__main__ import main


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """call(*flags): the exit status of `python -m gpt finetune`, and what was written to stdout and stderr."""
    monkeypatch.chdir(home)

    def call(*flags: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main(["finetune", *flags])
        except SystemExit as end:  # argparse's
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return call
