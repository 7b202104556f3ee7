"""What the programs that train have in common: errors and what is printed when a run is stopped."""

import shlex

from gpt.cli import out_of_memory
from gpt.train.loop import train
from gpt.train.run import Run


def train_to_end(run: Run, program: str) -> int:
    """Train, and return the exit status: not 0 where the run was stopped, with a line that says how to continue it.

    program: what continues it, such as `train.py`. Raises UserError where the memory is too small.
    """
    try:
        status = train(run)
    except MemoryError as error:
        raise out_of_memory(error, run.config.batch_size, run.config.grad_accum) from error
    if status and not run.group.rank:  # rank 0 of the group prints
        folder = shlex.quote(str(run.folder))
        print(f"Stopped after step {run.step}. To continue: python {program} --resume {folder}")
    return status
