"""Optimisers, the clipping of gradients, and the learning-rate schedule."""

import math
from collections.abc import Iterable
from typing import Any

from tensorgrad.autograd import Leaf, note_write
from tensorgrad.backend import Array, backend_of
from tensorgrad.tensor import Tensor

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class Optimizer:
    """Parameters in groups, each group with options of its own, and what is remembered of every parameter.

    params: tensors, or dicts {"params": tensors, option: value ...}. Raises ValueError for none, for one that is given
    twice or cannot have a gradient, and for an option out of its range; TypeError for an option that does not exist.
    """

    moments: tuple[str, ...] = ()  # names of the arrays remembered for every parameter

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor | dict):
            raise TypeError(f"{type(self).__name__}: a {type(params).__name__} is no list of parameters or groups")
        given: list[Any] = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        self.step_count = 0
        self.param_groups: list[dict[str, Any]] = []
        for group in groups:
            unknown = group.keys() - defaults.keys() - {"params"}
            if unknown:
                raise TypeError(f"{type(self).__name__}: unknown option {sorted(unknown)[0]!r} of a group")
            members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            options = {**defaults, **group, "params": members}
            _check_options(type(self).__name__, options)
            self.param_groups.append(options)
        self.params = [p for group in self.param_groups for p in group["params"]]
        if not self.params:
            raise ValueError(f"{type(self).__name__}: no parameters")
        if len({id(p) for p in self.params}) != len(self.params):
            raise ValueError(f"{type(self).__name__}: a parameter is given twice")
        if not all(isinstance(p, Tensor) and p.requires_grad for p in self.params):
            raise ValueError(f"{type(self).__name__}: a parameter does not require a gradient")
        if not all(isinstance(p.node, Leaf) for p in self.params):
            raise ValueError(f"{type(self).__name__}: a parameter is the result of an op, which collects no gradient")
        self.state = [{name: _moment_like(p) for name in self.moments} for p in self.params]

    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        self.step_count += 1
        states = iter(self.state)
        for group in self.param_groups:
            for p in group["params"]:
                state = next(states)
                if p.grad is not None:
                    self.update(p, p.grad, state, group)
                    note_write(p.data)

    def update(self, p: Tensor, grad: Array, state: dict[str, Array], group: dict[str, Any]) -> None:
        """One step of one parameter; every optimiser has its own."""
        raise TypeError(f"{type(self).__name__} defines no update")

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """{"step": int, "param_groups": [options], "state": {"moment.index of the parameter": array}}."""
        options = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        arrays = {f"{name}.{i}": state[name] for i, state in enumerate(self.state) for name in self.moments}
        return {"step": self.step_count, "param_groups": options, "state": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`. Raises ValueError, before anything is changed, where it does not fit."""
        kind, own = type(self).__name__, self.state_dict()
        arrays, step = state["state"], int(state["step"])
        groups = [
            {key: tuple(v) if isinstance(v, list) else v for key, v in group.items()} for group in state["param_groups"]
        ]
        if len(groups) != len(own["param_groups"]):
            raise ValueError(f"{kind}: {len(groups)} groups, {len(own['param_groups'])} are needed")
        for group, options in zip(groups, own["param_groups"], strict=True):
            if group.keys() != options.keys():
                raise ValueError(f"{kind}: option {_odd(group, options)} of a group is missing or unexpected")
            _check_options(kind, group)
        if arrays.keys() != own["state"].keys():
            raise ValueError(f"{kind}: {_odd(arrays, own['state'])} is missing or unexpected")
        for name, array in own["state"].items():
            if tuple(arrays[name].shape) != array.shape:
                raise ValueError(f"{kind}: {name} {arrays[name].shape}, {array.shape} is needed")
        self.step_count = step
        for group, options in zip(self.param_groups, groups, strict=True):
            group.update(options)
        for name, array in own["state"].items():
            array[...] = backend_of("load_state_dict", [array]).asarray(arrays[name])


def _odd(given: dict[str, Any], needed: dict[str, Any]) -> str:
    return sorted(given.keys() ^ needed.keys())[0]


def _moment_like(p: Tensor) -> Array:
    k = backend_of("optimizer", [p.data])
    return k.xp.zeros(p.shape, k.wide(p.data[:0] if p.ndim else p.data).dtype)


def _check_options(name: str, options: dict[str, Any]) -> None:
    for key in ("lr", "eps", "weight_decay", "momentum"):
        if options.get(key, 0) < 0:
            raise ValueError(f"{name}: {key} {options[key]} is below 0")
    for beta in options.get("betas", ()):
        if not 0 <= beta < 1:
            raise ValueError(f"{name}: betas {options['betas']} are not in [0, 1)")


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    lr, betas, eps, weight_decay: as PyTorch's AdamW, and so is the result. Moments are at least float32. One step count
    corrects all biases: a parameter whose first gradient comes late starts with smaller steps than PyTorch's.
    """

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, params: Parameters, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, p: Tensor, grad: Array, state: dict[str, Array], group: dict[str, Any]) -> None:
        """See `Backend.adamw`."""
        backend_of("AdamW", [p.data, grad]).adamw(
            p.data, grad, state["exp_avg"], state["exp_avg_sq"], lr=group["lr"], beta1=group["betas"][0],
            beta2=group["betas"][1], eps=group["eps"], weight_decay=group["weight_decay"], step=self.step_count,
        )  # fmt: skip


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: v = momentum v + g; p -= lr v, or lr (g + momentum v) with nesterov.

    weight_decay adds weight_decay p to g, as PyTorch's SGD does.
    """

    moments = ("momentum_buffer",)

    def __init__(
        self, params: Parameters, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:  # fmt: skip
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, options)

    def update(self, p: Tensor, grad: Array, state: dict[str, Array], group: dict[str, Any]) -> None:
        """The formula above."""
        k = backend_of("SGD", [p.data, grad])
        grad = k.wide(grad)
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * k.wide(p.data)
        velocity = state["momentum_buffer"]
        velocity *= group["momentum"]
        velocity += grad
        direction = grad + group["momentum"] * velocity if group["nesterov"] else velocity
        p.data[...] = k.wide(p.data) - group["lr"] * direction


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients down together so that their common Euclidean norm is at most max_norm.

    Returns the norm before clipping, 0.0 without gradients. A norm that is not finite scales nothing: see what made it.
    """
    if max_norm <= 0:
        raise ValueError(f"clip_grad_norm: max_norm {max_norm} is not above 0")
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return 0.0
    norm = backend_of("clip_grad_norm", grads).global_norm(grads)
    if math.isfinite(norm) and norm > max_norm:
        scale = max_norm / (norm + 1e-6)  # PyTorch's guard, kept so that results agree
        for i in range(len(grads)):
            grads[i] *= scale
    return norm


def warmup_cosine(step: int, *, lr: float, min_lr: float, warmup_iters: int, lr_decay_iters: int) -> float:
    """The learning rate of a step: a linear rise over warmup_iters, half a cosine down to min_lr, then min_lr.

    Loshchilov and Hutter 2017, arXiv:1608.03983, as nanoGPT uses it.
    """
    if step < warmup_iters:
        return lr * (step + 1) / (warmup_iters + 1)
    if step >= lr_decay_iters:
        return min_lr
    progress = (step - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (lr - min_lr)
