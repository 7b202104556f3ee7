"""Conversations: their files, and which of their tokens are answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpt.config import UserError
from gpt.finetune.conversations import Conversation, encode_conversation, read_conversations
from gpt.generate.template import ChatTemplate, TemplateError
from tests.gpt.finetune.chat_model import END, make_tokenizer

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "and <|im_end|>?"},
    {"role": "assistant", "content": "bye"},
]


def read(folder: Path, *entries: Any) -> list[Conversation]:
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)))
    return read_conversations(path)


def test_alpacas_fields_and_messages_are_read(tmp_path: Path) -> None:
    alpaca = {"instruction": "Add.", "input": "1 and 2", "output": " 3\n"}
    first, second, third = read(tmp_path, alpaca, {**alpaca, "input": ""}, {"messages": TURNS})
    assert first.messages == [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}]
    assert second.prompt == [{"role": "user", "content": "Add."}] and second.answer == "3"
    assert third.messages == TURNS and third.place == "line 3"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"instruction": "a", "output": ""}, "the answer, 'output', is empty"),
        ({"instruction": "a", "output": " \n"}, "the answer, 'output', is empty"),
        ({"instruction": "a", "output": 3}, "the answer, 'output', is 3, no text"),
        ({"instruction": "a", "input": [1], "output": "b"}, r"'input' is \[1\], no text"),
        ({"prompt": "a", "output": "b"}, r"neither 'messages', nor 'instruction' and .* \('prompt', 'output'\)"),
        ({"messages": "a"}, "messages is no list of objects with role and content"),
        ({"messages": []}, "the last of 0 messages has to be an answer, of the assistant"),
        ({"messages": TURNS[:2]}, "the last of 2 messages has to be an answer"),
        ({"messages": TURNS[:1]}, "the last of 1 messages has to be an answer"),
        ({"messages": TURNS[2:]}, "message 1 is of the assistant, and the user has to speak there"),
        ({"messages": [*TURNS[:2], *TURNS[3:]]}, "message 3 is of the user, and the assistant has to speak there"),
        ({"messages": [*TURNS[1:3], *TURNS[:2]]}, "message 3 is of the system, and the user has to speak there"),
        ({"messages": [{"role": "human"}]}, "message 1 has role 'human': system, user or assistant is needed"),
        ({"messages": [TURNS[1], {"role": "assistant", "content": " "}]}, "message 2, of the assistant, is empty"),
        ({"messages": [{"role": "user"}]}, "message 1, of the user, is None, no text"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused(entry: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"a.jsonl, line 2: {message}") as raised:
        read(tmp_path, {"messages": TURNS}, entry)
    assert "\n" not in str(raised.value)


def test_only_answers_and_the_tokens_that_end_them_are_learned() -> None:
    tokenizer = make_tokenizer()
    example = encode_conversation(Conversation("", TURNS), ChatTemplate(tokenizer), tokenizer.stop_ids)
    turns = ("system\nBe brief.", "user\nhi", "assistant\nhello")
    assert tokenizer.decode(example.ids).startswith("".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns))
    answers: list[list[int]] = [[]]
    for i, inside in zip(example.ids, example.in_answer, strict=True):
        answers[-1].append(i) if inside else answers.append([])
    assert [answer for answer in answers if answer] == [[*b"hello", END], [*b"bye", END]]


def test_a_template_that_does_not_fit_is_refused() -> None:
    tokenizer = make_tokenizer()

    class Changing(ChatTemplate):
        """Writes a prompt otherwise once its answer follows, as templates do that drop earlier thoughts."""

        def encode(self, messages: Any, *, add_generation_prompt: bool = False) -> list[int]:
            return [1] * add_generation_prompt + super().encode(messages, add_generation_prompt=add_generation_prompt)

    with pytest.raises(TemplateError, match="does not fit: it writes a prompt otherwise once its answer follows"):
        encode_conversation(Conversation("", TURNS), Changing(tokenizer), tokenizer.stop_ids)
    with pytest.raises(TemplateError, match="does not fit: no token that would stop an answer follows it"):
        encode_conversation(Conversation("", TURNS), ChatTemplate(tokenizer), {999})
