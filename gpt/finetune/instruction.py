"""Answering as the task of a run: its conversations, their split, and a model that keeps its whole window."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt.checkpoint import RunState
from gpt.config import GPTConfig, UserError
from gpt.data import Batches
from gpt.finetune.conversations import Conversation, Example, encode_conversation, read_conversations
from gpt.finetune.packing import Examples
from gpt.finetune.split import normal_form, split_examples
from gpt.generate.template import ChatTemplate, TemplateError
from gpt.lora import LoRA, add_lora
from gpt.tokenizer import Tokenizer, TokenizerError
from gpt.train.config import TrainConfig
from gpt.train.task import Task
from gpt.weights import Model
from gpt.weights.initial import InitialWeights

NAME = "instruct"
HELD_OUT = 0.1  # share of the conversations


@dataclass(frozen=True)
class Instruction(Task):
    """Answers to the prompts of a file; only the answers are learned."""

    data: str
    packing: bool = True
    seed: int = 0  # of the split

    rows_of_one_length = False

    def settings(self) -> dict[str, Any]:
        return {"name": NAME, **{field.name: getattr(self, field.name) for field in fields(self)}}

    @cached_property
    def conversations(self) -> tuple[list[Conversation], list[Conversation]]:
        """Those for training, and those held out; equal prompts are on the same side.

        Of a longer conversation the first prompt counts: its answer is learned in every conversation that begins so.
        """
        every = read_conversations(Path(self.data))
        prompts = ["\n".join(message["content"] for message in one.first_prompt) for one in every]
        train, held_out = split_examples(prompts, [""] * len(every), self.seed, (1 - HELD_OUT, HELD_OUT))
        if not held_out:
            n = len(set(map(normal_form, prompts)))
            what = f"{len(every)} conversations that begin with {n} different prompts"
            raise UserError(f"data {self.data}: {what} are too few: none is left to be held out")
        return [every[i] for i in train], [every[i] for i in held_out]

    def open_data(self, config: TrainConfig, tokenizer: Tokenizer | None) -> tuple[Tokenizer, Batches, Batches]:
        if tokenizer is None:
            raise UserError("a model with random weights has no chat template: give --init-from")
        loaders = [
            Examples(
                self.fitting(part, config.block_size), block_size=config.block_size, batch_size=config.batch_size,
                seed=config.seed, packed=self.packing,
            )
            for part in self.encoded(tokenizer)
        ]  # fmt: skip
        return tokenizer, loaders[0], loaders[1]

    def encoded(self, tokenizer: Tokenizer) -> tuple[list[Example], list[Example]]:
        """Return the tokens of both parts, computed once: a template may start a process for every conversation."""
        known: dict[Tokenizer, Any] = self.__dict__.setdefault("_encoded", {})
        if tokenizer not in known:
            train, held_out = self.conversations
            known[tokenizer] = self._encode(train, tokenizer), self._encode(held_out, tokenizer)
        encoded: tuple[list[Example], list[Example]] = known[tokenizer]
        return encoded

    def _encode(self, conversations: list[Conversation], tokenizer: Tokenizer) -> list[Example]:
        """Return the tokens of conversations; UserError, naming the line, for one that the template does not fit."""
        template = chat_template(tokenizer)
        examples = []
        for one in conversations:
            try:
                examples.append(encode_conversation(one, template, tokenizer.stop_ids))
            except (TemplateError, TokenizerError) as error:
                raise UserError(f"data {self.data}, {one.place}: {error}") from error
        return examples

    def fitting(self, examples: list[Example], block_size: int) -> list[Example]:
        """Return the examples with a part of an answer in their first block_size tokens; UserError where none has."""
        fitting = [example for example in examples if any(example.in_answer[1 : block_size + 1])]
        if not fitting:
            raise UserError(f"data {self.data}: every prompt is longer than block_size {block_size}: give a larger one")
        return fitting

    def build_model(self, config: TrainConfig, vocab_size: int, initial: InitialWeights | None) -> Model:
        assert initial is not None  # open_data has refused it
        model_config = initial.config  # with its window: rows of a training are shorter than conversations may become
        if isinstance(model_config, GPTConfig):
            model_config = replace(model_config, dropout=config.dropout)
        model = initial.build_model(model_config, plain=config.plain)
        if lora := LoRA.of(config):
            add_lora(model, lora)
        return model


def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """Return the model's own template; UserError where it has none."""
    try:
        return ChatTemplate(tokenizer)
    except TemplateError as error:
        raise UserError(str(error).removesuffix(": use --prompt")) from error


def task_of(state: RunState) -> Instruction:
    """Return the task of a run to resume; UserError for one of another program."""
    if state.task.get("name") != NAME:
        raise UserError(f"the run has not learned instructions: python -m gpt finetune {NAME} makes such runs")
    return Instruction(**{field.name: state.task[field.name] for field in fields(Instruction)})
