"""The fused ops: each names a composition of plain ops, which can be called as the op can."""

import inspect

import pytest

from tensorgrad import ops

FUSED = [name for name in [*ops.__all__, *ops.LATER] if hasattr(getattr(ops, name), "composition")]


def test_which_ops_are_fused() -> None:
    assert set(FUSED) == {"add_layer_norm", "add_rms_norm", "attention", "linear_cross_entropy", "mlp", "swiglu"}


@pytest.mark.parametrize("name", sorted(FUSED))
def test_a_composition_takes_what_its_op_takes(name: str) -> None:
    parameters = [
        [(p.name, p.kind, p.default) for p in inspect.signature(fn).parameters.values()]
        for fn in (getattr(ops, name), getattr(ops, name).composition)
    ]
    assert parameters[0] == parameters[1]
