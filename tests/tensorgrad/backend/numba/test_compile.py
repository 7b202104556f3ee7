"""How the numba backend is chosen, and how kernels are compiled, kept and announced."""

import errno
import importlib
import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import backend
from tensorgrad.backend.runtime import BackendUnavailable

numba = pytest.importorskip("numba")

from tensorgrad.backend.numba import compile as compiling  # noqa: E402
from tensorgrad.backend.numba import progress  # noqa: E402


def test_it_is_chosen_by_name() -> None:
    with tg.use_backend("numba") as use:
        assert use.backend.name == "numba"
        assert tg.get_backend() is use.backend


@pytest.fixture
def not_imported(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a process that has not met the backend yet."""
    for name in list(sys.modules):
        if name.startswith("tensorgrad.backend.numba"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(backend, "_loaded", {})
    monkeypatch.setattr(backend, "numba", None, raising=False)  # put back what the import below would leave
    return monkeypatch


def test_without_numba(not_imported: pytest.MonkeyPatch) -> None:
    not_imported.setitem(sys.modules, "numba", None)
    with pytest.raises(BackendUnavailable, match=r"^numba is not installed: pip install numba$"):
        backend.load("numba")


def test_with_a_numba_that_does_not_import(not_imported: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('needs NumPy 2.9 or less')")
    not_imported.delitem(sys.modules, "numba")
    not_imported.syspath_prepend(str(tmp_path))
    assert backend.check("numba") == "numba cannot be imported: needs NumPy 2.9 or less"


@pytest.fixture
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def double(x: Any) -> Any:
    return x + x


def compile_double() -> Any:
    dispatcher = compiling.jit(double, "double")
    assert dispatcher(2.5) == 5.0
    return dispatcher


def was_compiled(dispatcher: Any) -> bool:
    return bool(dispatcher.stats.cache_misses)


def test_compiled_code_is_kept(cache_folder: Path) -> None:
    assert was_compiled(compile_double())
    assert list(cache_folder.rglob("*.nbi"))
    assert not was_compiled(compile_double())


@pytest.mark.usefixtures("cache_folder")
def test_a_change_in_any_file_of_the_package_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_double()
    monkeypatch.setattr(compiling, "digest", lambda _: "another")
    assert was_compiled(compile_double())


def test_the_digest_reads_all_sources(tmp_path: Path) -> None:
    seen = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "1")):
        (tmp_path / name).write_text(text)
        compiling.digest.cache_clear()
        seen.append(compiling.digest(tmp_path))
    compiling.digest.cache_clear()
    assert len(set(seen)) == 3


def test_a_damaged_cache_is_compiled_anew(cache_folder: Path) -> None:
    compile_double()
    for path in (*cache_folder.rglob("*.nbi"), *cache_folder.rglob("*.nbc")):
        path.write_bytes(path.read_bytes()[:20])
    assert was_compiled(compile_double())


@pytest.mark.usefixtures("cache_folder")
def test_a_full_disk_costs_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compiling.FunctionCache, "save_overload", full)
    assert was_compiled(compile_double())


def test_no_folder_that_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    caching = importlib.import_module("numba.core.caching")
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert was_compiled(compile_double())


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def compilation(announcement: progress.Announcement, module: str = "tensorgrad.backend.numba.example") -> None:
    """What Numba tells of a kernel that calls itself a function."""

    def kernel() -> None: ...

    kernel.__module__ = module
    event = types.SimpleNamespace(data={"dispatcher": types.SimpleNamespace(py_func=kernel)})
    announcement.on_start(event)
    announcement.on_start(event)
    announcement.on_end(event)
    announcement.on_end(event)


def test_a_terminal_sees_the_kernel_while_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=True))
    compilation(progress.Announcement())
    assert screen.getvalue() == f"{progress.CLEAR}compiling kernels (once): kernel{progress.CLEAR}"


@pytest.mark.parametrize(("seconds", "text"), [(0.1, ""), (0.6, "compiling kernels (once)\n")])
def test_a_log_gets_one_line_after_a_second(seconds: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=False))
    clock = iter(np.arange(100) * seconds)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    announcement = progress.Announcement()
    for _ in range(4):
        compilation(announcement)
    assert screen.getvalue() == text


def test_other_peoples_functions_are_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=True))
    compilation(progress.Announcement(), module="theirs")
    assert screen.getvalue() == ""


def test_without_stderr_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    announcement = progress.Announcement()
    announcement.seconds = 2.0
    compilation(announcement)
    assert announcement.told


@pytest.mark.usefixtures("cache_folder")
def test_numba_tells_of_what_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.load("numba")
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=True))
    monkeypatch.setattr(double, "__module__", "tensorgrad.backend.numba.example")
    assert was_compiled(compile_double())
    assert "compiling kernels (once): double" in screen.getvalue()
