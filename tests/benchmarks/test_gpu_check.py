"""gpu_check: each part runs on the fake GPU, failing parts are recorded, and the report is correct."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_cuda import COMPILER

from benchmarks import gpu_check, gpu_kernels, gpu_losses, gpu_report, gpu_tests, gpu_training
from benchmarks.configurations import SETUPS, write_inputs
from tensorgrad import backend
from tensorgrad.random import Stream, default_generator
from tests.processes import HANG_S

ROOT = Path(__file__).parent.parent.parent


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "benchmarks" / "gpu_check.sh"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, cwd=ROOT, env=environment)


def test_a_missing_gpu_is_reported_in_one_line(tmp_path: Path) -> None:
    if backend.check("cupy") is None:
        pytest.skip("there is a GPU here")
    result = check("first", "--out", str(tmp_path))
    assert result.returncode != 0
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "no GPU to check" in line


def test_mistakes_are_reported_in_one_line(tmp_path: Path) -> None:
    for arguments, message in (
        (("first",), "--out"),
        (("third", "--out", str(tmp_path)), "third"),
        (("first", "--out", str(tmp_path), "--only", "losses"), "the parts of first are doctor, tests, ours, kernels"),
    ):
        result = check(*arguments)
        assert result.returncode == 2 and message in result.stderr.splitlines()[-1]


@pytest.fixture(autouse=True)
def without_pytest_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of this test run, such as coverage, do not apply to the tests that gpu_check starts."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


# The parts of each run; a part that has had its rehearsal in an earlier run is left out.
REHEARSED = {
    "first": ["doctor", "tests", "ours", "kernels", "decoding"],
    "second": ["torch warm-up", "tests", "torch compile", "torch eager", "racecheck", "ncu"],
    "extra": ["losses", "torch decoding"],
}


def test_a_rehearsal_runs_every_part(tmp_path: Path) -> None:
    """All the code for the GPU except torch.compile runs here, at tiny sizes, and leaves three files."""
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    text, parts = tmp_path / "text.txt", {}
    text.write_text("To be, or not to be, that is the question.\n" * 100)
    for run, names in REHEARSED.items():
        out = tmp_path / run
        result = check(run, "--stand-in", "--out", str(out), "--data", str(text), "--only", *names)
        found = json.loads((out / "gpu_check.json").read_text())["parts"]
        wanted = {name: "left out" if name in ("torch warm-up", "torch compile") else "passed" for name in names}
        assert {name: part["status"] for name, part in found.items()} == wanted, result.stdout
        assert result.returncode == 0
        assert sorted(path.name for path in out.iterdir()) == sorted(gpu_check.FILES)
        assert (out / "report.txt").read_text() in result.stdout
        with tarfile.open(out / "gpu_check.tar.gz") as archive:
            logs = {f"{name.replace(' ', '_')}.log" for name in names if wanted[name] == "passed"}
            assert logs <= {*archive.getnames()}
        parts |= found
    kernels = parts["kernels"]["figures"]["rows"]
    assert [row["kernel"] for row in kernels if "failure" in row] == [] and len(kernels) > 25
    assert [(row["batch"], row["mode"]) for row in parts["ours"]["figures"]["rows"]] == [
        (batch, mode) for batch in (2, 1) for mode in ("launched", "graph")
    ]
    ours, theirs = (parts[name]["figures"]["rows"][0]["losses"] for name in ("ours", "torch eager"))
    assert ours == pytest.approx(theirs, rel=2e-2)  # the same weights and batches
    report = (tmp_path / "first" / "report.txt").read_text()
    for word in ("a training step", "predicted", "microseconds", "decoding, one sequence", "target"):
        assert word in report
    assert "training beside the CPU" in (tmp_path / "extra" / "report.txt").read_text()


def part(program: str, limit: float = 60, **options: Any) -> gpu_check.Part:
    return gpu_check.Part("some part", [sys.executable, "-c", program], limit, **options)


def run_one(one: gpu_check.Part, scratch: Path) -> dict[str, Any]:
    outcomes: dict[str, Any] = {}
    assert list(gpu_check.run_all([one], scratch, outcomes)) == ["some part"]
    outcome: dict[str, Any] = outcomes["some part"]
    return outcome


def test_a_part_that_fails_is_recorded(tmp_path: Path) -> None:
    outcome = run_one(part("print('why'); raise SystemExit(3)"), tmp_path)
    assert (outcome["status"], outcome["said"]) == ("failed with status 3", ["why"])
    text = gpu_report.report({"some part": outcome})
    assert "some part, failed with status 3:\n    why" in text


def test_a_part_that_runs_out_of_time_is_killed_and_its_results_are_kept(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "time.sleep(600)"
    )
    (tmp_path / "some_part.json").write_text('{"rows": [1]}')
    outcome = run_one(part(program, 2), tmp_path)
    assert outcome["status"] == "out of time after 2 s"
    assert outcome["figures"] == {"rows": [1]}
    assert outcome["seconds"] < 600


def test_a_part_that_cannot_run_here_reports_the_reason(tmp_path: Path) -> None:
    outcome = run_one(part("", needs="there is none"), tmp_path)
    assert outcome == {"status": "left out", "reason": "there is none"}
    assert "some part: there is none" in gpu_report.report({"some part": outcome})


def test_the_pytorch_parts_are_skipped_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, what in (("No module named 'torch'", "is not installed"), ("", "does not see the GPU")):
        asked = subprocess.CompletedProcess([], 1, "", said)
        monkeypatch.setattr(gpu_check.subprocess, "run", lambda *arguments, asked=asked, **options: asked)
        reason = gpu_check.why_no_torch()
        assert reason.startswith(f"PyTorch, to compare with, {what}: pip install torch")
        plan = gpu_check.Plan(Path(), no_torch=reason)
        left_out = [part.name for run in gpu_check.BUDGET_S for part in plan.parts(run) if part.needs == reason]
        assert left_out == ["torch warm-up", "torch compile", "torch eager", "torch decoding"]


def test_a_part_in_the_background_runs_beside_the_next_one(tmp_path: Path) -> None:
    """Each waits for a file of the other."""
    program = (
        "import pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.05)"
    )
    files = [str(tmp_path / name) for name in ("one", "other")]
    parts = [
        gpu_check.Part(name, [sys.executable, "-c", program, *order], HANG_S, background=name == "behind")
        for name, order in (("behind", files), ("before", files[::-1]))
    ]
    outcomes: dict[str, Any] = {}
    assert list(gpu_check.run_all(parts, tmp_path, outcomes)) == ["before", "behind"]
    assert [outcome["status"] for outcome in outcomes.values()] == ["passed", "passed"]


def test_a_test_run_without_tests_is_a_failure() -> None:
    words = ["2", "tests/gpu", "-m", "gpu", "-k", "there_is_no_such_test", "--groups", "optimizer"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_tests", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert (result.returncode, result.stdout) == (1, "no test was run\n")


def test_every_test_for_a_gpu_is_in_one_group() -> None:
    names = ("every_op[bfloat16]", "every_op[float16]", "a_gpt[attention with dropout]", "a_gpt[dropout]", "generated")
    for name in names:
        fitting = [group for group in gpu_tests.GROUPS if evaluate(gpu_tests.expression(group, ""), name)]
        assert len(fitting) == 1, name


def evaluate(expression: str, name: str) -> bool:
    """What pytest's -k says of a test of that name."""
    keywords = ("and", "or", "not")
    said = re.sub(r"\w+", lambda word: word[0] if word[0] in keywords else str(word[0] in name), expression)
    return bool(eval(said or "True"))


def test_a_group_whose_process_dies_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an illegal access to memory, which no later call of the process survives."""

    def run(command: list[str], **options: Any) -> Any:
        out, group = Path(command[3]), command[5]
        if group == "rows":
            return subprocess.CompletedProcess(command, -6)
        found = {"roofs": {"gpu": "A card", "copy_gb_per_s": 4000.0, "product_tflop_per_s": 800.0}}.get(group, {})
        rows = {"attention": {"flop": 1e9}, "model": {"bytes": 2e6}}.get(group)
        out.write_text(json.dumps(found | ({"rows": [{"kernel": group, "ms": 0.01, **rows}]} if rows else {})))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu_kernels.subprocess, "run", run)
    assert gpu_kernels.measure_all(tmp_path / "kernels.json", stand_in=False) == 1
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert [row["kernel"] for row in rows] == ["attention", "the group rows", "model"]
    assert rows[0]["share_of_roof"] == pytest.approx(100 / 800) and rows[2]["share_of_roof"] == pytest.approx(0.05)
    assert rows[1]["failure"] == "its process ended with status -6"
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.json"]


def test_the_time_limits_of_all_parts_fit_into_a_run() -> None:
    for run, budget in gpu_check.BUDGET_S.items():
        parts = gpu_check.Plan(Path()).parts(run)
        assert sum(part.limit_s for part in parts if not part.background) + gpu_check.START_S <= budget
    assert sum(gpu_check.BUDGET_S[run] for run in ("first", "second")) <= 12 * 60  # of the fifteen minutes of a card


def test_the_first_run_does_not_wait_for_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> str:
        raise AssertionError("PyTorch is imported")

    def stop(path: Path, *arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "why_no_torch", asked)
    monkeypatch.setattr(gpu_check, "write_inputs", stop)
    monkeypatch.setattr(gpu_check.backend, "check", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "first", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):  # where it would write the weights
        gpu_check.main()
    assert not any("torch" in part.name for part in gpu_check.Plan(Path()).parts("first"))


def test_the_training_program_draws_no_weights_that_it_replaces(tmp_path: Path) -> None:
    if COMPILER is None:
        pytest.skip("no C++ compiler here to run the CUDA kernels on the CPU: install g++")
    inputs = tmp_path / "inputs.safetensors"
    write_inputs(inputs, SETUPS["tiny"], 0)
    contender = gpu_training.Ourselves(SETUPS["tiny"], str(inputs), stand_in=True)
    with contender.card.stack:
        drawn = default_generator.steps[Stream.INIT]
        step = contender.make(2, "launched")
        assert default_generator.steps[Stream.INIT] == drawn
        assert np.isfinite(contender.number(step()))


def test_the_largest_batch_is_extrapolated_from_two_measurements() -> None:
    rows = [{"batch": 64, "memory_gib": 40.0}, {"batch": 4, "memory_gib": 10.0}, {"batch": 16, "mode": "graph"}]
    assert gpu_training.largest_batch(rows, 80.0) == 136  # 10 + 0.5 (B - 4) <= 76, rounded down to a multiple of 8
    assert gpu_training.largest_batch(rows[:1], 80.0) is None


def test_a_batch_that_does_not_fit_is_recorded_and_the_largest_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    class Contender:
        modes = ("eager",)

        def close(self) -> None:
            pass

    def measure(contender: Any, batch: int, mode: str, steps: int) -> dict[str, Any]:
        if batch > 120:
            raise MemoryError("no room")
        return {"batch": batch, "mode": mode, "memory_gib": 8 + batch / 2}

    class Kept:
        def add(self, **values: Any) -> None:
            self.rows = values["rows"]

    monkeypatch.setattr(gpu_training, "measure", measure)
    kept: Any = Kept()
    gpu_training.run(Contender(), ["64", "4", "200", "largest"], 1, kept, 80.0)
    assert [(row["asked"], row["batch"], "out_of_memory" in row) for row in kept.rows] == [
        ("64", 64, False), ("4", 4, False), ("200", 200, True), ("largest", 120, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("off", "dtype", "passed"), [(0, "float32", True), (1e-3, "float32", False), (1e-3, "bfloat16", True)]
)
def test_losses_outside_the_tolerances_fail(off: float, dtype: str, passed: bool) -> None:
    here = [3.0 - 0.002 * step for step in range(500)]
    assert gpu_losses.compare([loss * (1 + off) for loss in here], here, dtype)["passed"] is passed
    drifted = here[:300] + [loss * 1.01 for loss in here[300:]]
    assert not gpu_losses.compare(drifted, here, dtype)["passed"]


def test_the_report_says_which_targets_are_met() -> None:
    def row(asked: str, mode: str, speed: float) -> dict[str, Any]:
        return {
            "asked": asked, "batch": int(asked), "mode": mode, "ms": 1.0, "spread": 0.0, "tokens_per_s": speed,
            "memory_gib": 1.0, "launches": None, "losses": [1.0],
        }  # fmt: skip

    kernels = [
        {"kernel": "attention", "ms": 1.0, "flop": 1e9, "tflop_per_s": 250.0, "share_of_roof": 0.4},
        {"kernel": "layer_norm", "ms": 1.0, "bytes": 1e9, "gb_per_s": 2000.0, "share_of_roof": 0.7},
        {"kernel": "broken", "failure": "why"},
    ]
    parts = {
        "ours": {"status": "passed", "figures": {"rows": [row("64", "launched", 4e5), row("64", "graph", 5e5)]}},
        "torch compile": {"status": "passed", "figures": {"rows": [row("64", "compile", 4e5)]}},
        "kernels": {
            "status": "passed",
            "figures": {"gpu": "A card", "copy_gb_per_s": 3000.0, "product_tflop_per_s": 700.0, "rows": kernels},
        },
    }
    values = list(gpu_report.measured(parts).values())
    assert values == [
        1.25, None, None, pytest.approx(5e5 * 854.8e6 / 7e14), 250.0, None, pytest.approx(0.7), None,
    ]  # fmt: skip
    lines = {line.split("  ")[0]: line for line in gpu_report.report(parts).splitlines()}
    assert lines["tokens/s, B 64, ours / compiled PyTorch"].endswith("met")
    assert lines["memory-bound kernels, share of copy speed, the lowest"].endswith("MISSED")
    assert lines["tokens/s, B 64, ours / eager PyTorch"].endswith("not measured")
