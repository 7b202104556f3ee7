"""LoRA: beside each frozen matrix, the product of two thin ones is trained (Hu et al. 2021, arXiv:2106.09685)."""

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpt.train.config import TrainConfig
from gpt.weights import Model
from tensorgrad import QuantizedArray, Tensor, nn
from tensorgrad.backend import Array, backend_of

# The linear layers in the blocks of a model, which can be given adapters; by default all of them are.
TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


class LoRALinear(nn.Linear):
    """y = x W^T + b + (alpha / rank) dropout(x) A^T B^T, where only A (rank, n_in) and B (n_out, rank) are trained.

    A linear layer becomes one in place, by `adapt`: its weight and bias keep their names, and the weight may be
    quantised. Names and initial values are PEFT's: A is uniform in [-1, 1] / sqrt(n_in), and B is 0, so that y is at
    first what it was.
    """

    lora_A: nn.Linear
    lora_B: nn.Linear
    lora_dropout: nn.Dropout
    scale: float  # alpha / rank

    @staticmethod
    def adapt(linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        """Freeze a linear layer, and give it an adapter."""
        n_out, n_in = linear.weight.shape
        for p in linear.parameters():
            p.requires_grad = False
        linear.__class__ = LoRALinear
        linear.lora_A = nn.Linear(n_in, rank, bias=False)
        linear.lora_B = nn.Linear(rank, n_out, bias=False, std=0.0)
        linear.lora_dropout = nn.Dropout(dropout)
        linear.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n_in) -> (..., n_out)."""
        update = self.lora_B(self.lora_A(self.lora_dropout(x)))  # (..., n_out), through (..., rank)
        return super().forward(x) + self.scale * update

    def merge(self) -> None:
        """Add the update to the weight, in a new array, so that the layer is as fast as one without an adapter."""
        self.base: Array = self.weight.data
        self.weight.data = merged(self.base, self.lora_A.weight.data, self.lora_B.weight.data, self.scale)
        self.__class__ = MergedLinear


class MergedLinear(LoRALinear):
    """A layer whose weight contains the update of its adapter."""

    forward = nn.Linear.forward

    def unmerge(self) -> None:
        """Give the layer its weight and its adapter back, bit for bit."""
        self.weight.data = self.base
        self.__class__ = LoRALinear  # type: ignore[assignment]  # of which this is a subclass
        del self.base


def merged(weight: Any, A: Array, B: Array, scale: float) -> Array:
    """Return W + scale B A; of a quantised W in float32."""
    weight = weight.dequantize() if isinstance(weight, QuantizedArray) else weight
    return weight + scale * (B @ A)


@dataclass(frozen=True)
class LoRA:
    """What adapters a model gets."""

    rank: int
    alpha: float  # updates are multiplied by alpha / rank
    dropout: float = 0.0  # of what enters an adapter
    targets: tuple[str, ...] = ()  # names of linear layers; none: all those of TARGETS

    @classmethod
    def of(cls, config: TrainConfig) -> "LoRA | None":
        """Return what a run trains; None where it has no adapters. Raises ValueError for settings that do not fit."""
        rank, alpha, known = config.lora_rank, config.lora_alpha, TARGETS[config.model]
        if not rank:
            for name in ("lora_alpha", "lora_dropout", "lora_targets", "quantize"):
                if (value := getattr(config, name)) not in (None, 0.0, "none"):
                    raise ValueError(f"{name} {value} is for LoRA: give lora_rank as well")
            return None
        if config.freeze is not None:
            raise ValueError(f"freeze {config.freeze!r}: lora_rank {rank} freezes all weights: leave it out")
        if config.init_from is None:
            raise ValueError(f"lora_rank {rank} needs trained weights, which stay as they are: give init_from")
        if rank > config.n_embd:
            raise ValueError(f"lora_rank {rank} is above n_embd {config.n_embd}, the largest that a layer can have")
        if alpha is not None and not 0 < alpha < math.inf:
            raise ValueError(f"lora_alpha must be above 0, not {alpha}")
        if not 0 <= config.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be at least 0 and below 1, not {config.lora_dropout}")
        if config.quantize != "none" and config.half:
            raise ValueError(f"quantize {config.quantize} needs dtype float32 or tf32, not {config.dtype}")
        targets = tuple(config.lora_targets.split(",")) if config.lora_targets else ()
        for name in targets:
            if name not in known:
                layers = f"{config.model}, which has {', '.join(known)}"
                raise ValueError(f"lora_targets: {name!r} is no linear layer of a block of {layers}")
        return cls(rank, 2.0 * rank if alpha is None else alpha, config.lora_dropout, targets)


def add_lora(model: Model, lora: LoRA, only: Container[str] | None = None) -> None:
    """Freeze a model, and give its linear layers adapters; only: those of these paths, such as h.0.attn.q_proj."""
    targets = lora.targets or TARGETS[model.config.type_name]
    for p in model.parameters():
        p.requires_grad = False
    for path, linear in linear_layers(model):
        if path in only if only is not None else path.rpartition(".")[2] in targets:
            LoRALinear.adapt(linear, lora.rank, lora.alpha, lora.dropout)
    model.train(model.training)  # the new dropouts, too


def linear_layers(model: Model) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the path of every linear layer that can have an adapter, and the layer."""
    for path, module in list(nn.walk("", model)):
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in TARGETS[model.config.type_name]:
            yield path, module


def adapter_parameters(model: Model) -> dict[str, Tensor]:
    """Return A and B of every adapter, by their names in the model: h.0.attn.q_proj.lora_A.weight."""
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[0].endswith(("lora_A", "lora_B"))}


def load_adapters(model: Model, weights: Mapping[str, Any]) -> None:
    """Copy arrays into A and B of every adapter; ValueError where names or shapes differ."""
    own = adapter_parameters(model)
    if different := sorted(own.keys() ^ weights.keys()):
        raise ValueError(f"{different[0]} is {'missing' if different[0] in own else 'unexpected'}")
    for name, p in own.items():
        if p.shape != weights[name].shape:
            raise ValueError(f"{name} has shape {weights[name].shape}, {p.shape} is needed")
        p.data[...] = backend_of("load_adapters", [p.data]).asarray(weights[name])


def merge(model: Model) -> None:
    """Add the update of every adapter to its weight: see LoRALinear.merge."""
    for _, layer in linear_layers(model):
        if type(layer) is LoRALinear:
            layer.merge()


def unmerge(model: Model) -> None:
    """Take every update away again: the weights are those before `merge`, bit for bit."""
    for _, layer in linear_layers(model):
        if isinstance(layer, MergedLinear):
            layer.unmerge()
