"""The kernels that a training step calls, so that they can be compiled while its data is prepared."""

from typing import Any

import tensorgrad as tg
from gpt.train.config import TrainConfig
from tensorgrad.distributed import world


def kernels(config: TrainConfig) -> list[str]:
    """Return the names of the kernels of a fused model: those first that take long to compile, as a step needs all."""
    names = ["attention", "attention_backward", "linear"]
    if config.model == "llama":
        names += ["rms_norm", "rms_norm_backward", "rotary_embedding", "swiglu", "swiglu_backward"]
    else:
        names += ["layer_norm", "add_layer_norm", "layer_norm_backward"]
        names += ["gelu_tanh", "gelu_tanh_recompute"] if config.gelu == "tanh" else ["gelu", "gelu_backward"]
        names += ["linear_backward_bias"] if config.bias else []
    if config.dropout:
        names += ["dropout"]
    return [*names, "cross_entropy", "cross_entropy_backward", "add", "add_embedding_backward", "global_norm", "adamw"]


def compile_ahead(config: TrainConfig) -> Any:
    """Start to compile the kernels of a run on this backend, from one process of a group; see Backend.compile_ahead."""
    if world().rank or config.half or config.plain:
        return None
    return tg.get_backend().compile_ahead(kernels(config))
