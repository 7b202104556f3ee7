"""Files of safetensors, and memory shared with PyTorch."""

import os
from pathlib import Path

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import nn

pytestmark = pytest.mark.usefixtures("numpy_backend")


def test_a_state_dict_is_saved_and_loaded(tmp_path: Path) -> None:
    first, second, path = nn.Linear(3, 2), nn.Linear(3, 2), tmp_path / "model.safetensors"
    tg.save(first.state_dict(), path)
    second.load_state_dict(tg.load(path))
    np.testing.assert_array_equal(first.weight.data, second.weight.data)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_every_dtype_and_layout_is_kept(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    tensors = {"a": tg.Tensor(np.arange(6.0).reshape(2, 3).T, dtype=dtype), "b": tg.ones((), dtype)}
    tg.save(tensors, tmp_path / "x")
    loaded = tg.load(tmp_path / "x")
    assert {name: (x.dtype, x.shape) for name, x in loaded.items()} == {
        name: (x.dtype, x.shape) for name, x in tensors.items()
    }
    assert loaded["a"].tolist() == tensors["a"].tolist()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    tg.save({"a": tg.ones(2)}, path)

    def fails(descriptor: int) -> None:
        assert tg.load(path)["a"].tolist() == [1, 1]
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        tg.save({"a": tg.zeros(2)}, path)
    assert tg.load(path)["a"].tolist() == [1, 1] and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_or_no_dict_raises(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"^load: .*x is not a complete file of safetensors"):
        tg.load(tmp_path / "x")
    with pytest.raises(TypeError, match=r"^save: Tensor is not a dict of tensors by name, such as a state_dict"):
        tg.save(tg.ones(2), tmp_path / "y")


def test_memory_is_shared_with_pytorch() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.arange(6.0).reshape(2, 3)
    ours = tg.from_dlpack(theirs)
    theirs[0, 0] = 7
    assert ours[0, 0].item() == 7
    back = torch.from_dlpack(tg.ones((2, 3)))
    assert back.shape == (2, 3)
    x = tg.zeros(2)
    torch.from_dlpack(x)[0] = 5
    assert x.tolist() == [5, 0]
    with pytest.raises(RuntimeError, match="requires a gradient"):
        torch.from_dlpack(tg.ones(2, requires_grad=True))
    assert np.from_dlpack(tg.ones(2)).tolist() == [1, 1]
