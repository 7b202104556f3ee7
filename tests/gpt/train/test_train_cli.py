"""train.py as a command: its flags, its errors, and complete runs."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest

import tensorgrad as tg
import train
from gpt.checkpoint import load_checkpoint
from gpt.cli import run as run_program
from gpt.config import GPT_CONFIG_SHAKESPEARE_CHAR_CPU, GPTConfig, UserError
from gpt.train.config import CHOICES, NAMED_CONFIGS, TrainConfig
from gpt.train.config_file import read_config
from gpt.train.flags import NEWEST, build_parser, parse
from tests.processes import HANG_S, finish, wait_until

pytestmark = pytest.mark.usefixtures("numpy_backend")

ROOT = Path(__file__).parents[3]
TEXT = "the quick brown fox jumps over the lazy dog\n" * 30
SMALL = [
    "--data=text.txt", "--backend=numpy", "--n-layer=1", "--n-head=2", "--n-embd=16",
    "--block-size=8", "--batch-size=4", "--max-iters=6", "--eval-interval=3", "--eval-iters=1",
    "--plot=False", "--tokenizer=char",
]  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    return tmp_path


def config_of(*argv: str) -> TrainConfig:
    return parse(argv).train_config()


# --------------------------------------------------------------------------------------------------
# Flags


def test_without_flags_the_settings_are_the_defaults() -> None:
    arguments = parse([])
    assert arguments.given == {}
    assert arguments.resume is None
    assert arguments.train_config() == TrainConfig()


def test_every_setting_is_a_flag() -> None:
    values = {
        "int": ("3", 3), "float": ("0.00025", 0.00025), "bool": ("True", True), "str": ("x", "x"),
        "int | None": ("7", 7), "float | None": ("0.5", 0.5), "str | None": ("x", "x"), "bool | None": ("False", False),
    }  # fmt: skip
    special = {name: (known[-1], known[-1]) for name, known in CHOICES.items()}
    for field in fields(TrainConfig):
        text, value = special.get(field.name, values[str(field.type)])
        for spelling in (field.name, field.name.replace("_", "-")):
            for argv in ([f"--{spelling}", text], [f"--{spelling}={text}"]):
                assert parse(argv).given == {field.name: value}


@pytest.mark.parametrize(
    ("argv", "bias"),
    [
        (["--bias"], True),
        (["--bias=True"], True),
        (["--bias", "yes"], True),
        (["--bias=False"], False),
        (["--bias", "0"], False),
    ],
)
def test_boolean_flags_accept_several_spellings(argv: list[str], bias: bool) -> None:
    assert config_of(*argv).bias is bias


def test_resume_takes_an_optional_path() -> None:
    assert parse(["--resume"]).resume == NEWEST
    assert parse(["--resume", "--lr", "1"]).resume == NEWEST
    assert parse(["--resume", "run"]).resume == "run"


def test_the_cpu_command_of_nanogpt_is_accepted() -> None:
    command = (
        "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
        "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
        "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
    )
    config = config_of(*command.split())
    assert config.model_config(65) == GPTConfig.from_dict(GPT_CONFIG_SHAKESPEARE_CHAR_CPU)
    assert (config.tokenizer, config.batch_size) == ("char", 12)
    assert config.max_iters == config.lr_decay_iters == 2000
    assert config.eval_iters == 20
    assert config.backend in ("numpy", "numba")


@pytest.mark.parametrize(
    ("word", "given"),
    [
        ("--learning_rate=1e-3", {"lr": 1e-3}),
        ("--learning-rate=1e-3", {"lr": 1e-3}),
        ("--gradient_accumulation_steps=5", {"grad_accum": 5}),
        ("--out_dir=out/x", {"out": "out/x"}),
        ("--dataset=shakespeare_char", {"data": "shakespeare", "tokenizer": "char"}),
        ("--dataset=shakespeare", {"data": "shakespeare", "tokenizer": "gpt2"}),
        ("--device=cuda", {"backend": "cupy"}),
        ("--dtype=bfloat16", {"dtype": "bfloat16"}),
        ("--cuda-graph", {"cuda_graph": True}),
        ("--no-cuda-graph", {"cuda_graph": False}),
        ("--no_plot", {"plot": False}),
        ("--compile=False", {}),
        ("--decay_lr=True", {}),
        ("--eval_only=False", {}),
        ("--init_from=scratch", {}),
        ("--wandb_log=False", {}),
        ("--wandb_log=True", {"logger": "wandb"}),
        ("--wandb_project=owt", {}),
        ("--always_save_checkpoint=False", {}),
        ("train_gpt2.py", NAMED_CONFIGS["gpt2-124m"]),
    ],
)
def test_the_flags_of_nanogpt_are_translated(word: str, given: dict[str, object]) -> None:
    assert parse([word]).given == given


def test_a_value_may_be_the_next_word() -> None:
    assert parse(["--learning_rate", "1e-3", "--out-dir", "x=y"]).given == {"lr": 1e-3, "out": "x=y"}


def test_the_resume_flag_of_nanogpt_is_translated() -> None:
    assert parse(["--init_from=resume"]).resume == NEWEST


def test_cpu_means_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for why_not, backend in [(None, "numba"), ("NUMBA_DISABLE_JIT is set", "numpy")]:
        monkeypatch.setattr(tg.backend, "check", lambda name, why_not=why_not: why_not)
        assert config_of("--device=cpu").backend == backend


# --------------------------------------------------------------------------------------------------
# --config


def test_flags_override_the_file_and_the_file_overrides_the_defaults() -> None:
    Path("run.toml").write_text('n_layer = 6\nn_head = 2\ndata = "kjv"\ndropout = 0\n')
    config = config_of("--n-head", "8", "--config", "run.toml")
    assert (config.n_layer, config.n_head, config.data, config.dropout) == (6, 8, "kjv", 0)
    assert config.max_iters == TrainConfig().max_iters


def test_a_named_configuration_sets_the_model_and_flags_override_it() -> None:
    assert config_of("--config", "gpt2-124m").n_embd == 768
    assert config_of("--config=gpt2-124m", "--n_embd=96").n_embd == 96
    assert read_config("shakespeare-char") == NAMED_CONFIGS["shakespeare-char"]
    assert read_config("shakespeare-char") is not NAMED_CONFIGS["shakespeare-char"]


def test_a_file_may_use_hyphens_and_nanogpts_names() -> None:
    Path("run.toml").write_text("learning_rate = 0.01\nbatch-size = 3\nbias = true\n")
    assert read_config("run.toml") == {"lr": 0.01, "batch_size": 3, "bias": True}


def test_byte_order_marks_are_skipped_and_home_folder_paths_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    Path("run.toml").write_text('out = "~/runs/x"\ninit_from = "~/old"\n', encoding="utf-8-sig")
    assert parse(["--config=run.toml"]).given == {"out": "/home/me/runs/x", "init_from": "/home/me/old"}
    assert parse(["--out=~/a", "--init-from=~notes"]).given == {"out": "/home/me/a", "init_from": "~notes"}
    assert parse(["--resume=~/a"]).resume == "/home/me/a" and parse(["--resume"]).resume == NEWEST
    assert parse(["--replay=~/a"]).replay == "/home/me/a"


def test_printed_commands_are_quoted_for_the_shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, *SMALL, "--out", "my run") == 0
    assert "python generate.py --checkpoint 'my run'\n" in capsys.readouterr().out
    Path("my text.txt").touch()
    assert call(monkeypatch, *SMALL, "--data=my texts.txt") == 2
    assert "did you mean 'my text.txt'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n_layers = 6", "run.toml: unknown key 'n_layers' .*; did you mean n_layer?"),
        ("n_layer = '6'", "run.toml: n_layer must be int, not '6'"),
        ("n_layer = 1.0", "run.toml: n_layer must be int, not 1.0"),
        ("n_embd = 130", "run.toml: n_embd 130 is not divisible by n_head 4"),
        ("bias = 1", "run.toml: bias must be bool, not 1"),
        ("[model]\nn_layer = 6", "run.toml: model must be str, not {'n_layer': 6}"),
        ("n_layer 6", "run.toml: Expected '='"),
        ("n_layer = 1\nn_layer = 2", "run.toml: Cannot overwrite a value"),
        (b"\xff", "run.toml: 'utf-8' codec can't decode"),
        ('data = "a\\u0000b"', r"run.toml: data 'a\\x00b' contains NUL or bytes that are not UTF-8: rename the file"),
    ],
)
def test_the_error_for_a_bad_configuration_file_names_the_file(content: str | bytes, message: str) -> None:
    Path("run.toml").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        parse(["--config", "run.toml"])


# --------------------------------------------------------------------------------------------------
# Errors: one line, status 2, nothing written


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--n-layers 6", "unknown flag --n-layers; did you mean --n-layer?"),
        ("--learning-rte 1", "unknown flag --learning-rte"),
        ("--n_layers=6", "unknown flag --n_layers; did you mean --n-layer?"),
        ("--n-la 6", "unknown flag --n-la; did you mean --n-layer?"),  # no abbreviations
        ("--n-layer six", "argument --n-layer: invalid int value: 'six'"),
        ("--n-layer", "argument --n-layer: expected one argument"),
        ("--bias=maybe", "'maybe' is neither true nor false"),
        ("--backend numbra", "unknown value 'numbra'; did you mean numba?"),
        ("--tokenizer cahr", "unknown value 'cahr'; did you mean char?"),
        ("text.txt", "unexpected argument 'text.txt'"),
        ("--config shakespear", "unknown configuration 'shakespear'; did you mean shakespeare-ch"),
        ("--config missing.toml", "error: missing.toml: No such file or directory\n"),
        ("--config xyz", "unknown configuration 'xyz': give a .toml file, or one of shakespeare-"),
        ("--lr 0", "lr must be above 0, not 0.0"),
        ("--n-embd 130", "n_embd 130 is not divisible by n_head 4"),
        ("--tokenizer char --vocab-size 300", "vocab_size 300 is for tokenizer bpe; char determines its own"),
        ("--data missing.txt", "data 'missing.txt': no such file, folder or corpus"),
        ("--data empty.txt", "data 'empty.txt' is empty"),
        ("--data binary.dat", "data 'binary.dat' is not UTF-8: byte 0xff at offset 4"),
        ("--data short.txt --tokenizer char", "data 'short.txt' has 18 tokens, too few for block_size 64"),
        ("--data text.txt --block-size 2000", "too few for block_size 2000, which needs 2001"),
        ("--data text.txt --out text.txt/run", "text.txt is not a folder that can be written"),
        ("--data text.txt --out text.txt", "out text.txt is a file; a run needs a folder"),
        ("--data text.txt --tokenizer bpe --vocab-size 9", "vocab_size 9 is too small"),
        ("--resume", "checkpoints: no such folder, so there is no checkpoint in it"),
        ("--resume missing", "missing: no such checkpoint; python generate.py --list shows the runs"),
        ("--resume text.txt", "text.txt: a checkpoint is a folder, and this is a file"),
        ("--threads 0", "threads must be at least 1, not 0"),
        ("--threads 100000", "threads: 100000 is not a number from 1 to "),
        ("--compile=True", "--compile=True has no counterpart here: "),
        (
            "--init_from=gpt2",
            "--init_from=gpt2 has no counterpart here: with a hyphen, --init-from takes gpt2, smollm2, ",
        ),
        ("--dataset=openwebtext", "give the text itself with --data"),
        ("--dtype=float8", "argument --dtype: unknown value 'float8'; did you mean float"),
        ("--dtype=tf32", "dtype tf32: a format of NVIDIA's tensor cores, and numpy is not on a GPU: choose float32"),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(
    argv: str, message: str, workplace: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    Path("empty.txt").touch()
    Path("binary.dat").write_bytes(b"\x00\x01\x02\x03\xff\xfe" * 100)
    Path("short.txt").write_text("twenty characters...")
    before = sorted(workplace.rglob("*"))
    backend = [] if "--backend" in argv else ["--backend", "numpy"]
    assert call(monkeypatch, *backend, *argv.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("train.py: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert sorted(workplace.rglob("*")) == before


def call(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """The exit status of `python train.py ...`."""
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    try:
        return run_program(train.main)
    except SystemExit as exited:  # raised by argparse
        assert isinstance(exited.code, int)
        return exited.code


SHAPES = [
    "--n-layer=100000000000000000000", "--n-layer=1000000000000000", "--n-embd=10000000000000000", "--n-embd=200000",
]  # fmt: skip
BATCHES = [
    "--batch-size=10000000000000", "--batch-size=10000000000000000000", "--grad-accum=10000000000000000",
    "--recompute=True --batch-size=1000000000000",
]  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "resumed"),
    [*((flag, False) for flag in (*SHAPES, *BATCHES)), *((flag, True) for flag in BATCHES)],  # a shape stays as it is
)
def test_a_run_that_does_not_fit_in_memory_is_refused(
    flag: str, resumed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*SMALL, "--out=run"]
    if resumed:
        assert call(monkeypatch, *argv) == 0
        argv = ["--resume=run", "--max-iters=9"]
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert call(monkeypatch, *argv, *flag.split()) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and len(err) < 300 and out == ""
    limits = ("below 2**64", "n_layer must be at most 10,000", "a model may have 1,099,511,627,776 parameters")
    needs = "of memory are needed, more than this machine has"
    assert any(what in err for what in (*limits, needs))
    assert sorted(Path().rglob("*")) == before
    if not resumed and needs in err:
        assert call(monkeypatch, *argv, *flag.split(), "--dry-run") == 0
        assert "time     not measured" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["max_iters", "eval_interval", "eval_iters", "block_size", "vocab_size", "threads"])
def test_a_number_of_2_to_the_64_or_more_is_refused(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, *SMALL, f"--{name}={10**20}", "--tokenizer=bpe") == 2
    assert f"{name} must be below 2**64, not 100000000000000000000" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["data", "out", "init_from"])
@pytest.mark.parametrize("name", ["caf\udce9.txt", "a\0b"])
def test_a_path_that_cannot_be_stored_in_the_run_files_is_refused(
    flag: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(Path().rglob("*"))
    assert call(monkeypatch, *SMALL, f"--{flag}={name}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and (f"{flag} {name!r} contains NUL or bytes" in err or flag == "init_from")
    assert sorted(Path().rglob("*")) == before


def test_the_threads_flag_sets_the_number_of_threads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(tg, "set_num_threads", taken.append)
    assert call(monkeypatch, *SMALL, "--threads=1", "--out", "run") == 0
    assert taken == [1]
    assert load_checkpoint(Path("run")).state.train_config.threads == 1


def test_the_error_for_an_unavailable_backend_is_one_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise tg.BackendUnavailable(f"{name}: no GPU was found; take --backend numpy")

    monkeypatch.setattr(tg, "use_backend", refuse)
    assert call(monkeypatch, *SMALL, "--backend", "cupy", "--out", "run") == 2
    assert capsys.readouterr().err == ("train.py: error: cupy: no GPU was found; take --backend numpy\n")
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_the_error_for_a_truncated_checkpoint_is_one_line(
    name: str, workplace: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert call(monkeypatch, *SMALL, "--out", "run") == 0
    capsys.readouterr()
    file = Path("run/step-000006", name)
    os.truncate(file, file.stat().st_size // 2)
    before = sorted(workplace.rglob("*"))
    assert call(monkeypatch, "--resume", "run/step-000006", "--max-iters", "9") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"train.py: error: {file}: damaged: ")
    assert err.count("\n") == 1
    assert sorted(workplace.rglob("*")) == before


# --------------------------------------------------------------------------------------------------
# Help


def test_help_lists_every_flag_and_default_in_lines_that_fit_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for flag in build_parser().flags():
        assert f"  {flag} " in text or f", {flag} " in text or flag.startswith("--no-")
    assert "(default: 0.001)" in text
    assert all(name in text for name in NAMED_CONFIGS)
    assert max(map(len, text.splitlines())) <= 100


# --------------------------------------------------------------------------------------------------
# Complete runs


def test_a_run_trains_prints_a_sample_and_is_resumed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, *SMALL) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "data     text.txt: 1,188 tokens for training, 132 for validation" in out
    assert "step 6/6" in out
    assert "Saved in checkpoints/text-char. " in out
    sample = out.split("-" * 80 + "\n")[1]
    assert len(sample) >= train.SAMPLE_TOKENS
    assert set(sample) <= set(TEXT)
    assert load_checkpoint("checkpoints/text-char").state.step == 6

    assert call(monkeypatch, "--resume", "--max-iters", "8") == 0
    assert "run      checkpoints/text-char, from step 6" in capsys.readouterr().out
    assert load_checkpoint("checkpoints/text-char").state.step == 8


def test_the_same_seed_gives_the_same_sample(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = []
    for name in ("a", "b"):
        assert call(monkeypatch, *SMALL, "--tokenizer=bpe", "--vocab-size=300", "--out", name) == 0
        samples.append(capsys.readouterr().out.split("-" * 80 + "\n")[1])
    assert samples[0] == samples[1]


def test_ctrl_c_saves_and_stops_a_real_process() -> None:
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--max-iters=1000000", "--eval-interval=1000000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        wait_until(lambda: size_of("run/metrics.jsonl"), process)
        process.send_signal(signal.SIGINT)
        out, err = finish(process)
    assert process.returncode == 130
    assert err == ""
    step = load_checkpoint("run").state.step
    assert step == len(Path("run/metrics.jsonl").read_text().splitlines())
    assert f"Stopped after step {step}. To continue: python train.py --resume run\n" in out


# --------------------------------------------------------------------------------------------------
# Signals and locks, in real processes


@contextmanager
def started(*argv: str, code: str = "") -> Iterator[subprocess.Popen[str]]:
    """train.py in a separate process that first runs `code`; yields it after its first step and finally kills it."""
    run = f"sys.argv = ['train.py', *{argv!r}]; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    program = f"{code}\nimport sys, runpy\n{run}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            wait_until(lambda: size_of("run/metrics.jsonl"), process)
            yield process
        finally:
            process.kill()


def size_of(path: str) -> int:
    return Path(path).stat().st_size if Path(path).exists() else 0


ENDLESS = [*SMALL, "--out=run", "--max-iters=1000000", "--eval-interval=1000000"]


def test_sigterm_saves_and_stops_a_real_process() -> None:
    with started(*ENDLESS) as process:
        process.send_signal(signal.SIGTERM)
        out, err = finish(process)
    assert (process.returncode, err) == (143, "")
    step = load_checkpoint("run").state.step
    assert f"Stopped after step {step}. To continue: python train.py --resume run\n" in out
    assert not Path("run/run.lock").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once_even_while_a_checkpoint_is_written(number: signal.Signals) -> None:
    """The saving thread hangs in a write, as it would on a disk that does not respond."""
    hang = """
import time
from pathlib import Path
from gpt import checkpoint
from gpt.train.signals import StopSignals
save, handle = checkpoint.save_file, StopSignals._handle
def hang(arrays, path):
    save(arrays, path)
    if "000002" in str(path):
        time.sleep(100_000)
def handle_and_touch(self, number, frame):
    handle(self, number, frame)
    Path("handled").touch()
checkpoint.save_file, StopSignals._handle = hang, handle_and_touch
"""
    with started(*ENDLESS, "--checkpoint-interval=2", code=hang) as process:
        wait_until(lambda: any(Path("run").glob(".step-000002.writing/model.safetensors")), process)
        process.send_signal(number)
        wait_until(Path("handled").exists, process)
        assert process.poll() is None  # it waits for the thread, since nothing else has been saved
        process.send_signal(number)
        finish(process)  # it does not wait for the thread any longer
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM}[number]
    assert not list(Path("run").glob("step-*"))


def test_a_run_killed_before_its_first_checkpoint_can_be_started_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(*ENDLESS) as process:
        process.kill()
    assert call(monkeypatch, "--resume", "run") == 2
    assert "run: stopped before its first checkpoint: start it again, with the same --out" in capsys.readouterr().err
    assert call(monkeypatch, *SMALL, "--out=run") == 0
    assert load_checkpoint("run").state.step == 6
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 6
    assert Path("run/metrics.jsonl.before").stat().st_size > 0


def test_a_folder_in_use_by_another_run_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(*ENDLESS, "--checkpoint-interval=1") as process:
        wait_until(lambda: any(Path("run").glob("step-*")), process)
        for argv in (["--resume", "run"], [*SMALL, "--out=run"]):
            assert call(monkeypatch, *argv) == 2
            who = f"run: another run is writing in it: process {process.pid} on {socket.gethostname()}\n"
            assert capsys.readouterr().err == f"train.py: error: {who}"
        process.kill()


def program(redirected: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run train.py in a shell that redirects its output."""
    command = shlex.join([sys.executable, str(ROOT / "train.py"), *SMALL, "--out=run", *argv])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        f"{command} {redirected}", shell=True, env=environment, capture_output=True, text=True, timeout=HANG_S
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs terminals of POSIX")
def test_closing_the_terminal_ends_the_step_and_saves() -> None:
    master, slave = os.openpty()
    lead = "import os, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    run = f"sys.argv = ['train.py', *{ENDLESS!r}]; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    program = [sys.executable, "-c", f"{lead}\nimport sys, runpy\n{run}"]
    with subprocess.Popen(program, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        try:
            wait_until(lambda: size_of("run/metrics.jsonl"), process)
            os.close(master)
            finish(process)
            assert process.returncode == 128 + signal.SIGHUP
        finally:
            process.kill()
    assert load_checkpoint("run").state.step == len(Path("run/metrics.jsonl").read_text().splitlines())
    assert not Path("run/run.lock").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGHUP")
def test_a_run_continues_under_nohup() -> None:
    with started(*ENDLESS, code="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)") as process:
        process.send_signal(signal.SIGHUP)
        before = size_of("run/metrics.jsonl")
        wait_until(lambda: size_of("run/metrics.jsonl") > before, process)
        process.kill()


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-"])
def test_a_run_works_without_stdout_and_stderr(redirected: str) -> None:
    done = program(redirected)
    assert (done.returncode, done.stderr) == (0, "")
    assert load_checkpoint("run").state.step == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_error_for_a_log_on_a_full_disk_is_one_line() -> None:
    done = program(">/dev/full")
    assert done.returncode == 2
    assert done.stderr.endswith("cannot be written: No space left on device\n") and done.stderr.count("\n") == 1
