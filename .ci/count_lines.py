#!/usr/bin/env python3
"""Counts lines of code against the limits that keep the project readable.

It prints one row per count, and exits with 1 if a count exceeds its limit.
"""

import ast
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


def token_to_kernel(backend: str) -> list[Path]:
    """Every module of the project that a training step on this backend imports."""
    command = [sys.executable, "-c", STEP, backend]
    result = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    paths = {Path(line).resolve() for line in result.stdout.splitlines()}
    return sorted(path for path in paths if path.is_relative_to(ROOT) and path.suffix == ".py")


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank nor a comment nor part of a docstring."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, lines_of(path)), 1)
    return sum(bool(line) and line[0] != "#" and number not in docstrings for number, line in lines)


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


def rows() -> Iterator[tuple[str, int, int | None]]:
    """What is counted, how many there are, and how many are allowed, if that is limited."""
    limits = {"tensorgrad/autograd/tape.py": 200, "gpt/model.py": 200, "gpt/llama.py": 200, "gpt/fused.py": 200}
    for name, limit in limits.items():
        yield name, count([ROOT / name]), limit
    yield "tensorgrad/autograd/", count(python_files("tensorgrad/autograd")), 650
    library = python_files("tensorgrad", "gpt")
    yield "tensorgrad/ and gpt/", count(library), None
    longest = max(library, key=lambda path: len(lines_of(path)))
    yield f"the longest module, {longest.relative_to(ROOT)}", count([longest]), 400
    for backend, limit in (("numpy", 4000), ("numba", None)):
        modules = token_to_kernel(backend)
        yield f"token to kernel on {backend}, lines of code", sum(map(lines_of_code, modules)), limit
        not_blank = sum(bool(line.strip()) for path in modules for line in lines_of(path))
        yield f"token to kernel on {backend}, with comments and docstrings", not_blank, None
    others = [path for path in library if not path.relative_to(ROOT).as_posix().startswith(KERNELS)]
    n, places = longest_duplicate([*others, *ROOT.glob("*.py"), *python_files("benchmarks", "tests")])
    yield f"the longest run of lines in two places: {places}", n, 12


def main() -> int:
    exceeded = False
    for name, n, limit in rows():
        over = limit is not None and n > limit
        exceeded |= over
        print(f"{n:7,} {'' if limit is None else f'of {limit:,}':9}  {name}{'  TOO MANY' if over else ''}")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
