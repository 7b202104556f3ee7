"""Algorithms of matrix products that were timed once, kept on disk for the same card and version of cuBLASLt.

cuBLASLt's algorithms are 64 bytes that may be stored, and restored with the same version of the library.
"""

import contextlib
import hashlib
import json
import re
import warnings
from pathlib import Path

from tensorgrad.backend.cupy.launcher import cache_folder, write_atomically

Words = list[int]  # eight of 64 bits


class TunedAlgorithms:
    """The algorithms of one card, by a text that describes the product: its shape, dtypes, layout and epilogue."""

    def __init__(self, card: str, version: int, folder: Path | None = None) -> None:
        self.card, self.version = card, version
        self.path = (folder or cache_folder()) / f"products-{re.sub('[^A-Za-z0-9]+', '-', card)}.json"
        self.algorithms = self._read(warn=True)

    def find(self, product: str) -> Words | None:
        """The algorithm of a product that was timed before."""
        return self.algorithms.get(product)

    def add(self, product: str, algorithm: Words) -> None:
        """Keep an algorithm, here and on disk, beside what other processes have written there."""
        self.algorithms = {**self._read(warn=False), **self.algorithms, product: algorithm}
        known = {"card": self.card, "cublaslt": self.version, "algorithms": self.algorithms}
        with contextlib.suppress(OSError):  # a run does not depend on it
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps({**known, "sha256": _digest(self.algorithms)}).encode())

    def _read(self, warn: bool) -> dict[str, Words]:
        try:
            known = json.loads(self.path.read_bytes())
            algorithms: dict[str, Words] = known["algorithms"]
            made_for = known["card"], known["cublaslt"]
            wrong = "is damaged" if known["sha256"] != _digest(algorithms) else ""
        except OSError:
            return {}
        except (ValueError, KeyError, TypeError):
            wrong = "is damaged"
        if not wrong and made_for != (self.card, self.version):
            wrong = "is for cuBLASLt {1} on {0}, not {3} on {2}".format(*made_for, self.card, self.version)
        if not wrong:
            return algorithms
        if warn:
            warnings.warn(f"{self.path} {wrong}: products are timed again", stacklevel=2)
        return {}


def _digest(algorithms: dict[str, Words]) -> str:
    return hashlib.sha256(json.dumps(algorithms, sort_keys=True).encode()).hexdigest()
