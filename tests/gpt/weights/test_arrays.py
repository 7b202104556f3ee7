"""What the readers of weights share: the block of memory that floating weights are in."""

from __future__ import annotations

import numpy as np

import tensorgrad as tg
from gpt.config import LlamaConfig
from gpt.weights import build_model
from gpt.weights.arrays import ALIGNMENT, FloatBlock

CONFIG = LlamaConfig(16, 50, 2, 3, 18, n_kv_head=1, n_hidden=21, tied=False)


def test_a_block_has_room_for_all_weights_and_their_values_stay() -> None:
    weights = build_model(CONFIG).state_dict()
    block = FloatBlock(array.size for array in weights.values())
    copies = {name: block.put(array) for name, array in weights.items()}
    for name, array in weights.items():
        np.testing.assert_array_equal(copies[name], array)
        assert copies[name].base is block.memory
        assert copies[name].flags.carray
        assert (copies[name].ctypes.data - block.memory.ctypes.data) % (4 * ALIGNMENT) == 0
    for i, copy in enumerate(copies.values()):
        copy[...] = i
    assert [float(copy.max()) for copy in copies.values()] == list(range(len(copies)))  # none lies in another


def test_what_is_not_float32_or_has_no_room_stays_where_it_is() -> None:
    block = FloatBlock([40, 3])
    quantized = tg.quantize(np.ones((2, 32)), "q8_0")
    doubles, large = np.ones(3), np.ones(block.memory.size + 1, np.float32)
    for array in (quantized, doubles, large):
        assert block.put(array) is array
    assert block.used == 0


def test_a_model_is_trained_in_a_block() -> None:
    """A step changes every weight as it does in arrays of its own."""
    tokens = np.random.default_rng(0).integers(0, 50, (2, 17))
    after = []
    for in_block in (False, True):
        tg.manual_seed(1)
        weights = build_model(CONFIG).state_dict()
        block = FloatBlock(array.size for array in weights.values())
        model = build_model(CONFIG, weights={n: block.put(a) if in_block else a for n, a in weights.items()})
        optimizer = tg.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step()
            optimizer.zero_grad()
        after.append({name: array.copy() for name, array in model.state_dict().items()})
    for name, array in after[0].items():
        np.testing.assert_array_equal(array, after[1][name])
