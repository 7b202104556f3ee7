"""Which products are left to NumPy's library: measured once, kept on disk, forced by a variable."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorgrad.backend import load
from tests.tensorgrad.backend.numba.reference import TOLERANCE, Plain, normal

numba = pytest.importorskip("numba")

from tensorgrad.backend.numba import linear, product_choice  # noqa: E402
from tensorgrad.backend.numba.product_choice import KINDS, clearly_faster, kind_of  # noqa: E402

ROWS, INPUTS, OUTPUTS = 96, 65, 80
PRODUCTS: dict[str, Callable[..., Any]] = {
    "forward": lambda k, x, weight, bias, dy: k.linear(x, weight, bias),
    "dx": lambda k, x, weight, bias, dy: k.linear_backward_x(dy, weight),
    "dweight": lambda k, x, weight, bias, dy: k.linear_backward_weight(dy, x),
}


@pytest.fixture
def k(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The backend, without a choice, and with one for small products, too."""
    monkeypatch.delenv("TENSORGRAD_PRODUCTS")
    monkeypatch.setattr(product_choice, "MIN_MULTIPLICATIONS", ROWS * INPUTS * OUTPUTS)
    monkeypatch.setattr(linear, "MIN_PARALLEL_MULTIPLICATIONS", 0)
    backend = load("numba")
    backend.leave_products(None)
    yield backend
    monkeypatch.undo()
    backend.leave_products(None)


@pytest.fixture
def kernels(k: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the backend's own kernels have computed."""
    calls = []
    compute = type(k)._rows_times_matrix

    def record(k: Any, a: Any, b: Any, bias: Any) -> Any:
        calls.append("kernels")
        return compute(k, a, b, bias)

    monkeypatch.setattr(type(k), "_rows_times_matrix", record)
    return calls


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder in which a choice is kept."""
    monkeypatch.setattr(product_choice, "cache_folder", lambda kernel: tmp_path)
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """What the next measurements find, the last first: the gain by NumPy's library for each kind."""
    gains: list[dict[str, float]] = []

    def measure(ours: Any, numpys: Any) -> product_choice.Times:
        return {kind: [(gain, 1.0)] * product_choice.MIN_PAIRS for kind, gain in gains.pop().items()}

    monkeypatch.setattr(product_choice, "measure", measure)
    return gains


@pytest.mark.parametrize("left", [(), ("small forward",), ("small dx",), ("small dweight",), KINDS])
def test_what_is_left_to_numpy_and_what_is_not(k: Any, kernels: list[str], left: tuple[str, ...]) -> None:
    shapes = (2, ROWS // 2, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,), (2, ROWS // 2, OUTPUTS)
    arrays = [normal(*shape, dtype=np.float32) for shape in shapes]
    k.leave_products(left)
    for name, compute in PRODUCTS.items():
        kernels.clear()
        result = compute(k, *arrays)
        np.testing.assert_allclose(result, compute(Plain(), *arrays), rtol=0, atol=20 * TOLERANCE[np.float32])
        assert kernels == ([] if f"small {name}" in left else ["kernels"])


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ((1024, 128), (128, 1024), "large dx"),
        ((4, 256, 128), (128, 1024), "large dx"),
        ((1024, 128), (128, 1023), "small dx"),
        ((512, 64), (64, 128), "small dx"),
        ((512, 64), (64, 127), None),
        ((4096, 63), (63, 4096), None),
        ((4096, 4096), (4096, 63), None),
        ((63, 4096), (4096, 4096), None),
    ],
)
def test_the_kinds(a: tuple[int, ...], b: tuple[int, ...], kind: str | None) -> None:
    assert kind_of(np.empty(a, np.float32), np.empty(b, np.float32)) == kind
    if kind is not None and len(a) == 2:
        of_weight = kind_of(np.empty(a, np.float32, order="F"), np.empty(b, np.float32))
        forward = kind_of(np.empty(a, np.float32), np.empty(b, np.float32, order="F"))
        assert [of_weight, forward] == [kind.replace("dx", "dweight"), kind.replace("dx", "forward")]


def test_a_measurement_is_kept_for_other_processes(k: Any, kept: Path, measured: list[dict[str, float]]) -> None:
    measured.append({"large dx": 1.2, "small forward": 1.02, "small dx": 0.8})
    for _ in range(2):  # the second time it is read
        k.leave_products(None)
        assert k.numpy_products() == {"large dx"}
    assert not measured
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b'["large d', b'["large dx", "other"]', b"{}", b"3", b"[[]]", b"\xff"])
def test_a_damaged_file_is_measured_again(k: Any, kept: Path, measured: list[dict[str, float]], content: bytes) -> None:
    measured += [{"large dx": 1.2}, {}]
    assert k.numpy_products() == frozenset()
    (path,) = kept.iterdir()
    path.write_bytes(content)
    for _ in range(2):
        k.leave_products(None)
        assert k.numpy_products() == {"large dx"}


def test_where_nothing_can_be_kept_nothing_is_left(
    k: Any, measured: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two processes could find different ones, and their bits would differ."""
    for folder in (None, tmp_path / "missing"):
        monkeypatch.setattr(product_choice, "cache_folder", lambda kernel, folder=folder: folder)
        measured[:] = [{"small dx": 2.0}]
        k.leave_products(None)
        assert k.numpy_products() == frozenset()


def test_a_choice_belongs_to_a_processor_a_library_and_these_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    before = product_choice._fingerprint()
    assert product_choice._fingerprint() == before
    for module, name, value in (
        (np, "__version__", "9.9"), (product_choice.blas, "find", lambda: None),
        (product_choice, "digest", lambda folder: "other kernels"),
        (type(product_choice.cpu_target.target_context.codegen()), "magic_tuple", lambda codegen: "another processor"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert product_choice._fingerprint() != before, name


def test_only_what_is_clearly_faster_is_left_to_numpy() -> None:
    gains = {
        "slower": [0.5] * 9, "equal": [1.0] * 9, "hardly faster": [1.04] * 9, "faster": [1.06] * 9, "few": [2.0] * 2,
        "disturbed at times": [0.1, 0.9, *[1.1] * 7], "no tie, but noise": [*[1.0] * 5, *[7.0] * 4],
    }  # fmt: skip
    found = clearly_faster({kind: [(gain, 1.0) for gain in values] for kind, values in gains.items()})
    assert found == {"faster", "disturbed at times"}


def test_the_measurement_leaves_the_threads_as_they_were(k: Any) -> None:
    ours, numpys = type(k)(), type(k)()
    ours.leave_products(())
    numpys.leave_products(KINDS)
    before = numba.get_num_threads()
    times = product_choice.measure(ours, numpys)
    assert list(times) == list(KINDS)
    assert numba.get_num_threads() == before
    assert (k.threads, type(k).threads) == (load("numpy").threads,) * 2


@pytest.mark.parametrize(("name", "kinds"), [("numba", frozenset()), ("numpy", frozenset(KINDS))])
def test_a_variable_forces_one_of_them(k: Any, name: str, kinds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORGRAD_PRODUCTS", name)
    assert k.numpy_products() == kinds
    k.leave_products(["large dx"])
    assert k.numpy_products() == kinds


def test_an_unknown_value_of_the_variable(k: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORGRAD_PRODUCTS", "mkl")
    message = "^TENSORGRAD_PRODUCTS is 'mkl': give numba for the kernels' products, numpy for NumPy's$"
    with pytest.raises(ValueError, match=message):
        k.leave_products(None)
    with pytest.raises(ValueError, match=message):
        k.numpy_products()
