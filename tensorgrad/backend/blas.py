"""The matrix product that NumPy itself uses, reached directly.

NumPy's wheels bring OpenBLAS with them. Called by address it can add into its output, and compiled code can call it
from several threads at once. Where NumPy was built with something else there is none, and `find` says so with None.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Blas:
    """OpenBLAS with 64-bit integers: addresses of cblas_sgemm and cblas_dgemm, and its number of threads."""

    library: Any
    sgemm: int
    dgemm: int

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
                addresses = [_address(library, f"scipy_cblas_{kind}gemm64_") for kind in "sd"]
            except (OSError, AttributeError):
                continue
            return Blas(library, *addresses)
    return None


def _address(library: Any, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address
