"""Checkpoints: folders of safetensors and JSON that are either complete or absent.

    checkpoints/<run>/
      config.toml             the settings of the run
      metrics.jsonl           one line per step; timing.jsonl likewise
      step-002000/            the newest; a few earlier ones and the best are kept beside it
        model.safetensors       weights, by their names in model.state_dict(); of a run with LoRA, in its place
        adapter_model.safetensors and adapter_config.json: its adapters alone, in PEFT's format
        optimizer.safetensors   AdamW's moments
        state.json              step, configurations, optimizer scalars, random counters, best loss
        tokenizer.json
        manifest.json           size and sha256 of each of the others

A checkpoint is written into a hidden folder, synced to the disk and only then renamed, so a crash at any moment leaves
the earlier ones unchanged. Reading one runs no code: there is no pickle.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

import tensorgrad as tg
from gpt.checkpoint.files import (
    MANIFEST,
    MAX_JSON_BYTES,
    MODEL,
    OPTIMIZER,
    STATE,
    TOKENIZER,
    Arrays,
    read_arrays,
    require_enough,
    verify,
    write_json,
    write_manifest,
)
from gpt.checkpoint.run_folder import Damaged
from gpt.checkpoint.steps import (
    clear_leftovers,
    newest_checkpoint,
    prune,
    publish,
    step_folder,
    step_folders,
    step_of,
    temporary_folder,
)
from gpt.config import GPTConfig, LlamaConfig, UserError, model_config_from_dict
from gpt.files import file_errors, read_json, sync
from gpt.lora import LoRA, adapter_parameters
from gpt.tokenizer import Tokenizer, load_tokenizer
from gpt.train.config import TrainConfig
from gpt.weights import Model, build_model
from gpt.weights.adapter import ADAPTER, ADAPTER_CONFIG, Base, config_entries, read_adapter, serialize

FORMAT = 1  # of the folder; increased when earlier programs can no longer read it


@dataclass(frozen=True)
class RunState:
    """The state of a run besides its weights and moments: what state.json holds."""

    step: int  # optimizer steps taken
    model_config: GPTConfig | LlamaConfig
    train_config: TrainConfig
    data_sha256: str  # of all its tokens: a resumed run must have the same
    rng: dict[str, Any]  # tg.random.Generator.state_dict()
    best_val_loss: float | None = None
    best_step: int | None = None
    skipped: int = 0  # steps whose gradient was not finite, and which changed nothing
    scaler: dict[str, Any] = field(default_factory=dict)  # tg.amp.GradScaler.state_dict()
    task: dict[str, Any] = field(default_factory=dict)  # of a finetuned run: its name, and what it needs
    base: Base | None = None  # of a run with LoRA, whose checkpoints hold the adapters alone
    numpy_products: list[str] = field(default_factory=list)  # Backend.numpy_products: they decide the last digits


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory; its arrays are NumPy's, whatever backend wrote them."""

    path: Path
    state: RunState
    weights: Arrays
    tokenizer: Tokenizer
    optimizer: dict[str, Any] | None  # for optimizer.load_state_dict; None where it was not loaded

    def build_model(self, *, plain: bool = False) -> Model:
        """Return the model on the current backend; UserError where the weights do not fit. plain: see build_model.

        That of a run with LoRA needs its base as well: gpt.weights.initial.build_checkpoint.
        """
        config = self.state.model_config
        with file_errors(self.path / MODEL):  # tg.nn.StateDictError is a ValueError
            require_enough(self.weights, config)
            return build_model(config, plain=plain, weights=self.weights)

    def restore(self, optimizer: tg.optim.AdamW, scaler: tg.amp.GradScaler | None = None) -> None:
        """Restore the optimizer's moments, the scaler's scale and the random counters; UserError where they do not fit.

        The optimizer keeps its options, since flags given with `--resume` take precedence over the saved ones.
        """
        saved = {**(self.optimizer or {}), "param_groups": optimizer.state_dict()["param_groups"]}
        with file_errors(self.path / OPTIMIZER):
            optimizer.load_state_dict(saved)
        with file_errors(self.path / STATE):
            if scaler is not None:
                scaler.load_state_dict(self.state.scaler)
            tg.random.default_generator.load_state_dict(self.state.rng)


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint before it is written: arrays in host memory, and the rest of the state."""

    state: RunState
    weights: Arrays
    moments: Arrays
    scalars: dict[str, Any]  # of the optimizer
    tokenizer: Tokenizer

    @classmethod
    def take(
        cls, state: RunState, model: Model, optimizer: tg.optim.AdamW, tokenizer: Tokenizer,
        into: "Snapshot | None" = None, *, copy: bool = True,
    ) -> "Snapshot":  # fmt: skip
        """Return the present state; with copy=False it shares memory with the model, and has to be written at once.

        The memory of an earlier snapshot is reused where `into` gives one.
        """
        scalars = optimizer.state_dict()
        saved = {name: p.data for name, p in adapter_parameters(model).items()} if state.base else model.state_dict()
        weights, moments = _on_host(saved), _on_host(scalars.pop("state"))
        if copy:
            weights = _copied(weights, into.weights if into else {})
            moments = _copied(moments, into.moments if into else {})
        return cls(state, weights, moments, scalars, tokenizer)


def save_checkpoint(
    run_dir: str | Path, state: RunState, model: Model, optimizer: tg.optim.AdamW, tokenizer: Tokenizer, keep: int = 1
) -> Path:
    """Write `run_dir/step-NNNNNN`, remove earlier ones except the last `keep` and the best, and return its path.

    Raises UserError when the disk is full; every earlier checkpoint remains complete.
    """
    return write_checkpoint(run_dir, Snapshot.take(state, model, optimizer, tokenizer, copy=False), keep)


def write_checkpoint(run_dir: str | Path, snapshot: Snapshot, keep: int = 1) -> Path:
    """Do what save_checkpoint does, with a snapshot."""
    run_dir, state = Path(run_dir), snapshot.state
    target = step_folder(run_dir, state.step)
    write_folder(target, snapshot)
    try:
        prune(run_dir, state.step, last=keep, best=state.best_step)
    except OSError as error:
        raise UserError(f"{run_dir}: {target.name} is saved, but earlier ones cannot be removed: {error}") from error
    return target


def write_folder(target: Path, snapshot: Snapshot, extra: Mapping[str, Arrays] | None = None) -> None:
    """Write a checkpoint, and further files of arrays, into a folder that gets its name once it is complete."""
    temporary = temporary_folder(target)
    try:
        clear_leftovers(target.parent)
        temporary.mkdir(parents=True)
        _write_files(temporary, snapshot, extra or {})
        sync(temporary)
        publish(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{target}: cannot be saved: {error}; earlier ones are complete") from error


def _write_files(folder: Path, snapshot: Snapshot, extra: Mapping[str, Arrays]) -> None:
    own = _write_weights(folder, snapshot)
    for name, arrays in {OPTIMIZER: snapshot.moments, **extra}.items():
        save_file(arrays, folder / name)
    snapshot.tokenizer.save(folder)
    state = {**asdict(snapshot.state), "model_config": snapshot.state.model_config.to_dict()}
    write_json(folder / STATE, {"format": FORMAT, **state, "optimizer": snapshot.scalars})
    names = (*own, OPTIMIZER, STATE, TOKENIZER, *extra)
    write_manifest(folder, names)
    for name in (*names, MANIFEST):
        shutil.copymode(folder / MANIFEST, folder / name)  # safetensors makes files that nobody else can read
        sync(folder / name)


def _write_weights(folder: Path, snapshot: Snapshot) -> list[str]:
    """Write the weights, or the adapters alone where there is a base; return the names of the files."""
    state = snapshot.state
    lora = LoRA.of(state.train_config)
    if state.base is None or lora is None:
        save_file(snapshot.weights, folder / MODEL)
        return [MODEL]
    (folder / ADAPTER).write_bytes(serialize(snapshot.weights, state.model_config, state.base))
    write_json(folder / ADAPTER_CONFIG, config_entries(lora, state.model_config, state.base.path))
    return [ADAPTER, ADAPTER_CONFIG]


def _on_host(arrays: Mapping[str, Any]) -> Arrays:
    """Return NumPy arrays; half precision as float32, which holds the same numbers and which every reader knows."""
    on_host = {name: np.ascontiguousarray(tg.Tensor(a).numpy()) for name, a in arrays.items()}
    return {name: a.astype(np.float32) if a.itemsize == 2 else a for name, a in on_host.items()}


def _copied(arrays: Arrays, buffers: Arrays) -> Arrays:
    copies = {}
    for name, a in arrays.items():
        b = buffers.get(name)
        copies[name] = b if b is not None and (b.shape, b.dtype) == (a.shape, a.dtype) else np.empty_like(a)
        np.copyto(copies[name], a)
    return copies


def load_checkpoint(path: str | Path, *, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint from its step folder, or the newest of a run folder; every file is checked.

    Raises UserError, naming the file, for one that is missing, truncated, changed or of another format.
    """
    folder = Path(path) if _is_step(Path(path)) else newest_checkpoint(path)
    verify(folder, [STATE, TOKENIZER] + [OPTIMIZER] * optimizer)
    with file_errors(folder / STATE):
        raw = read_json(folder / STATE, MAX_JSON_BYTES)
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']} is not {FORMAT}, the one this program reads")
        state, scalars = _state_from_dict(raw), dict(raw["optimizer"])
        if step_of(folder) not in (None, state.step):
            raise ValueError(f"holds step {state.step}, but the name of its folder says another step")
    verify(folder, [MODEL] if state.base is None else [ADAPTER, ADAPTER_CONFIG])
    if state.base is None:
        weights = _read_floats(folder / MODEL)
    else:
        weights = read_adapter(folder, state.model_config).weights
    with file_errors(folder / TOKENIZER):
        tokenizer = load_tokenizer(folder)
    if optimizer:
        scalars["state"] = _read_floats(folder / OPTIMIZER)
    return Checkpoint(folder, state, weights, tokenizer, scalars if optimizer else None)


def load_newest(path: str | Path) -> tuple[Checkpoint, Damaged]:
    """Read a step folder, or the newest undamaged checkpoint of a run, or of the run saved last of several.

    Returns with it the newer ones that are damaged; raises the error of the newest where all are.
    """
    path = Path(path)
    if _is_step(path):
        return load_checkpoint(path), []
    damaged: Damaged = []
    for _, folder in reversed(step_folders(newest_checkpoint(path).parent)):
        try:
            return load_checkpoint(folder), damaged
        except UserError as error:
            damaged.append((folder, error))
    raise damaged[0][1]


def read_extra(folder: Path, name: str) -> Arrays:
    """Return a further file of arrays that write_folder wrote, checked as every file is."""
    verify(folder, [name])
    with file_errors(folder / name):
        return read_arrays(folder / name)


def _is_step(path: Path) -> bool:
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; python generate.py --list shows the runs")
    if not path.is_dir():
        raise UserError(f"{path}: a checkpoint is a folder, and this is a file")
    return (path / MANIFEST).exists() or step_of(path) is not None


def _read_floats(path: Path) -> Arrays:
    with file_errors(path):
        arrays = read_arrays(path)
        for name, array in arrays.items():
            if array.dtype.kind != "f":
                raise ValueError(f"{name} is {array.dtype}, not float32")
    return arrays


def _state_from_dict(raw: Mapping[str, Any]) -> RunState:
    best_step, best_loss = raw["best_step"], raw["best_val_loss"]
    return RunState(
        step=_count(raw, "step"),
        model_config=model_config_from_dict(raw["model_config"]),
        train_config=TrainConfig.from_dict(raw["train_config"]),
        data_sha256=str(raw["data_sha256"]),
        rng=dict(raw["rng"]),
        best_val_loss=None if best_loss is None else float(best_loss),
        best_step=None if best_step is None else _count(raw, "best_step"),
        skipped=_count(raw, "skipped") if "skipped" in raw else 0,
        scaler=dict(raw.get("scaler", {})),
        task=dict(raw.get("task", {})),
        base=None if raw.get("base") is None else Base(str(raw["base"]["path"]), str(raw["base"]["sha256"])),
        numpy_products=[str(kind) for kind in raw.get("numpy_products", [])],
    )


def _count(raw: Mapping[str, Any], name: str) -> int:
    value = raw[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return value
