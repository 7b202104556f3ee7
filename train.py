#!/usr/bin/env python3
"""Train a GPT: `python train.py`, or `python train.py --help` for all settings."""

import shlex
import sys

from gpt.cli import leave, user_errors
from gpt.cli import run as run_program
from gpt.finetune.tasks import task_of
from gpt.heartbeat import Heartbeat, until_first
from gpt.train.before_after import compare, write_before
from gpt.train.describe import describe
from gpt.train.dry_run import dry_run
from gpt.train.flags import parse
from gpt.train.nonfinite import replay
from gpt.train.observers import sample
from gpt.train.program import train_to_end
from gpt.train.run import Run, make_run
from tensorgrad.memory import keep_freed_memory

SAMPLE_TOKENS = 400


def main() -> int:
    keep_freed_memory()
    arguments = parse(sys.argv[1:])
    if arguments.replay is not None:
        return replay(arguments.replay, arguments.given.get("backend"), task_of)
    if arguments.dry_run:
        with Heartbeat("dry run"):
            return dry_run(arguments)
    with Heartbeat("preparing data and model", print_line):
        run = make_run(arguments)
    print(*describe(run), sep="\n", flush=True)
    if run.config.init_from is not None and not (run.step or run.group.rank):
        write_before(run)
    status = train_to_end(run, "train.py")
    if not status and not run.group.rank:  # rank 0 of the group prints
        print_sample(run)
        print(f"Saved in {run.folder}. For more: python generate.py --checkpoint {shlex.quote(str(run.folder))}")
    return status


def print_sample(run: Run) -> None:
    print("-" * 80, flush=True)
    if run.config.init_from is not None:
        print(compare(run))
    else:
        with user_errors(FloatingPointError, about=str(run.folder)):  # where the weights are not finite
            for piece in until_first("generating a sample", sample(run, SAMPLE_TOKENS)):
                print(piece, end="", flush=True)
            print()
    print("-" * 80)


def print_line(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    leave(run_program(main))
