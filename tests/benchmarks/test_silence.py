"""The longest silence of a program is found, whatever the load: with a clock that the test turns."""

import itertools

from benchmarks.silence import gaps, run


def test_silence_is_measured_between_pieces_and_up_to_the_end() -> None:
    clock = iter([0.0, 1.0, 1.5, 7.5, 9.0])
    found = list(gaps([b"loading\n", b"step 1\rstep 2\n", b"\n"], lambda: next(clock)))
    assert found == [(1.0, "(the start)"), (0.5, "loading"), (6.0, "step 2"), (1.5, "step 2")]


def test_a_command_is_measured_through_a_pipe(tmp_path: object) -> None:
    ticks = itertools.count()
    command = "python -c \"import sys; sys.stdout.isatty() or print('piped'); sys.exit(3)\""
    status, longest, line = run(command, str(tmp_path), lambda: float(next(ticks)))
    assert (status, longest, line) == (3, 1.0, "piped")
