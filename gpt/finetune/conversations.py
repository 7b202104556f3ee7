"""Conversations to learn from: files of them, and their tokens, of which only those of the answers are targets."""

from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from gpt.config import UserError
from gpt.finetune.tables import Row, read_rows
from gpt.generate.template import ChatTemplate, Message, TemplateError

MESSAGES, INSTRUCTION, INPUT, OUTPUT = "messages", "instruction", "input", "output"


class Conversation(NamedTuple):
    """Messages, the last of which is an answer, and where they are in the file."""

    place: str
    messages: list[Message]

    @property
    def prompt(self) -> list[Message]:
        """All but the last answer."""
        return self.messages[:-1]

    @property
    def first_prompt(self) -> list[Message]:
        """All before the first answer."""
        return list(takewhile(lambda message: message["role"] != "assistant", self.messages))

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1]["content"]


class Example(NamedTuple):
    """The tokens of a conversation, and whether each is a part of an answer."""

    ids: list[int]
    in_answer: list[bool]


def read_conversations(path: Path) -> list[Conversation]:
    """Read JSON or JSON lines, whose objects have either `messages` or Alpaca's instruction, input and output.

    Raises UserError, naming the line, for an empty message, and for roles that are not in the order system (or none),
    user, assistant, user, assistant ...
    """
    conversations = []
    for row in read_rows(path):
        try:
            messages = _messages(row) if MESSAGES in row.fields else _from_alpaca(row.fields)
            _check_roles([message["role"] for message in messages])
        except ValueError as error:
            raise UserError(f"data {path}, {row.place}: {error}") from error
        conversations.append(Conversation(row.place, messages))
    return conversations


def _messages(row: Row) -> list[Message]:
    listed = row.fields[MESSAGES]
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError(f"{MESSAGES} is no list of objects with role and content")
    messages: list[Message] = []
    for number, entry in enumerate(listed, 1):
        role = entry.get("role")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"message {number} has role {role!r:.40}: system, user or assistant is needed")
        messages.append({"role": role, "content": _text(entry, "content", f"message {number}, of the {role},")})
    return messages


def _from_alpaca(fields: dict[str, Any]) -> list[Message]:
    for name in (INSTRUCTION, OUTPUT):
        if name not in fields:
            known = ", ".join(map(repr, fields)) or "none"
            raise ValueError(f"neither {MESSAGES!r}, nor {INSTRUCTION!r} and {OUTPUT!r}, are there ({known})")
    question = _text(fields, INSTRUCTION, f"{INSTRUCTION!r}")
    if fields.get(INPUT):
        question += f"\n\n{_text(fields, INPUT, repr(INPUT))}"
    answer = _text(fields, OUTPUT, f"the answer, {OUTPUT!r},")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(fields: dict[str, Any], name: str, what: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{what} is {value!r:.40}, no text")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    return value.strip()  # whose spaces would be joined to those of the template


def _check_roles(roles: Sequence[str]) -> None:
    expected = ["system"] * (roles[:1] == ["system"])
    expected += ["user", "assistant"] * ((len(roles) - len(expected) + 1) // 2)
    for number, (role, right) in enumerate(zip(roles, expected, strict=False), 1):
        if role != right:
            raise ValueError(f"message {number} is of the {role}, and the {right} has to speak there")
    if len(roles) < 2 or roles[-1] != "assistant":
        raise ValueError(f"the last of {len(roles)} messages has to be an answer, of the assistant")


def encode_conversation(conversation: Conversation, template: ChatTemplate, stop_ids: Collection[int]) -> Example:
    """Return the tokens of a conversation; an answer is what follows its prompt, with the token that ends it.

    Raises TemplateError for a template that does not fit: whose prompt is not the beginning of the prompt with its
    answer, or whose answers have no token that ends them.
    """
    messages = conversation.messages
    ids = template.encode(messages)
    in_answer = [False] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = len(prompt := template.encode(messages[:i], add_generation_prompt=True))
        end = len(whole := ids if i + 1 == len(messages) else template.encode(messages[: i + 1]))
        if whole[:start] != prompt or ids[:end] != whole:
            raise TemplateError("the chat template does not fit: it writes a prompt otherwise once its answer follows")
        ends = [at for at in range(start, end) if ids[at] in stop_ids]
        if not ends:
            raise TemplateError("the chat template does not fit: no token that would stop an answer follows it")
        in_answer[start : ends[-1] + 1] = [True] * (ends[-1] + 1 - start)
    return Example(ids, in_answer)
