"""Heartbeat: a long operation prints a line at regular intervals, unless it prints something itself."""

import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import generate
import train
from gpt import heartbeat
from gpt.evaluate import __main__ as evaluate
from gpt.heartbeat import Heartbeat, progress_bar, until_first
from gpt.train import build, loop, task
from tests.processes import wait_until

# What may take long, as the programs call it.
SLOW = [
    (build, "load_text"), (build, "make_tokenizer"), (build, "tokenize_cached"), (task, "build_model"),
    (loop, "batch_of"), (loop, "estimate_loss"), (generate, "load_initial"),
    (evaluate, "open_tokens"), (evaluate, "score"),
]  # fmt: skip


@pytest.fixture
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SILENCE_S", 0.001)


def test_a_long_operation_prints_lines_repeatedly(short_interval: None) -> None:
    lines: list[str] = []
    before = threading.active_count()
    with Heartbeat("reading", lines.append) as beat:
        wait_until(lambda: len(lines) > 2)
        beat.activity = lambda: "half"
        wait_until(lambda: "half" in lines)
    assert lines[0] == "reading (0 s)"
    assert threading.active_count() == before
    n = len(lines)
    threading.Event().wait(0.01)
    assert len(lines) == n


def test_two_pieces_are_computed_before_the_first_is_given_away() -> None:
    """The second token may compile kernels, whose line would stand within the text."""
    computed: list[int] = []

    def pieces() -> Iterator[int]:
        for n in range(4):
            computed.append(n)
            yield n

    given = until_first("generating", pieces())
    assert next(given) == 0 and computed == [0, 1]
    assert list(given) == [1, 2, 3]
    assert list(until_first("generating", iter([7]))) == [7]


def test_a_reset_delays_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is simulated and advances only in waits; a reset during the second wait makes it one second longer."""
    now = [0.0]
    monkeypatch.setattr(heartbeat, "SILENCE_S", 4.0)
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    waits: list[float] = []

    class Ended:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            now[0] += seconds
            if len(waits) == 2:
                beat.reset()
                now[0] += 1
            return len(waits) > 4

    lines: list[str] = []
    beat = Heartbeat("x", lines.append)
    beat._ended = Ended()  # type: ignore[assignment]
    beat._watch()
    assert lines == ["x (4 s)", "x (12 s)", "x (16 s)"] and waits == [4, 4, 3, 4, 4]


def test_a_closed_output_does_not_stop_the_heartbeat(short_interval: None) -> None:
    calls: list[str] = []

    def closed(line: str) -> None:
        calls.append(line)
        raise BrokenPipeError

    with Heartbeat("x", closed):
        wait_until(lambda: len(calls) > 1)


@pytest.mark.parametrize(("terminal", "show"), [(False, True), (True, True), (False, False)])
def test_progress_is_a_bar_or_lines_or_nothing(
    terminal: bool, show: bool, short_interval: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    err.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", err)
    with progress_bar("tokens", 2000, "B", initial=500, show=show) as advance:
        advance(700)
        if show:
            wait_until(lambda: ("tokens:" if terminal else "tokens: 1,200 of 2,000B\n") in err.getvalue())
    if terminal:
        assert " of 2,000B" not in err.getvalue()
    assert bool(err.getvalue()) == show


def test_the_heartbeat_works_without_stderr(short_interval: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(sys, "stderr", None)
    write = heartbeat._print_on_stderr
    monkeypatch.setattr(heartbeat, "_print_on_stderr", lambda line: calls.append(write(line)))
    with Heartbeat("x"):
        wait_until(lambda: calls)


def test_whatever_takes_long_has_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of training, generating and evaluating: reading data, building, validating, saving, and the first token."""
    active: list[Heartbeat] = []
    seen: dict[str, list[bool]] = {}
    enter, leave = Heartbeat.__enter__, Heartbeat.__exit__
    monkeypatch.setattr(Heartbeat, "__enter__", lambda self: (active.append(self), enter(self))[1])
    monkeypatch.setattr(Heartbeat, "__exit__", lambda self, *error: (active.remove(self), leave(self, *error))[1])

    def watch(module: Any, name: str) -> None:
        work = getattr(module, name)

        def watched(*args: Any, **options: Any) -> Any:
            seen.setdefault(name, []).append(bool(active))
            return work(*args, **options)

        monkeypatch.setattr(module, name, watched)

    for module, name in SLOW:
        watch(module, name)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be, or not to be\n" * 30)
    flags = ["--data=text.txt", "--n-layer=1", "--n-embd=8", "--block-size=4", "--max-iters=2", "--eval-iters=1"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, "--backend=numpy", "--out=run", "--n-head=2", "--plot=False"])
    assert train.main() == 0
    assert generate.main(["--checkpoint=run", "--max-new-tokens=2", "--backend=numpy"]) == 0
    assert evaluate.main(["run", "--data=text.txt", "--backend=numpy"]) == 0
    assert seen.keys() == {name for _, name in SLOW} and all(all(found) for found in seen.values()), seen
