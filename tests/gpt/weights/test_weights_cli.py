"""python -m gpt weights: runs written for other programs, and read again."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from gpt.__main__ import main
from gpt.cli import EXIT_INTERRUPTED
from gpt.train.config import NAMED_CONFIGS
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.run import make_run
from gpt.weights import huggingface
from gpt.weights.initial import load_initial

pytestmark = pytest.mark.usefixtures("numpy_backend")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A trained llama-char, smaller, with a tokenizer that GGUF knows."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be, or not to be: that is the question\n" * 40)
    small = {"n_layer": 1, "n_embd": 32, "n_hidden": 32, "block_size": 16, "batch_size": 2, "max_iters": 3}
    own = {"data": "text.txt", "tokenizer": "bpe", "vocab_size": 270, "backend": "numpy", "eval_iters": 1}
    own["plot"] = False
    train(make_run(Arguments(given={**NAMED_CONFIGS["llama-char"], **small, **own, "out": "run"}, resume=None)))
    return "run"


def test_a_run_is_exported_and_read_again(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    original = load_initial(run)
    assert main(["weights", "export", run, "--to", "hf", "--out", "folder"]) == 0
    assert f"folder: {original.config.count_parameters().total:,} parameters, " in capsys.readouterr().out
    assert json.loads(Path("folder/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    with safe_open("folder/model.safetensors", "np") as file:
        assert "model.layers.0.self_attn.q_proj.weight" in file.keys()  # noqa: SIM118
    pytest.importorskip("gguf")
    assert main(["weights", "export", run, "--to", "gguf", "--type", "f16", "--out", "f16.gguf"]) == 0
    assert main(["weights", "quantize", "folder", "--out", "q8_0.gguf"]) == 0
    assert main(["weights", "quantize", "f16.gguf", "--type", "q4_0", "--out", "q4_0.gguf"]) == 0
    for path in ("folder", "f16.gguf", "q8_0.gguf", "q4_0.gguf"):
        loaded = load_initial(path)
        assert loaded.config == original.config
        assert loaded.tokenizer.encode("to be") == original.tokenizer.encode("to be")
    assert load_initial("q8_0.gguf").weights["wte.weight"].type == "q8_0"
    assert load_initial("q4_0.gguf").weights["wte.weight"].type == "q4_0"


def test_an_exported_folder_is_whole_or_absent_and_as_readable_as_any_file(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["weights", "export", run, "--to", "hf", "--out", "exports/folder"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "write_json", interrupted)
        assert main(words) == EXIT_INTERRUPTED
    assert list(Path("exports").iterdir()) == []
    Path("exports/.folder.writing").mkdir()  # as a killed process leaves it
    Path("exports/.folder.writing/merges.txt").touch()
    assert main(words) == 0
    files = list(Path("exports/folder").iterdir())
    assert len(files) == 4 and len({file.stat().st_mode for file in files}) == 1


def test_exported_weights_can_be_trained_and_evaluated(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["weights", "export", run, "--to", "hf", "--out", "folder"])
    given = {"data": "text.txt", "backend": "numpy", "batch_size": 2, "max_iters": 2, "eval_iters": 1, "out": "new"}
    trained = make_run(Arguments(given={**given, "init_from": "folder", "block_size": 8}, resume=None))
    assert (trained.config.model, trained.config.tokenizer, trained.config.n_kv_head) == ("llama", "byte-level", 2)
    train(trained)
    resumed = make_run(Arguments(given={"max_iters": 3}, resume="new"))
    assert resumed.step == 2 and resumed.tokenizer.to_dict() == trained.tokenizer.to_dict()
    capsys.readouterr()
    losses = []
    for words in (["folder"], [run], ["folder", "--quantize", "q8_0"]):
        assert main(["evaluate", *words, "--data", "text.txt", "--json", "--backend", "numpy"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] == pytest.approx(losses[1], rel=1e-2) and losses[2] != losses[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "run", "--to", "hf", "--type", "q8_0", "--out", "x"], "--type q8_0 is for --to gguf; --to hf"),
        (["export", "run", "--to", "hf", "--out", "text.txt"], "--out text.txt exists: give another one"),
        (["quantize", "nothing", "--out", "x"], "nothing: no such checkpoint"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not Path("x").exists()
