"""python -m tensorgrad gradcheck: its table, its page, its exit status, and mistakes on the command line."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from broken_ops import cube, one_element

import tensorgrad as tg
from tensorgrad import backend
from tensorgrad.gradcheck.__main__ import main
from tensorgrad.gradcheck.cases import Case, Example, cases
from tensorgrad.gradcheck.cases.inputs import randn
from tensorgrad.gradcheck.run import dtypes

command_line = sys.modules["tensorgrad.gradcheck.__main__"]

def test_the_command_prints_a_table_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--op", "exp", "--op", "less", "--backend", "numpy"]) == 0
    heading, *lines, empty, summary = capsys.readouterr().out.splitlines()
    assert heading.split() == ["op", "example", "dtype", "backend", "error", "worst", "element"]
    assert len(lines) == len(dtypes()) * (len(cases["exp"].examples) + len(cases["less"].examples)) and empty == ""
    assert re.search(r"^exp +3-d +float64 +numpy +\d\.\de-1\d +(input 0 \[|along a random)", "\n".join(lines), re.M)
    assert re.search(r"^less +with ties +float32 +numpy +0$", "\n".join(lines), re.M)
    names = ", ".join(dtypes())
    assert re.fullmatch(
        rf"{len(lines)} checks of \d+ examples of 2 ops on numpy in {names}: all passed, in \d+\.\d s", summary
    )


def test_without_options_every_op_is_checked_on_every_backend_that_runs_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: Case(cases[name].op, cases[name].examples[:1]) for name in ("exp", "log")}
    monkeypatch.setattr(command_line, "cases", few)
    monkeypatch.setattr(backend, "check", lambda name: None if name == "numpy" else "not here")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-2]
    assert [line.split()[0] for line in lines] == ["exp"] * len(dtypes()) + ["log"] * len(dtypes())


def test_a_failure_exits_with_1_and_is_repeated_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken, raising = Example("broken <b>", randn(3, 4)), Example("raising", randn(2), call=lambda op, x: op(x @ x.mT))
    good = Example("good", randn(2), call=lambda op, x: tg.exp(x))
    monkeypatch.setattr(command_line, "cases", {"cubed": Case(cube(one_element), [broken, raising, good])})
    page = tmp_path / "page.html"
    assert main(["--dtype", "float64", "--backend", "numpy", "--html", str(page)]) == 1
    out = capsys.readouterr().out
    assert re.search(
        r"^what failed:\ncubed +broken <b> .*FAILED +input 0 \[1, 2\].*\ncubed +raising .*FAILED +ValueError: ",
        out,
        re.M,
    )
    assert out.splitlines()[-1].startswith("3 checks of 3 examples of 1 ops on numpy in float64: 2 FAILED, in ")
    text = page.read_text(encoding="utf-8")
    assert "2 failed" in text and "broken &lt;b&gt;" in text and "broken <b>" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "sofmax"], "unknown op 'sofmax'; did you mean 'softmax'?"),
        (["--op", "???"], "unknown op '???'"),
        (["--dtype", "float23"], "unknown dtype 'float23'; did you mean 'float32'?"),
        (["--backend", "numpi"], "unknown backend 'numpi': choose auto, numpy, numba, cupy; did you mean 'numpy'?"),
        (["--htm", "x"], "unrecognized arguments: --htm x"),
        (["--html"], "argument --html: expected one argument"),
        (
            ["--op", "exp", "--html", "/no/such/folder/page.html"],
            "cannot write /no/such/folder/page.html: No such file or directory",
        ),
        (["--op", "exp", "--html", "."], "cannot write .: Is a directory"),
    ],
)
def test_a_mistake_exits_with_2_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == f"python -m tensorgrad gradcheck: error: {message}\n" and captured.out == ""


def test_a_backend_that_cannot_run_is_said_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        raise tg.BackendUnavailable("no GPU here: use numpy")

    monkeypatch.setattr(backend, "load", load)
    with pytest.raises(SystemExit, match="2"):
        main(["--backend", "cupy"])
    assert capsys.readouterr().err == "python -m tensorgrad gradcheck: error: no GPU here: use numpy\n"


def test_bfloat16_without_ml_dtypes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert dtypes() == ["float64", "float32", "float16"]
    with pytest.raises(SystemExit, match="2"):
        main(["--dtype", "bfloat16"])
    assert "bfloat16 needs ml_dtypes: pip install ml_dtypes" in capsys.readouterr().err


def test_auto_takes_the_fastest_backend(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "choose", lambda: (backend.load("numpy"), "auto chose numpy"))
    assert main(["--op", "exp", "--dtype", "float32", "--backend", "auto", "--backend", "numpy"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(cases["exp"].examples) + 3


class Page(HTMLParser):
    """The text of every table cell and heading, and which elements there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] = self.found.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_every_row_and_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    path.write_text("what was here before")
    assert main(["--op", "softmax", "--op", "argmax", "--html", str(path), "--backend", "numpy"]) == 0
    text = path.read_text(encoding="utf-8")
    page, rows = Page(text), len(dtypes()) * (len(cases["softmax"].examples) + len(cases["argmax"].examples))
    assert page.links == [] and "http" not in text and not re.search(r"%[A-Z]+%", text)
    assert page.found["details"] == 2 and page.found["tr"] == rows + 2 and page.found["circle"] == rows
    assert "All passed" in text and capsys.readouterr().out.splitlines()[-1] in text
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_interrupted_run_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    path = tmp_path / "page.html"
    path.write_text("old")
    monkeypatch.setattr(command_line, "page", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(["--op", "exp", "--dtype", "float64", "--backend", "numpy", "--html", str(path)])
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["page.html"]
