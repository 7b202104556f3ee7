"""--init-from: a new run that starts with the weights of a checkpoint or of a Hugging Face GPT-2."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tensorgrad as tg
from gpt.config import UserError
from gpt.model import GPT
from gpt.tokenizer import GPT2Tokenizer
from gpt.train.dry_run import dry_run
from gpt.train.flags import Arguments, parse
from gpt.train.loop import train
from gpt.train.run import Run, configure, make_run

TEXT = "the quick brown fox jumps over the lazy dog\n" * 30
SMALL: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 2, "n_head": 2, "n_embd": 16, "bias": True,
    "block_size": 8, "batch_size": 4, "max_iters": 4, "eval_interval": 4, "eval_iters": 1, "plot": False,
    "tokenizer": "char",
}  # fmt: skip
RUN = {"data": "text.txt", "backend": "numpy", "batch_size": 4, "max_iters": 2, "eval_iters": 1}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    with tg.use_backend("numpy"):
        yield tmp_path


def begin(path: str, **given: Any) -> Run:
    return make_run(Arguments(given={**RUN, "out": "new", "init_from": path, **given}, resume=None))


@pytest.fixture
def old() -> Run:
    run = make_run(Arguments(given={**SMALL, "out": "old"}, resume=None))
    train(run)
    return run


@pytest.mark.parametrize("path", ["old", "old/step-000004"])
def test_a_new_run_starts_with_the_weights_of_a_checkpoint(path: str, old: Run) -> None:
    run = begin(path, seed=7, dropout=0.1)
    assert (run.step, run.best_step, run.optimizer.step_count) == (0, None, 0)
    assert run.config.n_layer == 2  # taken from the checkpoint, not the default
    assert run.tokenizer.to_dict() == old.tokenizer.to_dict()
    for name, array in old.model.state_dict().items():
        np.testing.assert_array_equal(run.model.state_dict()[name], array, err_msg=name)
    assert all(not moment.any() for moment in run.optimizer.state_dict()["state"].values())
    assert train(run) == 0
    resumed = make_run(Arguments(given={"max_iters": 3}, resume="new"))
    assert resumed.config.init_from == path  # recorded, but the weights are not loaded again
    assert resumed.step == 2


@pytest.mark.parametrize(
    ("given", "schedule"),
    [
        ({"max_iters": 60}, (1e-4, 1e-5, 6)),
        ({"max_iters": 5000}, (1e-4, 1e-5, 100)),
        ({"max_iters": 60, "lr": 3e-6}, (3e-6, 3e-7, 6)),
        ({"max_iters": 60, "lr": 3e-4, "min_lr": 3e-4, "warmup_iters": 50}, (3e-4, 3e-4, 50)),
        ({"max_iters": 5}, (1e-4, 1e-5, 0)),
    ],
)
def test_trained_weights_get_a_low_learning_rate_and_a_short_warm_up(
    given: dict[str, Any], schedule: tuple[float, float, int], old: Run
) -> None:
    config, _ = configure(Arguments(given={**RUN, "init_from": "old", **given}, resume=None))
    assert (config.lr, config.min_lr, config.warmup_iters) == pytest.approx(schedule)


def test_a_dry_run_describes_the_run_that_starts_with_the_weights(old: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def dry(**given: Any) -> int:
        return dry_run(Arguments(given={**RUN, "init_from": "old", **given}, resume=None, dry_run=True))

    assert dry() == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 layers, 2 heads, width 16, window 8" in out and "lr 0.0001, min_lr 1e-05, warmup_iters 0" in out
    with pytest.raises(UserError, match="^n_layer 3: the weights of old have 2"):
        dry(n_layer=3)
    with pytest.raises(UserError, match="^missing: no such checkpoint"):
        dry(init_from="missing")


def test_a_shorter_window_uses_the_first_position_embeddings(old: Run) -> None:
    run = begin("old", block_size=5)
    np.testing.assert_array_equal(run.model.wpe.weight.data, old.model.wpe.weight.data[:5])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_layer": 3}, "n_layer 3: the weights of old have 2"),
        ({"n_head": 4}, "n_head 4: the weights of old have 2"),
        ({"bias": False}, "bias False: the weights of old have True"),
        ({"block_size": 9}, "block_size 9: the weights of old have 8"),
        ({"tokenizer": "bpe"}, "tokenizer bpe: the weights of old have char"),
        ({"data": "other.txt"}, "data 'other.txt': the vocabulary, of 28 characters, does not have 'Ä'"),
        ({"init_from": "missing"}, "missing: no such checkpoint; give a run, .* GGUF, smollm2 or gpt2"),
        ({"init_from": "smolm2"}, r"smolm2: no such checkpoint; did you mean smollm2\?"),
        ({"init_from": "text.txt"}, "text.txt: neither safetensors nor GGUF; give a run, .* GGUF, smollm2 or gpt2"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(given: dict[str, Any], message: str, old: Run) -> None:
    Path("other.txt").write_text(TEXT + "Ä")
    with pytest.raises(UserError, match=f"^{message}") as error:
        begin(**{"path": "old", **{("path" if key == "init_from" else key): value for key, value in given.items()}})
    assert "\n" not in str(error.value)
    assert not Path("new").exists()


def test_init_from_and_resume_together_are_refused(old: Run) -> None:
    with pytest.raises(UserError, match="--init-from starts a new run, and --resume continues one"):
        make_run(Arguments(given={"init_from": "old"}, resume="old"))


@pytest.mark.parametrize("place", ["gpt2", "gpt2/model.safetensors"])
def test_a_new_run_starts_with_hugging_face_gpt2_weights(place: str, gpt2: GPT2Tokenizer) -> None:
    published = GPT({"block_size": 16, "vocab_size": gpt2.vocab_size, "n_layer": 1, "n_head": 1, "n_embd": 64})
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    Path("gpt2").mkdir()
    save_file(
        {
            f"transformer.{name}": np.ascontiguousarray(array.T if name.endswith(transposed) else array)
            for name, array in published.state_dict().items()
        },
        "gpt2/model.safetensors",
    )
    run = begin(place, block_size=8)
    assert (run.config.tokenizer, run.config.n_head, run.config.bias) == ("gpt2", 1, True)
    np.testing.assert_array_equal(run.model.h[0].mlp.c_fc.weight.data, published.h[0].mlp.c_fc.weight.data)
    with pytest.raises(UserError, match="tokenizer char: the weights of gpt2.* have gpt2"):
        begin(place, tokenizer="char", out="other")


def test_gpt2_weights_with_another_vocabulary_are_refused(gpt2: GPT2Tokenizer) -> None:
    save_file(
        GPT({"block_size": 4, "vocab_size": 9, "n_layer": 1, "n_head": 1, "n_embd": 64}).state_dict(), "x.safetensors"
    )
    with pytest.raises(UserError, match="x.safetensors: "):
        begin("x.safetensors")


def test_the_flag_is_accepted_in_both_spellings() -> None:
    assert parse(["--init-from", "old"]).given == {"init_from": "old"}
    assert parse(["--init_from=old/step-000004"]).given == {"init_from": "old/step-000004"}
