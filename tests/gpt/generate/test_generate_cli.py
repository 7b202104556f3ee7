"""generate.py: what it writes, and the one line it answers each mistake with."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import generate as program
import tensorgrad as tg
from gpt.checkpoint import RunState, load_checkpoint, save_checkpoint
from gpt.cli import run
from gpt.config import TrainConfig
from gpt.generate import generate_text
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer
from tests.processes import HANG_S, finish

SCRIPT = Path(program.__file__)
TEXT = "\n To be, or not to be: that is th\u00e9 question."
WINDOW = 8


def save_model(run_dir: Path, step: int = 5, seed: int = 0) -> Path:
    """A small model with large weights, so that it has something to say."""
    tg.manual_seed(seed)
    config = TrainConfig(n_layer=1, n_head=2, n_embd=8, block_size=WINDOW)
    tokenizer = CharTokenizer.train(TEXT)
    model = GPT(config.model_config(tokenizer.vocab_size))
    for p in model.parameters():
        p.data += 0.5 * tg.normal(p.shape).numpy()
    rng = tg.random.default_generator.state_dict()
    state = RunState(step=step, model_config=model.config, train_config=config, data_sha256="0" * 64, rng=rng)
    return save_checkpoint(run_dir, state, model, tg.optim.AdamW(model.parameters()), tokenizer)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with one checkpoint under checkpoints/."""
    monkeypatch.chdir(tmp_path)
    return save_model(tmp_path / "checkpoints" / "run")


@pytest.fixture(autouse=True)
def same_backend_afterwards() -> Iterator[None]:
    with tg.use_backend("numpy"):
        yield


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run generate.py in this process; status, stdout, stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        try:
            status = run(lambda: program.main(["--backend=numpy", *words]), prog="generate.py")
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return call


def expected_text(path: Path, prompt: str, n: int, **options: object) -> str:
    loaded = load_checkpoint(path, optimizer=False)
    [text] = generate_text(loaded.build_model(), loaded.tokenizer, [prompt], max_new_tokens=n, **options)
    return text


# --------------------------------------------------------------------------------------------------
# What it writes


def test_no_arguments(checkpoint: Path, call: Callable) -> None:
    status, out, err = call()
    assert status == 0
    expected = expected_text(checkpoint, "", 500, seed=1337, temperature=0.8, top_k=200)
    assert out == expected + "\n" and len(expected) == 500
    assert "numpy was requested" in err and "checkpoints/run/step-000005" in err


def test_every_flag(checkpoint: Path, call: Callable) -> None:
    status, out, _ = call(
        "--checkpoint", str(checkpoint), "--prompt=To be", "--max_new_tokens=40",
        "--temperature", "1.2", "--top_k=5", "--top-p", "0.95", "--repetition_penalty=1.3",
        "--seed=4",
    )  # fmt: skip
    expected = expected_text(
        checkpoint, "To be", 40,
        seed=4, temperature=1.2, top_k=5, top_p=0.95, repetition_penalty=1.3,
    )  # fmt: skip
    assert (status, out) == (0, "To be" + expected + "\n")


def test_a_run_folder_will_do(checkpoint: Path, call: Callable) -> None:
    assert call("--checkpoint", "checkpoints/run")[1] == call()[1]


def test_the_newest_checkpoint_is_taken(checkpoint: Path, call: Callable) -> None:
    before = call()[1]
    newer = save_model(checkpoint.parent.parent / "another", step=2, seed=9)
    status, out, err = call()
    assert status == 0 and "another/step-000002" in err and out != before
    assert out[:-1] == expected_text(newer, "", 500, seed=1337, temperature=0.8, top_k=200)


def test_samples_differ_and_can_be_had_alone(checkpoint: Path, call: Callable) -> None:
    _, out, _ = call("--prompt=be", "--max-new-tokens=30", "--num-samples=3", "--seed=7")
    samples = out.split("\n---------------\n")
    assert len(samples) == 4 and samples[3] == "" and len(set(samples)) == 4
    for i in range(3):
        _, alone, _ = call("--prompt=be", "--max-new-tokens=30", f"--seed={7 + i}")
        assert alone == samples[i] + "\n"


def test_stop(checkpoint: Path, call: Callable) -> None:
    _, free, _ = call("--prompt=be", "--max-new-tokens=60")
    stop = free[12:15]
    _, out, _ = call("--prompt=be", "--max-new-tokens=60", "--stop", stop, "--stop", "?!")
    assert out == "be" + free[2:].partition(stop)[0] + "\n"


def test_prompt_from_a_file(checkpoint: Path, call: Callable) -> None:
    Path("prompt.txt").write_text("that is\n", encoding="utf-8")
    from_file = call("--prompt=FILE:prompt.txt", "--max-new-tokens=9")
    assert from_file[0] == 0
    assert from_file == call("--prompt=that is\n", "--max-new-tokens=9")


def test_a_prompt_longer_than_the_window_works_and_says_so(checkpoint: Path, call: Callable) -> None:
    prompt = "or not to be: that is"
    status, out, err = call("--prompt", prompt, "--temperature=0", "--max-new-tokens=9")
    assert status == 0
    assert "the prompt has 21 tokens and the window 8: the model sees the last 8" in err
    cropped = call("--prompt", prompt[-WINDOW:], "--temperature=0", "--max-new-tokens=9")
    assert out == prompt[:-WINDOW] + cropped[1]
    assert "window" not in cropped[2]


def test_nothing_new(checkpoint: Path, call: Callable) -> None:
    assert call("--prompt=To be", "--max-new-tokens=0")[:2] == (0, "To be\n")


# --------------------------------------------------------------------------------------------------
# Mistakes


def refused(answer: tuple[int, str, str]) -> str:
    """The line that a mistake is answered with: status 2, nothing on stdout, the last of stderr."""
    status, out, err = answer
    assert status == 2 and out == ""
    *notes, line = err.splitlines()
    assert line.startswith("generate.py: error: ")
    assert not [note for note in notes if "error" in note or "Traceback" in note]
    return line.removeprefix("generate.py: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temprature=1"], "unknown flag --temprature; did you mean --temperature?"),
        (["--num_sample=1"], "unknown flag --num_sample; did you mean --num-samples?"),
        (["--backend=numpyy"], "unknown value 'numpyy'; did you mean numpy?"),
        (["--temperature=-1"], "temperature must be at least 0"),
        (["--top-k=0"], "top_k must be a whole number of at least 1"),
        (["--top-p=0"], "top_p must be above 0"),
        (["--repetition-penalty=0"], "repetition_penalty must be above 0"),
        (["--max-new-tokens=-1"], "max_new_tokens must be at least 0"),
        (["--num-samples=0"], "--num-samples must be at least 1, not 0"),
        (["--seed=-3"], "seed: -3 is not"),
        (["--stop="], "stop must not be an empty text"),
        (["--prompt=Zebra"], "does not have 'Z'"),
        (["--prompt=FILE:none.txt"], "none.txt: No such file or directory"),
        (["--checkpoint=none"], "none: no such checkpoint"),
        (["--checkpoint=checkpoints/run/step-000005/state.json"], "this is a file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes(words: list[str], message: str, checkpoint: Path, call: Callable) -> None:
    assert message in refused(call(*words))


def test_a_prompt_that_is_no_text(checkpoint: Path, call: Callable) -> None:
    Path("prompt.bin").write_bytes(b"\xff\xfe\x00")
    assert "prompt.bin is not UTF-8 text" in refused(call("--prompt=FILE:prompt.bin"))


def test_no_checkpoint_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(call()) == "no checkpoint under checkpoints yet: run train.py first"
    (tmp_path / "checkpoints").mkdir()
    assert refused(call()) == "no checkpoint under checkpoints yet: run train.py first"


def test_a_truncated_checkpoint(checkpoint: Path, call: Callable) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors: damaged" in refused(call())
    weights.unlink()
    assert "model.safetensors: missing" in refused(call())


def test_weights_of_another_shape(checkpoint: Path, call: Callable, tmp_path: Path) -> None:
    """Each file is whole, but they are not of one model."""
    other = GPT({**load_checkpoint(checkpoint).state.model_config.to_dict(), "n_embd": 16})
    loaded = load_checkpoint(checkpoint)
    mixed = save_checkpoint(
        tmp_path / "mixed",
        loaded.state,
        other,
        tg.optim.AdamW(other.parameters()),
        loaded.tokenizer,
    )
    assert "model.safetensors: FusedGPT: wte.weight has shape" in refused(call("--checkpoint", str(mixed)))


def test_more_threads_than_cores(checkpoint: Path, call: Callable) -> None:
    assert refused(call("--threads=100000")).startswith("threads: 100000 is not a number from 1 to ")


def test_a_backend_that_cannot_run(checkpoint: Path, call: Callable) -> None:
    why_not = tg.backend.check("cupy")
    if why_not is None:
        pytest.skip("CuPy works here")
    assert refused(call("--backend=cupy")) == " ".join(why_not.split())


def test_a_diverged_model(checkpoint: Path, call: Callable, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    model = loaded.build_model()
    model.ln_f.weight.data[...] = np.nan
    model.wte.weight.data[...] *= 1e20  # the squares of these overflow, which is not to be a warning besides
    path = save_checkpoint(tmp_path / "nan", loaded.state, model, tg.optim.AdamW(model.parameters()), loaded.tokenizer)
    status, out, err = call("--checkpoint", str(path))
    assert status == 2 and out == ""
    assert "nan or infinite: the model's training diverged" in err.splitlines()[-1]


# --------------------------------------------------------------------------------------------------
# As a program of its own


def start(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), "--backend=numpy", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_closed_pipe_ends_quietly(checkpoint: Path) -> None:
    with start("--max-new-tokens=100000") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(timeout=HANG_S) == 141
        assert all(line.startswith(b"generate.py: ") for line in process.stderr)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGINT to send")
def test_ctrl_c_ends_quietly(checkpoint: Path) -> None:
    with start("--max-new-tokens=100000") as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(10)) == 10  # streaming: there long before the end
        process.send_signal(signal.SIGINT)
        out, err = finish(process)
        assert process.returncode == 130
        assert len(out) < 100000
        assert all(line.startswith("generate.py: ") for line in err.decode().splitlines() if line)


def test_a_terminal_that_cannot_show_every_character(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    Path("prompt.txt").write_text("th\u00e9", encoding="utf-8")
    with start("--prompt=FILE:prompt.txt", "--max-new-tokens=0") as process:
        out, _ = finish(process)
        assert (process.returncode, out.strip()) == (0, b"th?")
