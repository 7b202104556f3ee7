"""Shared by the benchmarks: the machine in one line, memory counters, flags, tables, JSON and charts.

Imports neither NumPy nor tensorgrad nor PyTorch, so that every contender loads only its own libraries.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MB = 1e6

# The user may have set these; contenders replace them by their own settings, or remove them.
ALLOCATOR_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
# These change how threads wait. They are kept, and reported.
WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OPENBLAS_THREAD_TIMEOUT")
# Larger than any array here, so that glibc never returns memory to the system and causes no more page faults.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)}

OURS, THEIRS, BOUND = "#2a6fbb", "#c9772b", "#9a9a9a"  # the colours of the charts

# --- the machine --------------------------------------------------------------------------------


def available_threads() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_variables(threads: int) -> dict[str, str]:
    """The variables that set the number of threads of OpenBLAS, MKL, OpenMP and Numba when they are loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def environment(
    threads: int, packages: Sequence[str] = ("numpy", "numba", "torch"), keep: bool = False
) -> dict[str, Any]:
    """Everything that the figures depend on, ready for JSON. Versions are read without importing the packages.

    keep: whether some contenders use an allocator that keeps freed memory.
    """
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(memory_total() / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "dtype": "float32",
        "allocator": {"default": {}, "keep": KEEP_MEMORY} if keep else {"default": {}},
        "waiting": {name: os.environ[name] for name in WAITING_VARIABLES if name in os.environ},
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def environment_line(env: dict[str, Any]) -> str:
    """The environment in one readable line."""
    packages = ", ".join(f"{name} {number or 'not installed'}" for name, number in env["packages"].items())
    waiting = "".join(f", {name}={value}" for name, value in env["waiting"].items())
    keep = ", ".join(f"{name}={value}" for name, value in env["allocator"].get("keep", {}).items())
    return (
        f"{env['cpu']}, {env['threads']} of {env['cores']} cores, {env['memory_gb']:g} GB, {env['libc']}, "
        f"Python {env['python']}, {packages}, {env['dtype']}{waiting}, "
        f"allocator's defaults{keep and f' (+keep: {keep})'}"
    )


def cpu_name() -> str:
    """The processor's model, as Linux names it."""
    lines = _lines("/proc/cpuinfo")
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def version(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the working tree, with -dirty if it has changes; None outside Git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


# --- memory -------------------------------------------------------------------------------------


def page_faults() -> int:
    """Minor page faults of this process so far: first accesses to pages of memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def cpu_seconds() -> float:
    """Processor time of all threads of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_memory() -> float:
    """The most physical memory this process has held since the last reset, in MB (VmHWM)."""
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def resident_memory() -> float:
    """The physical memory of this process, in MB (VmRSS); 0 where the system does not report it."""
    values = (int(line.split()[1]) * 1024 / MB for line in _lines("/proc/self/status") if line.startswith("VmRSS"))
    return next(values, 0.0)


def reset_peak_memory() -> None:
    """Reset the peak. Where the system does not allow this, the peak since the start of the process remains."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def memory_total() -> int:
    """Bytes of physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_available() -> int:
    """Bytes of memory that can be allocated without swapping."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return memory_total()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


# --- flags --------------------------------------------------------------------------------------


def at_least(lowest: int, highest: int | None = None) -> Any:
    """An argparse type: a whole number, not below `lowest` nor above `highest`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest or (highest is not None and int(text) > highest):
            to = "" if highest is None else f" to {highest}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {lowest}{to}")
        return int(text)

    return parse


def add_common_flags(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the flags of every benchmark."""
    cores = available_threads()
    parser.add_argument("--threads", type=at_least(1, cores), default=cores, help="of each contender")
    parser.add_argument("--rounds", type=at_least(1), default=rounds, help="turns of each contender")
    parser.add_argument("--out", help="the JSON file, with the chart beside it (default: a new file in results/)")
    parser.add_argument("--no-chart", action="store_true", help="write no PNG")


def add_read_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag of benchmarks that measure the bandwidth of memory."""
    parser.add_argument("--read-mb", type=at_least(1), default=512, help="size of the array: larger than any cache")


# --- figures ------------------------------------------------------------------------------------


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(statistics.median(values))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median by order statistics; the full range for fewer than 6 values."""
    n, outside, below = len(values), 0, 2.0 ** -len(values)  # below: the chance that no value lies under the median
    while below <= 0.025:
        outside += 1
        below += math.comb(n, outside) * 2.0**-n
    ordered = sorted(values)
    first = max(outside - 1, 0)
    return ordered[first], ordered[n - 1 - first]


def spread(values: Sequence[float]) -> float:
    """Half the interquartile range over the median: how noisy the machine was."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / median(values)


def growth(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The exponent p of y ~ x^p, fitted to the logarithms: 1 is linear."""
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in text: the first column aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def progress(text: str) -> None:
    """Print on stderr what the program is doing."""
    print(text, file=sys.stderr, flush=True)


# --- results ------------------------------------------------------------------------------------


def result_path(program: str, out: str | None) -> Path:
    """The path of the JSON file: `out`, or a new file in benchmarks/results/."""
    if out:
        return Path(out)
    return RESULTS / f"{program}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write the figures, and print the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


Bars = list[tuple[str, float, str]]  # label, length, colour


def bar_chart(
    path: Path, title: str, panels: dict[str, Bars], unit: str, note: str, line_at: float | None = None
) -> None:
    """Draw horizontal bars, one panel for each heading; without matplotlib, print a line instead."""
    panels = {heading: bars for heading, bars in panels.items() if bars}
    try:
        import matplotlib
    except ImportError:
        print("no chart: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = [len(bars) for bars in panels.values()]
    size, ratios = (9, 0.32 * sum(counts) + 0.75 * len(counts) + 0.9), [n + 0.6 for n in counts]
    figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False, height_ratios=ratios, layout="constrained")
    for axis, (heading, bars) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_bars(axis, heading, bars, unit)
        if line_at is not None:
            axis.axvline(line_at, color="#666666", linewidth=0.8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel("\n".join(textwrap.wrap(note, 150)), x=0.01, ha="left", fontsize=7, color="#666666")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"chart in {path}")


def _draw_bars(axis: Any, heading: str, bars: Bars, unit: str) -> None:
    labels, lengths, colours = zip(*bars, strict=True)
    rows = range(len(bars))
    axis.barh(rows, lengths, color=colours, height=0.7)
    axis.set_yticks(rows, labels, fontsize=9)
    axis.set_ylim(len(bars) - 0.4, -0.6)  # the first on top
    axis.set_title(heading, loc="left", fontsize=10)
    axis.set_xlim(0, max(lengths) * 1.14 or 1)
    axis.set_xticks([])
    for row, length in zip(rows, lengths, strict=True):
        text = f"{length:,.0f} {unit}" if length >= 1000 else f"{length:.3g} {unit}"
        axis.annotate(text, (length, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.tick_params(left=False)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
