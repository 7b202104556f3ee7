"""A training run: made from a configuration, or picked up from a checkpoint of it."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorgrad as tg
from gpt.checkpoint import Checkpoint, load_whole
from gpt.checkpoint.metrics import rewind_metrics
from gpt.checkpoint.run_folder import (
    CHECKPOINTS,
    PassedOver,
    is_same,
    later_steps,
    make_folder,
    make_unique_folder,
    refuse_unwritable,
    refuse_used,
    set_broken_aside,
    set_metrics_aside,
)
from gpt.cli import use_backend, user_errors
from gpt.config import GPTConfig, TrainConfig, UserError
from gpt.data import DataLoader, load_text, make_loaders
from gpt.data.shards import ShardedTokens, is_prepared, load_prepared
from gpt.files import FolderLock
from gpt.fused import FusedGPT
from gpt.model import GPT
from gpt.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    TokenizerError,
)
from gpt.train.flags import Arguments
from gpt.weights.initial import InitialWeights, load_initial
from tensorgrad.distributed import Communicator, world

BPE_VOCAB_SIZE = 4096
LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # of the loggers, each an extra of its name


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
    skipped: int = 0  # steps whose gradient was not finite
    resumed_from: Path | None = None  # the folder of the run that this one goes on with
    passed_over: PassedOver = field(default_factory=list)  # newer checkpoints, which are broken
    scaler: tg.amp.GradScaler = field(default_factory=lambda: tg.amp.GradScaler(enabled=False))
    # The processes that train together, of which the first one writes.
    group: Communicator = field(default_factory=lambda: tg.get_backend().communicator(world()))

    @cached_property
    def data_sha256(self) -> str:
        """A fingerprint of all the tokens, by which a resumed run knows its data again."""
        digest = hashlib.sha256()
        for loader in (self.train_loader, self.val_loader):
            tokens = loader.tokens
            digest.update(tokens.sha256.encode() if isinstance(tokens, ShardedTokens) else tokens.data)
        return digest.hexdigest()


def make_run(arguments: Arguments) -> Run:
    """Return a new run, or the one to resume.

    Raises UserError for whatever is wrong with the arguments, the data or the checkpoint, and has
    then written nothing: the folder comes last.
    """
    run = _make_run(arguments)
    if run.group.size > 1:
        _refuse_disagreement(run)
    return run


def _make_run(arguments: Arguments) -> Run:
    init_from = arguments.given.get("init_from")
    if arguments.resume is not None:
        if init_from is not None:
            raise UserError("--init-from begins a new run, and --resume goes on with one: give only one of them")
        return resumed_run(arguments)
    if init_from is None:
        return new_run(_as_prepared(arguments.train_config(), arguments.given))
    initial = load_initial(init_from, arguments.given.get("n_head"))
    return new_run(_as_prepared(arguments.train_config(under=initial.settings()), arguments.given), initial)


def new_run(config: TrainConfig, initial: InitialWeights | None = None) -> Run:
    """Return a run at its beginning: tokenizer, data, model and an empty folder."""
    if initial is not None:
        initial.refuse_misfit(config)
    backend = use_backend(config.backend, config.threads, config.dtype, config.cuda_graph)
    _refuse_missing_logger(config)
    if config.out is not None:
        FolderLock(Path(config.out)).check()
        refuse_used(Path(config.out))
    refuse_unwritable(Path(config.out or CHECKPOINTS))
    tokenizer, train_loader, val_loader = open_data(config, None if initial is None else initial.tokenizer)
    tg.manual_seed(config.seed)
    model = FusedGPT(config.model_config(tokenizer.vocab_size))
    if initial is not None:
        initial.load_into(model)
    if config.half:
        model.astype(config.dtype)  # what this rounds off is lost; from here on, the master weights keep it
    optimizer, scaler = make_optimizer(model, config), make_scaler(config)
    folder = _new_folder(config)
    return Run(config, folder, tokenizer, train_loader, val_loader, model, optimizer, backend, scaler=scaler)


def resumed_run(arguments: Arguments) -> Run:
    """Return a run as its checkpoint left it, in the same folder or, with `--out`, in a new one."""
    out = arguments.given.get("out")
    checkpoint, passed_over = load_whole(_place_to_resume(arguments.resume, out))
    state, folder = checkpoint.state, Path(out or checkpoint.path.parent)
    config = arguments.train_config(under=state.train_config.to_dict())
    backend = use_backend(config.backend, config.threads, config.dtype, config.cuda_graph)
    _refuse_changes(config, checkpoint)
    _refuse_missing_logger(config)
    FolderLock(folder).check()
    _refuse_rewriting(folder, checkpoint, passed_over)
    refuse_unwritable(folder)

    model = checkpoint.build_model()
    if config.half:
        model.astype(config.dtype)  # these numbers again, exactly
    tokenizer, train_loader, val_loader = open_data(config, checkpoint.tokenizer)
    optimizer, scaler = make_optimizer(model, config), make_scaler(config)
    checkpoint.restore(optimizer, scaler)
    run = Run(
        config, folder, tokenizer, train_loader, val_loader, model, optimizer, backend,
        step=state.step, saved_step=state.step,
        best_val_loss=state.best_val_loss, best_step=state.best_step, skipped=state.skipped,
        resumed_from=checkpoint.path.parent, passed_over=passed_over, scaler=scaler,
    )  # fmt: skip
    if run.data_sha256 != state.data_sha256:
        raise UserError(f"data {config.data!r} is not the text that {folder} was trained on")
    make_folder(folder)
    return run


def _new_folder(config: TrainConfig) -> Path:
    if world().rank:  # the first process of the group makes it
        return Path(config.out or CHECKPOINTS)
    return make_folder(Path(config.out)) if config.out else make_unique_folder(config)


def _refuse_disagreement(run: Run) -> None:
    """Wait until every process of the group has its run, and raise UserError where they are not one and the same."""
    size, batch = run.group.size, run.config.batch_size
    if batch % size:
        raise UserError(f"batch_size {batch}: {size} processes cannot share it equally; give a multiple of {size}")
    known = run.group.gather([run.step, int(run.data_sha256[:12], 16), run.model.num_params()])
    for name, column in zip(("steps done", "data", "model"), known.T, strict=True):
        for rank, value in enumerate(column):
            if value != column[0]:
                raise UserError(f"{name}: process {rank} has others than process 0; all need the same files and flags")


def _place_to_resume(path: str | None, out: str | None) -> Path:
    place = Path(path or out or CHECKPOINTS)
    if not path and not place.is_dir():
        raise UserError(f"{place}: no such folder, so there is no checkpoint in it")
    return place


def _refuse_missing_logger(config: TrainConfig) -> None:
    name, library = config.logger, LIBRARIES.get(config.logger or "")
    if library is not None:
        with user_errors(ImportError, about=f"logger {name}: {library} is needed: pip install {library}"):
            importlib.import_module(library)


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
    return tg.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), master_weights=config.half)


def make_scaler(config: TrainConfig) -> tg.amp.GradScaler:
    """Return what keeps gradients in the range of float16; other dtypes have range enough."""
    return tg.amp.GradScaler(enabled=config.dtype == "float16")


def _as_prepared(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """Return the configuration with the tokenizer that its data was prepared with, if it was; another is an error."""
    if not is_prepared(config.data):
        return config
    tokenizer = load_prepared(config.data).tokenizer
    for name, has in (("tokenizer", tokenizer.type_name), ("vocab_size", tokenizer.vocab_size)):
        if given.get(name) not in (None, has):
            raise UserError(f"data {config.data!r} was prepared with {name} {has}: leave out {name} {given[name]}")
    return replace(config, tokenizer=tokenizer.type_name, vocab_size=None)


def open_data(config: TrainConfig, tokenizer: Tokenizer | None = None) -> tuple[Tokenizer, DataLoader, DataLoader]:
    """Return the tokenizer, made where none is given, and the loaders, of prepared data or of a text."""
    if not is_prepared(config.data):
        text = load_text(config.data, errors=config.encoding_errors)
        tokenizer = tokenizer or make_tokenizer(config, text)
        return tokenizer, *_loaders(config, text, tokenizer)
    data = load_prepared(config.data)
    if tokenizer is not None and tokenizer.to_dict() != data.tokenizer.to_dict():
        raise UserError(f"data {config.data!r} was prepared with another tokenizer than the weights were trained with")
    train, val = (
        DataLoader(
            tokens, batch_size=config.batch_size, block_size=config.block_size, seed=config.seed,
            tokenizer=data.tokenizer, name=f"the {kind} part of data {config.data!r}",
        )
        for kind, tokens in (("training", data.train), ("validation", data.val))
    )  # fmt: skip
    return data.tokenizer, train, val


def _loaders(config: TrainConfig, text: str, tokenizer: Tokenizer) -> tuple[DataLoader, DataLoader]:
    name = f"data {config.data!r}"
    with user_errors(TokenizerError, about=name):
        return make_loaders(
            text, tokenizer, batch_size=config.batch_size, block_size=config.block_size,
            seed=config.seed, name=name,
        )  # fmt: skip


@contextmanager
def claimed_folder(run: Run) -> Iterator[None]:
    """Hold the folder of a run for it alone, and have it as the run begins: metrics and checkpoints up to its step.

    Raises UserError, with nothing changed, where another process writes there, or did since the run was made.
    """
    if run.group.rank:  # the first process of the group holds it
        yield
        return
    with FolderLock(run.folder):
        if run.resumed_from is None or not is_same(run.folder, run.resumed_from):
            refuse_used(run.folder)
            set_metrics_aside(run.folder)
        elif later := later_steps(run.folder, run.step, run.passed_over):
            raise UserError(f"{run.folder} has gone on to {later[-1].name} meanwhile: --resume it once more")
        else:
            set_broken_aside(run.passed_over)
        if run.resumed_from is not None:
            rewind_metrics(run.resumed_from, run.folder, run.step)
        run.resumed_from, run.passed_over = run.folder, []  # from here on, it goes on with what it wrote itself
        yield


# --------------------------------------------------------------------------------------------------
# What a resumed run must have in common with what it resumes

_KEPT = ("tokenizer", "seed", "dtype", *(field.name for field in fields(GPTConfig)))


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


def _refuse_rewriting(folder: Path, checkpoint: Checkpoint, passed_over: PassedOver) -> None:
    if not is_same(folder, checkpoint.path.parent):
        refuse_used(folder)
    elif later := later_steps(folder, checkpoint.state.step, passed_over):
        raise UserError(
            f"{checkpoint.path} is older than {later[-1].name} beside it: give a new --out to branch off from it"
        )
