"""The task of any run, a language model's or a finetuned one's, by the name in its checkpoints."""

from gpt.checkpoint import RunState
from gpt.finetune import classification, instruction
from gpt.train.task import Task, language_model

_TASKS = {classification.NAME: classification.task_of, instruction.NAME: instruction.task_of}


def task_of(state: RunState) -> Task:
    """Return the task; UserError for one that this version does not know."""
    return _TASKS.get(state.task.get("name", ""), language_model)(state)
