"""Layer normalisation and its simpler sister."""

from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import shape_of

Result = tuple[Array, Any]


@op
def layer_norm(
    k: Backend, x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
) -> Result:
    """Every row with mean 0 and variance 1, times weight, plus bias (Ba, Kiros, Hinton 2016, arXiv:1607.06450).

    x (..., n), weight and bias (n) or None -> (..., n). Saves x and each row's mean and 1/std.
    """
    _check("layer_norm", x, weight, bias)
    y, mean, rstd = k.layer_norm(x, weight, bias, eps)
    return y, (
        lambda dy: k.layer_norm_backward_x(dy, x, weight, mean, rstd),
        lambda dy: k.layer_norm_backward_weight(dy, x, mean, rstd),
        k.linear_backward_bias,
    )


@op
def rms_norm(k: Backend, x: Array, weight: Array | None = None, *, eps: float = 1e-6) -> Result:
    """Every row with mean square 1, times weight (Zhang and Sennrich 2019, arXiv:1910.07467).

    x (..., n), weight (n) or None -> (..., n). Saves x and each row's 1/rms.
    """
    _check("rms_norm", x, weight)
    y, rrms = k.rms_norm(x, weight, eps)
    return y, (
        lambda dy: k.rms_norm_backward_x(dy, x, weight, rrms),
        lambda dy: k.rms_norm_backward_weight(dy, x, rrms),
    )


def _check(name: str, x: Array, *scales: Array | None) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: x {x.shape} has no elements to normalise in its last dimension")
    for scale in scales:
        if scale is not None and shape_of(scale) != x.shape[-1:]:
            raise ValueError(f"{name}: {shape_of(scale)} does not fit x {x.shape}: {x.shape[-1:]} is needed")
