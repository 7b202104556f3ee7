"""What train.py prints before the first step: the run, and what its settings change."""

import textwrap
from collections.abc import Iterator
from dataclasses import fields

from gpt.checkpoint.files import CONFIG
from gpt.data.documents import describe_files
from gpt.train.config import TrainConfig
from gpt.train.loop import learning_rate
from gpt.train.run import FINETUNING_WINDOW, Run

INDENT, WIDTH = " " * 9, 100
SCHEDULE = ("max_iters", "lr", "min_lr", "warmup_iters", "lr_decay_iters")


def describe(run: Run) -> Iterator[str]:
    """Yield the lines."""
    config, model = run.config, run.model.config
    for folder, error in run.damaged:
        yield f"resume   skipped {folder}, which is damaged: {error}"
    yield f"backend  {run.backend}"
    train, val = run.train_loader, run.val_loader
    yield f"data     {config.data}: {train.size:,} {train.unit} for training, {val.size:,} for validation"
    if files := describe_files(config.data):
        yield f"{INDENT}in {files}"
    yield f"tokens   {run.tokenizer.type_name}, {model.vocab_size:,} different ones"
    shape = f"{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, window {model.block_size}"
    total, trained = model.count_parameters().total, sum(p.size for p in run.model.parameters() if p.requires_grad)
    yield f"model    {total:,} parameters: {shape}"
    if config.init_from is not None and model.block_size == FINETUNING_WINDOW and not run.step:
        yield f"{INDENT}--block-size gives another window, up to that of the initial weights"
    if trained != total:
        lora = f", in adapters of rank {config.lora_rank} beside them" if config.lora_rank else ""
        yield f"trained  {trained:,} parameters{lora}"
    yield f"run      {run.folder}" + (f", from step {run.step}" if run.step else "")
    if run.resumed_config is not None:
        yield from describe_changes(run.resumed_config, config, run.step)
    else:
        defaults = TrainConfig(dtype="float32", cuda_graph=False)  # on a CPU; what a GPU gets is shown
        given = ", ".join(f"{name} {new}" for name, _, new in changes(defaults, config))
        text = f"config   {given or 'the defaults'}; all settings are in {run.folder / CONFIG}"
        yield from textwrap.wrap(text, WIDTH, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)


def describe_changes(before: TrainConfig, now: TrainConfig, step: int) -> Iterator[str]:
    """Yield what a resumed run changes, and what that does to the learning rate."""
    changed = changes(before, now)
    if changed:
        yield "changed  " + ", ".join(f"{name} {old} -> {new}" for name, old, new in changed)
    if not {name for name, _, _ in changed} & set(SCHEDULE):
        return
    last = now.max_iters - 1
    rates = [[learning_rate(config, at) for at in (step, last)] for config in (before, now)]
    text = f"{INDENT}learning rate {rates[1][0]:.2e} at step {step + 1}, {rates[1][1]:.2e} at step {last + 1}"
    if rates[0] != rates[1]:
        yield f"{text}; unchanged, it would be {rates[0][0]:.2e} and {rates[0][1]:.2e}"
    elif step >= (now.lr_decay_iters or now.max_iters):
        yield f"{text}: as before, since the decay ended at step {now.lr_decay_iters}; --min-lr changes it"
    else:
        yield f"{text}: as before"


def changes(before: TrainConfig, now: TrainConfig) -> list[tuple[str, object, object]]:
    """Return (name, value before, value now) of every setting that differs; the folder of the run is none."""
    pairs = [(field.name, getattr(before, field.name), getattr(now, field.name)) for field in fields(TrainConfig)]
    return [(name, old, new) for name, old, new in pairs if old != new and name not in ("out", "data")]
