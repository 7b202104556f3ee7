"""What a plain model computes on its way: the weights of attention, and the residual stream after every addition.

An observer of the tape reads them while the model runs, so gpt/model.py and gpt/llama.py know nothing of it.
"""

from typing import Any

import numpy as np

import tensorgrad as tg
from gpt.llama import Llama
from gpt.weights import Model
from tensorgrad import Tensor, nn
from tensorgrad.autograd import Observer
from tensorgrad.backend import Array


class Capture(Observer):
    """In a `with`, it keeps what the blocks of a plain model compute.

    attention: (B, H, T, S) of every layer. stream: what enters the first block, and the sum after each attention and
    each MLP: 2 n_layer + 1 tensors (B, T, C). updates: what these two added, 2 n_layer tensors (B, T, C).
    """

    def __init__(self, model: Model) -> None:
        self.attention: list[Tensor] = []
        self.stream: list[Tensor] = []
        self.updates: list[Tensor] = []
        self._blocks = {id(block) for block in model.h}
        self._attentions = {id(block.attn) for block in model.h}
        self._modules: list[int] = []  # the innermost last

    def enter_module(self, module: Any) -> None:
        self._modules.append(id(module))

    def leave_module(self, module: Any) -> None:
        self._modules.pop()

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, op: Any, options: dict[str, Any]) -> None:
        module = self._modules[-1] if self._modules else None
        if name == "softmax" and module in self._attentions:
            self.attention.append(output)
        elif name == "add" and module in self._blocks:  # the residual stream and a result
            if not self.stream:
                self.stream.append(operands[0])
            self.updates.append(operands[1])
            self.stream.append(output)


def capture(model: Model, tokens: Array) -> Capture:
    """Run a model on tokens (B, T), without gradients, and return what it computed.

    Raises ValueError for a model with fused ops, which have no such intermediate results.
    """
    captured = Capture(model)
    with tg.no_grad(), captured:
        model.hidden_states(tokens)
    n_layer = len(model.h)
    if (len(captured.attention), len(captured.updates)) != (n_layer, 2 * n_layer):
        raise ValueError("capture: a model with fused ops hides its attention: build it with plain=True")
    return captured


def final_norm(model: Model) -> nn.Module:
    """Return the norm between the last block and the output layer."""
    return model.norm_f if isinstance(model, Llama) else model.ln_f


def head_weight(model: Model) -> Tensor:
    """Return the weight (V, C) of the output layer."""
    return model.head_weight if isinstance(model, Llama) else model.wte.weight


def lens(model: Model, x: Tensor) -> Array:
    """Return the logits (..., V) that the residual stream x (..., C) would give if no further block followed.

    nostalgebraist 2020, "interpreting GPT: the logit lens". After the last block these are the model's logits.
    """
    with tg.no_grad():
        return tg.linear(final_norm(model)(x), head_weight(model)).numpy()


def softmax(logits: Array) -> Array:
    """Return the probabilities of logits (..., V), computed in float64."""
    y = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return y / y.sum(axis=-1, keepdims=True)
