"""`python -m gpt inspect diverge`: a change of one ulp in one element is found at its step, op and place."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt import __main__ as program
from gpt.cli import run as run_program
from gpt.inspect import diverge
from gpt.inspect.trace import Difference
from gpt.train import loop
from gpt.train.config import TrainConfig
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.run import new_run, resumed_run
from tensorgrad.backend import NumpyBackend, cpu_count
from tensorgrad.gradcheck.precision import TOLERANCE

SMALL: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.1, "plain": True,
    "block_size": 8, "batch_size": 4, "grad_accum": 2, "max_iters": 9, "eval_interval": 4, "eval_iters": 1,
    "keep_checkpoints": 9, "threads": 1,
}  # fmt: skip
AT = (1, 1, 0, 0)  # of the attention weights (4, 2, 8, 8): a 1, since the first token sees nothing but itself
AGREE = "agree       in every bit of every op, through step"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, `a`, and its text."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 30)
    with pytest.MonkeyPatch.context() as patch, tg.use_backend("numpy"):
        patch.chdir(folder)
        make_run("a")
        return folder


@pytest.fixture(autouse=True)
def workplace(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    threads = NumpyBackend.threads
    with tg.use_backend("numpy"):
        yield
    tg.set_num_threads(threads)


def make_run(out: str, **changes: Any) -> None:
    assert train(new_run(TrainConfig(**{**SMALL, "out": out, **changes}))) == 0


def call(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, list[str], str]:
    capsys.readouterr()
    status = run_program(lambda: program.main(["inspect", "diverge", *flags]), prog="gpt")
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


@pytest.fixture
def one_ulp(monkeypatch: pytest.MonkeyPatch) -> Any:
    """one_ulp(step, call): two threads get one element 1 ulp larger, in that step and that call of softmax in it."""

    def seed(step: int, number: int) -> None:
        if cpu_count() < 2:
            pytest.skip("needs two cores, to tell the runs apart by their threads")
        now = {"step": -1, "calls": 0}
        exact, draw = NumpyBackend.softmax, loop.batch_of

        def batch_of(run: Any, step: int) -> Any:
            now.update(step=step, calls=0)
            return draw(run, step)

        def softmax(k: Any, x: Any, *arguments: Any) -> Any:
            y = exact(k, x, *arguments)
            now["calls"] += 1
            if (now["step"] + 1, now["calls"], k.threads) == (step, number, 2):
                assert y[AT] == 1
                y[AT] = np.nextafter(y[AT], np.float32(2))
            return y

        monkeypatch.setattr(NumpyBackend, "softmax", softmax)
        monkeypatch.setattr(loop, "batch_of", batch_of)
        monkeypatch.setattr(diverge, "batch_of", batch_of)

    return seed


@pytest.mark.parametrize(("step", "number", "layer"), [(6, 2, 1), (7, 3, 0)])
def test_one_ulp_is_found_in_two_runs(
    step: int, number: int, layer: int, one_ulp: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    one_ulp(step, number)
    make_run("c", dropout=0.0)
    make_run("b", dropout=0.0, threads=2)
    status, lines, err = call(capsys, "c", "b")
    assert (status, err) == (1, "")
    assert lines[0].startswith("metrics     equal ")
    assert lines[1] == "repeated    from the checkpoint of step 4"
    assert lines[2].startswith(f"differs     step {step}, op ")
    assert lines[2].endswith(f"forward, softmax in h.{layer}.attn: result (4, 2, 8, 8) float32")
    assert lines[3] == "            first at [1, 1, 0, 0]: 1.0 and 1.0000001, 1 ulp; 1 of 512 differ"
    assert f"the tolerance of float32 is {TOLERANCE['float32']:g}" in lines[4]
    assert lines[5] == "tolerance   every other difference in this step is within it, too"


def test_one_ulp_is_found_in_one_run_repeated_in_two_ways(one_ulp: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one_ulp(3, 4)
    status, lines, _ = call(capsys, "a", "--threads", "1", "2")  # from its newest checkpoint, after the change
    assert (status, lines) == (0, ["repeated    from the checkpoint of step 8", f"{AGREE} 9"])
    for folder in ("step-000004", "step-000008"):
        shutil.rmtree(Path("a", folder))
    Path("a", "metrics.jsonl").unlink()
    status, lines, _ = call(capsys, "a", "--threads", "1", "2")
    assert (status, lines[0]) == (1, "repeated    from the beginning")
    assert lines[1].startswith("differs     step 3, op ") and "softmax in h.1.attn: result" in lines[1]
    assert ", 1 ulp; 1 of 512 differ" in lines[2]


def test_a_repetition_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = diverge.read_metrics(Path("a"))
    for start in (0, 4):
        side = diverge.Side("a", Path("a"), {}, Path("a"))
        scratch = Path(f"scratch{start}")
        scratch.mkdir()
        repetition = diverge.Repetition(side, start, scratch)
        for step in range(start, 9):
            assert repetition.step() == metrics[step + 1]
    assert not list(Path("scratch4", "0").iterdir())


def test_runs_that_differ_from_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("b", seed=5, max_iters=1)
    status, lines, _ = call(capsys, "a", "b")
    assert status == 1
    assert "setting     seed: 1337 in a, 5 in b" in lines
    assert any(line.startswith("differs     at the start, ") for line in lines)


def test_another_learning_rate_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("b", lr=2e-3, max_iters=1)
    status, lines, _ = call(capsys, "a", "b")
    assert status == 1
    assert any(line.startswith("differs     step 1, the learning rate () float64") for line in lines)


def test_a_run_that_has_branched_off(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("a/step-000008")
    shutil.copytree("a", "whole")
    shutil.rmtree("a/step-000009")
    given = {"out": "b", "lr": 2e-3, "eval_interval": 9}
    assert train(resumed_run(Arguments(given, resume="a/step-000004"))) == 0
    status, lines, _ = call(capsys, "whole", "b")
    assert status == 1
    assert lines[-6].startswith("metrics     equal before step 5, which has lr ")
    assert lines[-5] == "repeated    from the checkpoint of step 4"
    assert lines[-4].startswith("differs     step 5, the learning rate () float64")


def test_equal_runs_agree(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("a", "b")
    assert call(capsys, "a", "b")[:2] == (0, [
        "metrics     equal in all 9 steps that both have",
        "agree       in every bit of the checkpoint of step 9, the newest that both have",
    ])  # fmt: skip


def test_two_backends(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, _ = call(capsys, "a/step-000004", "--backends", "numpy", "numba", "--steps", "2")
    assert status == 1
    assert lines[0] == "repeated    from the checkpoint of step 4"
    assert lines[1].startswith("differs     step 5, op ")


def test_what_cannot_be_repeated_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose difference came from outside: here, from a metric that was changed by hand."""
    shutil.copytree("a", "b")
    text = Path("b", "metrics.jsonl").read_text().splitlines()
    text[6] = text[6].replace('"grad_norm": ', '"grad_norm": 1')
    Path("b", "metrics.jsonl").write_text("\n".join(text))
    status, lines, _ = call(capsys, "a", "b")
    assert status == 1
    assert lines[0].startswith("metrics     equal before step 7, which has grad_norm ")
    assert lines[2].startswith("not exact   step 7 of b, when it trained and here, has grad_norm 1")
    assert lines[4] == f"{AGREE} 7"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a"], "compares two runs, or one with itself by --backends A B or --threads N M"),
        (["a", "a", "--threads", "1", "1"], "compares two runs, or one with itself"),
        (["a", "--threads", "1", "1", "--steps", "0"], "--steps 0: at least 1 is needed"),
        (["a", "nowhere"], "nowhere: no such folder"),
        (["a", "--threads", "1", "5000"], "threads: 5000 is not a number from 1 to"),
        (["a/step-000009", "--threads", "1", "1"], "is the end of its run"),
        (["a/step-000007", "--threads", "1", "1"], "no checkpoint of step 7"),
        (["a", "wide"], "only runs of the same model can be compared op by op"),
    ],
)
def test_mistakes_are_reported_in_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "wide" in flags:
        make_run("wide", n_embd=8, max_iters=1)
    status, _, err = call(capsys, *flags)
    assert status == 2
    assert message in err and err.count("\n") == 1


def test_ulps_and_errors() -> None:
    for dtype in ("float16", "float32", "float64"):
        one = np.ones(3, dtype)
        one[1] = -1
        other = one.copy()
        other[1] = np.nextafter(other[1], other.dtype.type(-9))
        difference = Difference("here", one, other)
        eps = float(np.finfo(dtype).eps)
        assert difference.n == 1
        assert difference.error == pytest.approx(eps, rel=1e-2)
        assert ", 1 ulp; 1 of 3 differ" in difference.lines()[1]
    tiny = np.float32(1e-45)  # the smallest: on both sides of zero, two steps lie between
    assert "2 ulp" in Difference("", np.array([-tiny]), np.array([tiny])).lines()[1]
    nan = np.array([np.nan, 1], np.float32)
    assert Difference("", nan, nan.copy()).n == 0
    assert Difference("", nan, np.ones(2, np.float32)).error == np.inf
