"""`python -m gpt finetune classify`: a model that labels texts, from a file of texts and labels."""

import math
import shlex
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from gpt.cli import one_of
from gpt.data import Array
from gpt.evaluate.plot import why_not
from gpt.files import write_json
from gpt.finetune.baseline import BagOfWords
from gpt.finetune.classification import NAME, PARTS, TUNE, Classification, describe_cut, task_of
from gpt.finetune.classifier import POOL, Classifier, probabilities
from gpt.finetune.scores import Scores
from gpt.finetune.tables import SUFFIXES, require_for_rows
from gpt.heartbeat import Heartbeat
from gpt.train.config import TrainConfig
from gpt.train.describe import describe
from gpt.train.flags import Arguments, build_parser, to_arguments
from gpt.train.program import train_to_end
from gpt.train.run import Run, finetuning_help, finetuning_schedule, new_run, require_sizes, resumed_run
from gpt.weights.initial import load_initial
from tensorgrad.memory import keep_freed_memory

EPOCHS, BATCH_SIZE = 5, 8
RESULTS, PICTURE = "results.json", "confusion.png"
DESCRIPTION = """\
Finetune a model to label texts. Writes a run as train.py does, with a confusion matrix of the texts that it was not
trained on, beside that of logistic regression on word counts, which needs no transformer."""
EXAMPLES = """\
examples:
  python -m gpt finetune classify --data spam.csv --text-column text --label-column label
  python -m gpt finetune classify --data reviews.jsonl --text-column review --label-column stars --tune all --epochs 3
  python -m gpt finetune classify --resume checkpoints/RUN
  python -m gpt finetune predict checkpoints/RUN "You have won a prize"
"""


def main(argv: Sequence[str]) -> int:
    """Train, and report how well the labels are predicted."""
    keep_freed_memory()
    own, arguments = parse(argv)
    with Heartbeat("preparing data and model"):
        if arguments.resume is not None:
            run = resumed_run(arguments, task_of)
        else:
            run = start(own, arguments)
    task = cast(Classification, run.task)
    print(*describe(run), *describe_data(task, run), sep="\n", flush=True)
    status = train_to_end(run, f"-m gpt finetune {NAME}")
    if status or run.group.rank:
        return status
    folder = shlex.quote(str(run.folder))
    report(task, run)
    print(f'Saved in {run.folder}. To label a text: python -m gpt finetune predict {folder} "TEXT"')
    return 0


def parse(argv: Sequence[str]) -> tuple[Namespace, Arguments]:
    """Return the flags of this command, and those that it shares with train.py."""
    own_help = finetuning_help(
        f"a file of texts and labels ({', '.join(SUFFIXES)})", batch_size=str(BATCH_SIZE),
        block_size="the longest text's, at most that of the weights",
    )  # fmt: skip
    parser = build_parser(f"python -m gpt finetune {NAME}", DESCRIPTION, EXAMPLES, own_help)
    add = parser.add_argument_group("labels").add_argument
    add("--text-column", metavar="NAME", help="the column of --data (.csv, .tsv, .jsonl or .json) with texts")
    add("--label-column", metavar="NAME", help="the column with labels")
    add("--tune", type=one_of(*TUNE), metavar="NAME",
        help="what is trained: last-block (the default), head (the default with LoRA) or all")
    add("--pool", type=one_of(*POOL), metavar="NAME",
        help="what labels are read from: mean, of the states of all tokens (the default), or last, that of the last")
    add("--class-weights", type=one_of("balanced", "none"), metavar="NAME",
        help="balanced: every label counts the same, however rare (the default); or none")
    add("--epochs", type=int, metavar="N", help=f"times that each text is seen (default: {EPOCHS})")
    flags = vars(parser.parse_args(argv))
    names = ("text_column", "label_column", "tune", "pool", "class_weights", "epochs")
    own = Namespace(**{name: flags.pop(name, None) for name in names})
    arguments = to_arguments(flags)
    if arguments.given.get("cuda_graph") or arguments.given.get("sample_interval"):
        parser.error("--cuda-graph and --sample-interval are for texts of one length, and for models that write")
    if arguments.given.get("general_data") is not None:
        parser.error("--general-data is for models that predict text, not labels: leave it out")
    if arguments.resume is not None:
        if given := next((name for name in names if getattr(own, name) is not None), None):
            parser.error(f"--{given.replace('_', '-')} cannot be changed by --resume: leave it out")
    elif "data" not in arguments.given or not (own.text_column and own.label_column):
        parser.error("--data, --text-column and --label-column are needed: a file, and its columns of texts and labels")
    if own.epochs is not None and (own.epochs < 1 or "max_iters" in arguments.given):
        parser.error("--epochs must be at least 1, and replaces --max-iters: give one of them")
    return own, arguments  # fmt: skip


def start(own: Namespace, arguments: Arguments) -> Run:
    """Return a new run before its first step."""
    require_sizes(arguments.given)
    require_for_rows(arguments.given)
    given = {"init_from": "smollm2", **arguments.given}
    tune = "head" if given.get("lora_rank") else TUNE[0]
    task = Classification(
        given["data"], own.text_column, own.label_column, own.tune or tune, own.class_weights != "none",
        given.get("seed", TrainConfig.seed), own.pool or POOL[0],
    )  # fmt: skip
    n_train, n_validation = len(task.split.train), len(task.split.validation)
    initial = load_initial(given["init_from"], given.get("n_head"), quantize="none")
    longest = max(map(len, task.encoded(initial.tokenizer)))
    batch_size = given.get("batch_size", BATCH_SIZE)
    per_epoch = math.ceil(n_train / (batch_size * given.get("grad_accum", 1)))
    max_iters = given.get("max_iters", (own.epochs or EPOCHS) * per_epoch)
    defaults = {
        "batch_size": batch_size, "max_iters": max_iters, "eval_interval": min(per_epoch, max_iters),
        "eval_iters": math.ceil(n_validation / batch_size),
    }  # fmt: skip
    settings = initial.settings() | {"block_size": min(longest, initial.config.block_size)}
    schedule = finetuning_schedule({**given, "max_iters": max_iters})
    config = Arguments(given, None).train_config(under={**settings, **schedule, **defaults})
    return new_run(config, initial, task)


def describe_data(task: Classification, run: Run) -> list[str]:
    """Return the lines about the labels, and about what is cut."""
    counts = ", ".join(f"{n:,} {label}" for label, n in Counter(task.examples[1]).most_common())
    trained = sum(p.size for p in run.model.parameters() if p.requires_grad)
    lines = [
        f"labels   {counts}; {len(task.split.test):,} texts for a test",
        f"trained  {trained:,} parameters: {task.tune}",
    ]
    cut = describe_cut(task.encoded(run.tokenizer), run.config.block_size)
    return lines if cut is None else [*lines, f"cut      {cut}"]


def report(task: Classification, run: Run) -> None:
    """Measure the model and the baseline on all parts, print and write the results."""
    model = cast(Classifier, run.model)
    baseline = BagOfWords(task.part(task.split.train)[0], len(task.labels))
    with Heartbeat("measuring"):
        baseline.fit(*task.part(task.split.train), task.weights, run.config.seed)

        def predict(indices: Sequence[int]) -> Array:
            tokens = task.tokens(indices, run.tokenizer, run.config.block_size)
            return probabilities(model, tokens, run.config.batch_size).argmax(1)

        def predict_from_words(indices: Sequence[int]) -> Array:
            return baseline.predict(task.part(indices)[0])

        methods = {"model": predict, "words": predict_from_words}
        results = {name: evaluate(task, method) for name, method in methods.items()}
    scores = results["model"]["test"]
    written = {name: {part: one.to_dict() for part, one in parts.items()} for name, parts in results.items()}
    write_json(run.folder / RESULTS, {"task": task.settings(), **written})
    print(format_results(results))
    print(f"\n{scores.table()}\n")
    try:
        scores.draw(run.folder / PICTURE, f"{run.folder.name}: test, accuracy {scores.accuracy:.2%}")
    except Exception as error:  # of any kind: matplotlib's, or a full disk
        print(f"no picture of the confusion matrix: {why_not(error)}")


def evaluate(task: Classification, predict: Callable[[Sequence[int]], Array]) -> dict[str, Scores]:
    """Return the scores of a way to predict labels, for each part of the data."""
    scores = {}
    for name, indices in zip(PARTS, task.split, strict=True):
        scores[name] = Scores.of(task.labels, task.part(indices)[1], predict(indices))
    return scores


def format_results(results: Mapping[str, Mapping[str, Scores]]) -> str:
    """Return a table: the accuracy of each part, and F1 of the test."""
    lines = [f"{'accuracy':<22}" + "".join(f"{part:>12}" for part in PARTS.values()) + f"{'F1 (macro)':>12}"]
    for name, label in (("model", "this model"), ("words", "logistic regression")):
        shares = "".join(f"{results[name][part].accuracy:>12.2%}" for part in PARTS)
        lines.append(f"{label:<22}{shares}{results[name]['test'].macro_f1:>12.4f}")
    return "\n".join(lines)
