"""Modules: finding, naming, saving and loading parameters; layers against PyTorch's; training and evaluation."""

import copy
import math
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor, nn

pytestmark = pytest.mark.usefixtures("numpy_backend")


class Block(nn.Module):
    def __init__(self) -> None:
        self.attn = nn.Linear(2, 2, bias=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Any) -> Any:
        return self.drop(self.attn(x))


class Model(nn.Module):
    """Parameters in every kind of attribute, and a buffer."""

    def __init__(self) -> None:
        self.wte = nn.Embedding(3, 2)
        self.h = [Block(), Block()]
        self.heads = {"loss": nn.Linear(2, 3), "more": {"deep": (nn.LayerNorm(2, bias=False),)}}
        self.scale = Tensor(np.ones(1, np.float32), requires_grad=True)
        self.table = Tensor(np.arange(3))  # a buffer
        self.name, self.size, self.nothing = "model", 3, None
        self.head = self.heads["loss"]  # a second path to the same module
        self.tied = self.wte.weight


NAMES = ["wte.weight", "h.0.attn.weight", "h.1.attn.weight", "heads.loss.weight", "heads.loss.bias",
         "heads.more.deep.0.weight", "scale", "table"]  # fmt: skip


def test_names_are_paths_and_shared_parameters_come_once() -> None:
    model = Model()
    named = dict(model.named_parameters())
    assert list(named) == NAMES[:-1]
    assert [name for name, _ in model.named_buffers()] == NAMES[-1:]
    assert named["h.1.attn.weight"] is model.h[1].attn.weight
    assert named["wte.weight"] is model.tied
    assert all(a is b for a, b in zip(model.parameters(), named.values(), strict=True))
    assert model.num_params() == 3 * 2 + 2 * 4 + 3 * 2 + 3 + 2 + 1


def test_parameters_added_later_are_found() -> None:
    model = Model()
    model.h.append(Block())
    model.extra = nn.RMSNorm(4)
    assert list(model.state_dict()) == [*NAMES[:3], "h.2.attn.weight", *NAMES[3:], "extra.weight"]


def test_modules() -> None:
    model = Model()
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds[:4] == ["Model", "Embedding", "Block", "Linear"]
    assert kinds.count("Linear") == 4  # one of them under two names


def test_train_and_eval() -> None:
    model = Model()
    assert model.training
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())
    model.h[0].eval()
    assert [block.drop.training for block in model.h] == [False, True]
    assert Model().training  # other models are not affected


def test_a_module_without_forward() -> None:
    with pytest.raises(TypeError, match="Model defines no forward"):
        Model()(1)


# --- saving and loading ---------------------------------------------------------------------------


def test_the_state_of_one_model_is_loaded_into_another() -> None:
    a, b = Model(), Model()
    state = a.state_dict()
    assert list(state) == NAMES
    assert state["scale"] is a.scale.data
    b.load_state_dict(state)
    for name, p in b.named_parameters():
        np.testing.assert_array_equal(p.data, state[name])
        assert p.data is not state[name]
    b.scale.data[...] = 7
    assert a.scale.item() == 1


def test_loading_keeps_dtypes_and_takes_tensors() -> None:
    model = Model()
    arrays = model.state_dict()
    state = {name: Tensor(np.ones(array.shape)) for name, array in arrays.items()}
    model.load_state_dict(state)
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        assert p.data is arrays[name]  # written in place, so that optimisers keep updating it
        assert p.dtype == (np.int64 if name == "table" else np.float32)
        assert (p.data == 1).all()


def test_every_mismatch_is_named_and_nothing_is_changed() -> None:
    model = Model()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    state = {name: array + 1 for name, array in before.items()}
    del state["scale"], state["h.0.attn.weight"]
    state |= {"lm_head.weight": np.zeros(2), "wte.weight": np.zeros((2, 3))}
    message = (
        "Model: missing h.0.attn.weight; missing scale; unexpected lm_head.weight; "
        "wte.weight has shape (2, 3), (3, 2) is needed"
    )
    with pytest.raises(nn.StateDictError) as caught:
        model.load_state_dict(state)
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_shape_that_would_broadcast_raises() -> None:
    layer = nn.Linear(2, 3)
    for shape in ((1,), (), (1, 3)):
        with pytest.raises(nn.StateDictError, match="bias has shape"):
            layer.load_state_dict({"weight": layer.weight.data, "bias": np.zeros(shape)})


def test_astype() -> None:
    model = Model()
    model.wte.weight.sum().backward()
    assert model.astype(np.float64) is model
    assert {name: str(array.dtype) for name, array in model.state_dict().items()} == {
        name: "int64" if name == "table" else "float64" for name in NAMES
    }
    assert model.wte.weight.requires_grad
    assert model.wte.weight.grad is None
    assert not model.table.requires_grad
    frozen = nn.Linear(2, 2)
    frozen.bias.requires_grad = False
    assert [p.requires_grad for p in frozen.astype(np.float16).parameters()] == [True, False]


class Watched(nn.Module):
    """Keeps what it computes, in every kind of attribute."""

    def __init__(self) -> None:
        self.w = Tensor(np.ones(2, np.float32), requires_grad=True)
        self.running = tg.zeros(2)
        self.seen: list[Any] = []

    def forward(self, x: Any) -> Any:
        self.last = x * self.w
        self.seen.append(self.last)
        self.cache = {"detached": self.last.detach(), "input": x + 0}
        self.running = 0.9 * self.running + 0.1 * self.last.detach()
        return self.last


@pytest.mark.parametrize("recording", [True, False])
def test_a_result_in_an_attribute_is_no_parameter(recording: bool) -> None:
    model = Watched()
    with tg.enable_grad() if recording else tg.no_grad():
        model(Tensor(np.ones(2, np.float32)))
        model(Tensor(np.ones(2, np.float32)))
    assert [name for name, _ in model.named_parameters()] == ["w"]
    assert list(model.state_dict()) == ["w", "running"]  # a buffer remains one when it is computed anew
    np.testing.assert_allclose(model.state_dict()["running"], 0.19, rtol=1e-6)
    assert list(tg.optim.SGD(model.parameters()).params) == [model.w]
    if not recording:  # a result that has a gradient cannot be copied
        assert list(copy.deepcopy(model).state_dict()) == ["w", "running"]


def test_frozen_parameters_are_parameters_and_constants_are_buffers() -> None:
    model = nn.Module()
    model.frozen = nn.Parameter(np.ones(2), requires_grad=False)
    model.thawed, model.later = nn.Parameter(np.ones(3)), Tensor(np.ones(4))
    model.constant, model.like = tg.ones(5), tg.zeros_like(tg.ones(6))
    assert not model.frozen.requires_grad
    assert model.thawed.requires_grad
    model.thawed.requires_grad = False
    model.later.requires_grad = True
    assert [name for name, _ in model.named_parameters()] == ["frozen", "thawed", "later"]
    assert [name for name, _ in model.named_buffers()] == ["constant", "like"]


@pytest.mark.parametrize("attribute", [{1: tg.ones(1), "1": tg.ones(1)}, {"1.a": tg.ones(1), 1: {"a": tg.ones(1)}}])
def test_two_tensors_of_one_name_raise(attribute: Any) -> None:
    model = nn.Module()
    model.d = attribute
    for read in (model.state_dict, lambda: list(model.parameters()), lambda: model.load_state_dict({})):
        with pytest.raises(ValueError, match=r"Module: two tensors are named 'd\.1(\.a)?': choose keys"):
            read()


@pytest.mark.parametrize("bad", ["text", np.array(["a", "b"]), np.array([1j, 2]), np.array([None, 1]), [1, "b"], None])
def test_loading_that_raises_changes_nothing(bad: Any) -> None:
    model = nn.Module()
    model.a, model.b = nn.Parameter(np.zeros(2)), nn.Parameter(np.zeros(2))
    with pytest.raises(nn.StateDictError, match="^Module: b has"):
        model.load_state_dict({"a": np.ones(2), "b": bad})
    model.b.data.flags.writeable = False
    with pytest.raises(nn.StateDictError, match="b cannot be written: its array is read-only"):
        model.load_state_dict({"a": np.ones(2), "b": [1, 2]})
    assert model.a.tolist() == [0, 0]
    model.b.data.flags.writeable = True
    model.load_state_dict({"a": np.ones(2), "b": [1, 2]})
    assert model.b.tolist() == [1, 2]


def test_repr() -> None:
    class MLP(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.GELU("tanh")]
            self.drop, self.more = nn.Dropout(0.5), {"norm": nn.LayerNorm(3)}
            self.scale = tg.ones(1)

    assert repr(MLP()) == """\
MLP(scale (1,)), 39 parameters
  layers.0: Linear(weight (3, 2), bias (3,)), 9 parameters
  layers.1 to layers.2: 2 x Linear(weight (3, 3), bias (3,)), 12 parameters each
  layers.3: GELU(approximate='tanh')
  drop: Dropout(p=0.5)
  more.norm: LayerNorm(weight (3,), bias (3,), eps=1e-05), 6 parameters"""


def test_modules_in_sequence() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), tg.square, nn.Sequential(nn.Tanh(), nn.GELU()))
    x = Tensor(np.array([[1.0, -2.0]], np.float32))
    hidden = tg.square(tg.relu(model[0](x)))
    np.testing.assert_array_equal(model(x).data, tg.gelu(tg.tanh(hidden)).data)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    both = nn.ModuleList([model, nn.Linear(1, 1)])
    assert list(both.state_dict()) == ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]
    assert not any(module.training for module in both.eval().modules())
    assert len(both) == 2
    assert len({*both.modules()}) == 8


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "theirs", "shape"),
    [
        (lambda: nn.Linear(4, 3), lambda t: t.nn.Linear(4, 3), (2, 5, 4)),
        (lambda: nn.Linear(4, 3, bias=False), lambda t: t.nn.Linear(4, 3, bias=False), (4,)),
        (lambda: nn.LayerNorm(4), lambda t: t.nn.LayerNorm(4), (2, 4)),
        (lambda: nn.LayerNorm(4, bias=False, eps=1e-2), lambda t: t.nn.LayerNorm(4, bias=False, eps=1e-2), (3, 2, 4)),
        (lambda: nn.RMSNorm(4), lambda t: t.nn.RMSNorm(4, eps=1e-6), (2, 4)),
    ],
)
def test_layers_equal_pytorchs(make: Any, theirs: Any, shape: Any, torch: Any) -> None:
    layer, other = make(), theirs(torch)
    state = {name: tensor.detach().numpy() for name, tensor in other.state_dict().items()}
    rng = np.random.default_rng(0)
    for array in state.values():
        array[...] = rng.standard_normal(array.shape)
    layer.load_state_dict(state)  # names and shapes are PyTorch's
    values = rng.standard_normal(shape).astype(np.float32)
    x, their_x = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    y, their_y = layer(x), other(their_x)
    np.testing.assert_allclose(y.numpy(), their_y.detach().numpy(), rtol=1e-5, atol=1e-6)
    y.backward(np.ones(y.shape))
    their_y.backward(torch.ones(y.shape))
    np.testing.assert_allclose(x.grad, their_x.grad.numpy(), rtol=1e-4, atol=1e-5)
    for name, p in layer.named_parameters():
        np.testing.assert_allclose(p.grad, getattr(other, name).grad.numpy(), rtol=1e-4, atol=1e-5)


def test_embedding() -> None:
    layer = nn.Embedding(5, 3)
    indices = np.array([[0, 4], [4, 4]])
    y = layer(indices)
    np.testing.assert_array_equal(y.numpy(), layer.weight.data[indices])
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(layer.weight.grad, np.array([1, 0, 0, 0, 3])[:, None] * np.ones(3))


def test_initial_values_of_layers() -> None:
    tg.manual_seed(0)
    layer = nn.Linear(100, 300)
    bound = 1 / math.sqrt(100)
    for p in layer.parameters():
        assert p.dtype == np.float32
        assert abs(p.data).max() < bound
        assert p.data.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    table = nn.Embedding(300, 100).weight.data
    assert (table.mean(), table.std()) == (pytest.approx(0, abs=0.03), pytest.approx(1, rel=0.03))
    norm = nn.LayerNorm(3)
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([1, 1, 1], [0, 0, 0])
    assert nn.RMSNorm(2).weight.tolist() == [1, 1]
    assert all(p.requires_grad for p in (*layer.parameters(), *norm.parameters()))
    assert nn.Linear(0, 3).weight.shape == (3, 0)
    tg.manual_seed(0)
    np.testing.assert_array_equal(nn.Linear(100, 300).weight.data, layer.weight.data)
    small = nn.Linear(100, 300, std=0.02)
    assert small.weight.data.std() == pytest.approx(0.02, rel=0.05)
    assert not small.bias.data.any()
    assert nn.Linear(2, 3, bias=False, std=0.02).bias is None
    assert nn.Embedding(100, 300, std=0.02).weight.data.std() == pytest.approx(0.02, rel=0.05)


# --- dropout --------------------------------------------------------------------------------------


def test_dropout_while_training() -> None:
    layer, x = nn.Dropout(0.25), Tensor(np.full((200, 300), 2.0, np.float32), requires_grad=True)
    y = layer(x)
    kept = y.data != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(y.data[kept], 2 / 0.75, rtol=1e-6)
    y.backward(np.ones(y.shape))
    np.testing.assert_allclose(x.grad, kept / 0.75, rtol=1e-6)  # backward draws the same mask
    assert (layer(x).data != y.data).any()
    rows = kept.mean(axis=1)
    assert abs(rows - 0.75).max() < 0.13  # 5 standard deviations: rows and columns are independent
    assert abs(kept.mean(axis=0) - 0.75).max() < 0.16


def test_dropout_is_the_identity_in_evaluation_mode() -> None:
    layer, x = nn.Dropout(0.5), Tensor(np.ones(50), requires_grad=True)
    before = tg.random.default_generator.state_dict()
    for y in (layer.eval()(x), tg.dropout(x, p=0.5, training=False), nn.Dropout(0.0)(x), tg.dropout(x, 0)):
        np.testing.assert_array_equal(y.data, x.data)
        x.grad = None
        y.sum().backward()
        np.testing.assert_array_equal(x.grad, np.ones(50))
    assert tg.random.default_generator.state_dict() == before  # no draw was taken


def test_dropout_of_everything() -> None:
    x = Tensor(np.ones((30, 40)), requires_grad=True)
    y = nn.Dropout(1)(x)
    assert not y.data.any()
    y.sum().backward()
    assert not x.grad.any()


def test_dropout_saves_no_mask() -> None:
    y = tg.dropout(Tensor(np.ones(1000), requires_grad=True), p=0.5)
    assert list(tg.autograd.saved_arrays(y.node.backward)) == []


def test_dropout_masks_depend_on_the_seed_and_the_number_of_the_draw() -> None:
    def masks(n: int) -> list[Any]:
        return [tg.dropout(tg.ones(64)).numpy() for _ in range(n)]

    tg.manual_seed(3)
    first = masks(3)
    tg.manual_seed(3)
    tg.normal(5)  # another stream
    np.testing.assert_array_equal(masks(3), first)
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_probabilities_out_of_range_raise(p: float) -> None:
    with pytest.raises(ValueError, match=f"Dropout: probability {p} is not between 0 and 1"):
        nn.Dropout(p)
    with pytest.raises(ValueError, match=f"dropout: probability {p} is not between 0 and 1"):
        tg.dropout(tg.ones(2), p=p)


def test_attention_drops_weights_and_backward_draws_the_same_mask() -> None:
    """v is the identity matrix, so that the result is the attention weights."""
    n = 64
    q, key = (Tensor(np.zeros((1, 2, n, 4)), requires_grad=True) for _ in range(2))
    v = Tensor(np.broadcast_to(np.eye(n), (1, 2, n, n)), requires_grad=True)
    dropped = tg.attention(q, key, v, dropout_p=0.5)
    kept = dropped.data != 0
    assert kept.mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(dropped.data[kept], 2 / n)
    dropped.backward(np.ones(dropped.shape))
    np.testing.assert_allclose(v.grad, dropped.data.sum(axis=2)[..., None] * np.ones(n), rtol=1e-12)
    assert kept[0, 0].tolist() != kept[0, 1].tolist()
