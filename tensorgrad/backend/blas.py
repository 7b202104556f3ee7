"""The number of threads of NumPy's matrix products: mostly one, since every thread of `team` computes products.

NumPy's wheels contain OpenBLAS, whose number of threads can be set at any time. `find` returns None where
NumPy was built with another BLAS.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Blas:
    """OpenBLAS with 64-bit integers."""

    library: Any

    def name(self) -> str:
        """Its version, and the processor that its kernels are for: "OpenBLAS 0.3.31 for Haswell"."""
        config, core = self.library.scipy_openblas_get_config64_, self.library.scipy_openblas_get_corename64_
        config.restype = core.restype = ctypes.c_char_p
        return f"{' '.join(config().decode().split()[:2])} for {core().decode()}"

    def get_num_threads(self) -> int:
        """The number of threads that a single product uses."""
        return int(self.library.scipy_openblas_get_num_threads64_())

    def set_num_threads(self, n: int) -> None:
        """Use n threads for a single product, in the whole process."""
        self.library.scipy_openblas_set_num_threads64_(n)


@functools.cache
def find() -> Blas | None:
    """The OpenBLAS of the installed NumPy, or None if it is not found."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in sorted(folder.glob("*openblas64_*")):
            try:
                library = ctypes.CDLL(str(path))  # already loaded: this only returns its handle
                _ = library.scipy_openblas_set_num_threads64_, library.scipy_openblas_get_num_threads64_
            except (OSError, AttributeError):
                continue
            return Blas(library)
    return None


def use_threads(n: int) -> bool:
    """Use n threads for a single product, in the whole process; returns whether NumPy's BLAS is OpenBLAS."""
    library = find()
    if library is not None and library.get_num_threads() != n:
        library.set_num_threads(n)
    return library is not None
