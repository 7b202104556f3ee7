"""The gradient of `split`: the parts' gradients joined, without a copy where they are one array in memory already."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorgrad as tg


@given(st.data())
def test_gradients_that_are_one_array_are_not_copied(data: Any) -> None:
    """The parts of any permuted array, in their own order or another, and with one part that has no gradient."""
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    axis = data.draw(st.integers(0, 2))
    shape = [2, 3, 4]
    shape[axis] = sum(sizes)
    order = data.draw(st.permutations(range(3)))
    whole = np.random.default_rng(0).normal(size=[shape[i] for i in order]).transpose(np.argsort(order))
    assert whole.shape == tuple(shape)
    parts: list[Any] = np.split(whole, np.cumsum(sizes)[:-1], axis=axis)
    which = data.draw(st.sampled_from(["in order", "in another order", "a copy", "another dtype", "one missing"]))
    i = data.draw(st.integers(0, len(sizes) - 1))
    if which == "in another order":
        same = [j for j in range(len(sizes)) if sizes[j] == sizes[i]]
        parts[i], parts[same[0]] = parts[same[0]], parts[i]
    elif which == "a copy":
        parts[i] = parts[i].copy()
    elif which == "another dtype":
        parts[i] = parts[i].astype(np.float32)
    elif which == "one missing":
        parts[i] = None
    blanks = np.split(np.zeros(shape), np.cumsum(sizes)[:-1], axis=axis)
    given_parts = [blank if part is None else part for blank, part in zip(blanks, parts, strict=True)]
    expected = np.concatenate(given_parts, axis=axis)

    outputs = tg.split(tg.asarray(np.zeros(shape), requires_grad=True), sizes, axis=axis)
    [(_, dx)] = outputs[0].node.pull(parts, retain_graph=True)
    np.testing.assert_array_equal(dx, expected)
    if which == "in order" and 0 not in sizes:
        assert np.shares_memory(dx, whole)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_gradient_of_a_joint_projection_is_that_of_attention(backend: str) -> None:
    """As gpt/fused.py splits it: what attention writes is the projection's dy, without a copy."""
    with tg.use_backend(backend):
        heads = tg.asarray(np.random.default_rng(1).normal(size=(2, 64, 12, 32)), "float32", requires_grad=True)
        q, k, v = tg.split(heads.permute_dims(0, 2, 1, 3), 3, axis=1)
        y = tg.attention(q, k, v, causal=True)
        dys = [dx for _, dx in y.node.pull([np.ones(y.shape, np.float32)], retain_graph=True)]
    [(_, dx)] = q.node.pull(dys, retain_graph=True)
    assert all(np.shares_memory(dx, dy) for dy in dys)
    assert dx.transpose(0, 2, 1, 3).flags.c_contiguous
