"""`python -m gpt finetune predict RUN TEXT`: the labels that a classifier gives to new texts."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt.checkpoint import load_checkpoint
from gpt.cli import ArgumentParser, one_of, use_backend
from gpt.config import BACKENDS, UserError, nearest
from gpt.finetune.classification import cut, describe_cut, encode, require_classifier, restore_classifier
from gpt.finetune.classifier import probabilities
from gpt.finetune.scores import Scores
from gpt.finetune.tables import DELIMITERS, column, read_rows
from gpt.heartbeat import Heartbeat
from tensorgrad.memory import keep_freed_memory

BATCH = 16


def main(argv: Sequence[str]) -> int:
    """Print a line for each text: its label, the probability of that label, and the text, with tabs between them."""
    keep_freed_memory()
    parser = build_parser()
    args = parser.parse_args(argv)
    if bool(args.texts) == bool(args.data):
        parser.error("give texts, or a file of them with --data")
    if args.texts and (args.text_column or args.label_column):
        parser.error("--text-column and --label-column are of a file: give it with --data")
    with Heartbeat("loading the model"):
        use_backend(args.backend, args.threads)
        checkpoint = load_checkpoint(args.run, optimizer=False)
        require_classifier(checkpoint.state, args.run)
        task, block_size = checkpoint.state.task, checkpoint.state.model_config.block_size
        labels: list[str] = task["labels"]
        texts, true = args.texts, None
        if args.data:
            path = Path(args.data)
            fields = read_rows(path)
            texts = column(fields, args.text_column or task["text_column"], path, "--text-column")
            if args.label_column:
                true = column(fields, args.label_column, path, "--label-column")
                for row, label in zip(fields, true, strict=True):
                    require_known(label, labels, f"data {path}, {row.place}")
        elif not all(text.strip() for text in texts):
            raise UserError("a text to label is empty")
        model = restore_classifier(checkpoint)
        rows = encode(texts, checkpoint.tokenizer, "a text")
        if shortened := describe_cut(rows, block_size):
            note(f"cut {shortened}: the classifier reads no more")
        found = probabilities(model, [cut(row, block_size) for row in rows], BATCH)
    for text, row in zip(texts, found, strict=True):
        print(single_spaced(labels[row.argmax()]), f"{row.max():.4f}", single_spaced(text), sep="\t")
    if true is not None:
        numbers = np.array([labels.index(label) for label in true])
        scores = Scores.of(labels, numbers, found.argmax(1))
        note(f"\naccuracy {scores.accuracy:.2%}, F1 (macro) {scores.macro_f1:.4f}\n\n{scores.table()}")
    return 0


def single_spaced(text: str) -> str:
    """Return a text with single spaces for its line breaks, tabs and runs of spaces."""
    return " ".join(text.split())


def note(text: str) -> None:
    """Print on stderr: stdout has a line for each text, and nothing else."""
    print(text, file=sys.stderr)


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    parser = ArgumentParser(prog="python -m gpt finetune predict", description="Label texts with a classifier.")
    add = parser.add_argument
    suffixes = ", ".join((*DELIMITERS, ".jsonl", ".json"))
    add("run", metavar="RUN", help="a run of `python -m gpt finetune classify`, or one step of it")
    add("texts", metavar="TEXT", nargs="*", help="texts to label")
    add("--data", metavar="FILE", help=f"a file of texts instead ({suffixes})")
    add("--text-column", metavar="NAME", help="its column with the texts (default: as in training)")
    add("--label-column", metavar="NAME", help="its column with the true labels, to measure how many are right")
    add("--backend", type=one_of(*BACKENDS), default="auto", metavar="NAME", help="numpy, numba, cupy or auto")
    add("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    return parser


def require_known(label: str, labels: Sequence[str], where: str) -> None:
    """Raise UserError for a label that the classifier has not learned."""
    if label not in labels:
        known = ", ".join(map(repr, labels))
        raise UserError(f"{where}: label {label!r} was not in the training data{nearest(label, labels)} ({known} were)")
