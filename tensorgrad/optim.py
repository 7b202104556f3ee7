"""Optimisers, gradient clipping and the learning-rate schedule."""

import importlib
import math
from collections.abc import Iterable
from typing import Any

from tensorgrad.autograd import Leaf, note_write
from tensorgrad.backend import Array, backend_of
from tensorgrad.backend.arrays import is_half
from tensorgrad.tensor import Tensor

LATER = {"Adam": "tensorgrad.adam", "lr_scheduler": "tensorgrad.lr_scheduler"}  # imported when they are first used


def __getattr__(name: str) -> Any:
    if name in LATER:
        module = importlib.import_module(LATER[name])
        return getattr(module, name, module)
    hints = importlib.import_module("tensorgrad.hints")
    raise AttributeError(hints.missing("tensorgrad.optim", name, [*globals(), *LATER]))


Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class Optimizer:
    """Base class: groups of parameters, each with its own options, and the state of every parameter.

    params: tensors, or dicts {"params": tensors, option: value ...}. Raises ValueError if there are none, for one that
    is given twice or never required a gradient, and for an option out of range; TypeError for an unknown option.
    """

    moments: tuple[str, ...] = ()  # names of the arrays in the state of every parameter

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor | dict):
            raise TypeError(f"{type(self).__name__}: a {type(params).__name__} is not a list of parameters or groups")
        given: list[Any] = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        self._calls: Any = 0  # calls of `step`: an int, or an array after `capturable`
        self._skipped: Any = 0  # those that were skipped: an array on a GPU where the host does not know
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
        if not all(isinstance(p, Tensor) and (p.requires_grad or p.role == "parameter") for p in self.params):
            raise ValueError(f"{type(self).__name__}: a parameter does not require a gradient, and never did")
        if not all(p.node is None or isinstance(p.node, Leaf) for p in self.params):
            raise ValueError(f"{type(self).__name__}: a parameter is the result of an op, which collects no gradient")
        self.state = [{name: _moment_like(p) for name in self.moments} for p in self.params]

    @property
    def step_count(self) -> int:
        """The number of steps that were not skipped. On a GPU, reading it may wait for the last step."""
        return int(self._calls) - int(self._skipped)

    def step(self, skip: bool | Array = False, grad_scale: float | Array = 1.0) -> None:
        """Update every parameter that has a gradient, in place, unless `skip`.

        The gradients are multiplied by grad_scale first. Both may be scalar arrays on a GPU.
        """
        skip = backend_of("optimizer", [self.params[0].data]).decide(skip)
        self._calls += 1  # in place if they are arrays
        self._skipped += skip
        states = iter(self.state)
        for group in self.param_groups:
            members = [(p, p.grad, next(states)) for p in group["params"]]
            self.update_group([member for member in members if member[1] is not None], group, skip, grad_scale)

    def update_group(
        self, members: list[Any], group: dict[str, Any], skip: bool | Array, grad_scale: float | Array
    ) -> None:
        """Update the parameters of a group. members: (parameter, gradient, state) of each."""
        if skip:
            return
        for p, grad, state in members:
            self.update(p, scaled(grad, grad_scale), state, group)
            note_write(p.data)

    def update(self, p: Tensor, grad: Array, state: dict[str, Array], group: dict[str, Any]) -> None:
        """Update one parameter. Subclasses override it, or `update_group`."""
        raise TypeError(f"{type(self).__name__} defines no update")

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group. Raises ValueError if it is below 0 or not finite."""
        _check_options(type(self).__name__, {"lr": lr})
        for group in self.param_groups:
            if hasattr(group["lr"], "fill"):
                group["lr"].fill(lr)
            else:
                group["lr"] = lr

    def capturable(self) -> None:
        """Keep the step count and learning rates in arrays, so that a step can be recorded as a CUDA graph."""
        xp = backend_of("optimizer", [self.params[0].data]).xp
        self._calls, self._skipped = (xp.asarray(n, "int64").reshape(()) for n in (self._calls, self._skipped))
        for group in self.param_groups:
            group["lr"] = xp.asarray(group["lr"], "float64").reshape(())

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """{"step": int, "param_groups": [options], "state": {"<moment>.<index of the parameter>": array}}."""
        options = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        for group in options:
            group["lr"] = float(group["lr"])
        arrays = {f"{name}.{i}": array for i, state in enumerate(self.state) for name, array in state.items()}
        return {"step": self.step_count, "param_groups": options, "state": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`. Raises ValueError, before it changes anything, if it does not fit."""
        kind, own = type(self).__name__, self.state_dict()
        arrays, step = state["state"], int(state["step"])
        groups = [
            {key: tuple(v) if isinstance(v, list) else v for key, v in group.items()} for group in state["param_groups"]
        ]
        if len(groups) != len(own["param_groups"]):
            raise ValueError(f"{kind}: {len(groups)} groups, {len(own['param_groups'])} are needed")
        for group, options in zip(groups, own["param_groups"], strict=True):
            if group.keys() != options.keys():
                raise ValueError(f"{kind}: option {_mismatch(group, options)} of a group is missing or unexpected")
            _check_options(kind, group)
        if arrays.keys() != own["state"].keys():
            raise ValueError(f"{kind}: {_mismatch(arrays, own['state'])} is missing or unexpected")
        for name, array in own["state"].items():
            if tuple(arrays[name].shape) != array.shape:
                raise ValueError(f"{kind}: {name} {arrays[name].shape}, {array.shape} is needed")
        moments = [(array, backend_of("load_state_dict", [array]).asarray(arrays[name], array.dtype))
                   for name, array in own["state"].items()]  # fmt: skip
        self._calls, self._skipped = step, 0
        for group, options in zip(self.param_groups, groups, strict=True):
            group.update(options)
        for array, value in moments:
            array[...] = value


def _mismatch(given: dict[str, Any], needed: dict[str, Any]) -> str:
    """The first key that is in only one of them."""
    return sorted(given.keys() ^ needed.keys())[0]


def _moment_like(p: Tensor) -> Array:
    k = backend_of("optimizer", [p.data])
    return k.xp.zeros(p.shape, k.wide(p.data[:0] if p.ndim else p.data).dtype)


def _check_options(name: str, options: dict[str, Any]) -> None:
    for key in ("lr", "eps", "weight_decay", "momentum"):
        if not 0 <= options.get(key, 0) < math.inf:
            raise ValueError(f"{name}: {key} {options[key]} is not a finite number from 0 up")
    if not all(0 <= beta < 1 for beta in options.get("betas", ())):
        raise ValueError(f"{name}: betas {options['betas']} are not in [0, 1)")
    if options.get("nesterov") and options["momentum"] == 0:
        raise ValueError(f"{name}: nesterov needs a momentum above 0")


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    lr, betas, eps, weight_decay: those of PyTorch's AdamW, with equal results. Moments are at least float32. One step
    count corrects the bias of all moments; PyTorch counts the steps of each parameter, so that results differ for one
    that gets its first gradient later.
    master_weights: keep a float32 copy of every parameter in half precision, update it, and round it into the
    parameter; its gradients are then added up in float32 (Micikevicius et al. 2018, arXiv:1710.03740). Without it,
    updates smaller than the spacing of half-precision numbers are lost.
    """

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, params: Parameters, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01, *, master_weights: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for p, state in zip(self.params, self.state, strict=True):
            if master_weights and is_half(p.dtype) and p.requires_grad:
                state["master_weight"] = p.data.astype("float32")
                p.grad_dtype = "float32"

    def update_group(
        self, members: list[Any], group: dict[str, Any], skip: bool | Array, grad_scale: float | Array
    ) -> None:
        """Update all parameters in one call of `Backend.adamw_group`."""
        if not members:
            return
        params, grads, states = zip(*members, strict=True)
        arrays = [p.data for p in params]
        first, second, masters = ([state.get(name) for state in states] for name in (*self.moments, "master_weight"))
        backend_of("AdamW", [*arrays, *grads]).adamw_group(
            arrays, list(grads), first, second, masters, skip=skip, lr=group["lr"], beta1=group["betas"][0],
            beta2=group["betas"][1], eps=group["eps"], weight_decay=group["weight_decay"],
            step=self._calls - self._skipped, grad_scale=grad_scale,
        )  # fmt: skip
        for array in arrays:
            note_write(array)


class SGD(Optimizer):
    """PyTorch's SGD: g += weight_decay p; v = momentum v + g; p -= lr v, or with nesterov p -= lr (g + momentum v)."""

    moments = ("momentum_buffer",)

    def __init__(
        self, params: Parameters, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def update(self, p: Tensor, grad: Array, state: dict[str, Array], group: dict[str, Any]) -> None:
        k = backend_of("SGD", [p.data, grad])
        grad = k.wide(grad)
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * k.wide(p.data)
        velocity = state["momentum_buffer"]
        velocity *= group["momentum"]
        velocity += grad
        direction = grad + group["momentum"] * velocity if group["nesterov"] else velocity
        p.data[...] = k.wide(p.data) - group["lr"] * direction


def scaled(grad: Array, factor: float | Array) -> Array:
    """A gradient times a number, at least float32; as it is if the number is 1."""
    return grad if type(factor) is float and factor == 1 else backend_of("optimizer", [grad]).wide(grad) * factor


def clip_grad_norm(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Any:
    """Scale all gradients by one factor so that the Euclidean norm of all their elements is at most max_norm.

    parameters: tensors, or one. max_norm: above 0; math.inf only computes the norm. Returns the norm before clipping,
    0.0 if there are no gradients: a float, or on a GPU a scalar array, for which the host has not waited. If the norm
    is not finite, the gradients stay as they are. Raises ValueError where there are no parameters.
    """
    grads = _gradients("clip_grad_norm", parameters, max_norm)
    return backend_of("clip_grad_norm", grads).clip_norm(grads, max_norm) if grads else 0.0


def norm_and_factor(parameters: Tensor | Iterable[Tensor], max_norm: float) -> tuple[Any, Any]:
    """The norm that `clip_grad_norm` returns, and the factor by which it multiplies the gradients, 1.0 if by none.

    The gradients stay as they are: `optimizer.step(grad_scale=factor)` reads them once, and multiplies them on the way.
    """
    grads = _gradients("norm_and_factor", parameters, max_norm)
    return backend_of("norm_and_factor", grads).norm_and_factor(grads, max_norm) if grads else (0.0, 1.0)


def _gradients(name: str, parameters: Tensor | Iterable[Tensor], max_norm: float) -> list[Array]:
    if not max_norm > 0:
        raise ValueError(f"{name}: max_norm {max_norm} is not above 0")
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not parameters:
        raise ValueError(f"{name}: no parameters; a generator gives them only once: use a list")
    return [p.grad for p in parameters if p.grad is not None]


def warmup_cosine(step: int, *, lr: float, min_lr: float, warmup_iters: int, lr_decay_iters: int) -> float:
    """Linear warm-up, half a cosine from lr down to min_lr, then min_lr (Loshchilov, Hutter 2017, arXiv:1608.03983)."""
    if step < warmup_iters:
        return lr * (step + 1) / (warmup_iters + 1)
    if step >= lr_decay_iters:
        return min_lr
    progress = (step - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (lr - min_lr)
