"""Shards of prepared data: read like one array, checked against the manifest, and refused if they change."""

import json
import os
import random
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.config import UserError
from gpt.data.loaders import DataLoader, windows
from gpt.data.prepare import Preparation, prepare
from gpt.data.shards import Shard, ShardedTokens, is_prepared, load_prepared

TEXT = "".join(f"{i} is the square root of {i * i}.\n" for i in range(400))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.txt").write_text(TEXT)
    prepare(Preparation([str(folder / "text.txt")], str(folder / "data"), "bpe", 300, shard_tokens=1000))
    return folder / "data"


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(original, tmp_path / "data")
    return tmp_path / "data"


def sharded(folder: Path, tokens: Any, sizes: list[int], dtype: str = "<u2") -> ShardedTokens:
    shards = []
    for i, part in enumerate(np.split(np.asarray(tokens, dtype), np.cumsum(sizes)[:-1])):
        path = folder / f"train-{i:05d}.bin"
        path.write_bytes(part.tobytes())
        shards.append(Shard(path, np.dtype(dtype), len(part), ""))
    return ShardedTokens(shards, np.dtype(dtype), 1 << 16)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.data())
def test_reads_across_shards_equal_reads_from_one_array(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: Any
) -> None:
    whole = np.random.default_rng(0).integers(0, 1 << 16, sum(sizes))
    tokens = sharded(tmp_path_factory.mktemp("shards"), whole, sizes, data.draw(st.sampled_from(["<u2", "<u4"])))
    assert len(tokens) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    np.testing.assert_array_equal(tokens.read(start, stop), whole[start:stop])
    length = data.draw(st.integers(1, len(whole)))
    starts = np.array(data.draw(st.lists(st.integers(0, len(whole) - length), max_size=5)), np.int64)
    rows = tokens.rows(starts, length)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, whole[starts[:, None] + np.arange(length)])


def test_a_loader_draws_the_same_windows_from_shards_and_from_an_array(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 1 << 16, 1000)
    loaders = [
        DataLoader(tokens, batch_size=4, block_size=16, seed=3)
        for tokens in (whole, sharded(tmp_path, whole, [300, 700]))
    ]
    for step in range(3):
        for ours, theirs in zip(*(loader.batch(step) for loader in loaders), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(*loaders, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_drawing_windows_does_not_load_the_whole_shard(tmp_path: Path) -> None:
    n = 8_000_000
    tokens = sharded(tmp_path, np.zeros(n), [n])
    rng = np.random.default_rng(0)
    tracemalloc.start()
    for _ in range(20):
        windows(tokens, rng.integers(0, n - 64, 12), 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # the shard has 16 MB


def test_prepared_data_is_recognised(data: Path) -> None:
    assert is_prepared(data)
    assert not is_prepared(data.parent)
    assert not is_prepared(data / "manifest.json")
    (data / "manifest.json").rename(data / "progress.json")
    assert is_prepared(data)
    with pytest.raises(UserError, match="is incomplete: run the same prepare command again to finish it$"):
        load_prepared(data)


# --------------------------------------------------------------------------------------------------
# Shards that change while they are in use


def change(path: Path, how: str) -> None:
    if how == "shrinks":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "grows":
        with path.open("ab") as file:
            file.write(b"\0\0")
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shrinks", "train-00001.bin: changed while it was in use: 1000 bytes instead of 2000"),
        ("grows", "train-00001.bin: changed while it was in use: 2002 bytes instead of 2000"),
        ("disappears", "train-00001.bin: deleted while it was in use"),
    ],
)
def test_a_shard_that_changes_while_in_use_is_refused(data: Path, how: str, message: str) -> None:
    tokens = load_prepared(data).train
    tokens.read(0, len(tokens))
    change(data / "train-00001.bin", how)
    tokens.read(0, 1000)  # another shard
    with pytest.raises(UserError, match=f"{message}$"):
        tokens.rows(np.array([1500]), 10)


def test_a_shard_that_is_deleted_before_its_first_read_is_reported(data: Path) -> None:
    tokens = load_prepared(data).train
    (data / "train-00001.bin").unlink()
    with pytest.raises(UserError, match="train-00001.bin: cannot be read: No such file or directory$"):
        tokens.read(1500, 1510)


def test_a_token_outside_the_vocabulary_is_refused(data: Path) -> None:
    with (data / "train-00000.bin").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\xff")
    tokens = load_prepared(data).train
    tokens.read(0, 100)
    with pytest.raises(UserError, match="train-00000.bin: damaged: token 65535 in a vocabulary of 300$"):
        tokens.read(90, 110)


# --------------------------------------------------------------------------------------------------
# Damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "manifest.json: not the manifest of prepared data"),
        ({"version": 2}, "manifest.json: version 2, but this program reads 1"),
        ({"dtype": "float64"}, "manifest.json: damaged: no entry 'float64'"),
        ({"dtype": ["uint16"]}, "manifest.json: unhashable type: 'list'"),
        ({"vocab_size": 299}, "manifest.json: vocab_size 299, but the tokenizer has 300"),
        ({"tokenizer": None}, "manifest.json: 'NoneType' object is not subscriptable"),
        ({"splits": {}}, "manifest.json: damaged: no entry 'train'"),
    ],
)
def test_an_invalid_manifest_is_refused(data: Path, change: dict[str, Any], message: str) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=f"^{data}/{message}"):
        load_prepared(data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("file", "../../../etc/passwd", "'../../../etc/passwd' is not the name of a shard"),
        ("file", "val-00000.bin", "'val-00000.bin' is not the name of a shard"),
        ("file", "train-00001.bin", "a shard of train is listed twice"),
        ("file", 5, "expected string"),
        ("tokens", -1000, "-1000 is not a count"),
        ("tokens", 1e3, "1000.0 is not a count"),
        ("tokens", 2**60, "1152921504606846976 is not a count"),
        ("tokens", 999, "train-00000.bin: damaged: 2000 bytes instead of 1998"),
        ("sha256", "0", "'0' is not a sha256"),
    ],
)
def test_an_invalid_shard_entry_in_the_manifest_is_refused(data: Path, key: str, value: Any, message: str) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0][key] = value
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        load_prepared(data)


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_folder_without_prepared_data_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name} is not a folder of prepared data: .* data prepare writes one$"):
        load_prepared(str(tmp_path / name))


def damaged(path: Path, rng: random.Random) -> None:
    """Flip bytes of the file, truncate, empty or delete it, change its digits, or replace it with another file."""
    how = rng.choice(["flip", "flip", "flip", "cut", "empty", "delete", "swap", "digits"])
    content = bytearray(path.read_bytes())
    if how == "flip":
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] ^= rng.randint(1, 255)
    elif how == "cut":
        del content[rng.randrange(len(content)) :]
    elif how == "empty":
        content.clear()
    elif how == "digits":  # in a manifest: other numbers, and still JSON
        places = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
        content[rng.choice(places or [0])] = ord(str(rng.randint(0, 9)))
    elif how == "swap":
        other = rng.choice([p for p in path.parent.iterdir() if p != path])
        content = bytearray(other.read_bytes())
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(content)


def test_the_error_for_any_damage_names_the_file(original: Path, tmp_path: Path) -> None:
    """With hashes all damage is detected; without them every token that is read is at least in the vocabulary."""
    whole = {path.name: path.read_bytes() for path in original.iterdir()}
    tokens = load_prepared(original)
    expected = [split.read(0, len(split)).tolist() for split in (tokens.train, tokens.val)]
    rng = random.Random(0)
    refused = 0
    for number in range(300):
        folder = tmp_path / str(number)
        shutil.copytree(original, folder)
        path = folder / rng.choice(sorted(whole))
        damaged(path, rng)
        changed = not path.exists() or path.read_bytes() != whole[path.name]
        try:
            quick = load_prepared(folder)
            for split in (quick.train, quick.val):
                assert split.read(0, len(split)).max(initial=0) < 300
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
        try:
            found = load_prepared(folder, hashes=True)
        except UserError as error:
            assert changed
            assert str(folder) in str(error) and "\n" not in str(error)
            refused += 1
        else:  # only manifest entries that do not affect the tokens, such as source names, may have changed
            assert not changed or path.name == "manifest.json"
            assert [split.read(0, len(split)).tolist() for split in (found.train, found.val)] == expected
        shutil.rmtree(folder)
    assert refused > 200
