"""How the numba backend is selected, and how kernels are compiled, cached and announced."""

import errno
import importlib
import io
import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import backend
from tensorgrad.backend.runtime import BackendUnavailable
from tests.processes import HANG_S

ROOT = Path(__file__).parents[4]

numba = pytest.importorskip("numba")

from tensorgrad.backend.numba import compile as compiling  # noqa: E402
from tensorgrad.backend.numba import progress  # noqa: E402


def test_the_backend_is_selected_by_name() -> None:
    with tg.use_backend("numba") as use:
        assert use.backend.name == "numba"
        assert tg.get_backend() is use.backend


@pytest.fixture
def not_imported(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a process that has not imported the backend yet."""
    for name in list(sys.modules):
        if name.startswith("tensorgrad.backend.numba"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(backend, "_loaded", {})
    monkeypatch.setattr(backend, "numba", None, raising=False)  # undo what the import below sets
    return monkeypatch


def test_error_if_numba_is_not_installed(not_imported: pytest.MonkeyPatch) -> None:
    not_imported.setitem(sys.modules, "numba", None)
    with pytest.raises(BackendUnavailable, match=r"^numba is not installed: pip install numba$"):
        backend.load("numba")


def test_error_if_numba_cannot_be_imported(not_imported: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_compiled_code_is_cached_on_disk(cache_folder: Path) -> None:
    assert was_compiled(compile_double())
    assert list(cache_folder.rglob("*.nbi"))
    assert not was_compiled(compile_double())


@pytest.mark.usefixtures("cache_folder")
def test_a_change_in_any_file_of_the_package_invalidates_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_double()
    monkeypatch.setattr(compiling, "digest", lambda _: "another")
    assert was_compiled(compile_double())


def test_the_digest_depends_on_all_sources(tmp_path: Path) -> None:
    seen = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "1")):
        (tmp_path / name).write_text(text)
        compiling.digest.cache_clear()
        seen.append(compiling.digest(tmp_path))
    compiling.digest.cache_clear()
    assert len(set(seen)) == 3


def test_a_damaged_cache_is_ignored(cache_folder: Path) -> None:
    compile_double()
    for path in (*cache_folder.rglob("*.nbi"), *cache_folder.rglob("*.nbc")):
        path.write_bytes(path.read_bytes()[:20])
    assert was_compiled(compile_double())
    assert not was_compiled(compile_double())  # and replaced


def test_another_version_of_the_compiler_has_files_of_its_own(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_double()
    before = {path: path.read_bytes() for path in cache_folder.rglob("*.nb?")}
    with monkeypatch.context() as patch:
        patch.setattr(compiling.llvmlite, "__version__", "0.0.1")
        assert was_compiled(compile_double())
        assert not was_compiled(compile_double())
    assert len(before) == 2 and before == {path: path.read_bytes() for path in before}
    assert len(list(cache_folder.rglob("*.nb?"))) == 4
    assert not was_compiled(compile_double())


def test_another_processor_compiles_for_itself(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    compile_double()
    codegen = type(compile_double().targetctx.codegen())
    with monkeypatch.context() as patch:
        patch.setattr(codegen, "magic_tuple", lambda self: ("x86_64-unknown-linux-gnu", "another", "+fast"))
        assert was_compiled(compile_double())
    assert not was_compiled(compile_double())
    assert len(list(cache_folder.rglob("*.nbc"))) == 2


def test_what_is_not_cached_is_not_compiled_where_that_is_asked(cache_folder: Path) -> None:
    dispatcher = compiling.jit(double, "double")
    with compiling.cached_only(), pytest.raises(compiling.NotCached):
        dispatcher(2.5)
    assert not list(cache_folder.rglob("*.nb?"))
    assert dispatcher(2.5) == 5.0
    with compiling.cached_only():
        assert not was_compiled(compile_double())


PROGRAM = """
import sys
import numpy as np
from tensorgrad.backend import load
from tensorgrad.backend.numba.softmax import softmax

k = load("numba")
k.softmax(np.ones((4, 8), "float32"), -1)
print(bool(softmax.compiled.stats.cache_misses), "numba.np.linalg" in sys.modules)
assert k.softmax(np.ones((4, 8), sys.argv[1]), -1).sum() == 4
"""


def test_cached_code_is_loaded_without_importing_the_compiler(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for dtype, answer in (("float32", "True True"), ("float64", "False False")):  # float64 is compiled after that
        command = [sys.executable, "-c", PROGRAM, dtype]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == answer


@pytest.mark.usefixtures("cache_folder")
def test_a_full_disk_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compiling.FunctionCache, "save_overload", full)
    assert was_compiled(compile_double())


def test_no_writable_cache_folder_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Numba's events for a kernel that calls another function."""

    def kernel() -> None: ...

    kernel.__module__ = module
    event = types.SimpleNamespace(data={"dispatcher": types.SimpleNamespace(py_func=kernel)})
    announcement.on_start(event)
    announcement.on_start(event)
    announcement.on_end(event)
    announcement.on_end(event)


def test_a_terminal_shows_the_kernel_while_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_functions_of_other_packages_are_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=True))
    compilation(progress.Announcement(), module="other_package")
    assert screen.getvalue() == ""


def test_without_stderr_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    announcement = progress.Announcement()
    announcement.seconds = 2.0
    compilation(announcement)
    assert announcement.is_announced


@pytest.mark.usefixtures("cache_folder")
def test_numba_reports_compilations(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.load("numba")
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=True))
    monkeypatch.setattr(double, "__module__", "tensorgrad.backend.numba.example")
    assert was_compiled(compile_double())
    assert "compiling kernels (once): double" in screen.getvalue()


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("NUMBA_DISABLE_JIT=1", "NUMBA_DISABLE_JIT is set, so kernels would not be compiled: unset it"),
        ("NUMBA_NUM_THREADS=0", "numba cannot be imported: Number of threads specified must be > 0."),
        ("NUMBA_THREADING_LAYER=none", "numba cannot start its threads: The threading layer requested 'none'"),
    ],
)
def test_where_numba_cannot_run_it_is_not_chosen(variable: str, message: str) -> None:
    """Neither by auto nor by the doctor, which both say why."""
    name, value = variable.split("=")
    code = (
        "import tensorgrad as tg, tensorgrad.doctor as doctor; print(tg.use_backend('auto').reason); "
        "print(tg.softmax(tg.ones((2, 2))).numpy().sum()); print(doctor.backend_report('numba')[1])"
    )
    environment = {**os.environ, name: value, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert result.returncode == 0, result.stderr
    reason, total, report = result.stdout.splitlines()
    assert reason.startswith("auto chose numpy; not ") and f"not numba: {message}" in reason
    assert total == "2.0"
    assert report.startswith(f"does not work: {message}")


def test_one_thread_compiles_nothing_while_others_compile(cache_folder: Path) -> None:
    def add_one(x: int) -> int:
        return x + 1

    results: list[int] = []
    with compiling.cached_only():
        with pytest.raises(compiling.NotCached):
            compiling.jit(add_one, "add_one")(1)
        thread = threading.Thread(target=lambda: results.append(compiling.jit(add_one, "add_one")(1)))
        thread.start()
        thread.join()
    assert results == [2]
    with compiling.cached_only():
        assert compiling.jit(add_one, "add_one")(2) == 3  # from the cache
