"""Kernels compiled ahead in other processes."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tensorgrad as tg
from tests.processes import HANG_S

numba = pytest.importorskip("numba")

from tensorgrad.backend.numba import compile_ahead  # noqa: E402
from tensorgrad.backend.numba.compile_ahead import Compilation  # noqa: E402

ROOT = Path(__file__).parents[4]
NAMES = ["add", "global_norm", "gelu_tanh_recompute"]

PROGRAM = """
import re
import sys
import numba
import tensorgrad as tg
from numba.core.event import Listener, register
from tensorgrad.backend.numba.compile_ahead import CALLS

class Count(Listener):
    n = 0
    def on_start(self, event):
        Count.n += 1
    def on_end(self, event):
        pass

def mb_of_llvm():
    mappings = open("/proc/self/smaps").read() if sys.platform == "linux" else ""
    return sum(int(kb) for kb in re.findall(r"libllvmlite.so\\n(?:.*\\n){1,4}Rss: +(\\d+) kB", mappings)) / 1e3

register("numba:compile", Count())
names = sys.argv[1:]
k = tg.use_backend("numba").backend
compilation = k.compile_ahead(names)
compilation.wait()
print(compilation.done, compilation.total)
forgotten = mb_of_llvm() < 25  # without forget_pages 108
for name in names:
    CALLS[name](k)
print(Count.n, forgotten, numba.njit(lambda x: x + 1)(1))
"""


def test_other_processes_compile_everything_and_only_once(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "2"}
    for answer in (["3", "3", "0", "True", "2"], ["0", "0", "0", "True", "2"]):  # LLVM still compiles when it is needed
        command = [sys.executable, "-c", PROGRAM, *NAMES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == answer
        assert done.stderr == ("compiling 3 kernels, the first time only\n" if answer[0] == "3" else "")


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores and an empty cache."""
    monkeypatch.setattr(compile_ahead, "cpu_count", lambda: 2)
    monkeypatch.setattr(compile_ahead, "load_cached", list)


@pytest.mark.parametrize(("names", "n_processes"), [(NAMES, 2), (NAMES[:1], 1), ([], 0)])
def test_as_many_processes_as_cores_and_kernels(
    names: list[str], n_processes: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(Compilation, "_drive", lambda compilation: started.append(compilation))
    with tg.use_backend("numba") as use:
        compilation = use.backend.compile_ahead(names)
    compilation.wait()
    assert started == [compilation] * n_processes
    assert (compilation.done, compilation.total) == (0, len(names))
    what = {3: "compiling 3 kernels", 1: "compiling 1 kernel"}.get(len(names))
    assert capsys.readouterr().err == (f"{what}, the first time only\n" if what else "")


def test_nothing_is_started_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_ahead, "cpu_count", lambda: 1)
    assert compile_ahead.start(NAMES) is None


def test_nothing_is_started_without_a_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_ahead, "cache_folder", lambda _: None)
    assert compile_ahead.start(NAMES) is None


def test_a_process_that_cannot_be_started_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    compilation = Compilation(NAMES, 2)
    compilation.wait()
    assert compilation.done == 0


@pytest.mark.parametrize("program", ["import sys; sys.stdin.readline()", "pass"])
def test_a_process_that_ends_early_is_no_error(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: original([sys.executable, "-c", program], **options))
    compilation = Compilation(NAMES, 2)
    compilation.wait()
    assert compilation.done == 0


def test_waiting_ends_when_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    original = subprocess.Popen
    program = "import time; time.sleep(1)"
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: original([sys.executable, "-c", program], **options))
    asked: list[bool] = []
    started = time.monotonic()
    Compilation(NAMES, 1).wait(until=lambda: asked.append(True) or len(asked) > 2)
    assert len(asked) == 3 and time.monotonic() - started < HANG_S / 2
