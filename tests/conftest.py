"""What every test shares: the order, what is skipped, how hypothesis behaves, tiny Shakespeare, mpirun."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import tensorgrad as tg
from tensorgrad import backend
from tensorgrad.backend.threads import cpu_count
from tests.browser import Browser
from tests.processes import HANG_S

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# The modules that tests share: the table of ops, the stand-ins for CuPy, cuBLASLt and a GPU, and random cases.
sys.path[:0] = [str(TESTS / folder) for folder in ("tensorgrad", "tensorgrad/backend/cupy", "fuzz")]

# A measurement would make results depend on how busy the machine is.
os.environ["TENSORGRAD_PRODUCTS"] = "numba"

# A deadline would make the outcome depend on how busy the machine is.
settings.register_profile("tensorgrad", settings(), deadline=None)
settings.load_profile("tensorgrad")

# Where a shell or nohup started the tests in the background, these are ignored, and what they start would ignore them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--known-skips", metavar="FILE", help="fail if a test is skipped for a reason that is not in FILE")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run all tests in as many processes as there are cores, and files that are named in this one."""
    return 0 if config.option.file_or_dir else cpu_count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = max(ranks.get(item.path, 0), rank(item))
    items.sort(key=lambda item: (ranks[item.path], TESTS / "tensorgrad" not in item.path.parents))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    reason = backend.check("cupy") if on_gpu else None
    if reason:
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=f"needs the cupy backend: {reason}"))


def rank(item: pytest.Item) -> int:
    """Quick tests come first: 0 for most, 1 if the module needs a compiler, 2 if it starts other programs.

    What a module needs is seen from the names that it imports and from the fixtures of its tests.
    """
    names = {*vars(getattr(item, "module", None) or object), *getattr(item, "fixturenames", ())}
    if names & {"subprocess", "mpirun"}:
        return 2
    return 1 if names & {"numba", "EmulatingLauncher", "gpu", "place"} else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With --known-skips, fail and say so if a test was skipped for another reason."""
    path = session.config.getoption("--known-skips")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if path is None or reporter is None:  # one of several processes has no reporter
        return
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    known = tuple(line for line in lines if line and not line.startswith("#"))
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", ())}
    for reason in sorted(reason for reason in reasons if not reason.startswith(known)):
        reporter.write_line(f"ERROR: {path} does not list this reason to skip a test: {reason}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module", autouse=True)
def same_random_numbers() -> None:
    """A file of tests draws the same numbers, whatever has run before it in this process."""
    tg.manual_seed(0)


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The CuPy backend, current: over a stand-in for CuPy, and with its kernels compiled for the CPU."""
    from emulated_cuda import COMPILER, emulated_gpu

    if COMPILER is None:
        pytest.skip("no C++ compiler here to run the CUDA kernels on the CPU: install g++")
    with emulated_gpu() as k:
        yield k


@pytest.fixture(scope="session")
def tinyshakespeare_path() -> Path:
    """The text of nanoGPT's experiments, from TENSORGRAD_TINYSHAKESPEARE or beside the repository.

    It is no part of the repository; https://github.com/karpathy/char-rnn has it, as
    data/tinyshakespeare/input.txt.
    """
    places = [folder / "shared/data/tinyshakespeare.txt" for folder in (ROOT, ROOT.parent)]
    if named := os.environ.get("TENSORGRAD_TINYSHAKESPEARE"):
        places = [Path(named)]
    for place in places:
        if place.is_file():
            return place
    pytest.skip("no tiny Shakespeare here: name the file in TENSORGRAD_TINYSHAKESPEARE")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A Chromium without a network."""
    browser = Browser()
    yield browser
    browser.close()


Mpirun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def mpirun() -> Mpirun:
    """mpirun(n, *arguments of Python, cwd=..., env={}): what n processes with a thread each wrote, and how they ended.

    The mpirun beside this Python goes before others: it is of the MPI that mpi4py here is made for.
    """
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    launcher = shutil.which("mpirun", path=beside)
    if launcher is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("no MPI here: pip install mpi4py mpich")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    # Open MPI starts nothing for root, and no more processes than there are cores, unless told to.
    as_root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    more = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}

    def run(
        n: int, *arguments: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [launcher, "-n", str(n), sys.executable, *map(str, arguments)]
        environment = {**os.environ, **threads, **as_root, **more, "PYTHONPATH": str(ROOT), **(env or {})}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANG_S, stdin=subprocess.DEVNULL
        )  # fmt: skip

    return run
