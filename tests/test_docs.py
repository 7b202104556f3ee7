"""The documentation is true: links and paths exist, commands run, the map names every module, examples work."""

import re
import shlex
from collections.abc import Iterator
from html import unescape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpt.__main__
import tensorgrad.__main__
from gpt.config import GPT_CONFIG_124M

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "measured.md",
    ROOT / "chapters" / "index.md", ROOT / "checkpoints" / "README.md",
]  # fmt: skip
FOLDERS = ("benchmarks", "chapters", "checkpoints", "docs", "gpt", "tensorgrad", "tests")  # with which paths begin
COMMANDS: dict[str, ModuleType] = {"gpt": gpt.__main__, "tensorgrad": tensorgrad.__main__}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def code_lines(text: str) -> list[str]:
    """The lines of code blocks, fenced or indented, and the inline code outside of them."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4,}(.*)$", prose, re.M)
    return [*"\n".join(fenced).splitlines(), *indented, *re.findall(r"`([^`]+)`", prose.replace("\n", " "))]


def paths_in(text: str) -> Iterator[str]:
    """Everything in inline code that looks like the path of a file or folder of this repository."""
    prose = re.sub(r"^```.*?^```|^ {4,}.*?$", "", text, flags=re.M | re.S)
    for word in re.findall(r"`([\w./-]+)`", prose):
        if word.split("/")[0] in FOLDERS and "/" in word or re.fullmatch(r"[\w-]+\.(py|md|sh)", word):
            yield word


def commands_in(text: str) -> Iterator[list[str]]:
    """Every command of this project that the page names, as words, without its comment."""
    for line in code_lines(text):
        found = re.search(r"(?:^|&& |mpirun -n \d+ )(python (?:-m |[\w/]+\.py).*|benchmarks/\w+\.sh.*)", line)
        if found:
            yield shlex.split(found[1], comments=True)


def exists(module: str) -> bool:
    """Whether there is such a module."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package in its name is none
        return False


@pages
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pages
def test_paths_exist(page: Path) -> None:
    if page.name == "map.md":  # its names are relative to the folder in the heading: see below
        return
    for path in paths_in(page.read_text(encoding="utf-8")):
        assert any((folder / path).exists() for folder in (ROOT, page.parent)), path


@pages
def test_commands_are_known(page: Path) -> None:
    for program, *arguments in commands_in(page.read_text(encoding="utf-8")):
        if program != "python":
            assert (ROOT / program).exists(), program
        elif arguments[0] != "-m":
            assert (ROOT / arguments[0]).exists(), arguments[0]
        else:
            module, *rest = arguments[1:]
            package = module.split(".")[0]
            if package not in COMMANDS:
                assert module in ("pytest", "venv"), module
            elif module != package:
                program = next(name for name in (f"{module}.__main__", module) if exists(name))
                assert hasattr(import_module(program), "main"), module
            elif rest and not rest[0].startswith("-") and rest[0] != "COMMAND":
                assert rest[0] in COMMANDS[package].COMMANDS, f"{module} {rest[0]}"


def test_flags_of_the_programs_exist() -> None:
    import generate
    from gpt.train.flags import build_parser

    parsers = {"train.py": build_parser(), "generate.py": generate.build_parser()}
    for page in PAGES:
        for command in commands_in(page.read_text(encoding="utf-8")):
            flags = {word.split("=")[0].replace("_", "-") for word in command if word.startswith("--")}
            for program in parsers.keys() & {*command[1:2]}:
                known = {flag.replace("_", "-") for flag in parsers[program]._option_string_actions}
                assert flags <= known, f"{page.name}: {' '.join(command)}"


def test_every_command_is_listed() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for package, module in COMMANDS.items():
        for name in module.COMMANDS:
            assert f"`python -m {package} {name}`" in text
    for path in (ROOT / "benchmarks").glob("*.py"):
        if path.read_text(encoding="utf-8").startswith("#!") and not path.name.startswith("gpu_"):
            assert f"python benchmarks/{path.name}" in text, path.name


def modules_in(tree: Path) -> set[str]:
    """The paths of all modules below tensorgrad/ and gpt/."""
    found = [*tree.glob("tensorgrad/**/*.py"), *tree.glob("gpt/**/*.py")]
    return {path.relative_to(tree).as_posix() for path in found}


def named_in_map(text: str) -> list[str]:
    """The path of every file in the tables: the folder in the heading, then the name."""
    names = []
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        folder = heading.strip("`") if heading.startswith("`") else ""
        cells = re.findall(r"^\| (`.*?) \|.*$", body, re.M)
        names += [folder + name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    return names


def test_the_map_names_every_module_once() -> None:
    named = named_in_map((ROOT / "docs" / "map.md").read_text(encoding="utf-8"))
    modules = modules_in(ROOT)
    assert len(modules) > 100
    assert modules - set(named) == set(), "add these to docs/map.md"
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert sorted(name for name in set(named) if named.count(name) > 1) == []


def test_the_map_finds_what_is_missing() -> None:
    assert named_in_map("## `gpt/`\n\n| file | what |\n|---|---|\n| `a.py`, `b.py` | x `c.py` |\n") == [
        "gpt/a.py", "gpt/b.py",
    ]  # fmt: skip


def test_the_picture_shows_lines_of_the_code() -> None:
    """Each box of the picture is the path of a file and one or two lines of it."""
    words = re.findall(r"<text [^>]*?(font-weight=\"600\")?[^>]*>(.*?)</text>", _picture())
    paths = [unescape(word) for _, word in words if "/" in word and (ROOT / unescape(word)).is_file()]
    assert len(paths) == 7
    colour = re.findall(r'fill="#0969da"[^>]*monospace[^>]*>(.*?)</text>', _picture())
    sources = [(ROOT / path).read_text(encoding="utf-8") for path in paths]
    for line in map(unescape, colour[1:]):  # the first shows tokens
        assert any(line.strip() in source for source in sources), line


def _picture() -> str:
    return (ROOT / "docs" / "overview.svg").read_text(encoding="utf-8")


def test_the_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, as one program, with a small configuration in place of GPT-2's and one epoch of a small text."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2
    (tmp_path / "input.txt").write_text("To be, or not to be: that is the question.\n" * 100, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    small = {"n_embd": 8, "n_head": 2, "block_size": 64, "vocab_size": 50257}
    monkeypatch.setattr("gpt.config.GPT_CONFIG_124M", GPT_CONFIG_124M | small)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert np.isfinite(names["loss"].item())
    assert "softmax" in str(names["cost"])
