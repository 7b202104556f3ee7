"""Results that are recomputed in backward and not saved: those of layer norms before a linear layer or an MLP."""

import weakref
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor, autograd
from tensorgrad.autograd import context

N = 8  # rows and columns


@pytest.fixture(autouse=True)
def every_result_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tg.get_backend(), "min_recompute_bytes", 0)


def normal(*shape: int) -> Tensor:
    rng = np.random.default_rng(sum(shape))
    return Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)


def operands() -> dict[str, Tensor]:
    return {"x": normal(N, N), "residual": normal(N, N), "scale": normal(N), "shift": normal(N), "w": normal(3, N),
            "w1": normal(5, N), "b1": normal(5), "w2": normal(N, 5)}  # fmt: skip


def normalised(t: dict[str, Tensor]) -> Any:
    return tg.layer_norm(t["x"] * 2, t["scale"], t["shift"])


def added(t: dict[str, Tensor]) -> Any:
    return tg.add_layer_norm(t["x"] * 2, t["residual"], t["scale"], t["shift"])[1]


def through_linear(rows: Any, t: dict[str, Tensor]) -> Any:
    return tg.linear(rows, t["w"])


def through_mlp(rows: Any, t: dict[str, Tensor]) -> Any:
    return tg.mlp(rows, t["w1"], t["b1"], t["w2"], approximate="tanh")


def gradients(t: dict[str, Tensor]) -> dict[str, bytes | None]:
    return {name: None if x.grad is None else x.grad.tobytes() for name, x in t.items()}


MAKERS, USERS = [normalised, added], [through_linear, through_mlp]


@pytest.mark.parametrize("use", USERS)
@pytest.mark.parametrize("make", MAKERS)
def test_a_recomputable_result_is_freed_and_gradients_are_the_same(
    make: Any, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, found = [], []
    for smallest in (0, 2**40):
        monkeypatch.setattr(tg.get_backend(), "min_recompute_bytes", smallest)
        t = operands()
        rows = make(t)
        array = weakref.ref(rows.data)
        y = use(rows, t)
        del rows
        alive.append(array() is not None)
        (y * y).sum().backward()
        found.append(gradients(t))
    assert alive == [False, True]
    assert found[0] == found[1]


def test_small_results_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert tg.get_backend().min_recompute_bytes > N * N * 4
    assert not isinstance(normalised(operands()).node.backward, context.Recomputable)


@pytest.mark.parametrize("make", MAKERS)
def test_two_users_and_two_backwards(make: Any) -> None:
    t = operands()
    rows = make(t)
    loss = (through_linear(rows, t).sum() + through_mlp(rows, t).sum()) * rows.sum()
    loss.backward(retain_graph=True)
    once = {name: None if x.grad is None else x.grad.copy() for name, x in t.items()}
    assert isinstance(rows.node.backward, context.Recomputable)
    loss.backward()
    for name, x in t.items():
        assert x.grad is None or np.array_equal(x.grad, 2 * once[name])
    assert rows.node.backward is None  # and with it what the rows are recomputed from


@pytest.mark.parametrize("use", USERS)
@pytest.mark.parametrize("name", ["scale", "shift"])
def test_what_it_is_recomputed_from_must_not_be_overwritten(use: Any, name: str) -> None:
    t = operands()
    loss = use(normalised(t), t).sum()
    with tg.no_grad():
        t[name].data[...] = 0
        autograd.note_write(t[name].data)
    with pytest.raises(RuntimeError, match=r"^(linear|mlp): an array of shape \(8,\) that it saved .* was overwritten"):
        loss.backward()


@pytest.mark.parametrize("use", USERS)
def test_inside_a_checkpoint(use: Any) -> None:
    found = []
    for wrapped in (False, True):
        t = operands()

        def part(x: Tensor, t: dict[str, Tensor] = t) -> Any:
            return use(tg.layer_norm(x, t["scale"], t["shift"]), t)

        y = tg.checkpoint(part, t["x"] * 2) if wrapped else part(t["x"] * 2)
        (y * y).sum().backward()
        found.append(gradients(t))
    assert found[0] == found[1]


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_the_hidden_layer_of_an_mlp_is_reused_in_backward_and_recomputed_by_a_second_one(approximate: str) -> None:
    t = operands() | {"x": normal(N - 1, N)}
    y = tg.mlp(t["x"], t["w1"], t["b1"], t["w2"], approximate=approximate)
    middle = (N - 1, len(t["w1"].data))
    assert middle in {x.shape for x in autograd.saved_arrays(y.node.backward)}
    y.sum().backward(retain_graph=True)
    assert middle not in {x.shape for x in autograd.saved_arrays(y.node.backward)}
    once = {name: x.grad.copy() for name, x in t.items() if x.grad is not None}
    y.sum().backward()
    assert len(once) == 4
    assert all(np.array_equal(t[name].grad, 2 * gradient) for name, gradient in once.items())


def test_nothing_is_recomputed_where_nothing_is_recorded() -> None:
    t = operands()
    frozen = {name: Tensor(x.data) for name, x in t.items()}
    assert normalised(frozen).node is None
    assert through_linear(normalised(frozen), t).requires_grad  # the weight's gradient wants the rows: they are kept
    with tg.no_grad():
        assert normalised(t).node is None


def test_ctx_is_no_argument() -> None:
    with pytest.raises(TypeError, match="linear: got an unexpected keyword argument 'ctx'"):
        tg.linear(normal(N, N), normal(3, N), ctx=None)
