"""A run keeps the products that were left to NumPy's library when it began, wherever it is resumed."""

import json
from pathlib import Path
from typing import Any

import pytest

import tensorgrad as tg
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import METRICS, STATE, write_manifest
from gpt.config import UserError
from gpt.inspect import diverge
from gpt.train.config import TrainConfig
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.run import Run, make_run, new_run
from tensorgrad.backend import load

numba = pytest.importorskip("numba")

from tensorgrad.backend.numba import linear, product_choice  # noqa: E402
from tensorgrad.backend.numba.product_choice import KINDS  # noqa: E402

pytestmark = pytest.mark.usefixtures("numpy_backend")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in which NumPy's library was found to be faster. All products are large enough for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORGRAD_PRODUCTS")
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 30)
    monkeypatch.setattr(product_choice, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(product_choice, "MIN_SIDE", 1)
    monkeypatch.setattr(linear, "MIN_PARALLEL_MULTIPLICATIONS", 0)
    monkeypatch.setattr(product_choice, "cache_folder", lambda kernel: tmp_path)
    path = tmp_path / f"products-{product_choice._fingerprint()}.json"
    path.write_text(json.dumps(KINDS))
    return path


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": "text.txt", "backend": "numba", "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8,
        "batch_size": 4, "max_iters": 8, "warmup_iters": 2, "lr_decay_iters": 8, "eval_interval": 4, "eval_iters": 2,
        "tokenizer": "char", "plot": False, "threads": 1,
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})


def arrays_of(run: Run) -> dict[str, bytes]:
    """Every bit of the weights and moments."""
    arrays = {**run.model.state_dict(), **run.optimizer.state_dict()["state"]}
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("kinds", [KINDS, ()])
def test_a_resumed_run_has_the_same_bits_where_the_choice_has_changed(
    kinds: tuple[str, ...], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.write_text(json.dumps(kinds))
    whole = new_run(config(out="whole"))
    train(whole)
    train(new_run(config(out="parts", max_iters=4)))
    assert load_checkpoint("parts").state.numpy_products == sorted(kinds)

    kept.write_text(json.dumps([kind for kind in KINDS if kind not in kinds]))
    computed_by = type(load("numba"))._rows_times_matrix
    by_kernels = []

    def record(*args: Any) -> Any:
        by_kernels.append(1)
        return computed_by(*args)

    monkeypatch.setattr(type(load("numba")), "_rows_times_matrix", record)
    parts = make_run(Arguments(given={"max_iters": 8}, resume="parts"))
    assert tg.get_backend().numpy_products() == frozenset(kinds)
    train(parts)
    assert bool(by_kernels) == (not kinds)
    assert arrays_of(parts) == arrays_of(whole)
    assert Path("parts", METRICS).read_bytes() == Path("whole", METRICS).read_bytes()
    assert load_checkpoint("parts").state.numpy_products == sorted(kinds)

    new_run(config(out="new"))  # in the same process: of this machine
    assert tg.get_backend().numpy_products() == frozenset(KINDS) - frozenset(kinds)


def test_a_checkpoint_from_before_there_was_a_choice() -> None:
    train(new_run(config(out="run", max_iters=4)))
    folder = load_checkpoint("run").path
    state = json.loads((folder / STATE).read_text())
    del state["numpy_products"]
    (folder / STATE).write_text(json.dumps(state))
    write_manifest(folder, [path.name for path in folder.iterdir() if path.name != "manifest.json"])
    make_run(Arguments(given={"max_iters": 8}, resume="run"))
    assert tg.get_backend().numpy_products() == frozenset()


def test_diverge_repeats_each_run_with_its_own_choice(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kinds in (("a", KINDS), ("b", ())):
        kept.write_text(json.dumps(kinds))
        train(new_run(config(out=name, max_iters=3)))
    differ = Path("a", METRICS).read_bytes() != Path("b", METRICS).read_bytes()
    diverge.main(["a", "b"])
    out = capsys.readouterr().out
    assert "not exact" not in out
    assert not differ or "differs     step 1, op" in out


def test_another_backend_has_no_choice() -> None:
    train(new_run(config(out="run", max_iters=4, backend="numpy")))
    assert load_checkpoint("run").state.numpy_products == []


def test_an_unknown_value_of_the_variable_is_a_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORGRAD_PRODUCTS", "mkl")
    with pytest.raises(UserError, match="^TENSORGRAD_PRODUCTS is 'mkl': give numba"):
        new_run(config(out="run"))
