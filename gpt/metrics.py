"""The lines that a run writes about its steps: never half of one lost, and taken back with the run."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from gpt.config import UserError

METRICS = "metrics.jsonl"  # what training computes: the same bytes however often a run was stopped and resumed
TIMING = "timing.jsonl"  # how fast it was, which no two runs have in common


class LineFile:
    """A file of JSON lines that grows; each line is with the system once it is written.

    What a full disk does not take is an error, or with `patient` kept and written before the next line.
    """

    def __init__(self, path: Path, *, patient: bool = False) -> None:
        self.path = path
        self.patient = patient
        self._waiting = bytearray()
        self._file = path.open("ab", buffering=0)

    def write(self, values: dict[str, Any]) -> None:
        """Append one line, with null for nan and infinity, which JSON does not have.

        Raises UserError where the disk does not take it.
        """
        finite = {key: None if _is_nonfinite(value) else value for key, value in values.items()}
        self._waiting += json.dumps(finite).encode() + b"\n"
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            if not self.patient:
                raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error

    def sync(self) -> None:
        """Wait until every line is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def rewind_metrics(source: Path, target: Path, step: int) -> None:
    """Write to `target/metrics.jsonl` the lines of `source`'s up to a step; both may be one folder.

    What a run wrote after its last checkpoint, perhaps half a line, goes: it will be done again.
    The same for timing.jsonl. Raises UserError where the disk does not take it; the files are then as they were.
    """
    for name in (METRICS, TIMING):
        aside = target / f".{name}"
        try:
            with aside.open("w", encoding="utf-8") as kept:
                if (source / name).exists():
                    with (source / name).open(encoding="utf-8", errors="replace") as lines:
                        kept.writelines(line for line in lines if _step_of(line) <= step)
                kept.flush()
                os.fsync(kept.fileno())
            os.replace(aside, target / name)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise UserError(f"{target / name}: cannot be written: {error.strerror}") from error


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")  # not a whole line of ours
