"""tensorgrad: reverse-mode automatic differentiation on NumPy and CuPy, from the tensor to the kernel."""

from tensorgrad import amp, distributed, nn, ops, optim, random
from tensorgrad.anomaly import NonFiniteError, detect_anomaly
from tensorgrad.autograd import enable_grad, is_grad_enabled, no_grad
from tensorgrad.autograd.recompute import checkpoint
from tensorgrad.backend import (
    BackendUnavailable,
    get_backend,
    set_float32_matmul_precision,
    set_num_threads,
    use_backend,
)
from tensorgrad.count import Cost, count
from tensorgrad.creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    linspace,
    normal,
    ones,
    ones_like,
    uniform,
    zeros,
    zeros_like,
)
from tensorgrad.gradcheck import gradcheck
from tensorgrad.ops import *  # noqa: F403
from tensorgrad.random import Generator, manual_seed
from tensorgrad.tensor import Tensor
