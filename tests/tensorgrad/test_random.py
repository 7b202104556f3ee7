"""The generator: Philox's published vectors, independent streams, and the distributions of the numbers."""

import json
import math
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad.backend.philox import philox4x32, random_bits
from tensorgrad.random import Generator, Stream

pytestmark = pytest.mark.usefixtures("numpy_backend")

# kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds: counter, key, result
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


def philox_by_hand(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Ten rounds, computed with Python's integers."""
    (a, b, c, d), (k, l) = counter, key  # noqa: E741
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & 0xFFFFFFFF, (p >> 32) ^ d ^ l, p & 0xFFFFFFFF
        k, l = (k + 0x9E3779B9) % 2**32, (l + 0xBB67AE85) % 2**32  # noqa: E741
    return a, b, c, d


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: Any, key: Any, expected: Any) -> None:
    words = philox4x32(np, tuple(np.array([word], np.uint64) for word in counter), key)
    assert tuple(int(word[0]) for word in words) == expected
    assert philox_by_hand(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1337, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("step", [0, 7, 2**31])
def test_words_are_philox_of_seed_stream_step_and_index(seed: int, stream: Stream, step: int) -> None:
    words = random_bits(np, 11, seed, stream, step)
    assert words.dtype == np.uint32
    for e, word in enumerate(words):
        block = philox_by_hand((e // 4, 0, step, int(stream)), (seed % 2**32, seed >> 32))
        assert int(word) == block[e % 4]


def test_words_from_any_index_on() -> None:
    whole = random_bits(np, 40, 3, 1, 4)
    for start in (0, 1, 4, 7, 30):
        np.testing.assert_array_equal(random_bits(np, 9, 3, 1, 4, start), whole[start : start + 9])
    far = 2**34 + 4  # its block number has more than 32 bits
    assert int(random_bits(np, 1, 3, 1, 4, far)[0]) == philox_by_hand((1, 1, 4, 1), (3, 0))[0]
    assert random_bits(np, 0, 3, 1, 4).shape == (0,)


# --- streams and steps ----------------------------------------------------------------------------

DRAWS = {
    "bits": lambda g, **where: g.bits((3, 5), **where),
    "uniform": lambda g, **where: g.uniform((3, 5), **where),
    "normal": lambda g, **where: g.normal((3, 5), **where),
    "integers": lambda g, **where: g.integers(0, 10**6, (3, 5), **where),
    "permutation": lambda g, **where: g.permutation(50, **where),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_draw_with_a_step_is_a_pure_function(draw: Any) -> None:
    g = Generator(7)
    first = draw(g, stream=Stream.DATA, step=3)
    for other in Stream:
        draw(g, stream=other)
    np.testing.assert_array_equal(draw(g, stream=Stream.DATA, step=3), first)
    np.testing.assert_array_equal(draw(Generator(7), stream=Stream.DATA, step=3), first)
    assert g.steps == dict.fromkeys(Stream, 1)  # draws with an explicit step are not counted
    for different in (
        draw(g, stream=Stream.DATA, step=4),
        draw(g, stream=Stream.INIT, step=3),
        draw(Generator(8), stream=Stream.DATA, step=3),
        draw(Generator(7 + 2**32), stream=Stream.DATA, step=3),
    ):
        assert (different != first).any()


def test_a_large_draw_begins_with_the_numbers_of_a_small_one() -> None:
    """A large draw is computed in blocks, which must not change the numbers."""
    n = 3 * 2**15 + 7
    for draw in (Generator(1).bits, Generator(1).uniform, Generator(1).normal):
        many = draw(n, step=2)
        np.testing.assert_array_equal(many[:1001], draw(1001, step=2))
    words = random_bits(np, n, 1, Stream.SAMPLING, 2)
    np.testing.assert_array_equal(Generator(1).bits((n,), step=2), words)
    np.testing.assert_array_equal(Generator(1).uniform(n, step=2), (words >> 8) * np.float32(2.0**-24))


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_each_stream_counts_its_own_draws(draw: Any) -> None:
    alone, mixed = Generator(1), Generator(1)
    expected = [draw(alone, stream=Stream.SAMPLING) for _ in range(3)]
    got = []
    for _ in range(3):
        draw(mixed, stream=Stream.INIT)
        got.append(draw(mixed, stream=Stream.SAMPLING))
        draw(mixed, stream=Stream.DROPOUT)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(expected[2], draw(alone, stream=Stream.SAMPLING, step=2))


def test_default_streams() -> None:
    g = Generator(1)
    g.uniform(1), g.normal(1), g.bits(1), g.integers(0, 2, 1), g.permutation(3)
    assert g.steps == {Stream.INIT: 0, Stream.DROPOUT: 0, Stream.DATA: 2, Stream.SAMPLING: 3}


def test_streams_are_not_correlated() -> None:
    g = Generator(11)
    rows = np.array([g.normal(20000, stream=stream, step=step) for stream in Stream for step in range(3)])
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert abs(correlation).max() < 0.035  # five standard errors


# --- distributions --------------------------------------------------------------------------------


def largest_gap(sample: Any, distribution: Any) -> float:
    """The Kolmogorov-Smirnov statistic times sqrt(n), which exceeds 1.95 with probability 0.001."""
    sample = np.sort(sample.reshape(-1).astype(np.float64))
    n = sample.size
    expected = distribution(sample)
    return float(math.sqrt(n) * max((np.arange(1, n + 1) / n - expected).max(), (expected - np.arange(n) / n).max()))


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_uniform(seed: int) -> None:
    u = Generator(seed).uniform((100, 300))
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert largest_gap(u, lambda x: x) < 1.95
    wide = Generator(seed).uniform(1000, -3.0, 5.0, np.float64)
    np.testing.assert_allclose(wide, -3 + 8 * u.reshape(-1)[:1000], rtol=1e-6, atol=1e-6)


class ExtremeGenerator(Generator):
    """Draws the smallest and the largest word in turn."""

    def _words(self, start: int, stop: int, stream: Stream, step: int) -> Any:
        return np.where(np.arange(start, stop) % 2, np.uint32(2**32 - 1), np.uint32(0))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (1.0, 2.0), (-1.0, 1.0), (-3.0, -1.0), (100.0, 101.0), (2.0, 2.0)])
def test_uniform_is_below_its_upper_limit_in_every_dtype(low: float, high: float, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    u = ExtremeGenerator().uniform(4, low, high, np.dtype(dtype))
    assert u.dtype == dtype
    numbers = u.astype(np.float64)
    assert numbers[0] == low
    assert (numbers < high).all() or low == high
    assert float(np.nextafter(u[1], u.dtype.type(high))) == high or high - numbers[1] < 1e-6 * (high - low)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_normal(seed: int) -> None:
    z = Generator(seed).normal((100, 301), dtype=np.float64)
    n = z.size
    moments = [(z**power).mean() for power in (1, 2, 3, 4)]
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - expected) < 4 * math.sqrt(variance / n)
    phi = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
    assert largest_gap(z, phi) < 1.95
    pairs = z.reshape(-1)[: n // 2 * 2].reshape(-1, 2)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 4 / math.sqrt(n / 2)  # the numbers of a pair are independent
    scaled = Generator(seed).normal((100, 301), 5.0, 0.1)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, 5 + 0.1 * z, rtol=1e-6)


def test_normal_of_extreme_words_is_finite() -> None:
    z = ExtremeGenerator().normal(6, dtype=np.float64)
    assert np.isfinite(z).all()
    assert abs(z).max() < 6.67  # sqrt(-2 log 2^-32)


@pytest.mark.parametrize("shape", [(), (0,), 3, (2, 0), (1, 1, 5), np.int64(2), [2, 2]])
def test_shapes(shape: Any) -> None:
    g = Generator(2)
    for draw in (g.bits, g.uniform, g.normal, lambda s: g.integers(0, 9, s)):
        assert draw(shape).shape == np.zeros(shape).shape
    assert Generator(2).normal(3).tolist() == Generator(2).normal(4).tolist()[:3]


@pytest.mark.parametrize(("low", "high"), [(0, 10), (-5, 3), (2**40, 2**40 + 7), (3, 4)])
def test_integers(low: int, high: int) -> None:
    drawn = Generator(3).integers(low, high, 20000)
    assert drawn.dtype == np.int64
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == list(range(low, high))
    expected = 20000 / (high - low)
    assert ((counts - expected) ** 2 / expected).sum() < 40  # chi-squared with at most nine degrees of freedom


def test_integers_over_the_range_of_a_word() -> None:
    g = Generator(4)
    low = -(2**31)
    drawn = g.integers(low, low + 2**32, 5000, step=0)
    np.testing.assert_array_equal(drawn, g.bits(5000, stream=Stream.DATA, step=0).astype(np.int64) + low)
    assert ExtremeGenerator().integers(0, 2**32, 2).tolist() == [0, 2**32 - 1]
    assert ExtremeGenerator().integers(-4, 3, 2).tolist() == [-4, 2]


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 2), (0, 2**32 + 1)])
def test_bad_ranges_of_integers_raise(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=rf"integers: \[{low}, {high}\) is empty or wider than 2\*\*32"):
        Generator().integers(low, high, 3)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation(n: int) -> None:
    order = Generator(5).permutation(n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_all_permutations_are_equally_likely() -> None:
    g = Generator(6)
    counts = np.unique([g.permutation(3) @ [9, 3, 1] for _ in range(3000)], return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 20  # five degrees of freedom


# --- seeds and state ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", None, True, np.float64(3), np.bool_(True)])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^seed: .* is not an integer from 0 to 2\*\*64 - 1$"):
        Generator(seed)
    before = tg.random.default_generator.state_dict()
    with pytest.raises(ValueError, match="^seed:"):
        tg.manual_seed(seed)
    assert tg.random.default_generator.state_dict() == before


def test_manual_seed_resets_all_streams() -> None:
    assert tg.manual_seed(9) is tg.random.default_generator
    x = tg.normal(5).numpy()
    mask = tg.dropout(tg.ones(100)).numpy()
    tg.manual_seed(np.int64(9))
    np.testing.assert_array_equal(tg.normal(5).numpy(), x)
    np.testing.assert_array_equal(tg.dropout(tg.ones(100)).numpy(), mask)


def test_the_state_survives_json() -> None:
    g = Generator(2**64 - 1)
    for stream in (Stream.INIT, Stream.DATA, Stream.DATA, Stream.SAMPLING):
        g.normal(3, stream=stream)
    text = json.dumps(g.state_dict())
    expected = [g.uniform(4, stream=stream).tolist() for stream in Stream]
    resumed = Generator(0)
    resumed.load_state_dict(json.loads(text))
    assert resumed.seed == 2**64 - 1
    assert [resumed.uniform(4, stream=stream).tolist() for stream in Stream] == expected
    assert json.loads(text) == {"seed": 2**64 - 1, "steps": {"init": 1, "dropout": 0, "data": 2, "sampling": 1}}


STEPS = {"init": 1, "dropout": 2, "data": 3, "sampling": 4}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "do not name the streams init, dropout, data, sampling"),
        ({"seed": 1, "steps": {"init": 1}}, "do not name the streams"),
        ({"seed": 1, "steps": [1, 2, 3, 4]}, "do not name the streams"),
        ({"seed": 1, "steps": {**STEPS, "more": 1}}, "do not name the streams"),
        ({"seed": 1, "steps": {**STEPS, "data": -1}}, "are not counts"),
        ({"seed": 1, "steps": {**STEPS, "data": 1.0}}, "are not counts"),
        ({"seed": 1, "steps": {**STEPS, "data": True}}, "are not counts"),
        ({"steps": STEPS}, "seed: None is not an integer"),
        ({"seed": "1", "steps": STEPS}, "seed: '1' is not an integer"),
    ],
)
def test_bad_states_change_nothing(state: Any, message: str) -> None:
    g = Generator(5)
    g.bits(1)
    before = g.state_dict()
    with pytest.raises(ValueError, match=message):
        g.load_state_dict(state)
    assert g.state_dict() == before


@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_a_generator_draws_arrays_of_no_dimension_too(draw: str) -> None:
    number = getattr(tg.Generator(1), draw)((), dtype=np.float64)
    assert type(number) is np.ndarray and number.shape == () and number.dtype == np.float64
    assert type(tg.Generator(1).integers(0, 9, ())) is np.ndarray
