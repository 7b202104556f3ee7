"""tensorgrad: reverse-mode automatic differentiation on NumPy and CuPy, from the tensor to the kernel."""

import importlib
from typing import TYPE_CHECKING, Any

from tensorgrad import nn, ops, optim, random
from tensorgrad.autograd import enable_grad, is_grad_enabled, no_grad

from tensorgrad.backend import (  # isort: skip
    BackendUnavailable, get_backend, set_float32_matmul_precision, set_num_threads, use_backend,
)  # fmt: skip
from tensorgrad.creation import (  # isort: skip
    arange, asarray, empty, empty_like, eye, full, full_like, linspace, normal, ones, ones_like, uniform, zeros,
    zeros_like,
)  # fmt: skip
from tensorgrad.gradcheck import gradcheck
from tensorgrad.ops import *  # noqa: F403
from tensorgrad.random import Generator, manual_seed
from tensorgrad.tensor import Tensor

if TYPE_CHECKING:
    from tensorgrad import amp, distributed
    from tensorgrad.anomaly import NonFiniteError, detect_anomaly
    from tensorgrad.autograd.recompute import checkpoint
    from tensorgrad.backend.quantization import QuantizedArray, quantize
    from tensorgrad.counting import Cost, count
    from tensorgrad.decoder import decode_blocks
    from tensorgrad.inspect.levels import levels
    from tensorgrad.inspect.recording import explain, record
    from tensorgrad.inspect.roofline import roofline
    from tensorgrad.interchange import from_dlpack, load, save
    from tensorgrad.second_order import grad, gradients, higher_order, hvp, jvp, vjp
    from tensorgrad.shorthand import rand, randn

# What a first training step does without is imported when it is first used: name -> module.
_LAZY = {
    "decode_blocks": "tensorgrad.decoder", **dict.fromkeys(("explain", "record"), "tensorgrad.inspect.recording"),
    "levels": "tensorgrad.inspect.levels", "roofline": "tensorgrad.inspect.roofline",
    "NonFiniteError": "tensorgrad.anomaly", "detect_anomaly": "tensorgrad.anomaly",
    "checkpoint": "tensorgrad.autograd.recompute", "Cost": "tensorgrad.counting", "count": "tensorgrad.counting",
    **dict.fromkeys(("grad", "gradients", "higher_order", "hvp", "jvp", "vjp"), "tensorgrad.second_order"),
    **dict.fromkeys(("from_dlpack", "load", "save"), "tensorgrad.interchange"),
    **dict.fromkeys(("QuantizedArray", "quantize"), "tensorgrad.backend.quantization"),
    **dict.fromkeys(("rand", "randn"), "tensorgrad.shorthand"),
    **dict.fromkeys(ops.LATER, "tensorgrad.ops"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in ("amp", "distributed"):
        return importlib.import_module(f"tensorgrad.{name}")
    if name not in _LAZY:
        hints = importlib.import_module("tensorgrad.hints")
        raise AttributeError(hints.missing("tensorgrad", name, __dir__(), methods=dir(Tensor)))
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "amp", "distributed"])


del globals()["tensor"]  # the module: people who write tg.tensor(data) are told of asarray
