"""Every chapter has the same form, uses only what was explained, copies nothing, and has exercises that can be failed.

Their numbers are compared with the kept ones by `python chapters/build.py check`.
"""

import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "chapters"
CHAPTERS = sorted(FOLDER.glob("[0-9]*_*.py"), key=lambda path: path.name.split("_"))  # 00, 00b, 01, ...
HEADINGS = [
    "What you will be able to do", "The idea", "The library's code", "The same numbers", "Mistakes that people make",
    "Exercises", "What you can use now", "Sources",
]  # fmt: skip
LONGEST_COPY = 4  # lines
LARGEST_NOTEBOOK = 1_000_000  # bytes, with the pages inside it

each = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def load(path: Path) -> Any:
    """Import a file of chapters/, whose names are no module's."""
    spec = importlib.util.spec_from_file_location(f"chapters_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(path: Path) -> list[tuple[str, str]]:
    """The kind of every cell of a chapter and its source, as a notebook has it."""
    found = []
    for part in re.split(r"^# %%", path.read_text(), flags=re.M)[1:]:
        first, _, rest = part.partition("\n")
        source = rest.strip("\n")
        if "[markdown]" in first:
            source = "\n".join(line[2:] for line in source.split("\n"))
        found.append(("markdown" if "[markdown]" in first else "code", source))
    return found


def prose(path: Path) -> str:
    """All its text."""
    return "\n\n".join(source for kind, source in cells(path) if kind == "markdown")


def code(path: Path) -> str:
    """All its code."""
    return "\n\n".join(source for kind, source in cells(path) if kind == "code")


# --------------------------------------------------------------------------------------------------
# Form


@each
def test_its_parts(path: Path) -> None:
    number = path.stem.split("_")[0]
    assert prose(path).startswith(f"# {number} ")
    positions = [prose(path).find(f"\n## {heading}\n") for heading in HEADINGS]
    assert -1 not in positions, f"no heading {HEADINGS[positions.index(-1)]!r}"
    assert positions == sorted(positions)
    assert code(path).count("same(") >= 5
    assert "picture(" in code(path)
    assert re.search(r"^show\(", code(path), re.M)
    assert prose(path).partition("\n## Sources\n")[2].count("](http") >= 2


@each
def test_the_notebook_is_that_of_the_chapter_and_was_executed(path: Path) -> None:
    kept = json.loads(path.with_suffix(".ipynb").read_text())
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in kept["cells"]]
    assert sources == cells(path), f"run: python chapters/build.py run {path.stem.split('_')[0]}"
    assert path.with_suffix(".ipynb").stat().st_size < LARGEST_NOTEBOOK
    outputs = [output for cell in kept["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)


@each
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if not target.startswith("http"):
            assert (FOLDER / target.partition("#")[0]).exists(), target


def test_each_leads_to_the_next() -> None:
    for path, following in zip(CHAPTERS, CHAPTERS[1:], strict=False):
        assert prose(path).rstrip().splitlines()[-1].startswith("Next: ")
        assert f"({following.stem}.ipynb)" in prose(path).rstrip().splitlines()[-1]


@each
def test_the_tables_list_it(path: Path) -> None:
    for page in ("README.md", "chapters/index.md"):
        assert f"{path.stem}.ipynb) | " in (ROOT / page).read_text()
    assert f"{path.stem}.ipynb" in (ROOT / "docs" / "glossary.md").read_text()


# --------------------------------------------------------------------------------------------------
# The library's names


def used(path: Path) -> set[str]:
    """The names of the library in a chapter's code, in full: tensorgrad.nn.Linear."""
    tree = ast.parse(code(path))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    names = {short: full for short, full in names.items() if full.split(".")[0] in ("tensorgrad", "gpt")}
    found = set()
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
            *_, chain = attributes(node)
            if chain[0] in names:
                found.add(".".join([names[chain[0]], *chain[1:]]))
    return found


def attributes(node: ast.AST) -> Iterator[list[str]]:
    """A chain of attributes from its beginning: tg.nn.Linear -> [tg, nn, Linear]."""
    if isinstance(node, ast.Attribute):
        *_, before = attributes(node.value)
        yield [*before, node.attr]
    else:
        yield [node.id if isinstance(node, ast.Name) else ""]


def explained(path: Path) -> set[str]:
    """The names that the chapter says it has explained."""
    section = prose(path).partition("\n## What you can use now\n")[2].partition("\n## ")[0]
    quoted = re.findall(r"`((?:tg|tensorgrad|gpt)\.[\w.]+)`", section)
    return {re.sub(r"^tg\b", "tensorgrad", name) for name in quoted}


def resolve(name: str) -> Any:
    """The object of that name. Raises AttributeError or ImportError where there is none."""
    parts = name.split(".")
    thing: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            thing = importlib.import_module(".".join(parts[:i]))
    return thing


@each
def test_it_uses_only_what_was_explained(path: Path) -> None:
    known = {name for earlier in CHAPTERS[: CHAPTERS.index(path) + 1] for name in explained(earlier)}
    for name in sorted(used(path)):
        prefixes = {name.rsplit(".", n)[0] for n in range(name.count("."))}
        assert prefixes & known, f"{name} is in no list of what can be used"


@each
def test_every_name_exists(path: Path) -> None:
    assert explained(path)
    quoted = re.findall(r"`((?:tg|tensorgrad|gpt)\.[\w.]+\w)`", prose(path))
    for name in [*explained(path), *quoted]:
        if not name.endswith(".py"):
            resolve(re.sub(r"^tg\b", "tensorgrad", name))


def test_a_name_that_was_not_explained_is_found(tmp_path: Path) -> None:
    chapter = tmp_path / "99_example.py"
    chapter.write_text("# %%\nimport tensorgrad as tg\nfrom gpt.model import GPT\n\nprint(tg.nn.Linear(3, 2), GPT)\n")
    assert used(chapter) == {"tensorgrad.nn.Linear", "gpt.model.GPT"}


# --------------------------------------------------------------------------------------------------
# Nothing is copied


def meaningful(text: str) -> list[str]:
    """Lines without indents, comments and empty ones."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("import ", "from ", '"""'))]


@each
def test_no_lines_are_copied_from_the_library(path: Path) -> None:
    n = LONGEST_COPY + 1
    lines = meaningful(code(path))
    runs = {tuple(lines[i : i + n]) for i in range(len(lines) - n + 1)}
    for file in [*(ROOT / "tensorgrad").rglob("*.py"), *(ROOT / "gpt").rglob("*.py")]:
        theirs = meaningful(file.read_text())
        for i in range(len(theirs) - n + 1):
            assert tuple(theirs[i : i + n]) not in runs, f"copied from {file}: {theirs[i : i + n]}"


# --------------------------------------------------------------------------------------------------
# Exercises


def exercises() -> Iterator[Any]:
    """Every exercise: the file of its test, its name, and the code of the empty answer."""
    for path in CHAPTERS:
        tree = ast.parse(code(path))
        (module,) = (
            alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "exercises"
            for alias in node.names
        )  # fmt: skip
        stubs = {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "exercise":
                answer, test = node.args
                assert isinstance(answer, ast.Name)
                assert ast.unparse(test) == f"tests.{answer.id}"
                yield pytest.param(module, answer.id, stubs[answer.id], id=f"{path.stem}-{answer.id}")


@pytest.mark.parametrize(("module", "name", "stub"), list(exercises()))
def test_an_empty_answer_fails_and_the_solution_passes(module: str, name: str, stub: str) -> None:
    test = getattr(load(FOLDER / "exercises" / f"{module}.py"), name)
    empty: dict[str, Any] = {"np": np}
    exec(stub, empty)
    with pytest.raises(Exception, match=r"."):
        test(empty[name])
    test(getattr(load(FOLDER / "solutions" / f"{module}.py"), name))


def test_every_chapter_has_exercises_and_every_solution_a_test() -> None:
    asked: dict[str, set[str]] = {}
    for module, name, _ in (parameter.values for parameter in exercises()):
        asked.setdefault(module, set()).add(name)
    assert len(asked) == len(CHAPTERS)
    assert {path.stem for path in (FOLDER / "exercises").glob("*.py")} == set(asked)
    assert {path.stem for path in (FOLDER / "solutions").glob("*.py")} == set(asked)


# --------------------------------------------------------------------------------------------------
# They notice what they are there to notice


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("tensorgrad/nn.py", "eps: float = 1e-5", "eps: float = 1e-4"),
        ("tensorgrad/backend/math.py", "du = GELU_SCALE * (1 + 3", "du = GELU_SCALE * (1 - 3"),
    ],
)
def test_a_changed_constant_of_the_library_makes_a_chapter_fail(
    tmp_path: Path, file: str, before: str, after: str
) -> None:
    shutil.copytree(ROOT / "tensorgrad", tmp_path / "tensorgrad")
    shutil.copytree(FOLDER, tmp_path / "chapters")
    changed = tmp_path / file
    assert before in changed.read_text()
    changed.write_text(changed.read_text().replace(before, after))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MPLBACKEND": "Agg"}
    result = subprocess.run(
        [sys.executable, tmp_path / "chapters" / "00b_tensors.py"], check=False, env=environment, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert "AssertionError" in result.stderr
    assert "they differ by" in result.stderr


def test_different_numbers_are_not_the_same() -> None:
    same = load(FOLDER / "course.py").same
    same([1.0, 2.0], [1.0, 2.0 + 1e-13], "equal")
    with pytest.raises(AssertionError, match=r"a test: they differ by 0\.5 of the largest, not at most 1e-12"):
        same([1.0, 1.0], [1.0, 2.0], "a test")
    with pytest.raises(AssertionError, match="a test: shapes"):
        same([1.0], 1.0, "a test")
    with pytest.raises(AssertionError):
        same(float("nan"), 1.0, "a test")


def test_outputs_of_another_processor_may_differ_in_their_last_digits() -> None:
    alike = load(FOLDER / "build.py").alike
    assert alike("loss 2.514, error 3e-12\n", "loss 2.519, error 8e-13\n")
    assert not alike("loss 2.514\n", "loss 2.614\n")
    assert not alike("loss 2.514\n", "Loss 2.514\n")
    assert not alike("1,000 steps\n", "2,000 steps\n")


def test_of_a_page_only_its_place_is_compared() -> None:
    build = load(FOLDER / "build.py")
    first, other = ({"outputs": [{"data": {"text/html": f"<iframe srcdoc='{text}'></iframe>"}}]} for text in "ab")
    assert build.printed(first) == build.printed(other)
    assert build.printed(first) != build.printed({"outputs": []})
