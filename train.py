#!/usr/bin/env python3
"""Train a GPT: `python train.py`, or `python train.py --help` for all settings."""

import sys

from gpt.checkpoint.files import CONFIG
from gpt.cli import leave, out_of_memory, user_errors
from gpt.cli import run as run_program
from gpt.data.documents import describe_files
from gpt.train.config_file import describe as config_lines
from gpt.train.dry_run import dry_run
from gpt.train.flags import parse
from gpt.train.loop import train
from gpt.train.nonfinite import replay
from gpt.train.observers import sample
from gpt.train.run import Run, make_run

SAMPLE_TOKENS = 400


def main() -> int:
    arguments = parse(sys.argv[1:])
    if arguments.replay is not None:
        return replay(arguments.replay, arguments.given.get("backend"))
    if arguments.dry_run:
        return dry_run(arguments)
    run = make_run(arguments)
    describe(run)
    try:
        status = train(run)
    except MemoryError as error:
        raise out_of_memory(error, run.config.batch_size, run.config.grad_accum) from error
    if run.group.rank:  # rank 0 of the group prints
        return status
    if status:
        print(f"Stopped after step {run.step}. To continue: python train.py --resume {run.folder}")
    else:
        print_sample(run)
        print(f"Saved in {run.folder}. For more: python generate.py --checkpoint {run.folder}")
    return status


def describe(run: Run) -> None:
    config, model, step = run.config, run.model.config, run.step
    for folder, error in run.damaged:
        print(f"resume   skipped {folder}, which is damaged: {error}")
    n_train, n_val = len(run.train_loader.tokens), len(run.val_loader.tokens)
    print(f"backend  {run.backend}")
    print(f"data     {config.data}: {n_train:,} tokens for training, {n_val:,} for validation")
    if files := describe_files(config.data):
        print(f"         in {files}")
    print(f"tokens   {run.tokenizer.type_name}, {model.vocab_size:,} different ones")
    print(f"model    {run.model.num_params():,} parameters: {model.n_layer} layers, ", end="")
    print(f"{model.n_head} heads, width {model.n_embd}, window {model.block_size}")
    print(f"run      {run.folder}" + (f", from step {step}" if step else ""))
    print(f"config   as in {run.folder / CONFIG}:")
    print(*config_lines(config, " " * 9), sep="\n", flush=True)


def print_sample(run: Run) -> None:
    print("-" * 80)
    with user_errors(FloatingPointError, about=str(run.folder)):  # the weights may not be finite
        for piece in sample(run, SAMPLE_TOKENS):
            print(piece, end="", flush=True)
    print("\n" + "-" * 80)


if __name__ == "__main__":
    leave(run_program(main))
