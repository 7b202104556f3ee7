"""The lines that a run writes about its steps: never half of one lost, and taken back with the run."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt.config import UserError

CONFIG = "config.toml"  # what the run was made with
METRICS = "metrics.jsonl"  # what training computes: the same bytes however often a run was stopped and resumed
TIMING = "timing.jsonl"  # how fast it was, which no two runs have in common
SAMPLES = "samples.txt"  # what the model writes as it learns
SAMPLE_HEADING = "======== step {} ========"


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
    The same for timing.jsonl and samples.txt. Raises UserError where the disk does not take it; the files are then as
    they were.
    """
    for name in (METRICS, TIMING):
        _copy(source / name, target / name, lambda lines: (line for line in lines if _step_of(line) <= step))
    if (source / SAMPLES).exists():
        _copy(source / SAMPLES, target / SAMPLES, lambda lines: _samples_up_to(step, lines))


def _copy(source: Path, target: Path, choose: Callable[[Iterable[str]], Iterable[str]]) -> None:
    """Write the chosen lines of one file to another, or to itself: aside, synced, then renamed."""
    aside = target.with_name(f".{target.name}")
    try:
        with aside.open("w", encoding="utf-8") as kept:
            if source.exists():
                with source.open(encoding="utf-8", errors="replace") as lines:
                    kept.writelines(choose(lines))
            kept.flush()
            os.fsync(kept.fileno())
        os.replace(aside, target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error


def _samples_up_to(step: int, lines: Iterable[str]) -> Iterator[str]:
    heading = re.compile(re.escape(SAMPLE_HEADING).replace(re.escape("{}"), r"(\d+)") + "\n?")
    for line in lines:
        if (found := heading.fullmatch(line)) and int(found[1]) > step:
            return
        yield line


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")  # not a whole line of ours
