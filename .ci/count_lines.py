#!/usr/bin/env python3
"""Counts lines of code against the limits that keep the project readable.

    .ci/count_lines.py [--report-only]

It prints one row per count. It exits with 1 if a count exceeds its limit; with --report-only it always exits with 0.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ("tensorgrad/backend/numpy/", "tensorgrad/backend/numba/", "tensorgrad/backend/cupy/")

# Encodes a text and trains on it for one step, then prints the file of every module that this has imported.
STEP = """
import sys
import numpy as np
import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer

tg.use_backend(sys.argv[1])
text = "to be, or not to be: that is the question\\n"
tokenizer = CharTokenizer.train(text)
tokens = np.array([tokenizer.encode(text)])
config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=1, n_head=2, n_embd=16)
model = GPT(config)
optimizer = tg.optim.AdamW(model.parameters())
model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
tg.optim.clip_grad_norm(model.parameters(), 1.0)
optimizer.step()
print(*(module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)), sep="\\n")
"""


def python_files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def count(paths: Sequence[Path]) -> int:
    return sum(len(lines_of(path)) for path in paths)


def count_token_to_kernel(backend: str) -> int:
    """Non-blank lines of every module of the project that a training step on this backend imports."""
    command = [sys.executable, "-c", STEP, backend]
    result = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    paths = {Path(line).resolve() for line in result.stdout.splitlines()}
    return sum(bool(line.strip()) for path in paths if path.is_relative_to(ROOT) for line in lines_of(path))


def significant_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines with white space folded, without what repeats by nature: blanks, comments and imports."""
    text = re.sub(
        r"(?m)^ *(from \S+ )?import (\([^)]*\)|.*)", lambda found: "\n" * found[0].count("\n"), path.read_text("utf-8")
    )
    lines = ((number, " ".join(line.split())) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if re.search(r"\w", line) and not line.startswith("#")]


def repeated_run(files: dict[Path, list[tuple[int, str]]], n: int) -> str | None:
    """Two places with the same n lines, which do not overlap; None if there are none."""
    seen: dict[tuple[str, ...], tuple[Path, int]] = {}
    for path, lines in files.items():
        for i in range(len(lines) - n + 1):
            other, j = seen.setdefault(tuple(line for _, line in lines[i : i + n]), (path, i))
            if other != path or j + n <= i:
                return f"{other.relative_to(ROOT)}:{files[other][j][0]}, {path.relative_to(ROOT)}:{lines[i][0]}"
    return None


def longest_duplicate(paths: Sequence[Path]) -> tuple[int, str]:
    """How many lines the longest run has that is written in two places, and the places."""
    files = {path: significant_lines(path) for path in paths}
    n, places = 0, ""
    while found := repeated_run(files, n + 1):
        n, places = n + 1, found
    return n, places


def rows() -> Iterator[tuple[str, int, int]]:
    """What is counted, how many there are, and how many are allowed."""
    library = python_files("tensorgrad", "gpt")
    for name, limit in (("tensorgrad/autograd/tape.py", 200), ("gpt/model.py", 200), ("gpt/fused.py", 100)):
        yield name, count([ROOT / name] if (ROOT / name).exists() else []), limit
    yield "tensorgrad/autograd/", count(python_files("tensorgrad/autograd")), 650
    yield "tensorgrad/ and gpt/", count(library), 19_999
    longest = max(library, key=lambda path: len(lines_of(path)))
    yield f"longest module: {longest.relative_to(ROOT)}", count([longest]), 400
    for backend in ("numpy", "numba"):
        yield f"token to kernel on {backend}, non-blank lines", count_token_to_kernel(backend), 4000
    others = [path for path in library if not path.relative_to(ROOT).as_posix().startswith(KERNELS)]
    n, places = longest_duplicate([*others, *ROOT.glob("*.py"), *python_files("benchmarks", "tests")])
    yield f"longest run of lines in two places: {places}", n, 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report-only", action="store_true", help="exit with 0 even if a count exceeds its limit")
    options = parser.parse_args()
    all_met = True
    for name, n, limit in rows():
        met = 0 < n <= limit  # 0 where a file is missing
        all_met &= met
        print(f"{n:7,} of {limit:6,}  {name}{'' if met else '  NOT MET'}")
    return 0 if all_met or options.report_only else 1


if __name__ == "__main__":
    sys.exit(main())
