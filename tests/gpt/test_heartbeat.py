"""Heartbeat: a long operation prints a line at regular intervals, unless it prints something itself."""

import io
import sys
import threading
from typing import Any

import pytest

from gpt import heartbeat
from gpt.heartbeat import Heartbeat, progress_bar
from tests.processes import wait_until


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
