"""How many threads NumPy's own matrix products use: mostly one, as the threads of `team` each have one of their own.

NumPy's wheels bring OpenBLAS with them, which takes the number at any time. Where NumPy was built with something else
there is none to be found, and `find` says so with None.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Blas:
    """OpenBLAS with 64-bit integers, and its number of threads."""

    library: Any

    def get_num_threads(self) -> int:
        """How many threads a single product uses."""
        return int(self.library.scipy_openblas_get_num_threads64_())

    def set_num_threads(self, n: int) -> None:
        """Use n threads for a single product from now on, in the whole process."""
        self.library.scipy_openblas_set_num_threads64_(n)


@functools.cache
def find() -> Blas | None:
    """The OpenBLAS of the installed NumPy, or None where it has none that can be reached."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in sorted(folder.glob("*openblas64_*")):
            try:
                library = ctypes.CDLL(str(path))  # loaded already: this only finds it again
                _ = library.scipy_openblas_set_num_threads64_, library.scipy_openblas_get_num_threads64_
            except (OSError, AttributeError):
                continue
            return Blas(library)
    return None


def use_threads(n: int) -> bool:
    """Let a single product use n threads from now on, in the whole process; returns whether NumPy's BLAS can be told.

    Mostly one: OpenBLAS's own threads spin after a product, for what may come next, on the cores that other work needs.
    """
    library = find()
    if library is not None and library.get_num_threads() != n:
        library.set_num_threads(n)
    return library is not None
