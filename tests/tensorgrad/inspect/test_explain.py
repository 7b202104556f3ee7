"""Why a gradient is what it is: parts, examples and positions that add up to it, and wrong gradients that are found."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import nn
from tensorgrad.autograd import op
from tensorgrad.backend import get_backend
from tensorgrad.gradcheck.cases import Case, cases
from tensorgrad.inspect.contributions import Contributions, contributions
from tensorgrad.inspect.explainer import Explainer
from tensorgrad.inspect.explanation import Explanation
from tensorgrad.inspect.recording import explain, record
from tensorgrad.inspect.replay import Part, Replay

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float64) -> tg.Tensor:
    return tg.Tensor(RNG.normal(size=shape).astype(dtype), requires_grad=True)


def backward_of_all(results: Any) -> None:
    """Backward of every result that has one, from random gradients."""
    rng = np.random.default_rng(0)
    for y in results if isinstance(results, list | tuple) else [results]:
        if y.requires_grad and not y.node.is_leaf:
            y.backward(tg.asarray(rng.normal(size=y.shape)), retain_graph=True)


@pytest.mark.parametrize("case", [case for case in cases.values() if case.gradient], ids=str)
def test_the_parts_of_every_op_add_up_to_the_gradient_and_differences_confirm_it(case: Case) -> None:
    for example in case.examples:
        tg.manual_seed(1)
        inputs = example.tensors(get_backend(), np.float64)
        with record() as steps:
            backward_of_all(example.run(case.op, *inputs))
        if not steps.gradients:
            continue
        explainer = Explainer(steps)
        for leaf, recorded in steps.gradients.items():
            parts = [part for part in explainer.replay.parts if part.leaf == leaf]
            size = np.abs(recorded).max(initial=0)
            total = sum(part.gradient for part in parts)
            np.testing.assert_allclose(total, recorded, 1e-11, 1e-11 * size + 1e-15)
            for part in parts:
                if (found := contributions(part)) is not None:
                    np.testing.assert_allclose(found.gradient(), part.gradient, 1e-11, 1e-11 * size + 1e-15)
            if not (np.isfinite(recorded).all() and np.isfinite(explainer.replay.leaves[leaf].numpy()).all()):
                continue
            explanation = explainer.explain(leaf, "x", 2)
            assert sum(use.share for use in explanation.uses) == pytest.approx(1 if np.any(total) else 0)
            assert all(entry.is_confirmed for entry in explanation.entries), f"{example}: {explanation.entries}"


Build = Callable[[tg.Tensor], tg.Tensor]
X, INDEX = tg.Tensor(RNG.normal(size=(2, 3, 4))), tg.asarray(np.array([[0, 3, 0], [1, 1, 4]]))
USES: dict[str, tuple[tuple[int, ...], Build]] = {
    "linear": ((5, 4), lambda w: tg.linear(X, w)),
    "linear, bias": ((5,), lambda b: tg.linear(X, tg.ones((5, 4), dtype="float64"), b)),
    "matmul": ((4, 5), lambda w: X @ w),
    "embedding": ((5, 4), lambda w: tg.embedding(w, INDEX)),
    "layer_norm": ((4,), lambda w: tg.layer_norm(X, w, tg.ones(4, dtype="float64"))),
    "layer_norm, bias": ((4,), lambda b: tg.layer_norm(X, tg.ones(4, dtype="float64"), b)),
    "rms_norm": ((4,), lambda w: tg.rms_norm(X, w)),
    "add": ((4,), lambda b: b + X),
    "subtract": ((1, 4), lambda b: X - b),
    "multiply": ((4,), lambda w: w * X),
    "divide": ((4,), lambda w: X / w),
    "a number": ((), lambda w: X * w),
    "where": ((4,), lambda w: tg.where(X > 0, w, X)),
    "positions, added to every example": ((5, 4), lambda w: X + tg.embedding(w, tg.arange(3))),
    "rows, added to every example": ((4, 4), lambda w: X + tg.linear(X[0].detach(), w)),
}


@pytest.mark.parametrize("name", USES)
def test_the_contribution_of_a_position_is_the_gradient_of_that_position_alone(name: str) -> None:
    """Beside backward from a gradient that is 0 at every other position."""
    shape, build = USES[name]
    weight = normal(*shape)
    with record() as steps:
        y = build(weight)
        dy = RNG.normal(size=y.shape)
        y.backward(tg.asarray(dy))
    (part,) = Replay(steps.program).parts
    found: Any = contributions(part)
    assert found.rows == (2, 3)
    norms, products = found.norms(), found.products(part.gradient)
    assert products.sum() == pytest.approx(np.sum(part.gradient**2), rel=1e-12)
    for row in [*np.ndindex(2), *np.ndindex(2, 3)]:
        masked = np.zeros(dy.shape)
        masked[row] = dy[row]
        alone = tg.gradients(build(weight), weight, tg.asarray(masked)).numpy()
        np.testing.assert_allclose(found.gradient(*row), alone, rtol=1e-11, atol=1e-13)
        if len(row) == 2:
            assert norms[row] == pytest.approx(np.linalg.norm(alone), rel=1e-11)
            assert products[row] == pytest.approx(np.sum(alone * part.gradient), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "build",
    [lambda w: w * w, lambda w: w.sum() * X, lambda w: X @ w.mT, lambda w: tg.linear(X[0, 0], w), lambda w: w @ X.mT],
    ids=["w w", "sum", "transposed", "a vector", "on the left"],
)
def test_an_op_without_rows_has_a_part_and_no_positions(build: Build) -> None:
    weight = normal(4, 4)
    explanation = explain(weight, lambda: build(weight).sum())
    assert all(use.shares is None for use in explanation.uses)
    assert sum(use.share for use in explanation.uses) == pytest.approx(1)
    assert all(entry.is_confirmed for entry in explanation.entries)


@op
def wrong_square(k: Any, x: Any) -> Any:
    """x x, with dx = 2.001 dy x."""
    return x * x, lambda dy: 2.001 * dy * x


def test_a_wrong_formula_is_found() -> None:
    """By 0.05 %, which is within the rounding of float32, so that float64 has to show it."""
    for dtype in (np.float32, np.float64):
        weight = normal(3, 4, dtype=dtype)
        wrong = explain(weight, lambda w=weight: wrong_square(w).sum())
        right = explain(weight, lambda w=weight: (w * w).sum())
        assert [entry.is_confirmed for entry in wrong.entries] == [False] * 3
        assert [entry.is_confirmed for entry in right.entries] == [True] * 3
        assert wrong.entries[0].error == pytest.approx(0.0005, rel=0.01)
        assert "WRONG" in str(wrong) and "WRONG" not in str(right)


def test_a_kernel_that_is_wrong_in_float32_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    k = get_backend()
    plain = k.linear_backward_weight

    def wrong(dy: Any, x: Any) -> Any:
        return plain(dy, x) * (1.01 if dy.dtype == np.float32 else 1)

    layer = nn.Linear(4, 3)
    x = tg.asarray(RNG.normal(size=(2, 5, 4)).astype(np.float32))
    compute = lambda: layer(x).square().mean()  # noqa: E731
    right = explain(layer.weight, compute)
    monkeypatch.setattr(type(k), "linear_backward_weight", lambda self, dy, x: wrong(dy, x))
    broken = explain(layer.weight, compute)
    assert all(entry.is_confirmed for entry in right.entries) and right.rounding < 1e-5
    assert not any(entry.is_confirmed for entry in broken.entries)
    assert broken.rounding == pytest.approx(0.01, rel=1e-3)
    assert broken.entries[0].float64 == pytest.approx(broken.entries[0].difference, rel=1e-6)
    assert "the gradient in float64 is another: 1.0e-02" in str(broken)


class Net(nn.Module):
    """An embedding that is the output layer as well, with a dropout, a norm and a layer between."""

    def __init__(self) -> None:
        tg.manual_seed(0)
        self.table, self.norm, self.inner = nn.Embedding(7, 6), nn.LayerNorm(6), nn.Linear(6, 6)
        self.drop = nn.Dropout(0.3)

    def loss(self, idx: Any, targets: Any) -> tg.Tensor:
        x = self.table(tg.asarray(idx))
        x = x + tg.tanh(self.inner(self.drop(self.norm(x))))
        return tg.cross_entropy(tg.linear(x, self.table.weight), tg.asarray(targets))


IDX, TARGETS = np.array([[0, 1, 2, 1], [6, 5, 4, 4]]), np.array([[1, 2, 1, 0], [5, 4, 4, 3]])
TEXTS = [["to", " be", ",", " or"], [" not", " to", " be", "\n"]]


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


@pytest.fixture(scope="module")
def explanation(net: Net) -> Explanation:
    return explain(net.table.weight, lambda: net.loss(IDX, TARGETS), model=net, texts=TEXTS)


def test_a_shared_weight_has_a_part_for_each_use(net: Net, explanation: Explanation) -> None:
    assert [(use.op, use.operand, use.module) for use in explanation.uses] == [
        ("linear", "weight", ""), ("embedding", "weight", "table"),
    ]  # fmt: skip
    assert sum(use.share for use in explanation.uses) == pytest.approx(1, abs=1e-12)
    for use in explanation.uses:
        assert use.shares is not None and use.shares.shape == (2, 4)
        assert use.shares.sum() == pytest.approx(use.share, abs=1e-12)
    assert explanation.ratio == pytest.approx(explanation.gradient_norm / np.linalg.norm(net.table.weight.numpy()))
    assert all(entry.is_confirmed for entry in explanation.entries)


def test_an_update_changes_the_weight_as_much_as_said(net: Net) -> None:
    for make, change in ((tg.optim.SGD, Explanation.sgd_change), (tg.optim.AdamW, Explanation.adam_change)):
        layer = nn.Linear(4, 3)
        x = tg.asarray(RNG.normal(size=(5, 4)).astype(np.float32))
        found = explain(layer.weight, lambda: layer(x).square().sum())  # noqa: B023
        before = layer.weight.numpy().copy()
        layer(x).square().sum().backward()
        options = {} if make is tg.optim.SGD else {"weight_decay": 0.0}
        make([layer.weight], lr=1e-3, **options).step()
        moved = np.linalg.norm(layer.weight.numpy() - before) / np.linalg.norm(before)
        assert change(found, 1e-3) == pytest.approx(moved, rel=1e-3)


def test_the_path_leads_from_the_loss_along_the_largest_gradients() -> None:
    weight, x = normal(4, 4), normal(3, 4)
    with record() as steps:
        y = tg.linear(x, weight)
        small, large = y * 0.1, tg.exp(y)
        total = small + large
        results = [total, large, y]
        for result in results:
            result.retain_grad()
        total.sum().backward()
    path = steps.explain(weight).uses[0].path
    norms = [float(np.linalg.norm(result.grad)) for result in results]  # type: ignore[arg-type]
    assert [place.op for place in path] == ["sum", "add", "exp", "linear"]
    assert [place.arrives for place in path] == pytest.approx([1, *norms])
    through_exp = float(np.linalg.norm(np.exp(y.numpy())))  # what exp sends on: the rest of dy comes from `small`
    assert [place.leaves for place in path] == pytest.approx([norms[0], norms[0], through_exp, norms[2]])
    assert [place.step for place in path] == sorted(place.step for place in path)


def test_explaining_changes_nothing(net: Net) -> None:
    """Neither gradients nor weights nor what is drawn next."""
    net.loss(IDX, TARGETS).backward()
    before = [(p.numpy().copy(), p.grad.copy()) for p in net.parameters()]  # type: ignore[union-attr]
    tg.manual_seed(3)
    with record(net) as steps:
        loss = net.loss(IDX, TARGETS)
        tg.gradients(loss, [])
    state = tg.random.default_generator.state_dict()
    steps.explain(net.inner.weight)
    assert tg.random.default_generator.state_dict() == state
    explain(net.inner.weight, lambda: net.loss(IDX, TARGETS))
    for p, (data, grad) in zip(net.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.numpy(), data)
        np.testing.assert_array_equal(p.grad, grad)


def test_what_is_explained_is_the_recorded_step_whatever_happens_later() -> None:
    """An optimizer may have changed the weights in place, clipped the gradients and forgotten them."""
    net = Net()
    net.loss(IDX, TARGETS).backward()  # was there before
    tg.manual_seed(3)
    with record(net) as steps:
        net.loss(IDX, TARGETS).backward()
    plain = str(steps.explain(net.inner.weight))
    net = Net()
    tg.manual_seed(3)
    optimizer = tg.optim.AdamW(net.parameters(), lr=0.1)
    with record(net) as steps:
        net.loss(IDX, TARGETS).backward()
        tg.optim.clip_grad_norm(net.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    assert str(steps.explain(net.inner.weight)) == plain


def test_a_second_backward_adds_its_parts() -> None:
    net = Net()
    net.eval()
    with record(net) as steps:
        for part in (slice(1), slice(1, 2)):
            (net.loss(IDX[part], TARGETS[part]) / 2).backward()
    found = steps.explain(net.inner.weight)
    whole = explain(net.inner.weight, lambda: net.loss(IDX, TARGETS), model=net)
    assert [use.share for use in found.uses] == pytest.approx(whole.uses[0].shares.sum(axis=1))  # type: ignore[union-attr]
    assert all(entry.is_confirmed for entry in found.entries)


def test_a_checkpoint_and_detached_tensors() -> None:
    net = Net()
    x = tg.asarray(RNG.normal(size=(2, 3, 6)).astype(np.float32), requires_grad=True)

    def layer(x: tg.Tensor) -> tg.Tensor:
        return tg.tanh(net.inner(net.drop(x)))

    def stopped(x: tg.Tensor) -> tg.Tensor:
        y = net.inner(x)
        return y * y.detach()

    found = []
    for compute in (lambda: layer(x).sum(), lambda: tg.checkpoint(layer, x).sum(), lambda: stopped(x).sum()):
        tg.manual_seed(1)
        found.append(explain(net.inner.weight, compute, model=net))
        assert all(entry.is_confirmed for entry in found[-1].entries)
    np.testing.assert_array_equal(found[0].uses[0].shares, found[1].uses[0].shares)
    assert found[0].uses[0].path[-1].op == found[1].uses[0].path[-1].op == "linear"


# --------------------------------------------------------------------------------------------------
# As text, as a picture, and what it refuses


def test_the_text_has_the_numbers_in_80_columns(explanation: Explanation) -> None:
    text = str(explanation)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("The gradient of table.weight (7, 6) float32\n")
    assert f"norm      {explanation.gradient_norm:.4g}: " in text
    assert re.findall(r"^ *(-?[\d.]+) % through", text, re.M) == [f"{100 * u.share:.1f}" for u in explanation.uses]
    (row,) = explanation.uses[0].largest(1)
    shares: Any = explanation.uses[0].shares
    assert abs(shares[row]) == np.abs(shares).max()
    line = next(line for line in text.splitlines() if line.startswith("  ["))
    assert (
        line.startswith(f"  [{row[0]}, {row[1]}] {TEXTS[row[0]][row[1]]!r} ") and f"{100 * shares[row]:.1f} %" in line
    )


def test_the_picture(explanation: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib (extra plot) is not installed")
    figure = explanation.plot()
    maps = [image.get_array() for axes in figure.axes for image in axes.images]
    for image, use in zip(maps, explanation.uses, strict=True):
        np.testing.assert_array_equal(image, use.shares)
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert shown == [repr(text)[1:-1] for row in TEXTS for text in row] * 2
    assert "data:image/png;base64," in explanation._repr_html_()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert explanation._repr_html_().startswith("<pre>") and "<img" not in explanation._repr_html_()


def test_hostile_names_and_texts_are_escaped() -> None:
    hostile = "<img src=x onerror=alert(1)> $\\frac$"
    model = nn.Sequential(nn.Linear(2, 2))
    model.parts = {hostile: nn.Linear(2, 2)}
    x = tg.ones((1, 3, 2))
    found = explain(
        model.parts[hostile].weight, lambda: model.parts[hostile](x).sum(), model=model, texts=[[hostile] * 3]
    )
    assert hostile in str(found).replace("\n    ", " ")
    assert "<img src=x" not in found._repr_html_() and "&lt;img" in found._repr_html_()


def refused() -> Iterator[tuple[Callable[[], Any], str]]:
    net = Net()
    with record(net) as steps:
        loss = net.loss(IDX, TARGETS)
        with pytest.raises(RuntimeError, match="explain: call it after the `with` that records"):
            steps.explain(net.inner.weight)
    weight = net.inner.weight
    yield lambda: steps.explain(weight), "explain: inner.weight got no gradient in this recording: call backward inside"
    with record(net) as whole:
        loss = net.loss(IDX, TARGETS)
        loss.backward()
    other = nn.Linear(2, 2)
    yield lambda: whole.explain(other.weight), r"explain: the tensor \(2, 2\) was not used in this recording"
    yield lambda: whole.explain(tg.ones(3)), r"explain: the tensor \(3,\) requires no gradient"
    yield lambda: whole.explain(loss), r"explain: the tensor \(\) is the result of cross_entropy: give a parameter"
    yield (
        lambda: whole.explain(net.inner),
        "explain: the parameter is a Linear: give one of its parameters: weight, bias",
    )  # type: ignore[arg-type]
    yield lambda: whole.explain(np.ones(3)), "explain: the parameter is a ndarray, not a Tensor"  # type: ignore[arg-type]
    yield lambda: explain(weight, loss), "explain: compute is a Tensor: give a function"  # type: ignore[arg-type]
    yield lambda: explain(weight, lambda: 3.0), "explain: compute returned float: a loss of one element"  # type: ignore[arg-type,return-value]
    yield (
        lambda: explain(weight, lambda: net.table(IDX)),
        r"explain: compute returned float32 \(2, 4, 6\): a loss of one",
    )
    with_no_grad = tg.no_grad()(lambda: net.loss(IDX, TARGETS))
    yield lambda: explain(weight, with_no_grad), r"compute returned float32 \(\) without a gradient, as in no_grad"
    yield lambda: explain(other.weight, lambda: net.loss(IDX, TARGETS)), "was not used in this recording"
    nans = lambda: (weight * float("nan")).sum()  # noqa: E731
    yield (
        lambda: explain(weight, nans, model=net),
        "explain: the gradient of inner.weight is not finite: tg.detect_anomaly",
    )
    longer = [[*row, "?"] for row in TEXTS]
    texts = r"explain: texts are \(2, 5\), but the rows of what used a parameter are \(2, 4\)"
    yield lambda: explain(weight, lambda: net.loss(IDX, TARGETS), texts=longer), texts
    yield lambda: explain(weight, lambda: loss, model=3), "record: the model is a int, not a tg.nn.Module"  # type: ignore[arg-type]
    yield lambda: record(texts=["to be"]), r"record: texts have to be \(B, T\)"
    yield lambda: record(texts=[["to"], ["to", "be"]]), r"record: texts have to be \(B, T\)"
    x = net.inner(tg.ones((2, 6)))
    before = lambda: (x + net.inner(tg.ones((2, 6)))).sum()  # noqa: E731
    yield (
        lambda: explain(weight, before, model=net),
        "explain: 2 ops sent a gradient to inner.weight, and 1 when replayed",
    )
    counter = iter(range(1, 9))

    @op
    def impure(k: Any, x: Any) -> Any:
        """x n, with another n at every call; dx = n dy."""
        n = next(counter)
        return x * n, lambda dy: dy * n

    yield (
        lambda: explain(weight, lambda: impure(weight).sum()),
        r"explain: the loss was .*, and is .* when replayed: record",
    )


def test_mistakes_are_reported_in_one_line() -> None:
    for call, message in refused():
        with pytest.raises((ValueError, TypeError), match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_contributions_of_an_unknown_gradient_are_none() -> None:
    """A result of several arrays has no single dy."""
    part = Part(0, tg.split, "split", 0, (), "x", {}, None, np.ones(3), 0)
    assert contributions(part) is None
    assert Contributions(np.ones((2, 3)), None, (3,)).rows == (2,)


def test_contributions_that_cancel_are_not_called_wrong() -> None:
    """The bias of the keys adds the same to all scores of a query: its gradient is 0, and float32 leaves rounding."""
    bias = normal(4, dtype=np.float32)
    q, k, v = (tg.Tensor(RNG.normal(size=(2, 50, 4)).astype(np.float32)) for _ in range(3))
    with record() as steps:
        (tg.softmax(q @ (k + bias).mT) @ v).square().sum().backward()
    found = steps.explain(bias)
    assert found.cancels and found.gradient_norm > 0 and "cancels" in str(found)
    assert found.rounding < found.tolerance and all(entry.is_confirmed for entry in found.entries)
    steps.page()
