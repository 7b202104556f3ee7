"""What a run trains for: its data and its model. The default is a language model; gpt/finetune/ has other tasks."""

from typing import Any

from gpt.checkpoint import Checkpoint, RunState
from gpt.config import UserError
from gpt.data.loaders import Batches
from gpt.lora import LoRA, add_lora
from gpt.tokenizer import Tokenizer
from gpt.train.build import open_data
from gpt.train.config import TrainConfig
from gpt.weights import Model, build_model
from gpt.weights.initial import InitialWeights, build_checkpoint


class Task:
    """A language model: it learns to continue a text."""

    rows_of_one_length = True  # in every batch, as a recorded step needs them
    saves_adapters_alone = True  # in the checkpoints of a run with LoRA; otherwise all weights

    def settings(self) -> dict[str, Any]:
        """Return what the checkpoints of a run keep of its task, ready for JSON; of a language model, nothing."""
        return {}

    def open_data(self, config: TrainConfig, tokenizer: Tokenizer | None) -> tuple[Tokenizer, Batches, Batches]:
        """Return the tokenizer, and the data for training and validation."""
        return open_data(config, tokenizer)

    def build_model(self, config: TrainConfig, vocab_size: int, initial: InitialWeights | None) -> Model:
        """Return the model of a new run, random or with initial weights."""
        make = build_model if initial is None else initial.build_model
        model = make(config.model_config(vocab_size), plain=config.plain)
        if lora := LoRA.of(config):
            add_lora(model, lora)
        return model

    def restore_model(self, checkpoint: Checkpoint, config: TrainConfig) -> Model:
        """Return the model of a checkpoint."""
        return build_checkpoint(checkpoint, plain=config.plain)


def language_model(state: RunState) -> Task:
    """Return the task of a run to resume; UserError for one that train.py cannot resume."""
    if state.task:
        raise UserError(f"the run is of another program: python -m gpt finetune {state.task['name']} --resume")
    return Task()
