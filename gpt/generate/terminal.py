"""A conversation in the terminal, or line by line through a pipe."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType

from gpt.generate.chat import Conversation
from gpt.heartbeat import Heartbeat

PROMPT = "> "
MAX_LINE_BYTES = 2**20  # no window has room for more
HELP = """\
/reset          forget the conversation
/system TEXT    say how the model should answer; without TEXT: as its template does
/help           this list
/quit           end, as Ctrl-D and a second Ctrl-C do; the first one stops an answer
A line that begins with a space is always a message."""

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class Terminal:
    """Reads messages and commands from the standard input, and writes the answers, and only these, to standard output.

    On a terminal it shows a prompt; Ctrl-C then stops an answer, and a second one in a row ends the conversation.
    """

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.interactive = sys.stdin is not None and sys.stdin.isatty()
        self._at_prompt = False
        self._interrupted = False  # by Ctrl-C, since the last line
        self._told_dropped = False

    def run(self) -> None:
        """Answer every line until the input or /quit ends it."""
        with self._own_ctrl_c():
            for number, line in enumerate(self._lines(), start=1):
                about = "" if self.interactive else f"line {number}: "
                try:
                    if not self._process(line):
                        return
                except UnicodeDecodeError:
                    note(f"{about}not UTF-8 text: left out")
                except ValueError as error:  # too long, or refused by the tokenizer or the template
                    note(f"{about}{error}")

    @contextmanager
    def _own_ctrl_c(self) -> Iterator[None]:
        """On a terminal, only record Ctrl-C outside the prompt: an exception would interrupt the model anywhere."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self._at_prompt:
                raise KeyboardInterrupt
            self._interrupted = True

        previous = signal.signal(signal.SIGINT, handle) if self.interactive else None
        try:
            yield
        finally:
            if previous is not None:
                signal.signal(signal.SIGINT, previous)

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines of the input; a line that is too long ends without a line break."""
        if not self.interactive:
            while sys.stdin is not None and (line := _read_line()):
                yield line
            return
        with suppress(ImportError):
            import readline  # noqa: F401  # with it, input() has a history, and lines can be edited
        while True:
            try:
                self._at_prompt = True
                line = self._input()
            except (EOFError, KeyboardInterrupt) as error:
                sys.stderr.write("\n")
                if self._interrupted or isinstance(error, EOFError):
                    return
                self._interrupted = True
                note("Ctrl-C once more ends the conversation")
                continue
            finally:
                self._at_prompt = False
            self._interrupted = False
            yield line

    def _input(self) -> bytes:
        prompt = PROMPT
        if not sys.stdout.isatty():  # which is for answers alone then
            sys.stderr.write(prompt)
            sys.stderr.flush()
            prompt = ""
        return (input(prompt) + "\n").encode(errors="surrogateescape")

    def _process(self, line: bytes) -> bool:
        """Answer a message, or obey a command; return False for /quit."""
        if len(line) >= MAX_LINE_BYTES:
            raise ValueError(f"the message is too long: no window has room for {MAX_LINE_BYTES:,} bytes")
        text = line.decode().rstrip("\r\n")
        if match := _COMMAND.fullmatch(text):
            return self._obey(match[1], match[2] or "")
        if text.strip():
            self._answer(text)
        return True

    def _obey(self, command: str, argument: str) -> bool:
        if command == "quit":
            return False
        if command == "reset":
            self.conversation.reset()
            self._told_dropped = False
            note("the conversation is forgotten")
        elif command == "system":
            self.conversation.system = argument or None
            note("the system message is set" if argument else "the system message is that of the template")
        elif command == "help":
            print(HELP, file=sys.stderr, flush=True)
        else:
            note(f"unknown command /{command}: /help lists the commands")
        return True

    def _answer(self, text: str) -> None:
        held, n_pieces = "", 0  # the second may compile kernels, and their line belongs before the text
        with closing(self.conversation.answer(text)) as pieces, Heartbeat("generating") as heartbeat:
            for piece in pieces:
                held, n_pieces = held + piece, n_pieces + bool(piece)
                if held and n_pieces > 1:
                    sys.stdout.write(held)
                    sys.stdout.flush()
                    heartbeat.reset()
                    held = ""
                if self._interrupted:
                    break
        print(held, flush=True)
        if self.conversation.n_dropped and not self._told_dropped:
            self._told_dropped = True
            note("the window is full: the model no longer sees the oldest turns")
        if self._interrupted:
            note("stopped; Ctrl-C once more ends the conversation")
        elif self.conversation.was_cut:
            note("the answer was cut: it reached --max-new-tokens, or the end of the window")


def _read_line() -> bytes:
    """Return the next line of the standard input, empty at its end; of a line that is too long, only the beginning."""
    line = sys.stdin.buffer.readline(MAX_LINE_BYTES)
    rest = line
    while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
        rest = sys.stdin.buffer.readline(MAX_LINE_BYTES)
    return line


def note(text: str) -> None:
    """Print a note on stderr: stdout has only the answers."""
    print(f"generate.py: {text}", file=sys.stderr, flush=True)
