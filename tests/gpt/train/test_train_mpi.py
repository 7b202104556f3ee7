"""mpirun -n 2 python train.py: the same losses as one process, and only one process writes."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[3]
FLAGS = [
    "--data=text.txt", "--backend=numpy", "--n-layer=2", "--n-head=2", "--n-embd=16", "--block-size=8",
    "--batch-size=4", "--max-iters=6", "--eval-interval=3", "--eval-iters=3", "--threads=1", "--tokenizer=char",
]  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(300)))


@pytest.fixture
def train(mpirun: Any) -> Any:
    """train(n, *flags) runs train.py in n processes and returns the completed process."""

    def train(n: int, *flags: str) -> subprocess.CompletedProcess[str]:
        return mpirun(n, ROOT / "train.py", *FLAGS, *flags, cwd=Path.cwd())

    return train


def metrics(folder: str) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines if name in line] for name in ("step", "loss", "grad_norm", "val_loss")}


def weights(folder: str, step: int = 6) -> dict[str, Any]:
    files = ("model.safetensors", "optimizer.safetensors")
    return {f"{file} {k}": v for file in files for k, v in load_file(Path(folder, f"step-{step:06d}", file)).items()}


@pytest.mark.parametrize("flags", [[], ["--grad-accum=3", "--recompute", "--bias"]], ids=["plain", "accumulated"])
def test_two_processes_train_like_one(train: Any, flags: list[str]) -> None:
    alone, both = train(1, "--out=one", *flags), train(2, "--out=two", *flags)
    assert alone.returncode == both.returncode == 0, both.stderr
    one, two = metrics("one"), metrics("two")
    assert one["step"] == two["step"] == list(range(1, 7))
    for name in ("loss", "grad_norm", "val_loss"):
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-6)
    ours, theirs = weights("two"), weights("one")
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=2e-5, err_msg=name)
    # only one process writes and prints
    assert both.stdout.count("Saved in two") == 1 and both.stdout.count("tokens for training") == 1
    assert sorted(path.name for path in Path("two").iterdir()) == sorted(path.name for path in Path("one").iterdir())


def test_a_run_resumed_in_two_processes_is_the_same_bit_for_bit(train: Any) -> None:
    flags = ["--lr-decay-iters=6", "--dropout=0.2"]
    assert train(2, "--out=whole", *flags).returncode == 0
    assert train(2, "--out=half", "--max-iters=3", *flags).returncode == 0
    resumed = train(2, "--resume=half", *flags)
    assert resumed.returncode == 0, resumed.stderr
    assert metrics("half") == metrics("whole")
    ours, theirs = weights("half"), weights("whole")
    assert all((array == theirs[name]).all() for name, array in ours.items())
    train(1, "--out=alone", *flags)
    assert metrics("alone")["loss"] != metrics("whole")["loss"]  # each process draws its own dropout masks


TERMINATED = """
import os, signal, sys
from gpt.train import loop as trainer
from gpt.cli import leave, run
import train
before = trainer.learning_rate
def learning_rate(config, step):
    if step == 4 and trainer.world_rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return before(config, step)
trainer.learning_rate = learning_rate
from tensorgrad.distributed import world
trainer.world_rank = world().rank
leave(run(train.main, prog="train.py"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_processes_after_the_same_step(mpirun: Any, number: int) -> None:
    program = TERMINATED.replace("signal.SIGTERM", str(int(number)))
    result = mpirun(2, "-c", program, *FLAGS, "--out=run", cwd=Path.cwd())
    assert result.returncode == 128 + number, result.stderr
    assert "Stopped after step 5. To continue: python train.py --resume run" in result.stdout
    assert Path("run/step-000005/manifest.json").is_file()
    assert metrics("run")["step"] == [1, 2, 3, 4, 5]


# train.py with a long grace period, so that the first process always has time to report the error.
PATIENT = """
import train
from gpt import cli
cli.GRACE = 600
cli.leave(cli.run(train.main, prog="train.py"))
"""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size=5"], "batch_size 5 is not divisible by 2 processes: give a multiple of 2"),
        (["--n-layr=3"], "unknown flag --n-layr; did you mean --n-layer?"),
        (["--data=nothing.txt"], "data 'nothing.txt': no such file, folder or corpus"),
        (["--lr=1e30", "--grad-clip=0"], "repeats it in float64"),
    ],
)
def test_a_user_error_is_reported_once_and_ends_all_processes(mpirun: Any, flags: list[str], message: str) -> None:
    result = mpirun(2, "-c", PATIENT, *FLAGS, "--out=run", *flags, cwd=Path.cwd())
    assert result.returncode != 0
    assert result.stderr.count("train.py: error: ") == 1
    assert message in result.stderr
    assert "process 1 of 2" not in result.stderr
    assert "Traceback" not in result.stderr


POISONED = """
from gpt.train import loop as trainer
from gpt.cli import leave, run
from tensorgrad.distributed import _Bucket, world
import train
learning_rate, take, steps = trainer.learning_rate, _Bucket.take, []
def noting(config, step):
    steps.append(step)
    return learning_rate(config, step)
def poisoning(bucket, i):
    take(bucket, i)
    if world().rank == 1 and steps[-1] == 2:
        bucket.parts[i][...] = float("nan")
trainer.learning_rate, _Bucket.take = noting, poisoning
leave(run(train.main, prog="train.py"))
"""


def test_a_nonfinite_gradient_in_one_process_is_skipped_by_all(mpirun: Any) -> None:
    result = mpirun(2, "-c", POISONED, *FLAGS, "--out=run", "--on-nonfinite=skip", cwd=Path.cwd())
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped", 0) for line in lines] == [0, 0, 1, 1, 1, 1]
    assert [line["grad_norm"] is None for line in lines] == [False, False, True, False, False, False]
    assert Path("run/nonfinite-000003/batch.safetensors").is_file()


MISSING_HERE = """
import os, sys
from gpt.cli import leave, run
from gpt.config import UserError
from tensorgrad.distributed import world
import train
from gpt.train import build
if world().rank == 1:
    def load_text(*arguments, **options):
        raise UserError("data 'text.txt': no such file here")
    build.load_text = load_text
leave(run(train.main, prog="train.py"))
"""


def test_an_error_in_only_one_process_names_it_and_ends_all(mpirun: Any) -> None:
    result = mpirun(2, "-c", MISSING_HERE, *FLAGS, "--out=run", cwd=Path.cwd())
    assert result.returncode != 0
    assert "train.py: error: process 1 of 2: data 'text.txt': no such file here" in result.stderr


def test_other_data_in_one_process_is_refused(mpirun: Any) -> None:
    program = MISSING_HERE.replace(
        "raise UserError(\"data 'text.txt': no such file here\")", "return '0123456789. \\n' * 99"
    )
    result = mpirun(2, "-c", program, *FLAGS, "--out=run", cwd=Path.cwd())
    assert result.returncode != 0
    assert "process 1 differs from process 0; all need the same files and flags" in result.stderr


def test_mpi4py_is_not_imported_without_mpirun() -> None:
    program = "import sys, train; from gpt.cli import run; run(train.main); print('mpi4py' in sys.modules)"
    command = [sys.executable, "-c", program, *FLAGS, "--out=run"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
