"""Checkpoints: folders of safetensors and JSON that are either whole or not there.

    checkpoints/<run>/
      metrics.jsonl           one line a step, written by gpt/trainer.py; timing.jsonl likewise
      step-002000/            the newest; beside it stays the one of the best validation loss
        model.safetensors       weights, by their names in model.state_dict()
        optimizer.safetensors   AdamW's moments
        state.json              step, configurations, optimiser scalars, random counters, best loss
        tokenizer.json
        manifest.json           size and sha256 of each of the others

A checkpoint is written into a hidden folder, synced to the disk and only then renamed, so a crash
at any moment leaves the ones before it as they were. Reading one runs no code: there is no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import tensorgrad as tg
from gpt.config import GPTConfig, TrainConfig, UserError
from gpt.model import GPT
from gpt.tokenizer import Tokenizer, load_tokenizer

Arrays = dict[str, np.ndarray[Any, Any]]

FORMAT = 1  # of the folder; raised when an older program could no longer read it
MODEL, OPTIMIZER, STATE, TOKENIZER, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", "manifest.json",
)  # fmt: skip
_STEP_FOLDER = re.compile(r"step-(\d{6,18})")
_HIDDEN = ".step-"  # what is being written or removed


@dataclass(frozen=True)
class RunState:
    """Where a run stands, beside its weights and moments: what state.json holds."""

    step: int  # optimiser steps done
    model_config: GPTConfig
    train_config: TrainConfig
    data_sha256: str  # of all its tokens: a resumed run must have the same
    rng: dict[str, Any]  # tg.random.Generator.state_dict()
    best_val_loss: float | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory; arrays are NumPy's, whatever backend wrote them."""

    path: Path
    state: RunState
    weights: Arrays
    tokenizer: Tokenizer
    optimizer: dict[str, Any] | None  # for optimizer.load_state_dict; None when not asked for

    def build_model(self) -> GPT:
        """Return the model, on the backend in use; UserError when the weights do not fit it."""
        model = GPT(self.state.model_config)
        with _refusing(self.path / MODEL):  # tg.nn.StateDictError is a ValueError
            model.load_state_dict(self.weights)
        return model

    def restore(self, optimizer: tg.optim.AdamW) -> None:
        """Give the optimiser its moments and the random generator its counters.

        The optimiser keeps its own options: flags given with `--resume` go before the saved ones.
        Raises UserError when the moments do not fit.
        """
        saved = {**(self.optimizer or {}), "param_groups": optimizer.state_dict()["param_groups"]}
        with _refusing(self.path / OPTIMIZER):
            optimizer.load_state_dict(saved)
        with _refusing(self.path / STATE):
            tg.random.default_generator.load_state_dict(self.state.rng)


# --------------------------------------------------------------------------------------------------
# Saving


def save_checkpoint(
    run_dir: str | Path, state: RunState, model: GPT, optimizer: tg.optim.AdamW, tokenizer: Tokenizer
) -> Path:
    """Write `run_dir/step-NNNNNN`, then remove older ones but for the best; return its path.

    Raises UserError, and leaves every earlier checkpoint whole, when the disk will not take it.
    """
    run_dir = Path(run_dir)
    target = run_dir / f"step-{state.step:06d}"
    aside = run_dir / f"{_HIDDEN}{state.step:06d}.writing"
    try:
        _clear_leftovers(run_dir)
        aside.mkdir(parents=True)
        _write_files(aside, state, model, optimizer, tokenizer)
        _sync(aside)
        _remove(target)  # there only when a step is saved again
        aside.rename(target)
        _sync(run_dir)
        _prune(run_dir, keep={state.step, state.best_step})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"{target}: cannot be saved: {error}; earlier ones are whole") from error
    return target


def _write_files(folder: Path, state: RunState, model: GPT, optimizer: tg.optim.AdamW, tokenizer: Tokenizer) -> None:
    scalars = optimizer.state_dict()
    save_file(_on_host(model.state_dict()), folder / MODEL)
    save_file(_on_host(scalars.pop("state")), folder / OPTIMIZER)
    tokenizer.save(folder)
    _write_json(folder / STATE, {"format": FORMAT, **asdict(state), "optimizer": scalars})
    names = (MODEL, OPTIMIZER, STATE, TOKENIZER)
    _write_json(folder / MANIFEST, {name: _fingerprint(folder / name) for name in names})
    for name in (*names, MANIFEST):
        shutil.copymode(folder / MANIFEST, folder / name)  # safetensors lets nobody else read
        _sync(folder / name)


def _on_host(arrays: Mapping[str, Any]) -> Arrays:
    return {name: np.ascontiguousarray(tg.Tensor(a).numpy()) for name, a in arrays.items()}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    """Wait until the file or the folder is on the disk; Windows has no such call for folders."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prune(run_dir: Path, keep: set[int | None]) -> None:
    for step, folder in _step_folders(run_dir):
        if step not in keep:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a checkpoint so that a crash half-way does not leave half of one under its name."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.removing")
        folder.rename(hidden)
        shutil.rmtree(hidden)


def _clear_leftovers(run_dir: Path) -> None:
    for folder in run_dir.glob(f"{_HIDDEN}*"):
        shutil.rmtree(folder)


# --------------------------------------------------------------------------------------------------
# Loading


def newest_checkpoint(root: str | Path = "checkpoints") -> Path:
    """Return the newest step folder of a run, or of the run written last when `root` holds many.

    Raises UserError when there is none.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, so there is no checkpoint in it")
    if newest := _newest_step(root):
        return newest
    of_runs = [step for run in root.iterdir() if run.is_dir() and (step := _newest_step(run))]
    if not of_runs:
        raise UserError(f"{root}: no checkpoint in it; train.py makes them")
    return max(of_runs, key=lambda step: (step.stat().st_mtime_ns, step))


def load_checkpoint(path: str | Path, *, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint from its step folder, or the newest of a run folder; every file is checked.

    Raises UserError, naming the file, for one that is missing, truncated, changed or not ours.
    """
    folder = _resolve(Path(path))
    names = [MODEL, STATE, TOKENIZER] + [OPTIMIZER] * optimizer
    _verify(folder, names)
    with _refusing(folder / STATE):
        raw = _read_json(folder / STATE)
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']} is not {FORMAT}, the one this program reads")
        state, scalars = _state_from_dict(raw), dict(raw["optimizer"])
    weights = _read_arrays(folder / MODEL)
    with _refusing(folder / TOKENIZER):
        tokenizer = load_tokenizer(folder)
    if optimizer:
        scalars["state"] = _read_arrays(folder / OPTIMIZER)
    return Checkpoint(folder, state, weights, tokenizer, scalars if optimizer else None)


def steps_after(run_dir: str | Path, step: int) -> list[Path]:
    """Return the checkpoints of a run that are further than this step."""
    return [folder for number, folder in _step_folders(Path(run_dir)) if number > step]


def _resolve(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    if not path.is_dir():
        raise UserError(f"{path}: a checkpoint is a folder, and this is a file")
    return path if (path / MANIFEST).exists() or _step_of(path) else newest_checkpoint(path)


def _verify(folder: Path, names: list[str]) -> None:
    """Hold each file against the manifest before anything is made of its contents."""
    with _refusing(folder / MANIFEST):
        manifest = _read_json(folder / MANIFEST)
        expected = {name: (manifest[name]["bytes"], manifest[name]["sha256"]) for name in names}
    for name, (size, digest) in expected.items():
        with _refusing(folder / name):
            found = _fingerprint(folder / name)
            if found["bytes"] != size:
                raise ValueError(f"damaged: {found['bytes']} bytes, and {size} were written")
            if found["sha256"] != digest:
                raise ValueError(f"damaged: its contents are not those that {MANIFEST} was made of")


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Turn whatever a bad file makes fail into a UserError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{file}: missing, so the checkpoint cannot be used") from None
    except KeyError as error:
        raise UserError(f"{file}: no entry {error}") from error
    except (OSError, SafetensorError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error


def _read_json(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("does not hold a JSON object")
    return values


def _read_arrays(path: Path) -> Arrays:
    with _refusing(path):
        arrays: Arrays = load_file(path)
        return arrays


def _state_from_dict(raw: Mapping[str, Any]) -> RunState:
    step, best_step, best_loss = raw["step"], raw["best_step"], raw["best_val_loss"]
    if type(step) is not int or step < 0:
        raise ValueError(f"step must be a whole number, not {step!r}")
    return RunState(
        step=step,
        model_config=GPTConfig.from_dict(raw["model_config"]),
        train_config=TrainConfig.from_dict(raw["train_config"]),
        data_sha256=str(raw["data_sha256"]),
        rng=dict(raw["rng"]),
        best_val_loss=None if best_loss is None else float(best_loss),
        best_step=None if best_step is None else int(best_step),
    )


def _step_of(folder: Path) -> int | None:
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def _step_folders(run_dir: Path) -> list[tuple[int, Path]]:
    found = ((_step_of(folder), folder) for folder in run_dir.iterdir() if folder.is_dir())
    return sorted((step, folder) for step, folder in found if step is not None)


def _newest_step(run_dir: Path) -> Path | None:
    steps = _step_folders(run_dir)
    return steps[-1][1] if steps else None
