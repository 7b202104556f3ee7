"""Chat templates: the messages of a conversation as the text, and the tokens, that a model was trained on.

A template of the usual ChatML form is recognised, and needs nothing else. Any other one is a program in jinja's
language that came with the weights, and that nobody vouches for: jinja.py runs it, in a process with little time and
memory.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

from gpt.tokenizer import Tokenizer
from gpt.tokenizer.byte_level import ByteLevelTokenizer

PROGRAM = Path(__file__).with_name("jinja.py")
TIMEOUT_S = 60  # where a process cannot be limited otherwise; jinja.py sets a limit of 2 s of computing
PRIVATE = range(0xF0000, 0xFFFFE)  # characters that Unicode leaves to everyone's own use

START, END = "<|im_start|>", "<|im_end|>"


class Message(TypedDict):
    """What was said: role is system, user or assistant."""

    role: str
    content: str


class TemplateError(ValueError):
    """A chat template that is missing, damaged or hostile, or that refuses the messages."""


Render = Callable[[Sequence[Message], bool], str]  # messages, and whether the beginning of an answer follows


def render_chatml(messages: Sequence[Message], add_generation_prompt: bool, default_system: str | None = None) -> str:
    """Write each message between <|im_start|> and <|im_end|>; default_system where the first is no system message."""
    if default_system is not None and messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": default_system}, *messages]
    text = "".join(f"{START}{message['role']}\n{message['content']}{END}\n" for message in messages)
    return text + f"{START}assistant\n" * add_generation_prompt


def _literally(text: str) -> str:
    return re.escape(text).replace("\\\n", r"(?:\n|\\n)")  # a line break in a string of jinja: as it is, or as \n


# SmolLM2's and many others': they differ in the system message of a conversation that begins without one.
_CHATML = re.compile(
    _literally("{% for message in messages %}")
    + "(?:"
    + _literally(f"{{% if loop.first and messages[0]['role'] != 'system' %}}{{{{ '{START}system\n")
    + r"(?P<default_system>[^'\\]*)"
    + _literally(f"{END}\n' }}}}{{% endif %}}")
    + ")?"
    + _literally(f"{{{{'{START}' + message['role'] + '\n' + message['content'] + '{END}' + '\n'}}}}{{% endfor %}}")
    + _literally(f"{{% if add_generation_prompt %}}{{{{ '{START}assistant\n' }}}}{{% endif %}}")
)


def render_jinja(
    source: str, variables: dict[str, str], messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    """Run a template in a process of its own; TemplateError for one that fails, or that needs too much."""
    request = {"source": source, "messages": messages, "add_generation_prompt": add_generation_prompt, **variables}
    command = [sys.executable, "-P", str(PROGRAM)]
    try:
        ended = subprocess.run(
            command, input=json.dumps(request), capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise TemplateError(f"the chat template ran for {TIMEOUT_S} s: it was stopped") from None
    if ended.returncode != 0:
        raise TemplateError("the chat template was stopped: it needs more time or memory than a template may have")
    answer = json.loads(ended.stdout)
    if "error" in answer:
        raise TemplateError(f"the chat template failed: {answer['error']}")
    text: str = answer["text"]
    return text


class ChatTemplate:
    """The template of a tokenizer's model; TemplateError where there is none, or where it needs jinja2."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not isinstance(tokenizer, ByteLevelTokenizer):
            raise TemplateError(_NO_TEMPLATE)
        self.tokenizer, self.special = tokenizer, tokenizer.special
        self._render = _find_render(tokenizer)
        longest_first = sorted(self.special, key=len, reverse=True)
        self._find_special = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        """Return the tokens of a conversation, and with add_generation_prompt those with which an answer begins.

        Only the template makes special tokens: in a message, their text is ordinary text. Apart from that, the ids are
        those of apply_chat_template in transformers.
        """
        hide, show = self._private_characters(message["content"] for message in messages)
        hidden = [self._hide(message, hide) for message in messages]
        ids: list[int] = []
        for i, piece in enumerate(self._find_special.split(self._render(hidden, add_generation_prompt))):
            # Whatever is between two special tokens is encoded at once: a word may be partly the template's.
            ids += [self.special[piece]] if i % 2 else self.tokenizer.encode(piece.translate(show))
        return ids

    def _private_characters(self, texts: Iterable[str]) -> tuple[dict[int, str], dict[int, str]]:
        """Return tables that replace each first character of a special token by one that is in no text, and back."""
        used = set().union(*texts)
        free = (chr(i) for i in PRIVATE if chr(i) not in used)
        pairs = list(zip(sorted({token[0] for token in self.special}), free, strict=False))
        return {ord(first): private for first, private in pairs}, {ord(private): first for first, private in pairs}

    def _hide(self, message: Message, hide: dict[int, str]) -> Message:
        role, content = message["role"], message["content"]
        if role == "assistant":  # only whole special tokens: a template may look for </think> in an answer
            hidden = self._find_special.sub(lambda match: match[0].translate(hide), content)
        else:
            hidden = content.translate(hide)
        return {"role": role, "content": hidden}


_NO_TEMPLATE = "this model has no chat template, it only continues a text: use --prompt"


def _find_render(tokenizer: ByteLevelTokenizer) -> Render:
    source = tokenizer.chat_template
    if source is None:
        if {START, END} <= tokenizer.special.keys():
            return render_chatml
        raise TemplateError(_NO_TEMPLATE)
    if match := _CHATML.fullmatch(source):
        return partial(render_chatml, default_system=match["default_system"])
    if find_spec("jinja2") is None:
        raise TemplateError('the chat template of this model needs jinja2: pip install -e ".[chat]"')
    variables = {f"{role}_token": tokenizer.decode([i]) for role, i in tokenizer.roles.items()}
    return partial(render_jinja, source, variables)
