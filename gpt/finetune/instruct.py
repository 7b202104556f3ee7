"""`python -m gpt finetune instruct`: a model that answers, from a file of conversations."""

import json
import math
import shlex
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, cast

from gpt.checkpoint.files import BEFORE
from gpt.cli import boolean
from gpt.evaluate import evaluating
from gpt.files import atomic_write, write_json
from gpt.finetune.conversations import Conversation
from gpt.finetune.instruction import NAME, Instruction, chat_template, task_of
from gpt.finetune.packing import Examples
from gpt.finetune.split import normal_form
from gpt.finetune.tables import require_for_rows
from gpt.generate import generate
from gpt.heartbeat import Heartbeat
from gpt.train.describe import describe
from gpt.train.flags import Arguments, build_parser, to_arguments
from gpt.train.program import train_to_end
from gpt.train.run import Run, finetuning_help, finetuning_schedule, new_run, require_sizes, resumed_run
from gpt.weights import IGNORED, Model
from gpt.weights.initial import load_initial
from tensorgrad.memory import keep_freed_memory

EPOCHS, BLOCK_SIZE, BATCH_SIZE = 2, 512, 4
SHORT, N_SHORT = 16, 50  # tokens of an answer that is compared word for word; how many of them are
N_SHOWN, SHOWN_TOKENS = 10, 128  # conversations before and after; the most tokens of an answer there
RESULTS, CONVERSATIONS = "results.json", "conversations.txt"
DESCRIPTION = """\
Finetune a model with a chat template to answer. Only answers are learned, not their prompts. Writes a run as train.py
does; generate.py --chat talks to it."""
EXAMPLES = """\
examples:
  python -m gpt finetune instruct --data alpaca.json
  python -m gpt finetune instruct --data mine.jsonl --epochs 3 --block-size 256
  python -m gpt finetune instruct --resume checkpoints/RUN
The data are JSON or JSON lines of {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}, or of
Alpaca's {"instruction": ..., "input": ..., "output": ...}.
"""


def main(argv: Sequence[str]) -> int:
    """Measure, train and measure again."""
    keep_freed_memory()
    own, arguments = parse(argv)
    with Heartbeat("preparing data and model"):
        run = resumed_run(arguments, task_of) if arguments.resume is not None else start(own, arguments)
        task = cast(Instruction, run.task)
    print(*describe(run), *describe_data(task, run), sep="\n", flush=True)
    if not run.step and not run.group.rank:
        with Heartbeat("measuring the model before the training"):
            write_json(run.folder / BEFORE, measure(task, run))
    status = train_to_end(run, f"-m gpt finetune {NAME}")
    if status or run.group.rank:
        return status
    folder = shlex.quote(str(run.folder))
    report(task, run)
    print(f"Saved in {run.folder}. To talk to it: python generate.py --chat --model {folder}")
    return 0


def parse(argv: Sequence[str]) -> tuple[Namespace, Arguments]:
    """Return the flags of this command, and those that it shares with train.py."""
    own_help = finetuning_help(
        "a file of conversations (.json or .jsonl)", batch_size=str(BATCH_SIZE),
        block_size=f"{BLOCK_SIZE}, at most that of the weights",
    )  # fmt: skip
    parser = build_parser(f"python -m gpt finetune {NAME}", DESCRIPTION, EXAMPLES, own_help)
    add = parser.add_argument_group("instructions").add_argument
    add("--epochs", type=int, metavar="N", help=f"times that each answer is seen (default: {EPOCHS})")
    add("--packing", type=boolean, metavar="True|False", help="several conversations in a row (default: True)")
    flags = vars(parser.parse_args(argv))
    own = Namespace(**{name: flags.pop(name, None) for name in ("epochs", "packing")})
    arguments = to_arguments(flags)
    if arguments.given.get("cuda_graph"):
        parser.error("--cuda-graph needs rows of one length: leave it out")
    if arguments.resume is not None and (own.epochs, own.packing) != (None, None):
        parser.error("--epochs and --packing cannot be changed by --resume: leave them out")
    if arguments.resume is None and "data" not in arguments.given:
        parser.error("--data is needed: a file of conversations (.json or .jsonl)")
    if own.epochs is not None and (own.epochs < 1 or "max_iters" in arguments.given):
        parser.error("--epochs must be at least 1, and replaces --max-iters: give one of them")
    return own, arguments


def start(own: Namespace, arguments: Arguments) -> Run:
    """Return a new run before its first step."""
    require_sizes(arguments.given)
    require_for_rows(arguments.given)
    given: dict[str, Any] = {"init_from": "smollm2", "batch_size": BATCH_SIZE, **arguments.given}
    task = Instruction(given["data"], own.packing is not False, given.get("seed", 1337))
    task.conversations  # noqa: B018  # an error in the data, before the weights are read
    initial = load_initial(given["init_from"], given.get("n_head"), given.get("quantize", "none"))
    given.setdefault("block_size", min(BLOCK_SIZE, initial.config.block_size))
    train_examples, held_out = (
        Examples(task.fitting(part, given["block_size"]), packed=task.packing, block_size=given["block_size"],
                 batch_size=given["batch_size"])
        for part in task.encoded(initial.tokenizer)
    )  # fmt: skip
    per_epoch = math.ceil(len(train_examples.rows) / (given["batch_size"] * given.get("grad_accum", 1)))
    max_iters = given.get("max_iters", (own.epochs or EPOCHS) * per_epoch)
    defaults = {
        "max_iters": max_iters, "eval_interval": min(per_epoch, max_iters), "eval_iters": held_out.n_batches,
    }  # fmt: skip
    schedule = finetuning_schedule({**given, "max_iters": max_iters})
    config = Arguments(given, None).train_config(under={**initial.settings(), **schedule, **defaults})
    return new_run(config, initial, task)


def describe_data(task: Instruction, run: Run) -> list[str]:
    """Return the lines about the rows, and about what is cut."""
    T = run.config.block_size
    examples = [example for part in task.encoded(run.tokenizer) for example in part]
    n_long, n_out = sum(len(e.ids) > T + 1 for e in examples), sum(not any(e.in_answer[1 : T + 1]) for e in examples)
    data = cast(Examples, run.train_loader)
    n_tokens = sum(len(example.ids) - 1 for example in data.examples)
    n_targets = sum(sum(example.in_answer[1:]) for example in data.examples)
    lines = [f"rows     {len(data.rows):,} of at most {T:,} tokens: {n_tokens:,}, of which {n_targets:,} are answers"]
    if n_long:
        kept = f"{n_long - n_out:,} to their first {T:,} tokens" if n_long > n_out else "none"
        lines.append(f"cut      of {len(examples):,} conversations {kept}; {n_out:,} with longer prompts are left out")
    return lines


def measure(task: Instruction, run: Run) -> dict[str, Any]:
    """Return the loss of held-out answers, how many short ones are exact, and some answers."""
    held_out = task.conversations[1]
    template = chat_template(run.tokenizer)

    def answers(conversations: Sequence[Conversation], n_tokens: int) -> list[str]:
        prompts = [template.encode(one.prompt, add_generation_prompt=True) for one in conversations]
        stop_ids = run.tokenizer.stop_ids
        rows = generate(run.model, prompts, max_new_tokens=n_tokens, temperature=0.0, stop_ids=stop_ids)
        return [run.tokenizer.decode(row, skip_special=True).strip() for row in rows]

    short = [one for one in held_out if len(run.tokenizer.encode(one.answer)) <= SHORT][:N_SHORT]
    found = answers(short, 2 * SHORT)
    exact = sum(normal_form(text) == normal_form(one.answer) for text, one in zip(found, short, strict=True))
    return {
        "loss": answer_loss(run.model, cast(Examples, run.val_loader)), "n_short": len(short), "n_exact": exact,
        "answers": answers(held_out[:N_SHOWN], SHOWN_TOKENS),
    }  # fmt: skip


def answer_loss(model: Model, examples: Examples) -> float:
    """Return the mean loss over all tokens of answers."""
    total, n_targets = 0.0, 0
    with evaluating(model):
        for i in range(examples.n_batches):
            x, y, pos = examples.batch(i)
            count = int((y != IGNORED).sum())
            total += float(model.loss(x, y, pos).item()) * count
            n_targets += count
    return total / n_targets


def report(task: Instruction, run: Run) -> None:
    """Measure, print what has changed, and write it with the conversations."""
    with Heartbeat("measuring"):
        after = measure(task, run)
    before = json.loads((run.folder / BEFORE).read_text(encoding="utf-8"))
    write_json(run.folder / RESULTS, {"task": task.settings(), "before": before, "after": after})
    shown = []
    for one, old, new in zip(task.conversations[1], before["answers"], after["answers"], strict=False):
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in one.prompt)
        shown.append(f"{prompt}\nexpected: {one.answer}\nbefore: {old}\nafter: {new}\n")
    with atomic_write(run.folder / CONVERSATIONS) as file:
        file.write("\n".join(shown).encode())
    print(f"held out  loss {before['loss']:.4f} before, {after['loss']:.4f} after")
    if n := after["n_short"]:
        print(f"exact     {before['n_exact']} of {n} short answers before, {after['n_exact']} after")
