"""`python -m gpt data prepare`: the shards are the same for any number of workers and interruptions."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.cli import run as run_program
from gpt.config import UserError
from gpt.data import documents as documents_module
from gpt.data import prepare as prepare_module
from gpt.data.__main__ import main as prepare_main
from gpt.data.corpora import decode_text
from gpt.data.documents import Place, Source, load_text, pieces
from gpt.data.prepare import Preparation, prepare
from gpt.data.shards import load_prepared
from gpt.tokenizer import BPETokenizer, CharTokenizer
from gpt.tokenizer.patterns import END_OF_TEXT, GPT2_PATTERN, GPT4_PATTERN
from gpt.train.build import open_data, with_prepared_settings
from gpt.train.config import TrainConfig
from tests.processes import HANG_S, finish, wait_until

ROOT = Path(__file__).parents[3]
POEM = "The sea, the sea!\nGrey at dawn,\n\n  and 1234 gulls.\r\nThey're gone\tnow.\n"


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_files(files: dict[str, Any]) -> None:
    """Write texts, bytes, and lists of records as JSON lines; names that end in .gz are compressed."""
    for name, content in files.items():
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        data = content.encode() if isinstance(content, str) else content
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def prepare_and_read(*sources: str, out: str = "out", workers: int = 1, **options: Any) -> Any:
    """Prepare the sources and return the manifest and the text of both splits, with separators shown as |."""
    manifest = prepare(Preparation(sources, out, **{"tokenizer": "bpe", "vocab_size": 270, **options}), workers=workers)
    data = load_prepared(out, hashes=True)
    texts = [data.tokenizer.decode(split.read(0, len(split))) for split in (data.train, data.val)]
    return manifest, *(text.replace(END_OF_TEXT, "|") for text in texts)


# --------------------------------------------------------------------------------------------------
# Sources and documents


def test_sources_may_be_folders_patterns_json_lines_and_gzip_files() -> None:
    write_files({
        "books/a.txt": "one", "books/deep/b.md.gz": "two", "books/c.html": "not taken", "books/d.txt.gz": "three",
        "lines/1.jsonl": [{"text": "four", "n": 1}, {"text": ""}, {"text": "five"}],
        "lines/2.jsonl.gz": [{"text": "six"}],
    })  # fmt: skip
    manifest, train, val = prepare_and_read("books", "lines/*", val_fraction=0.0)
    assert train == "one|three|two|four|five|six"
    assert val == ""
    assert [source["name"] for source in manifest["plan"]["sources"]] == [
        "books/a.txt", "books/d.txt.gz", "books/deep/b.md.gz", "lines/1.jsonl", "lines/2.jsonl.gz"
    ]  # fmt: skip
    assert manifest["empty_documents"] == 1
    assert manifest["splits"]["train"] == {
        "shards": manifest["splits"]["train"]["shards"],
        "tokens": len(load_prepared("out").train), "documents": 6, "bytes": len("onethreetwofourfivesix"),
    }  # fmt: skip


def test_a_named_corpus_equals_the_result_of_load_text() -> None:
    _, train, val = prepare_and_read("python-docs")
    assert train + val == load_text("python-docs")
    assert abs(len(val) / len(train + val) - 0.1) < 0.02  # split at a line end between two lines that are not indented


def test_line_endings_and_byte_order_marks_are_read_as_by_load_text() -> None:
    write_files(
        {
            "a.txt": b"\xef\xbb\xbfone\r\ntwo\rthree\n",
            "b.jsonl": b'\xef\xbb\xbf{"text": "x\\r\\ny"}\r\n\r\n{"text": "z"}',
        }
    )
    _, train, _ = prepare_and_read("a.txt", "b.jsonl", val_fraction=0.0)
    assert train == load_text("a.txt") + "|x\ny|z"


def test_empty_documents_are_skipped_and_counted() -> None:
    write_files({"a.txt": "", "b.txt": "text", "c.txt": b"\xef\xbb\xbf", "d.txt": "more"})
    manifest, train, _ = prepare_and_read("*.txt", val_fraction=0.0)
    assert train == "text|more"
    assert manifest["empty_documents"] == 2
    with pytest.raises(UserError, match="^data 'a.txt': all 1 are empty: give sources with text$"):
        prepare_and_read("a.txt", out="other")


def test_documents_are_separated_by_a_newline_without_an_end_of_text_token() -> None:
    write_files({"a.txt": "abc", "b.txt": "cd"})
    manifest, train, _ = prepare_and_read("a.txt", "b.txt", tokenizer="char", vocab_size=None, val_fraction=0.0)
    assert train == "abc\ncd" == load_text("*.txt")
    assert manifest["tokenizer"]["learnt_from"] == "all 5 bytes"
    assert load_prepared("out").tokenizer.to_dict() == CharTokenizer.train("abc\ncd").to_dict()


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a.txt": b"ab\xffcd"}, {}, "data 'a.txt' is not UTF-8: byte 0xff at offset 2; .*--encoding-errors"),
        ({"a.txt.gz": b"line\n" * 50 + b"\xff"}, {}, "data 'a.txt.gz' is not UTF-8: byte 0xff at offset 250;"),
        ({"a.txt": "nul\0"}, {}, "data 'a.txt' is not text: NUL byte at offset 3"),
        ({"a.jsonl": '{"text": "x"}\n{"body": "y"}\n'}, {}, "a.jsonl', line 2: no field 'text'; it has body: choose"),
        ({"a.jsonl": '{"text": "x"}\n\n{"text": 5}\n'}, {}, "line 3: field 'text' is a int, not text"),
        ({"a.jsonl": '{"text": "x"}\n["y"]\n'}, {}, "line 2: a JSON list, not an object with a field 'text'"),
        ({"a.jsonl": '{"text": "x"}\n{"text": \n'}, {}, r"data 'a.jsonl', line 2: not JSON"),
        ({"a.jsonl": "[" * 100_000}, {}, r"data 'a.jsonl', line 1: not JSON"),
        ({"a.jsonl": '{"text": "\\ud800"}\n'}, {}, "line 1: field 'text' has an unpaired UTF-16 surrogate"),
        ({"a.txt": "x", "t/tokenizer.json": "{"}, {"tokenizer": "t", "vocab_size": None}, "t/tokenizer.json: not JSON"),
        ({"a.txt": "x"}, {"tokenizer": "none", "vocab_size": None}, "unknown tokenizer 'none' .char, bpe, gpt2, or"),
        ({"a.txt": "x"}, {"vocab_size": 3}, "tokenizer bpe: vocab_size 3 is too small"),
        ({"a.txt": "x"}, {"tokenizer": "char"}, "vocab_size 270 is for tokenizer bpe, not char"),
        ({"a.txt": "x"}, {"val_fraction": 1.5}, "val_fraction 1.5 is not between 0 and 1"),
        ({"a.txt": "x"}, {"shard_tokens": 0}, "shard_tokens must be at least 1, not 0"),
        ({"a.html": "x"}, {}, r"data '\*' "),
    ],
)  # fmt: skip
def test_the_error_names_the_bad_source_or_option(files: dict[str, Any], options: Any, message: str) -> None:
    write_files(files)
    names = [name for name in files if not name.startswith("t/") and not name.endswith("html")] or ["*.txt"]
    with pytest.raises(UserError, match=message.replace(r"'\*' ", "") if names == ["*.txt"] else message):
        prepare_and_read(*names, piece_bytes=64, **options)


def test_an_invalid_or_truncated_gzip_file_is_refused() -> None:
    Path("a.txt.gz").write_bytes(b"plain")
    Path("b.txt.gz").write_bytes(gzip.compress(os.urandom(500).hex().encode())[:-20])
    for name in ("a.txt.gz", "b.txt.gz"):
        with pytest.raises(UserError, match=f"^data '{name}' is not a complete gzip file: "):
            prepare_and_read(name)


def test_a_source_given_twice_is_refused() -> None:
    write_files({"a/b.txt": "x"})
    with pytest.raises(UserError, match="^data 'a/b.txt' is given twice: two of the sources include it$"):
        prepare_and_read("a", "a/*.txt")
    Path("link.txt").symlink_to("a/b.txt")
    for other in (str(Path("a/b.txt").absolute()), "link.txt"):
        with pytest.raises(UserError, match=f"^data '{other}' is given twice, also as 'a/b.txt': two of the sources"):
            prepare_and_read("a", other)


def test_a_path_to_a_file_with_the_name_of_a_corpus_reads_the_file() -> None:
    write_files({"kjv": "mine"})
    assert prepare_and_read("./kjv", val_fraction=0.0)[1] == "mine"


def test_suffixes_are_recognized_in_any_case() -> None:
    write_files({"A.JSONL": [{"text": "one"}, {"text": "two"}]})
    Path("B.TXT.GZ").write_bytes(gzip.compress(b"three"))
    assert prepare_and_read(".", val_fraction=0.0)[1] == "one|two|three"


@pytest.mark.parametrize(("errors", "expected"), [("replace", "a\ufffdb|x\ufffdy"), ("ignore", "ab|xy")])
def test_encoding_errors_are_replaced_or_ignored_on_request(errors: str, expected: str) -> None:
    write_files({"a.txt": b"a\xffb", "b.jsonl": '{"text": "x\\udc00y"}\n'})
    assert prepare_and_read("a.txt", "b.jsonl", encoding_errors=errors, val_fraction=0.0)[1] == expected


# --------------------------------------------------------------------------------------------------
# Pieces: their tokens together equal the tokens of the whole text

CHARACTERS = st.sampled_from(
    ["a", "B", "é", "\n", "\n", " ", "7", ".", "'s", "\r\n", "\t", "\u3000", "\u00a0", "字", "\u0085", "🎈"]
)


TEXTS = st.lists(CHARACTERS, max_size=300).map("".join)


@settings(max_examples=60)
@given(
    TEXTS.filter(len),
    st.integers(1, 60),
    st.sampled_from([GPT2_PATTERN, GPT4_PATTERN]),
)
def test_the_tokens_of_the_pieces_equal_those_of_the_whole_text(text: str, piece_bytes: int, pattern: str) -> None:
    Path("t.txt").write_bytes(text.encode())
    whole = load_text("t.txt")
    tokenizer = BPETokenizer.train(POEM * 3 + "\n\n..\n's é字\n", 300, pattern)
    source = Source("t.txt", len(text.encode()), "")
    cut = [piece.data for piece in pieces([source], piece_bytes=piece_bytes)]
    assert b"".join(cut) == text.encode()
    cuts = [(decode_text(a, "t"), b.decode()) for a, b in pairwise(cut)]
    if all(
        a.endswith("\n") and a[-2:-1].strip() and b[0].strip() for a, b in cuts
    ):  # every boundary is between two lines; text without such a place is divided elsewhere
        found = [i for piece in cut for i in tokenizer.encode(decode_text(piece, "t"))]
        assert found == tokenizer.encode(text.replace("\r\n", "\n").replace("\r", "\n"))
    assert whole


@settings(max_examples=60)
@given(TEXTS, st.integers(1, 40), st.integers(4, 20))
def test_pieces_end_between_characters_even_without_line_ends(text: str, piece_bytes: int, lookahead: int) -> None:
    data = text.replace("\n", "").replace("\r", "").encode()
    Path("t.txt").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "LOOKAHEAD", lookahead)
        cut = list(pieces([Source("t.txt", len(data), "")], piece_bytes=piece_bytes))
    assert b"".join(piece.data for piece in cut) == data
    for piece in cut:
        piece.data.decode()
    for earlier, later in zip(cut, cut[1:], strict=False):
        assert earlier.after == later.place
    assert cut[-1].after == Place(1)


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz", "t.jsonl"])
def test_iteration_can_start_at_any_piece(name: str) -> None:
    text = "".join(json.dumps({"text": f"{i} {POEM}"}) + "\n" for i in range(20)) if "json" in name else POEM * 20
    write_files({name: text})
    sources = [Source(name, len(text.encode()), ""), Source(name, len(text.encode()), "")]
    whole = list(pieces(sources, val_from=1500, piece_bytes=200))
    assert {piece.is_val for piece in whole} == {False, True}
    for i in range(len(whole)):
        assert list(pieces(sources, whole[i].place, val_from=1500, piece_bytes=200)) == whole[i:]


def test_a_source_that_changes_while_it_is_read_is_refused() -> None:
    write_files({"a.txt": "abc"})
    with pytest.raises(UserError, match="^data 'a.txt' changed while it was read: 3 bytes instead of 7$"):
        list(pieces([Source("a.txt", 7, "")]))


# --------------------------------------------------------------------------------------------------
# The split


def test_the_validation_split_is_the_end_of_the_text_from_a_line_start() -> None:
    text = "".join(f"line number {i}\n" for i in range(1000))
    write_files({"a.txt": text})
    manifest, train, val = prepare_and_read("a.txt", val_fraction=0.25)
    assert train + val == text
    assert train.endswith("\n") and 0 <= len(train) - 0.75 * len(text) < 20
    assert (manifest["splits"]["train"]["documents"], manifest["splits"]["val"]["documents"]) == (1, 0)
    assert (
        manifest["split"]
        == "the first part of all the text is for training, the rest for validation; 0.25 for validation"
    )


def test_a_split_by_document_never_divides_a_document() -> None:
    records = [{"text": f"document {i}"} for i in range(2000)]
    write_files({"a.jsonl": records})
    _, train, val = prepare_and_read("a.jsonl", split_by="document", val_fraction=0.2, piece_bytes=500)
    parts = [set(text.split("|")) for text in (train, val)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {record["text"] for record in records}
    assert 300 < len(parts[1]) < 500  # 400 of 2000, and 18 is one standard deviation
    _, other, _ = prepare_and_read("a.jsonl", out="other", split_by="document", val_fraction=0.2, seed=1)
    assert other != train


def test_a_document_of_several_pieces_stays_in_one_split() -> None:
    write_files({f"{i}.txt": f"{i} {POEM}" * 20 for i in range(10)})
    _, train, val = prepare_and_read("*.txt", split_by="document", val_fraction=0.5, piece_bytes=100)
    found = sorted(train.split("|") + val.split("|"))
    assert found == [load_text(f"{i}.txt") for i in range(10)]


# --------------------------------------------------------------------------------------------------
# The result does not depend on the number of workers or interruptions


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_corpus() -> None:
    rng = random.Random(0)
    words = [bytes(rng.choices(range(97, 123), k=rng.randint(1, 9))).decode() for _ in range(500)]

    def text(n: int) -> str:
        return "".join(rng.choice(words) + rng.choice([" ", " ", "\n", ". "]) for _ in range(n))

    write_files(
        {
            "a.txt": text(20_000),
            "b.jsonl.gz": [{"text": text(rng.randint(0, 60))} for _ in range(2000)],
            "c.txt": text(3),
        }
    )


SPECIAL = f"to be{END_OF_TEXT}or not to be\n" * 20


@pytest.mark.parametrize("allow", [False, True])
def test_end_of_text_in_a_text_is_the_token_only_where_asked(allow: bool) -> None:
    write_files({"a.txt": SPECIAL})
    manifest, train, _ = prepare_and_read("a.txt", val_fraction=0.0, allow_special=allow, vocab_size=270)
    data = load_prepared("out")
    assert (data.train.read(0, len(data.train)) == data.tokenizer.eot).sum() == (20 if allow else 0)
    assert train == SPECIAL.replace(END_OF_TEXT, "|")
    assert ("allow_special" in manifest["plan"]) == allow  # as in earlier plans
    config = TrainConfig(data="a.txt", tokenizer="bpe", vocab_size=270, block_size=4, allow_special=allow)
    tokenizer, loader, _ = open_data(config)
    assert (loader.tokens == tokenizer.eot).sum() == (18 if allow else 0)
    assert with_prepared_settings(TrainConfig(data="out"), {}).allow_special == allow
    if allow:
        assert tokenizer.to_dict() == data.tokenizer.to_dict()


def test_tokens_that_a_tokenizer_does_not_have_are_not_allowed() -> None:
    write_files({"a.txt": SPECIAL})
    with pytest.raises(UserError, match="allow_special is for tokenizers with <|endoftext|>"):
        prepare_and_read("a.txt", tokenizer="char", vocab_size=None, allow_special=True)
    with pytest.raises(UserError, match="allow_special is for tokenizers bpe and gpt2: char has no"):
        open_data(TrainConfig(data="a.txt", tokenizer="char", allow_special=True))


SCRIPT = """
from gpt.data.prepare import Preparation, prepare
print("begins")
{guard}prepare(Preparation(["a.txt"], "out", tokenizer="char", piece_bytes=64), workers=2)
"""


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__': "])
def test_the_error_for_a_script_without_a_main_guard_says_so(guard: str) -> None:
    write_files({"a.txt": "to be or not to be\n" * 20})
    Path("script.py").write_text(SCRIPT.format(guard=guard))
    command = [sys.executable, "script.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    if guard:
        assert (result.returncode, result.stderr) == (0, "")
        return
    line = 'needs the line `if __name__ == "__main__":` above the call, or workers=1'
    assert result.stderr.count("Traceback") <= 2 and "memory" not in result.stderr  # of the pool, and the error
    assert result.stderr.splitlines()[-1].endswith(f"no worker process could start: a script that prepares data {line}")


def test_the_result_does_not_depend_on_the_number_of_workers() -> None:
    write_corpus()
    options: Any = {"piece_bytes": 10_000, "shard_tokens": 20_000}
    prepare_and_read("a.txt", "b.jsonl.gz", "c.txt", out="one", **options)
    prepare_and_read("a.txt", "b.jsonl.gz", "c.txt", out="three", workers=3, **options)
    assert contents("one") == contents("three")
    assert len(contents("one")) > 6


# Each attempt is a forked process that kills itself just before the n-th call that may change a file, counted from
# the first file that it has moved to its final name. Nothing depends on the clock.
KILLED_REPEATEDLY = """
import os, random, signal, sys
from gpt.data import prepare
prepare.SAVE_BYTES = 30_000
asked = prepare.Preparation(
    ["a.txt", "b.jsonl.gz", "c.txt"], "out", "bpe", 270, piece_bytes=10_000, shard_tokens=20_000
)
rng = random.Random(1)
begun = False

def count_calls(frame, event, function):
    global begun, left
    if event == "c_call" and (function.__module__ == "posix" or "BufferedWriter" in function.__qualname__):
        begun = begun or function.__name__ == "replace"
        left -= begun
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

for kills in range(100):
    left = rng.randint(1, 160)
    pid = os.fork()
    if not pid:
        sys.setprofile(count_calls)
        prepare.prepare(asked)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not status:
        print(kills)
        break
    assert status == -signal.SIGKILL, status
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}  # no threads: a fork does not copy them
    return subprocess.Popen([sys.executable, *arguments], env=env, stdout=-1, stderr=-1, text=True)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    process = start(*arguments)
    stdout, stderr = finish(process)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_any_moment_continues_to_the_same_result() -> None:
    write_corpus()
    prepare_and_read("a.txt", "b.jsonl.gz", "c.txt", out="whole", piece_bytes=10_000, shard_tokens=20_000)
    done = run("-c", KILLED_REPEATEDLY)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 5
    assert contents("out") == contents("whole")


def test_interrupts_neither_lose_nor_duplicate_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before and after any write, also when a piece has been written to only one of the two splits."""
    write_corpus()
    options: Any = {"piece_bytes": 10_000, "shard_tokens": 20_000, "split_by": "document", "val_fraction": 0.4}
    sources = ("a.txt", "b.jsonl.gz", "c.txt")
    prepare_and_read(*sources, out="whole", **options)
    writer, append = prepare_module.ShardWriter, prepare_module.ShardWriter.append
    rng = random.Random(2)

    def interrupted(self: Any, tokens: bytes) -> None:
        if rng.random() < 0.05:
            raise KeyboardInterrupt
        append(self, tokens)
        if rng.random() < 0.05:
            raise KeyboardInterrupt

    monkeypatch.setattr(writer, "append", interrupted)
    interrupts = 0
    while True:
        try:
            prepare_and_read(*sources, **options)
            break
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts >= 3
    assert contents("out") == contents("whole")


def test_a_finished_preparation_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    write_files({"a.txt": POEM})
    first, *_ = prepare_and_read("a.txt")
    before = contents("out")
    monkeypatch.setattr(prepare_module, "ordered_map", None)
    assert prepare_and_read("a.txt")[0] == first
    assert contents("out") == before
    with pytest.raises(UserError, match="^out out was started with field text, not body: give that, or a new --out$"):
        prepare_and_read("a.txt", field="body")
    write_files({"a.txt": POEM * 2})
    with pytest.raises(UserError, match="^out out was started with other sources: a.txt is new or has changed;"):
        prepare_and_read("a.txt")


def test_a_failed_first_attempt_does_not_block_the_next_one() -> None:
    write_files({"a.jsonl": [{"text": "one"}, {"text": "two"}]})
    with pytest.raises(UserError, match="no field 'body'"):
        prepare_and_read("a.jsonl", tokenizer="gpt2", vocab_size=None, field="body")
    assert prepare_and_read("a.jsonl", val_fraction=0.0)[1] == "one|two"


def test_an_attempt_that_fails_before_its_first_file_or_finds_no_text_leaves_no_folder() -> None:
    write_files({"a.txt": POEM, "broken.json": "{", "empty/ours": ""})
    Path("empty/ours").unlink()
    for out in ("out", "new/deep/out", "empty"):
        with pytest.raises(UserError, match="not JSON"):
            prepare(Preparation(["a.txt"], out, tokenizer="broken.json"))
    write_files({"none.jsonl": [{"text": ""}]})
    with pytest.raises(UserError, match="all 1 documents are empty"):
        prepare(Preparation(["none.jsonl"], "out", tokenizer="char"))
    assert sorted(path.name for path in Path().iterdir()) == ["a.txt", "broken.json", "empty", "none.jsonl"]


def test_a_used_out_folder_and_a_damaged_progress_file_are_refused() -> None:
    write_files({"a.txt": POEM * 50, "full/thesis.doc": "x", "file": "x"})
    with pytest.raises(UserError, match="^out full has thesis.doc in it: give a new --out, or an empty folder$"):
        prepare_and_read("a.txt", out="full")
    with pytest.raises(UserError, match="^out file is a file; prepared data needs a folder$"):
        prepare_and_read("a.txt", out="file")
    for damage in ("{", "[]", '{"format": 3}', "[" * 99_999):
        write_files({"out/progress.json": damage})
        with pytest.raises(UserError, match="^out/progress.json: damaged: delete the folder and start again$"):
            prepare_and_read("a.txt")


def test_a_shard_deleted_between_two_attempts_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus()
    monkeypatch.setattr(prepare_module, "SAVE_BYTES", 1)
    append = prepare_module.ShardWriter.append

    def interrupt_at_the_third_shard(self: Any, tokens: bytes) -> None:
        append(self, tokens)
        if len(self.shards) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module.ShardWriter, "append", interrupt_at_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        prepare_and_read("a.txt", piece_bytes=5000, shard_tokens=5000)
    Path("out/train-00000.bin").unlink()
    with pytest.raises(UserError, match="^out/train-00000.bin: damaged: 0 bytes instead of 10000; delete"):
        prepare_and_read("a.txt", piece_bytes=5000, shard_tokens=5000)


def test_byte_pair_encoding_is_trained_on_a_bounded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus()
    monkeypatch.setattr(prepare_module, "SAMPLE_BYTES", 30_000)
    manifest, train, val = prepare_and_read("a.txt", piece_bytes=5000)
    size = Path("a.txt").stat().st_size
    assert train + val == load_text("a.txt")
    n_sampled = int(manifest["tokenizer"]["learnt_from"].split()[0].replace(",", ""))
    assert manifest["tokenizer"]["learnt_from"] == f"{n_sampled:,} of {size:,} bytes, spread evenly"
    assert 20_000 < n_sampled < 40_000 < size


def test_large_vocabularies_are_stored_as_uint32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BPETokenizer, "vocab_size", 70_000)
    write_files({"a.txt": POEM})
    manifest = prepare(Preparation(["a.txt"], "out", "bpe", 257, val_fraction=0.0))
    assert manifest["dtype"] == "uint32"
    shard = np.fromfile("out/train-00000.bin", "<u4")
    assert bytes(shard.astype(np.uint8)).decode() == load_text("a.txt")


# --------------------------------------------------------------------------------------------------
# The command


def lines_with(start: str, text: str) -> Iterable[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_the_prepare_and_verify_commands_work() -> None:
    write_corpus()
    flags = ["a.txt", "b.jsonl.gz", "--out=out", "--tokenizer", "bpe", "--vocab_size=300", "--workers=2"]
    done = run("-m", "gpt.data", "prepare", *flags)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert lines_with("Prepared in ", done.stdout)[0].endswith("To train on it: python train.py --data out")
    assert lines_with("train ", done.stdout)[0].endswith("1 shard of uint16")
    verified = run("-m", "gpt.data", "verify", "out")
    assert verified.returncode == 0
    assert verified.stdout.endswith("Every file is unchanged.\n")
    data = bytearray(Path("out/val-00000.bin").read_bytes())
    data[100] ^= 1
    Path("out/val-00000.bin").write_bytes(data)
    refused = run("-m", "gpt.data", "verify", "out")
    damage = "out/val-00000.bin: damaged: its contents differ from those recorded in manifest.json"
    assert (refused.returncode, refused.stderr) == (2, f"python -m gpt data: error: {damage}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prepare a.txt", "the following arguments are required: --out"),
        ("prepare a.txt --out=x --workers=0", "workers must be at least 1 and at most 512, not 0"),
        (f"prepare a.txt --out=x --workers={10**20}", "workers must be at least 1 and at most 512, not 1000"),
        ("prepare nothing --out=x", "data 'nothing': no such file, folder or corpus"),
        ("repair", "unknown command 'repair': prepare or verify"),
    ],
)
def test_bad_flags_are_reported_in_one_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpt.data", *arguments.split()])
    with pytest.raises(SystemExit, match="^2$"):
        sys.exit(run_program(prepare_main, prog="python -m gpt data"))
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not Path("x").exists()


# The command with small pieces; with the argument "wait", it pauses in the third piece until a signal arrives.
WAITING_IN_THE_THIRD_PIECE = """
import functools, runpy, sys, time
from pathlib import Path
from gpt.data import prepare

def add_and_wait(output, encoded):
    add(output, encoded)
    if encoded.after.offset > 25_000 and wait == "wait":
        Path("reached").touch()
        time.sleep(1000)

if __name__ == "__main__":
    wait = sys.argv.pop(1)
    add, prepare._Output.add = prepare._Output.add, add_and_wait
    prepare.Preparation = functools.partial(prepare.Preparation, piece_bytes=10_000)
    runpy.run_module("gpt.data", run_name="__main__")
"""


def test_ctrl_c_reports_how_to_continue_and_leaves_no_process() -> None:
    write_corpus()
    command = ["-c", WAITING_IN_THE_THIRD_PIECE]
    flags = ["prepare", "a.txt", "--out=out", "--tokenizer=bpe", "--vocab-size=300", "--workers=2"]
    process = start(*command, "wait", *flags)
    wait_until(Path("reached").exists, process)
    process.send_signal(signal.SIGINT)
    _, stderr = finish(process)  # ends only when every process that holds stderr has ended
    assert process.returncode == 130, stderr
    assert stderr.strip() == "Stopped. What is done is kept in out: the same command continues."
    assert json.loads(Path("out/progress.json").read_bytes())["place"]["offset"] > 25_000
    assert run(*command, "go on", *flags).returncode == 0
    data = load_prepared("out", hashes=True)
    text = "".join(data.tokenizer.decode(split.read(0, len(split))) for split in (data.train, data.val))
    assert text == load_text("a.txt")
