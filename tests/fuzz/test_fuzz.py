"""A part of what `python tests/fuzz` checks at length: programs, data files and command lines, each from its seed."""

import os
from pathlib import Path

import op_calls
import pytest
from command_lines import Cases
from damaged_weights import Cases as Weights
from odd_data_files import check

import tensorgrad as tg
from tensorgrad.gradcheck.cases import cases

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes, links and alarms")


@pytest.mark.parametrize("start", range(0, 500, 100))
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Mismatch dtype:UserWarning")
def test_random_programs_equal_pytorchs(start: int) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    pytest.importorskip("numba")
    from programs import failures

    for seed, text in failures(range(start, start + 100)):
        pytest.fail(f"seed {seed}\n{text}")


def test_every_op_is_called_by_random_programs() -> None:
    assert set(op_calls.CALLS) == set(cases)


@needs_posix
@pytest.mark.parametrize("seed", range(60))
def test_odd_data_files_are_read_or_refused(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@needs_posix
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::ResourceWarning")
def test_command_lines_end_in_one_line_of_error_or_none(tmp_path: Path) -> None:
    commands = Cases(tmp_path)
    for seed in range(40):
        commands.check(seed)


def test_damaged_weights_are_refused_or_loaded(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed, which writes the files to damage")
    weights = Weights(tmp_path)
    with tg.use_backend("numpy"):
        for seed in range(60):
            weights.check(seed)
    assert min(weights.outcomes.values()) > 10
