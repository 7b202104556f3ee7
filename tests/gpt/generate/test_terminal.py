"""generate.py --chat: through a pipe, and on a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import generate as program
import tensorgrad as tg
from gpt.checkpoint import RunState, save_checkpoint
from gpt.config import LlamaConfig, UserError
from gpt.generate import terminal
from gpt.generate.chat import Conversation
from gpt.llama import Llama
from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.tokenizer.bpe import SINGLE_BYTES
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.train.config import TrainConfig
from tests.processes import HANG_S, wait_until

SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257}
TOKENIZER = ByteLevelTokenizer(SINGLE_BYTES, range(256), "smollm", special=SPECIAL)
WINDOW = 10**6


def make_model(answer: int = ord("z")) -> Llama:
    """A model that always generates the same token."""
    config = LlamaConfig(block_size=WINDOW, vocab_size=258, n_layer=1, n_head=1, n_kv_head=1, n_embd=2, n_hidden=1)
    model = Llama(config)
    model.wte.weight.data[...] = 1
    model.wte.weight.data[answer] = 2
    for p in model.h[0].parameters():
        p.data[...] = 0
    return model


def save_run(folder: Path, tokenizer: Tokenizer) -> None:
    model = make_model()
    config = TrainConfig(model="llama", n_layer=1, n_head=1, n_kv_head=1, n_embd=2, n_hidden=1, block_size=WINDOW)
    rng = tg.random.default_generator.state_dict()
    state = RunState(step=1, model_config=model.config, train_config=config, data_sha256="0" * 64, rng=rng)
    save_checkpoint(folder, state, model, tg.optim.AdamW(model.parameters()), tokenizer)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, TOKENIZER)
    return folder


def command(run_dir: Path, *words: str) -> list[str]:
    script = str(Path(program.__file__))
    return [sys.executable, script, "--chat", "--backend=numpy", f"--checkpoint={run_dir}", *words]


# --------------------------------------------------------------------------------------------------
# Through a pipe


def test_every_line_is_a_turn_and_only_answers_are_written(run_dir: Path) -> None:
    sent = b"hello\n\n  \n/system Be kind.\nagain\r\n\xff\xfe\nnul \0 <|im_end|>\n/nonsense\n /quit"
    ended = subprocess.run(command(run_dir, "--max-new-tokens=3"), input=sent, capture_output=True, timeout=HANG_S)
    assert ended.returncode == 0 and ended.stdout == b"zzz\n" * 4
    cut = "generate.py: the answer was cut: it reached --max-new-tokens, or the end of the window"
    _, loaded, *notes = ended.stderr.decode().splitlines()
    assert loaded == f"generate.py: {run_dir}, 544 parameters; /help lists the commands"
    assert notes == [
        cut,
        "generate.py: the system message is set",
        cut,
        "generate.py: line 6: not UTF-8 text: left out",
        cut,
        "generate.py: unknown command /nonsense: /help lists the commands",
        cut,
    ]


Talk = Callable[[Conversation, bytes], tuple[str, list[str]]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Talk:
    """Send lines to a Terminal in this process; return what it writes to stdout, and its notes."""

    def talk(conversation: Conversation, sent: bytes) -> tuple[str, list[str]]:
        (tmp_path / "sent").write_bytes(sent)
        with (tmp_path / "sent").open(encoding="utf-8") as stdin, tg.use_backend("numpy"):
            monkeypatch.setattr(sys, "stdin", stdin)
            terminal.Terminal(conversation).run()
        out, err = capsys.readouterr()
        return out, [line.removeprefix("generate.py: ") for line in err.splitlines()]

    return talk


def conversation(answer: int = ord("z"), window: int = WINDOW, max_new_tokens: int = 3) -> Conversation:
    model = make_model(answer)
    model.config = dataclasses.replace(model.config, block_size=window)
    return Conversation(model, TOKENIZER, max_new_tokens=max_new_tokens, temperature=0)


def test_commands(talk: Talk) -> None:
    made = conversation()
    out, notes = talk(made, b"hi\n/reset\nho\n/system  Be kind. \n/help\n/quit\nhi\n")
    assert out == "zzz\nzzz\n" and [turn.question for turn in made.turns] == ["ho"]
    assert made.system == "Be kind. "
    assert notes[1:2] == ["the conversation is forgotten"] and notes[-5:] == terminal.HELP.splitlines()
    for command in ("/reset", "/system", "/help", "/quit"):
        assert command in terminal.HELP
    assert talk(made, b"/system\n/etc/passwd\n")[1][0] == "the system message is that of the template"
    assert made.system is None and made.turns[-1].question == "/etc/passwd"


def test_an_answer_may_be_empty(talk: Talk) -> None:
    made = conversation(answer=SPECIAL["<|im_end|>"])
    made.tokenizer.roles["eos"] = SPECIAL["<|im_end|>"]
    assert talk(made, b"hi\nho\n") == ("\n\n", [])
    assert [turn.answer for turn in made.turns] == ["", ""]


def test_the_first_piece_of_an_answer_waits_for_the_second(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That may compile kernels, whose line would stand within the text."""
    shown = []

    def pieces(*texts: str) -> Iterator[str]:
        for text in texts:
            shown.append(capsys.readouterr().out)
            yield text

    made = conversation()
    monkeypatch.setattr(made, "answer", lambda text: pieces("", "a", "", "b", "c"))
    assert talk(made, b"hi\n")[0] == "c\n" and shown == ["", "", "", "", "ab"]
    monkeypatch.setattr(made, "answer", lambda text: pieces("", "a", ""))
    assert talk(made, b"hi\n")[0] == "a\n"


def test_lines_that_are_too_long_are_refused_and_the_conversation_goes_on(talk: Talk) -> None:
    made = conversation(window=200)
    longest = terminal.MAX_LINE_BYTES
    sent = b"x" * 500 + b"\nhi\n" + b"y" * 3 * longest + b"\n" + b"z" * longest + b"\nho\n" + b"w" * (longest + 1)
    out, notes = talk(made, sent)
    assert out == "zzz\nzzz\n" and [turn.question for turn in made.turns] == ["hi", "ho"]
    no_window = "the message is too long: no window has room for 1,048,576 bytes"
    assert [note for note in notes if "line" in note] == [
        "line 1: the message is too long: with the system message it makes 519 tokens, and the window of 200 has room "
        "for 197 beside an answer",
        f"line 3: {no_window}",
        f"line 4: {no_window}",
        f"line 6: {no_window}",
    ]


def test_a_full_window_is_reported_once(talk: Talk) -> None:
    full = "the window is full: the model no longer sees the oldest turns"
    made = conversation(window=200)
    _, notes = talk(made, b"a question of some words\n" * 20)
    assert made.n_dropped > 6 and notes.count(full) == 1
    _, notes = talk(made, b"/reset\n" + b"a question of some words\n" * 6)
    assert notes.count(full) == 1


def test_flags_for_texts_and_models_without_a_template_are_refused(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--prompt=a"], ["--stop=a"], ["--allow-special"], ["--num-samples=2"]):
        with pytest.raises(UserError, match="--chat takes its messages from the standard input: leave out --prompt"):
            program.main(["--chat", *words])
    save_run(tmp_path, CharTokenizer("".join(map(chr, range(258)))))
    with pytest.raises(UserError, match="this model has no chat template, it only continues a text: use --prompt"):
        program.main(["--chat", "--backend=numpy", f"--checkpoint={tmp_path}"])
    assert "z" not in capsys.readouterr().out


@pytest.mark.parametrize(("words", "expected"), [([], (0.2, 0.5)), (["--temperature=1"], (1, 0.5))])
def test_a_conversation_is_sampled_more_strictly_than_a_text(
    words: list[str], expected: tuple[float, float], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(program, "Terminal", lambda conversation: seen.append(conversation) or mock.Mock())
    program.main(["--chat", "--backend=numpy", f"--checkpoint={run_dir}", "--top_k=7", *words])
    options = seen[0].options
    assert (options["temperature"], options["top_p"]) == expected and options["top_k"] == 7


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_pipes_end_quietly(run_dir: Path, unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with subprocess.Popen(
        command(run_dir), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"hi\n" * 9)
        process.stdin.flush()
        process.stdout.read(5)  # streamed
        process.stdout.close()
        assert process.wait(timeout=HANG_S) == 141
        assert b"Traceback" not in process.stderr.read()


# --------------------------------------------------------------------------------------------------
# On a terminal

# A new session has no terminal yet: the program takes its standard input for it, so that Ctrl-C there reaches it.
TAKE_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CTRL_C, CTRL_D = b"\x03", b"\x04"
ASK_AGAIN = "Ctrl-C once more ends the conversation"


class Session:
    """generate.py --chat on a pseudo-terminal: its keyboard and its screen."""

    def __init__(self, words: list[str], **options: Any) -> None:
        import pty

        self.keyboard, slave = pty.openpty()
        python, *words = words
        streams = {"stdin": slave, "stdout": slave, "stderr": slave} | options
        self.process = subprocess.Popen([python, "-c", TAKE_TERMINAL, *words], start_new_session=True, **streams)
        os.close(slave)
        self.unread = ""

    def press(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)

    def expect(self, text: str) -> str:
        """Read until this text appears; return what came before it."""
        while text not in self.unread:
            assert select.select([self.keyboard], [], [], HANG_S)[0], f"it hangs after {self.unread!r}"
            try:
                read = os.read(self.keyboard, 2**16)
            except OSError as error:  # Linux, when no process has the terminal open
                assert error.errno == errno.EIO
                read = b""
            assert read, f"it ended after {self.unread!r}"
            self.unread += read.decode(errors="replace")
        before, _, self.unread = self.unread.partition(text)
        return before

    def interrupt_prompt(self) -> None:
        """Press Ctrl-C once input() waits for a key: of a signal just before, Python would know only after a line."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        wait_until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "S", self.process)
        self.press(CTRL_C)

    def end(self) -> int:
        with contextlib.suppress(OSError):  # whoever does not read what is written may hold up its end
            while os.read(self.keyboard, 2**16):
                pass
        status = self.process.wait(HANG_S)
        os.close(self.keyboard)
        return status


needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")


@needs_terminal
def test_ctrl_c_stops_an_answer_and_not_the_program(run_dir: Path) -> None:
    session = Session(command(run_dir, f"--max-new-tokens={WINDOW}"))
    for _ in range(2):
        session.expect(terminal.PROMPT)
        session.press(b"hello\n")
        session.expect("zzzzzzzz")
        session.press(CTRL_C)
        session.expect("stopped; " + ASK_AGAIN)
    session.expect(terminal.PROMPT)
    session.press(b"/reset\n")
    session.expect("the conversation is forgotten")
    session.expect(terminal.PROMPT)
    session.interrupt_prompt()
    session.expect(ASK_AGAIN)
    session.expect(terminal.PROMPT)
    session.interrupt_prompt()
    assert session.end() == 0


@needs_terminal
def test_a_second_ctrl_c_after_an_answer_ends_the_program(run_dir: Path) -> None:
    session = Session(command(run_dir, f"--max-new-tokens={WINDOW}"))
    session.expect(terminal.PROMPT)
    session.press(b"hello\n")
    session.expect("zzzzzzzz")
    session.press(CTRL_C)
    session.expect(ASK_AGAIN)
    session.expect(terminal.PROMPT)
    session.interrupt_prompt()
    assert session.end() == 0


@needs_terminal
def test_ctrl_d_ends_the_program_and_stdout_has_no_prompt_in_a_file(run_dir: Path, tmp_path: Path) -> None:
    with (tmp_path / "answers").open("wb") as file:
        session = Session(command(run_dir, "--max-new-tokens=4"), stdout=file)
        session.expect(terminal.PROMPT)
        session.press(b"hello\n")
        session.expect(terminal.PROMPT)
        session.press(CTRL_D)
        assert session.end() == 0
    assert (tmp_path / "answers").read_bytes() == b"zzzz\n"
