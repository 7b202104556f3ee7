"""A training run: made from a configuration, or picked up from a checkpoint of it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import count
from pathlib import Path

import tensorgrad as tg
from gpt.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, steps_after
from gpt.cli import use_backend, user_errors
from gpt.config import GPTConfig, TrainConfig, UserError
from gpt.data import DataLoader, load_text, make_loaders
from gpt.flags import Arguments
from gpt.model import GPT
from gpt.progress import METRICS, rewind_metrics
from gpt.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    TokenizerError,
)

CHECKPOINTS = "checkpoints"
BPE_VOCAB_SIZE = 4096


@dataclass
class Run:
    """Everything that training needs, and how far it has come."""

    config: TrainConfig
    folder: Path
    tokenizer: Tokenizer
    train_loader: DataLoader
    val_loader: DataLoader
    model: GPT
    optimizer: tg.optim.AdamW
    backend: str  # which, and why that one
    step: int = 0  # steps done
    saved_step: int | None = None  # the step of the newest checkpoint
    best_val_loss: float | None = None
    best_step: int | None = None

    @cached_property
    def data_sha256(self) -> str:
        """A fingerprint of all the tokens, by which a resumed run knows its data again."""
        digest = hashlib.sha256()
        for loader in (self.train_loader, self.val_loader):
            digest.update(loader.tokens.data)
        return digest.hexdigest()


def make_run(arguments: Arguments) -> Run:
    """Return a new run, or the one to resume.

    Raises UserError for whatever is wrong with the arguments, the data or the checkpoint, and has
    then written nothing: the folder comes last.
    """
    return new_run(arguments.train_config()) if arguments.resume is None else resumed_run(arguments)


def new_run(config: TrainConfig) -> Run:
    """Return a run at its beginning: tokenizer, data, model and an empty folder."""
    backend = use_backend(config.backend, config.threads)
    if config.out is not None:
        _refuse_used(Path(config.out))
    _refuse_unwritable(Path(config.out or CHECKPOINTS))
    text = load_text(config.data)
    tokenizer = make_tokenizer(config, text)
    train_loader, val_loader = _loaders(config, text, tokenizer)
    tg.manual_seed(config.seed)
    model = GPT(config.model_config(tokenizer.vocab_size))
    optimizer = make_optimizer(model, config)
    folder = _make_folder(Path(config.out)) if config.out else _make_unique_folder(config)
    return Run(config, folder, tokenizer, train_loader, val_loader, model, optimizer, backend)


def resumed_run(arguments: Arguments) -> Run:
    """Return a run as its checkpoint left it, in the same folder or, with `--out`, in a new one."""
    out = arguments.given.get("out")
    checkpoint = load_checkpoint(arguments.resume or newest_checkpoint(out or CHECKPOINTS))
    state, folder = checkpoint.state, Path(out or checkpoint.path.parent)
    config = arguments.train_config(under=state.train_config.to_dict())
    backend = use_backend(config.backend, config.threads)
    _refuse_changes(config, checkpoint)
    _refuse_rewriting(folder, checkpoint)
    _refuse_unwritable(folder)

    tokenizer, model = checkpoint.tokenizer, checkpoint.build_model()
    train_loader, val_loader = _loaders(config, load_text(config.data), tokenizer)
    optimizer = make_optimizer(model, config)
    checkpoint.restore(optimizer)
    run = Run(
        config, folder, tokenizer, train_loader, val_loader, model, optimizer, backend,
        step=state.step, saved_step=state.step,
        best_val_loss=state.best_val_loss, best_step=state.best_step,
    )  # fmt: skip
    if run.data_sha256 != state.data_sha256:
        raise UserError(f"data {config.data!r} is not the text that {folder} was trained on")
    rewind_metrics(checkpoint.path.parent, _make_folder(folder), state.step)
    return run


def make_tokenizer(config: TrainConfig, text: str) -> Tokenizer:
    """Return the tokenizer that the configuration names; all but GPT-2's learn it from the text."""
    with user_errors(TokenizerError, about=f"data {config.data!r}"):
        if config.tokenizer == "bpe":
            return BPETokenizer.train(text, config.vocab_size or BPE_VOCAB_SIZE)
        return CharTokenizer.train(text) if config.tokenizer == "char" else GPT2Tokenizer()


def make_optimizer(model: GPT, config: TrainConfig) -> tg.optim.AdamW:
    """Return AdamW that decays what multiplies, the matrices, and neither biases nor norms."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]  # the embeddings, too
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return tg.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def _loaders(config: TrainConfig, text: str, tokenizer: Tokenizer) -> tuple[DataLoader, DataLoader]:
    name = f"data {config.data!r}"
    with user_errors(TokenizerError, about=name):
        return make_loaders(
            text, tokenizer, batch_size=config.batch_size, block_size=config.block_size,
            seed=config.seed, name=name,
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Folders: nothing that is there is ever written over


def _refuse_used(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file; a run needs a folder")
    if folder.is_dir() and ((folder / METRICS).exists() or steps_after(folder, -1)):
        raise UserError(f"out {folder} has a run in it: give another --out, or --resume to go on")


def _refuse_unwritable(folder: Path) -> None:
    """Find out before an hour of tokenizing, and without making anything."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"out {folder}: nothing can be written into {there}")


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out {folder} cannot be made: {error.strerror}") from error
    return folder


def _make_unique_folder(config: TrainConfig) -> Path:
    """Make checkpoints/<data>-<tokenizer>, or -2, -3 ... where that is taken."""
    name = re.sub(r"[^\w.-]+", "-", Path(config.data).stem).strip(".-") or "run"
    names = (f"{name}-{config.tokenizer}" + f"-{i}" * (i > 1) for i in count(1))
    folders = (Path(CHECKPOINTS, name) for name in names)
    return _make_folder(next(folder for folder in folders if not folder.exists()))


# --------------------------------------------------------------------------------------------------
# What a resumed run must have in common with what it resumes

_KEPT = ("tokenizer", "seed", *(field.name for field in fields(GPTConfig)))


def _refuse_changes(config: TrainConfig, checkpoint: Checkpoint) -> None:
    before, state = checkpoint.state.train_config, checkpoint.state
    for name in _KEPT:
        asked, was = getattr(config, name), getattr(before, name)
        if asked != was:
            raise UserError(f"{name} {asked}: the run to resume has {was}, and that cannot change")
    if config.max_iters <= state.step:
        raise UserError(
            f"{checkpoint.path} has done {state.step} of {config.max_iters} steps: "
            "give a higher --max-iters to train on"
        )


def _refuse_rewriting(folder: Path, checkpoint: Checkpoint) -> None:
    if folder.resolve() != checkpoint.path.parent.resolve():
        _refuse_used(folder)
    elif later := steps_after(folder, checkpoint.state.step):
        raise UserError(
            f"{checkpoint.path} is older than {later[-1].name} beside it: give a new --out to branch off from it"
        )
