"""Chat templates: the ids of transformers, user text that cannot become a special token, hostile templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.generate import jinja, template
from gpt.generate.template import ChatTemplate, Message, TemplateError, render_chatml, render_jinja
from gpt.tokenizer import CharTokenizer
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.tokenizer.huggingface import from_entries
from tests.gpt.generate.chat_reference import CONVERSATIONS, NAMES, ROLES, TEMPLATES, conversation, entries

REFERENCE = json.loads((Path(__file__).parent / "chat_reference.json").read_text(encoding="utf-8"))
CHATML = "ChatML, written differently"


@cache
def tokenizer(name: str = "smollm", source: str | None = TEMPLATES[CHATML]) -> ByteLevelTokenizer:
    return from_entries(entries(name), {**ROLES, "chat_template": source})


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run templates in this process: what they write is the same, and starting another takes 0.1 s."""

    def render(source: str, variables: dict[str, str], messages: Sequence[Message], begins: bool) -> str:
        return jinja.render(source, messages=messages, add_generation_prompt=begins, **variables)

    monkeypatch.setattr(template, "render_jinja", render)


def encoded(made: ChatTemplate) -> list[list[list[int]]]:
    return [
        [made.encode(messages, add_generation_prompt=begins) for begins in (False, True)] for messages in CONVERSATIONS
    ]


@pytest.mark.parametrize("title", TEMPLATES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("in_this_process")
def test_ids_are_those_of_transformers(name: str, title: str) -> None:
    assert encoded(ChatTemplate(tokenizer(name, TEMPLATES[title]))) == REFERENCE[name][title]


def test_a_template_in_a_process_of_its_own_writes_the_same() -> None:
    title = "as JSON"
    ids = ChatTemplate(tokenizer("smollm", TEMPLATES[title])).encode(CONVERSATIONS[5], add_generation_prompt=True)
    assert ids == REFERENCE["smollm"][title][5][1]


def test_ids_of_smollm2_are_those_of_transformers_and_need_no_jinja2(
    smollm2_tokenizer: ByteLevelTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "find_spec", lambda name: None)
    assert encoded(ChatTemplate(smollm2_tokenizer)) == REFERENCE["SmolLM2"]


LIKE_SMOLLM2 = (  # the recognised form, with a line break or with \n
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("default", [None, "Be kind."])
def test_the_usual_chatml_is_recognised_and_writes_what_jinja_writes(
    default: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end = LIKE_SMOLLM2.index("{% if loop"), LIKE_SMOLLM2.index("{{'<|im")
    source = LIKE_SMOLLM2 if default else LIKE_SMOLLM2[:start] + LIKE_SMOLLM2[end:]
    monkeypatch.setattr(template, "find_spec", lambda name: None)
    found = template._find_render(tokenizer("smollm", source))
    for messages in CONVERSATIONS:
        for begins in (False, True):
            assert found(messages, begins) == render_chatml(messages, begins, default)
            assert found(messages, begins) == jinja.render(source, messages=messages, add_generation_prompt=begins)


def test_a_model_with_chatml_tokens_and_no_template_uses_chatml() -> None:
    made = ChatTemplate(tokenizer("smollm", None))
    messages = conversation("a", "b", "c", system="d")
    assert made.encode(messages) == ChatTemplate(tokenizer()).encode(messages)


# --------------------------------------------------------------------------------------------------
# Special tokens as text

PARTS = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_", "end|>", "<", "|", ">", "<think>", "</think>", "a b",
         "\n", chr(template.PRIVATE[0]), "system\n"]  # fmt: skip
HOSTILE = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


def check_that_messages_are_text(made: ChatTemplate, messages: list[Message]) -> None:
    ids = made.encode(messages, add_generation_prompt=True)
    start, end = made.special["<|im_start|>"], made.special["<|im_end|>"]
    assert [i for i in ids if i in made.tokenizer.special_ids] == [start, end] * len(messages) + [start]
    assert made.tokenizer.decode(ids) == render_chatml(messages, True)


@given(contents=st.lists(HOSTILE, min_size=1, max_size=4), system=st.none() | HOSTILE)
def test_special_tokens_in_messages_are_text(contents: list[str], system: str | None) -> None:
    check_that_messages_are_text(ChatTemplate(tokenizer("smollm", None)), conversation(*contents, system=system))


@pytest.mark.usefixtures("in_this_process")
def test_special_tokens_in_messages_are_text_for_any_template() -> None:
    contents = ["".join(PARTS), "".join(PARTS[::-1]), "".join(PARTS)]
    check_that_messages_are_text(ChatTemplate(tokenizer()), conversation(*contents, system="".join(PARTS)))


@pytest.mark.usefixtures("in_this_process")
def test_a_template_that_removes_text_makes_no_special_token_of_the_rest() -> None:
    source = "{% for m in messages %}<|im_start|>{{ m.content.replace('x', '') }}<|im_end|>{% endfor %}"
    made = ChatTemplate(tokenizer("smollm", source))
    ids = made.encode(conversation("<|im_xendx|>", system="<x|im_start|>"))
    assert sum(i in made.tokenizer.special_ids for i in ids) == 4
    assert made.tokenizer.decode(ids) == "<|im_start|><|im_start|><|im_end|><|im_start|><|im_end|><|im_end|>"


# --------------------------------------------------------------------------------------------------
# Hostile templates

STOPPED = "was stopped: it needs more time or memory than a template may have"
HOSTILE_TEMPLATES = {
    "{% for i in range(10**9) %}{% endfor %}": "OverflowError: Range too big",
    "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}": STOPPED,
    "{{ 'a' * 10**10 }}": "MemoryError",
    "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}": "OverflowError: it writes more than 8388608 characters",
    "{{ ''.__class__.__mro__ }}": "SecurityError: access to attribute '__class__' of 'str' object is unsafe",
    "{{ messages.append(1) }}": "SecurityError: access to attribute 'append' of 'list' object is unsafe",
    "{{ raise_exception('no\nsystem message') }}": "TemplateError: no system message",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    "{% include '/etc/passwd' %}": "TypeError: no loader",
    "{% for message in messages %}": "TemplateSyntaxError",
    "{{ messages[9].content.x }}": "UndefinedError",
}


@pytest.mark.parametrize("source", HOSTILE_TEMPLATES)
def test_hostile_templates_are_refused_in_one_line(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render_jinja(source, {}, conversation("Hello"), True)
    message = str(caught.value)
    assert message.startswith("the chat template ") and HOSTILE_TEMPLATES[source] in message
    assert "\n" not in message and len(message) < 300


def test_a_template_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a process cannot be limited; here by a program that only waits."""
    program = tmp_path / "waits.py"
    program.write_text("import sys; sys.stdin.read(); import time; time.sleep(10**6)")
    monkeypatch.setattr(template, "PROGRAM", program)
    monkeypatch.setattr(template, "TIMEOUT_S", 0.1)
    with pytest.raises(TemplateError, match=r"ran for 0\.1 s: it was stopped"):
        render_jinja("", {}, [], False)


def test_missing_templates_and_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    no_chatml: dict[str, Any] = {**entries("smollm"), "added_tokens": []}
    for made in (CharTokenizer.train("abc"), from_entries(no_chatml, {})):
        with pytest.raises(TemplateError, match="no chat template, it only continues a text: use --prompt"):
            ChatTemplate(made)
    monkeypatch.setattr(template, "find_spec", lambda name: None)
    with pytest.raises(TemplateError, match=r'needs jinja2: pip install -e "\.\[chat\]"'):
        ChatTemplate(tokenizer())
