"""gpu_check: each part runs on the fake GPU, failing parts are recorded, and the report is correct."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check, gpu_losses, gpu_report, gpu_training
from tensorgrad import backend
from tests.processes import HANG_S

ROOT = Path(__file__).parent.parent.parent


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "benchmarks" / "gpu_check.sh"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, cwd=ROOT, env=environment)


def test_a_missing_gpu_is_reported_in_one_line() -> None:
    if backend.check("cupy") is None:
        pytest.skip("there is a GPU here")
    result = check()
    assert result.returncode != 0
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "no GPU to check" in line


@pytest.fixture(autouse=True)
def without_pytest_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of this test run, such as coverage, do not apply to the tests that gpu_check starts."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def test_every_part_runs_without_a_gpu(tmp_path: Path) -> None:
    """All the code for the GPU except torch.compile runs here, at tiny sizes."""
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 100)
    names = ["tests", "sanitizer", "losses", "kernels", "ours", "decoding", "torch eager", "torch decoding"]
    result = check("--stand-in", "--out", str(tmp_path / "out"), "--data", str(text), "--only", *names)
    parts = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(names, "passed"), result.stdout
    assert result.returncode == 0
    kernels = parts["kernels"]["figures"]["rows"]
    assert [row["kernel"] for row in kernels if "failure" in row] == []
    assert [(row["batch"], row["mode"]) for row in parts["ours"]["figures"]["rows"]] == [
        (batch, mode) for batch in (2, 1) for mode in ("launched", "graph")
    ]
    ours, theirs = (parts[name]["figures"]["rows"][0]["losses"] for name in ("ours", "torch eager"))
    assert ours == pytest.approx(theirs, rel=2e-2)  # the same weights and batches
    report = (tmp_path / "out" / "report.txt").read_text()
    assert report in result.stdout
    for word in ("training beside the CPU", "a training step", "kernel", "decoding, one sequence", "target"):
        assert word in report
    assert not (tmp_path / "out" / "inputs.safetensors").exists()


def part(program: str, limit: float = 60, **options: Any) -> gpu_check.Part:
    return gpu_check.Part("some part", [sys.executable, "-c", program], limit, 1, **options)


def test_a_part_that_fails_is_recorded(tmp_path: Path) -> None:
    outcome = gpu_check.run(part("print('why'); raise SystemExit(3)"), tmp_path, 60)
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
    outcome = gpu_check.run(part(program), tmp_path, 2)
    assert outcome["status"] == "out of time after 2 s"
    assert outcome["figures"] == {"rows": [1]}
    assert outcome["seconds"] < 600


def test_a_part_that_cannot_run_here_reports_the_reason(tmp_path: Path) -> None:
    outcome = gpu_check.run(part("", needs="there is none"), tmp_path, 60)
    assert outcome == {"status": "left out", "reason": "there is none"}
    assert "some part: there is none" in gpu_report.report({"some part": outcome})


def test_the_pytorch_parts_are_skipped_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, what in (("No module named 'torch'", "is not installed"), ("", "does not see the GPU")):
        asked = subprocess.CompletedProcess([], 1, "", said)
        monkeypatch.setattr(gpu_check.subprocess, "run", lambda *arguments, asked=asked, **options: asked)
        reason = gpu_check.why_no_torch()
        assert reason.startswith(f"PyTorch, to compare with, {what}: pip install torch")
        left_out = [part.name for part in gpu_check.parts(Path(), True, "", reason) if part.needs == reason]
        assert left_out == ["torch compile", "torch eager", "torch decoding"]


def test_a_test_run_without_tests_is_a_failure() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_tests", "2", "-q", "tests/gpu", "-k", "there_is_no_such_test"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout) == (1, "no test was run\n")


def test_the_reserved_times_of_all_parts_fit_into_nine_minutes() -> None:
    parts = gpu_check.parts(Path(), False, "shakespeare")
    assert sum(part.least_s for part in parts) <= gpu_check.BUDGET_S < 9 * 60
    assert all(part.least_s <= part.limit_s for part in parts)


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
        {"kernel": "attention", "ms": 1.0, "tflop_per_s": 250.0, "share_of_roof": 0.4},
        {"kernel": "layer_norm", "ms": 1.0, "gb_per_s": 2000.0, "share_of_roof": 0.7},
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
