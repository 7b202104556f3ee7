"""Where these tests run: on the GPU there is, and smaller, so that every line has been run, on the stand-in for one.

TENSORGRAD_SMALL=1 makes them small on a GPU as well, for compute-sanitizer, which is slow.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import tensorgrad as tg


@dataclass(frozen=True)
class Place:
    """The current cupy backend; `real` if it is on a GPU."""

    k: Any
    real: bool

    def size(self, on_gpu: Any, on_stand_in: Any) -> Any:
        """The size of a test: sizes for a GPU would take the stand-in minutes."""
        return on_gpu if self.real and not os.environ.get("TENSORGRAD_SMALL") else on_stand_in


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)], scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The stand-in for a GPU and, if there is one, the GPU."""
    if request.param == "gpu":
        with tg.use_backend("cupy") as chosen:
            yield Place(chosen.backend, real=True)
    else:
        from emulated_cuda import COMPILER, emulated_gpu

        if COMPILER is None:
            pytest.skip("no C++ compiler here to run the CUDA kernels on the CPU: install g++")
        with emulated_gpu() as k:
            yield Place(k, real=False)
