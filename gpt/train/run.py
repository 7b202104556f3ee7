"""A training run: started from a configuration, or resumed from one of its checkpoints."""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorgrad as tg
from gpt.checkpoint import Checkpoint, RunState, load_newest
from gpt.checkpoint.run_folder import (
    CHECKPOINTS,
    Damaged,
    is_same,
    later_steps,
    make_folder,
    make_unique_folder,
    rename_damaged,
    rename_metrics,
    require_unused,
    require_writable,
    rewind_metrics,
)
from gpt.cli import use_backend, user_errors
from gpt.config import UserError
from gpt.data import Batches, DataLoader
from gpt.files import FolderLock
from gpt.lora import LoRA
from gpt.tokenizer import Tokenizer
from gpt.train.build import make_optimizer, make_scaler, open_general_data, resolve, with_prepared_settings
from gpt.train.config import TrainConfig
from gpt.train.flags import Arguments
from gpt.train.footprint import require_memory
from gpt.train.freeze import freeze
from gpt.train.kernels import compile_ahead
from gpt.train.task import Task, language_model
from gpt.weights import Model
from gpt.weights.adapter import Base
from gpt.weights.initial import InitialWeights, load_initial
from tensorgrad.creation import skip_init
from tensorgrad.distributed import Communicator, world

FINETUNING_LR, LORA_LR = 1e-4, 1e-3
MAX_LAYERS, MAX_PARAMETERS = 10_000, 2**40  # of a model whose shapes are listed before it is built
FINETUNING_WINDOW = 256  # at most, unless --block-size is given: that of the weights may be thousands of tokens
LOGGERS = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # the package of each, which is also an extra


@dataclass
class Run:
    """Everything that training needs, and its progress."""

    config: TrainConfig
    folder: Path
    tokenizer: Tokenizer
    train_loader: Batches
    val_loader: Batches
    model: Model
    optimizer: tg.optim.AdamW
    backend: str  # its name, and why it was chosen
    task: Task = field(default_factory=Task)
    step: int = 0  # steps taken
    saved_step: int | None = None  # the step of the newest checkpoint
    best_val_loss: float | None = None
    best_step: int | None = None
    skipped: int = 0  # steps whose gradient was not finite
    resumed_from: Path | None = None  # the folder of the run that this one continues
    resumed_config: TrainConfig | None = None  # its configuration, before the flags of this resume
    general_loader: DataLoader | None = None  # a text whose loss shows what is forgotten
    base: Base | None = None  # of a run with LoRA: the weights that stay as they are
    damaged: Damaged = field(default_factory=list)  # newer checkpoints, which cannot be loaded
    scaler: tg.amp.GradScaler = field(default_factory=lambda: tg.amp.GradScaler(enabled=False))
    compilation: Any = None  # of kernels, in other processes: see Backend.compile_ahead
    # The processes that train together; rank 0 prints and writes.
    group: Communicator = field(default_factory=lambda: tg.get_backend().communicator(world()))

    @cached_property
    def data_sha256(self) -> str:
        """A fingerprint of all the tokens, to check that a resumed run has the same data."""
        digest = hashlib.sha256()
        for loader in (self.train_loader, self.val_loader):
            digest.update(loader.fingerprint)
        return digest.hexdigest()


def make_run(arguments: Arguments) -> Run:
    """Return a new run, or the one to resume.

    Raises UserError for a mistake in the arguments, the data or the checkpoint; nothing is written in that case, since
    the folder is created last.
    """
    run = _make_run(arguments)
    if run.group.size > 1:
        _require_agreement(run)
    return run


def _make_run(arguments: Arguments) -> Run:
    if arguments.resume is not None:
        return resumed_run(arguments)
    return new_run(*configure(arguments))


def configure(arguments: Arguments) -> tuple[TrainConfig, InitialWeights | None]:
    """Return the configuration of a new run and the weights that it starts from, if any."""
    init_from = arguments.given.get("init_from")
    if init_from is None:
        return with_prepared_settings(arguments.train_config(), arguments.given), None
    given = arguments.given
    initial = load_initial(init_from, given.get("n_head"), given.get("quantize", "none"))
    window = min(initial.config.block_size, FINETUNING_WINDOW)
    under = {**initial.settings(), **finetuning_schedule(given), "block_size": window}
    config = arguments.train_config(under=under)
    return with_prepared_settings(config, given), initial


def finetuning_schedule(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults for a run that starts from trained weights: a low rate, and a warm-up that fits the run."""
    lr = given.get("lr", LORA_LR if given.get("lora_rank") else FINETUNING_LR)
    max_iters = given.get("max_iters", TrainConfig.max_iters)
    return {"lr": lr, "min_lr": lr / 10, "warmup_iters": min(TrainConfig.warmup_iters, max_iters // 10)}


def finetuning_help(data: str, **defaults: str) -> dict[str, str]:
    """Return what --help says where a command of finetune differs. data: its file; defaults: those of its own."""
    known = {field.name: field.metadata for field in fields(TrainConfig)}
    of_weights = {name for name, at in known.items() if at["group"] == "model"} - {"block_size", "dropout"}
    defaults = {
        **dict.fromkeys(("tokenizer", "vocab_size", *of_weights), "that of the weights"),
        "lr": f"{FINETUNING_LR}; with --lora-rank {LORA_LR}", "min_lr": "a tenth of --lr",
        "warmup_iters": f"a tenth of the steps, at most {TrainConfig.warmup_iters}", "init_from": "smollm2",
        "max_iters": "--epochs", "eval_interval": "an epoch", "eval_iters": "all", **defaults,
    }  # fmt: skip
    help_of = {name: known[name]["help"].partition(" (default")[0] for name in defaults}
    return {"data": data} | {name: f"{text} (default: {defaults[name]})" for name, text in help_of.items()}


def require_sizes(given: Mapping[str, Any]) -> None:
    """Raise UserError for a number of steps, examples or tokens, or a seed, that is too small to split data with."""
    names = ("batch_size", "grad_accum", "max_iters", "block_size", "seed")
    Arguments({name: given[name] for name in names if name in given}, None).train_config()


def new_run(config: TrainConfig, initial: InitialWeights | None = None, task: Task | None = None) -> Run:
    """Return a run before its first step: tokenizer, data, model and an empty folder."""
    if initial is not None:
        initial.require_fit(config)
    with user_errors():
        lora = LoRA.of(config)
    task = task or Task()
    if config.quantize != "none" and not task.saves_adapters_alone:
        raise UserError(f"quantize {config.quantize}: the checkpoints of this run hold all weights: leave it out")
    backend = use_backend(config.backend, config.threads, config.dtype, config.cuda_graph)
    config = resolve(config, rows_of_one_length=task.rows_of_one_length)
    _require_logger(config)
    if config.out is not None:
        FolderLock(Path(config.out)).check()
        require_unused(Path(config.out))
    require_writable(Path(config.out or CHECKPOINTS))
    compilation = compile_ahead(config)
    tokenizer, train_loader, val_loader = task.open_data(config, None if initial is None else initial.tokenizer)
    tg.manual_seed(config.seed)
    if initial is None:  # otherwise its weights are in memory already
        require_memory(config, model_without_weights(task, config, tokenizer.vocab_size), world().size)
    model = task.build_model(config, tokenizer.vocab_size, initial)
    freeze_parts(model, config)
    if initial is not None:
        require_memory(config, model, world().size)
    if config.half:
        model.astype(config.dtype)  # the master weights are made from the rounded ones
    optimizer, scaler = make_optimizer(model, config), make_scaler(config)
    base = initial.base if initial is not None and lora is not None and task.saves_adapters_alone else None
    general_loader = open_general_data(config, tokenizer)
    folder = _new_folder(config)
    return Run(
        config, folder, tokenizer, train_loader, val_loader, model, optimizer, backend, task,
        general_loader=general_loader, base=base, scaler=scaler, compilation=compilation,
    )  # fmt: skip


def resumed_run(arguments: Arguments, task_of: Callable[[RunState], Task] = language_model) -> Run:
    """Return a run in the state of its checkpoint, in the same folder or, with `--out`, in a new one."""
    if "init_from" in arguments.given:
        raise UserError("--init-from starts a new run, and --resume continues one: give only one of them")
    out = arguments.given.get("out")
    checkpoint, damaged = load_newest(_path_to_resume(arguments.resume, out))
    state, folder = checkpoint.state, Path(out or checkpoint.path.parent)
    config = arguments.train_config(under=state.train_config.to_dict())
    moved = {"data": config.data} if "data" in state.task else {}
    task = task_of(replace(state, task=state.task | moved))
    if config.dtype == "auto":
        config = replace(config, dtype=state.train_config.dtype)
    backend = use_backend(config.backend, config.threads, config.dtype, config.cuda_graph, state.numpy_products)
    _require_same_settings(config, checkpoint)
    _require_logger(config)
    FolderLock(folder).check()
    _require_newest(folder, checkpoint, damaged)
    require_writable(folder)

    compilation = compile_ahead(config)
    model = task.restore_model(checkpoint, config)
    freeze_parts(model, config)
    require_memory(config, model, world().size)
    if config.half:
        model.astype(config.dtype)  # exactly the numbers that were saved
    tokenizer, train_loader, val_loader = task.open_data(config, checkpoint.tokenizer)
    optimizer, scaler = make_optimizer(model, config), make_scaler(config)
    checkpoint.restore(optimizer, scaler)
    run = Run(
        config, folder, tokenizer, train_loader, val_loader, model, optimizer, backend, task,
        step=state.step, saved_step=state.step,
        best_val_loss=state.best_val_loss, best_step=state.best_step, skipped=state.skipped,
        resumed_from=checkpoint.path.parent, resumed_config=state.train_config, damaged=damaged,
        general_loader=open_general_data(config, tokenizer), base=state.base, scaler=scaler, compilation=compilation,
    )  # fmt: skip
    if run.data_sha256 != state.data_sha256:
        raise UserError(f"data {config.data!r} is not the text that {folder} was trained on")
    make_folder(folder)
    return run


@contextmanager
def locked_folder(run: Run) -> Iterator[None]:
    """Lock the folder of a run, and rewind its files to the step of the run.

    Raises UserError, and changes nothing, where another process writes there, or has since the run was made.
    """
    if run.group.rank:  # rank 0 locks it
        yield
        return
    with FolderLock(run.folder):
        if run.resumed_from is None or not is_same(run.folder, run.resumed_from):
            require_unused(run.folder)
            rename_metrics(run.folder)
        elif later := later_steps(run.folder, run.step, run.damaged):
            raise UserError(f"{run.folder} has been trained to {later[-1].name} in the meantime: --resume it again")
        else:
            rename_damaged(run.damaged)
        if run.resumed_from is not None:
            rewind_metrics(run.resumed_from, run.folder, run.step)
        run.resumed_from, run.damaged = run.folder, []  # from now on, it continues what it wrote itself
        yield


def model_without_weights(task: Task, config: TrainConfig, vocab_size: int) -> Model:
    """Return the model of a new run, with shapes alone: it takes little memory, however large it is.

    Raises UserError for more than MAX_LAYERS or MAX_PARAMETERS, which no machine holds.
    """
    if config.n_layer > MAX_LAYERS:
        raise UserError(f"n_layer must be at most {MAX_LAYERS:,}, not {config.n_layer:,}")
    if (total := config.model_config(vocab_size).count_parameters().total) > MAX_PARAMETERS:
        raise UserError(f"a model may have {MAX_PARAMETERS:,} parameters, not {total:,}: give a smaller --n-embd")
    with skip_init():
        model = task.build_model(config, vocab_size, None)
    freeze_parts(model, config)
    return model


def freeze_parts(model: Model, config: TrainConfig) -> None:
    """Freeze the parts that the configuration names; UserError for one that is not there."""
    if config.freeze is not None:
        with user_errors():
            freeze(model, config.freeze)


def _new_folder(config: TrainConfig) -> Path:
    if world().rank:  # rank 0 creates it
        return Path(config.out or CHECKPOINTS)
    return make_folder(Path(config.out)) if config.out else make_unique_folder(config)


def _path_to_resume(path: str | None, out: str | None) -> Path:
    place = Path(path or out or CHECKPOINTS)
    if not path and not place.is_dir():
        raise UserError(f"{place}: no such folder, so there is no checkpoint in it")
    return place


# What a resumed run cannot change.
_FIXED_GROUPS = ("model", "finetuning")
_FIXED = ["tokenizer", "seed", "dtype", *(f.name for f in fields(TrainConfig) if f.metadata["group"] in _FIXED_GROUPS)]
_FIXED.remove("general_data")  # it changes nothing but what is shown


def _require_logger(config: TrainConfig) -> None:
    name, package = config.logger, LOGGERS.get(config.logger or "")
    if package is not None:
        with user_errors(Exception, about=f"logger {name}: {package} is needed: pip install {package}"):
            importlib.import_module(package)


def _require_agreement(run: Run) -> None:
    """Wait until every process of the group has its run, and raise UserError where the runs differ."""
    size, batch = run.group.size, run.config.batch_size
    if batch % size:
        raise UserError(f"batch_size {batch} is not divisible by {size} processes: give a multiple of {size}")
    rows = run.group.gather([run.step, int(run.data_sha256[:12], 16), run.model.num_params()])
    for name, column in zip(("steps", "data", "model"), rows.T, strict=True):
        for rank, value in enumerate(column):
            if value != column[0]:
                raise UserError(f"{name}: process {rank} differs from process 0; all need the same files and flags")


def _require_same_settings(config: TrainConfig, checkpoint: Checkpoint) -> None:
    before, state = checkpoint.state.train_config, checkpoint.state
    for name in _FIXED:
        new, old = getattr(config, name), getattr(before, name)
        if new != old:
            raise UserError(f"{name} {new}: the run to resume has {old}, which cannot be changed")
    if config.max_iters <= state.step:
        raise UserError(
            f"{checkpoint.path} has completed {state.step} of {config.max_iters} steps: "
            "give a higher --max-iters to continue"
        )


def _require_newest(folder: Path, checkpoint: Checkpoint, damaged: Damaged) -> None:
    if not is_same(folder, checkpoint.path.parent):
        require_unused(folder)
    elif later := later_steps(folder, checkpoint.state.step, damaged):
        raise UserError(f"{checkpoint.path} is older than {later[-1].name} beside it: give a new --out to branch off")
