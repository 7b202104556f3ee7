"""generate.py: the text that it writes, and one-line user errors."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import generate as program
import tensorgrad as tg
from gpt.checkpoint import RunState, load_checkpoint, save_checkpoint
from gpt.cli import run
from gpt.generate import generate_text
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.train.config import TrainConfig
from tests.processes import HANG_S, finish

SCRIPT = Path(program.__file__)
TEXT = "\n To be, or not to be: that is th\u00e9 question."
WINDOW = 8


def save_model(run_dir: Path, step: int = 5, seed: int = 0, text: str = TEXT) -> Path:
    """Save a small model with large weights, so that its samples vary."""
    tg.manual_seed(seed)
    config = TrainConfig(n_layer=1, n_head=2, n_embd=8, block_size=WINDOW)
    tokenizer = CharTokenizer.train(text)
    model = GPT(config.model_config(tokenizer.vocab_size))
    for p in model.parameters():
        p.data += 0.5 * tg.normal(p.shape).numpy()
    rng = tg.random.default_generator.state_dict()
    state = RunState(step=step, model_config=model.config, train_config=config, data_sha256="0" * 64, rng=rng)
    return save_checkpoint(run_dir, state, model, tg.optim.AdamW(model.parameters()), tokenizer)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one checkpoint under checkpoints/."""
    monkeypatch.chdir(tmp_path)
    return save_model(tmp_path / "checkpoints" / "run")


@pytest.fixture(autouse=True)
def restore_the_backend() -> Iterator[None]:
    with tg.use_backend("numpy"):
        yield


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run generate.py in this process and return its status, stdout and stderr."""

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
# Output


def test_the_defaults_sample_500_tokens_from_the_newest_checkpoint(checkpoint: Path, call: Callable) -> None:
    status, out, err = call()
    assert status == 0
    expected = expected_text(checkpoint, "", 500, seed=1337, temperature=0.8, top_k=200)
    assert out == expected + "\n" and len(expected) == 500
    assert "numpy was requested" in err and "checkpoints/run/step-000005" in err


def test_every_flag_reaches_the_generation(checkpoint: Path, call: Callable) -> None:
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


def test_a_run_folder_is_accepted_as_a_checkpoint(checkpoint: Path, call: Callable) -> None:
    assert call("--checkpoint", "checkpoints/run")[1] == call()[1]


def test_the_newest_checkpoint_is_the_default(checkpoint: Path, call: Callable) -> None:
    before = call()[1]
    newer = save_model(checkpoint.parent.parent / "another", step=2, seed=9)
    status, out, err = call()
    assert status == 0 and "another/step-000002" in err and out != before
    assert out[:-1] == expected_text(newer, "", 500, seed=1337, temperature=0.8, top_k=200)


def test_samples_differ_and_can_be_reproduced_one_by_one(checkpoint: Path, call: Callable) -> None:
    _, out, _ = call("--prompt=be", "--max-new-tokens=30", "--num-samples=3", "--seed=7")
    samples = out.split("\n---------------\n")
    assert len(samples) == 4 and samples[3] == "" and len(set(samples)) == 4
    for i in range(3):
        _, alone, _ = call("--prompt=be", "--max-new-tokens=30", f"--seed={7 + i}")
        assert alone == samples[i] + "\n"


def test_generation_ends_before_a_stop_text(checkpoint: Path, call: Callable) -> None:
    _, free, _ = call("--prompt=be", "--max-new-tokens=60")
    stop = free[12:15]
    _, out, _ = call("--prompt=be", "--max-new-tokens=60", "--stop", stop, "--stop", "?!")
    assert out == "be" + free[2:].partition(stop)[0] + "\n"


def test_the_prompt_can_be_read_from_a_file(checkpoint: Path, call: Callable) -> None:
    Path("prompt.txt").write_text("that is\n", encoding="utf-8")
    from_file = call("--prompt=FILE:prompt.txt", "--max-new-tokens=9")
    assert from_file[0] == 0
    assert from_file == call("--prompt=that is\n", "--max-new-tokens=9")


def test_a_prompt_longer_than_the_window_is_cropped_with_a_note(checkpoint: Path, call: Callable) -> None:
    prompt = "or not to be: that is"
    status, out, err = call("--prompt", prompt, "--temperature=0", "--max-new-tokens=9")
    assert status == 0
    assert "the prompt has 21 tokens and the window 8: the model sees the last 8" in err
    cropped = call("--prompt", prompt[-WINDOW:], "--temperature=0", "--max-new-tokens=9")
    assert out == prompt[:-WINDOW] + cropped[1]
    assert "window" not in cropped[2]


@pytest.mark.parametrize("k", ["0", "none", "None", "off", "all"])
def test_top_k_can_be_switched_off(k: str, checkpoint: Path, call: Callable) -> None:
    out = call("--top-k", k, "--max-new-tokens=30", "--temperature=2")[1]
    assert out == expected_text(checkpoint, "", 30, seed=1337, temperature=2.0, top_k=None) + "\n"


@pytest.mark.parametrize("text", ["- to", "-to", "--to-be", "-", "--"])
def test_a_prompt_may_begin_with_a_hyphen(text: str, checkpoint: Path, call: Callable, tmp_path: Path) -> None:
    save_model(tmp_path / "checkpoints" / "hyphens", text=TEXT + "-")
    assert call("--prompt=or" + text, "--max-new-tokens=3")[0] == 0
    if text == "-":  # means the standard input
        return
    one, two = call(f"--prompt={text}", "--max-new-tokens=3"), call("--prompt", text, "--max-new-tokens=3")
    assert one == two and one[0] == 0 and one[1].startswith(text)


def test_the_prompt_can_be_read_from_standard_input(
    checkpoint: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffth\u00e9 be\n".encode())))
    assert call("--prompt", "-", "--max-new-tokens=5") == call("--prompt=th\u00e9 be\n", "--max-new-tokens=5")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert "the standard input is not UTF-8 text" in refused(call("--prompt=-"))


def test_home_folder_paths_are_expanded_and_byte_order_marks_skipped(
    checkpoint: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("~notes.txt").write_text("be", encoding="utf-8-sig")
    plain = call("--prompt=be", "--max-new-tokens=5")[1]
    assert call("--prompt=FILE:~/~notes.txt", "--checkpoint=~/checkpoints/run", "--max-new-tokens=5")[1] == plain
    assert call("--prompt=FILE:~notes.txt", "--max-new-tokens=5")[1] == plain


def test_a_stop_text_may_be_a_line_break(checkpoint: Path, call: Callable) -> None:
    free = call("--max-new-tokens=400", "--temperature=5")[1]
    assert "\n" in free[:-1]
    assert call("--max-new-tokens=400", "--temperature=5", "--stop", r"\n")[1] == free.partition("\n")[0] + "\n"
    texts = {r"\n": "\n", r"\t": "\t", r"\\n": r"\n", "\\": "\\", r"a\b": r"a\b"}
    assert {text: program.unescape(text) for text in texts} == texts


def test_the_flags_of_nanogpt_are_accepted(checkpoint: Path, call: Callable) -> None:
    words = ["--out_dir=checkpoints/run", "--start=be", "--num_samples=1", "--max_new_tokens=9", "--device=cpu"]
    out = call(*words, "--compile=False", "--init_from=resume", "--dtype=float16", "--backend=numpy")[1]
    assert out == call("--prompt=be", "--max-new-tokens=9")[1]
    Path("p.txt").write_text("be")
    assert call("--start=FILE:p.txt", "--max_new_tokens=9")[1] == out


def test_hugging_face_gpt2_weights_generate_text(
    tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch, gpt2: Tokenizer
) -> None:
    monkeypatch.chdir(tmp_path)
    model = GPT({"block_size": 8, "vocab_size": gpt2.vocab_size, "n_layer": 1, "n_head": 1, "n_embd": 8, "bias": True})
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    arrays = {
        name: np.ascontiguousarray(array.T if name.endswith(transposed) else array)
        for name, array in model.state_dict().items()
    }
    Path("gpt2").mkdir()
    save_file(arrays, "gpt2/model.safetensors")
    [text] = generate_text(model, gpt2, ["To be"], max_new_tokens=5, temperature=0.8, top_k=200, seed=1337)
    for path in ("gpt2", "gpt2/model.safetensors"):
        out = call(f"--checkpoint={path}", "--prompt=To be", "--max-new-tokens=5", "--n-head=1")[1]
        assert out == f"To be{text}\n"


def test_the_weights_file_of_a_checkpoint_stands_for_the_checkpoint(checkpoint: Path, call: Callable) -> None:
    words = ("--max-new-tokens=9", "--checkpoint")
    assert call(*words, str(checkpoint / "model.safetensors"))[1] == call(*words, str(checkpoint))[1]


def test_runs_are_listed_and_unfinished_runs_are_reported(checkpoint: Path, call: Callable) -> None:
    assert call("--list")[1] == "checkpoints/run  step 5 of 1800, unfinished\n"
    command = "python train.py --resume checkpoints/run"
    assert f"checkpoints/run is unfinished, at step 5 of 1800: {command} continues it" in call()[2]
    assert "unfinished" not in call("--checkpoint=checkpoints/run")[2]
    save_model(Path("checkpoints/my run"), step=1800)
    for folder, time in (("run/step-000005", 1), ("my run/step-001800", 2)):
        os.utime(f"checkpoints/{folder}", (time, time))
    assert "unfinished" not in call()[2]
    Path("checkpoints/new").mkdir()
    Path("checkpoints/new/metrics.jsonl").touch()
    assert "checkpoints/new is newer, but has no checkpoint yet" in call()[2]
    Path("checkpoints/run/step-000005/state.json").write_text("{")
    assert call("--list")[1].splitlines() == [
        "checkpoints/run  step 5, damaged",
        "checkpoints/my run  step 1800 of 1800",
        "checkpoints/new  no checkpoint yet",
    ]


def test_an_empty_list_of_runs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("--list")[:2] == (0, "no run under checkpoints yet\n")


def test_a_huge_number_of_samples_starts_without_delay(
    checkpoint: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "write", stop)
    assert call(f"--num-samples={10**20}", f"--max-new-tokens={10**20}")[0] == 130


def test_zero_new_tokens_print_only_the_prompt(checkpoint: Path, call: Callable) -> None:
    assert call("--prompt=To be", "--max-new-tokens=0")[:2] == (0, "To be\n")


# --------------------------------------------------------------------------------------------------
# User errors


def refused(answer: tuple[int, str, str]) -> str:
    """Check for status 2 and an empty stdout, and return the error, which is the last line of stderr."""
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
        (["--top-k=-1"], "argument --top-k: '-1' is not a whole number of at least 1, or 0 for all tokens"),
        (["--top-k", "-1"], "argument --top-k: '-1' is not a whole number of at least 1, or 0 for all tokens"),
        (["--top-k=1.5"], "argument --top-k: '1.5' is not a whole number of at least 1, or 0 for all tokens"),
        (["--prompt", "--temperature=1"], "argument --prompt: expected one argument"),
        (["--dtypo=float16"], "unknown flag --dtypo"),
        (["--top-p=0"], "top_p must be above 0"),
        (["--repetition-penalty=0"], "repetition_penalty must be above 0"),
        (["--max-new-tokens=-1"], "max_new_tokens must be at least 0"),
        (["--num-samples=0"], "--num-samples must be at least 1, not 0"),
        (["--seed=-3"], "seed: -3 is not"),
        (["--stop="], "stop must not be an empty text"),
        (["--prompt=Zebra"], "does not have 'Z'"),
        (["--prompt=FILE:none.txt"], "none.txt: No such file or directory"),
        (["--checkpoint=none"], "none: no such checkpoint"),
        (["--checkpoint=checkpoints/run/step-000005/state.json"], "state.json: neither safetensors nor GGUF"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_user_errors_are_one_line(words: list[str], message: str, checkpoint: Path, call: Callable) -> None:
    assert message in refused(call(*words))


def test_a_prompt_file_that_is_not_utf8_is_refused(checkpoint: Path, call: Callable) -> None:
    Path("prompt.bin").write_bytes(b"\xff\xfe\x00")
    assert "prompt.bin is not UTF-8 text" in refused(call("--prompt=FILE:prompt.bin"))


def test_a_missing_checkpoint_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(call()) == "no checkpoint under checkpoints yet: run train.py first"
    (tmp_path / "checkpoints").mkdir()
    assert refused(call()) == "no checkpoint under checkpoints yet: run train.py first"


def test_a_truncated_checkpoint_is_refused(checkpoint: Path, call: Callable) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors: damaged" in refused(call())
    weights.unlink()
    assert "model.safetensors: missing" in refused(call())


def test_weights_of_another_shape_are_refused(checkpoint: Path, call: Callable, tmp_path: Path) -> None:
    """Each file is complete, but they belong to different models."""
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


def test_more_threads_than_cores_are_refused(checkpoint: Path, call: Callable) -> None:
    assert refused(call("--threads=100000")).startswith("threads: 100000 is not a number from 1 to ")


def test_an_unavailable_backend_is_reported(checkpoint: Path, call: Callable) -> None:
    why_not = tg.backend.check("cupy")
    if why_not is None:
        pytest.skip("CuPy works here")
    assert refused(call("--backend=cupy")) == " ".join(why_not.split())


def test_a_diverged_model_is_reported(checkpoint: Path, call: Callable, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    model = loaded.build_model()
    model.ln_f.weight.data[...] = np.nan
    model.wte.weight.data[...] *= 1e20  # their squares overflow, which must not add a warning
    path = save_checkpoint(tmp_path / "nan", loaded.state, model, tg.optim.AdamW(model.parameters()), loaded.tokenizer)
    status, out, err = call("--checkpoint", str(path))
    assert status == 2 and out == ""
    assert "nan or infinite: the model's training diverged" in err.splitlines()[-1]


# --------------------------------------------------------------------------------------------------
# In a separate process


def start(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), "--backend=numpy", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_quietly(checkpoint: Path, unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
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
        assert len(process.stdout.read(10)) == 10  # streamed: available long before the end
        process.send_signal(signal.SIGINT)
        out, err = finish(process)
        assert process.returncode == 130
        assert len(out) < 100000
        assert all(line.startswith("generate.py: ") for line in err.decode().splitlines() if line)


def test_characters_that_the_terminal_cannot_encode_are_replaced(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    Path("prompt.txt").write_text("th\u00e9", encoding="utf-8")
    with start("--prompt=FILE:prompt.txt", "--max-new-tokens=0") as process:
        out, _ = finish(process)
        assert (process.returncode, out.strip()) == (0, b"th?")


def test_no_line_interrupts_a_text_that_has_begun(capsys: pytest.CaptureFixture[str]) -> None:
    """The heartbeat says that the program works until the first pieces do: two are computed before one is printed."""
    before, during = threading.active_count(), []

    def pieces() -> Iterator[str]:
        for piece in ("To be", ", or not", " to be"):
            during.append(threading.active_count() - before)
            yield piece

    program.write("Speak: ", pieces())
    assert during == [1, 1, 0]
    assert capsys.readouterr().out == "Speak: To be, or not to be"
