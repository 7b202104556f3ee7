"""Tensors in files of safetensors, and of other libraries."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tensorgrad.autograd import no_grad
from tensorgrad.backend import load as load_backend
from tensorgrad.backend.arrays import Quantized
from tensorgrad.tensor import Tensor

CUDA = 2  # DLPack's number of the device


def save(tensors: Mapping[str, Any], path: str | Path) -> None:
    """Write tensors or arrays by name, such as a state_dict, to a file of safetensors, which any framework can read.

    The file is replaced when all of it is written: whoever reads it finds the old contents or the new.
    Raises TypeError for anything else than a flat mapping.
    """
    from safetensors.numpy import save_file

    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise TypeError(f"save: {type(tensors).__name__} is not a dict of tensors by name, such as a state_dict")
    for name, x in tensors.items():
        if isinstance(x, Quantized) or isinstance(getattr(x, "data", None), Quantized):
            raise TypeError(f"save: {name} is {x.dtype}, of which safetensors knows nothing: give its dequantize()")
    with no_grad():
        arrays = {name: Tensor(x).numpy() for name, x in tensors.items()}
    path = Path(path)
    temporary = path.with_name(f".{path.name}")
    try:
        save_file({name: np.ascontiguousarray(x).reshape(x.shape) for name, x in arrays.items()}, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # before the rename: a crash must not leave the name on half a file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors by name, on the current backend: `model.load_state_dict(tg.load(path))`.

    Raises ValueError for a file of another kind, or of numbers that are not known.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: Tensor(x) for name, x in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"load: {path} is not a complete file of safetensors: {error}") from error
    except TypeError as error:  # data type 'bfloat16' not understood
        raise ValueError(f"load: {path}: {error}: pip install ml_dtypes") from error


def from_dlpack(x: Any) -> Tensor:
    """A tensor of the memory of another library's array, which it shares: PyTorch's, JAX's, CuPy's."""
    backend = load_backend("cupy" if x.__dlpack_device__()[0] == CUDA else "numpy")
    return Tensor(backend.xp.from_dlpack(x))
