"""Rows of CSV, TSV and JSON, and what is said of files that are none."""

import json
from pathlib import Path

import pytest

from gpt.config import UserError
from gpt.finetune.tables import column, read_rows


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", '\ufefflabel,text\r\nx,"one, ""two""\nthree"\r\n\r\ny,é\r\n'),
        ("a.jsonl", '{"text": "one, \\"two\\"\\nthree", "label": "x"}\n\n{"text": "é", "label": "y"}\n'),
        ("a.json", '[{"text": "one, \\"two\\"\\nthree", "label": "x"}, {"text": "é", "label": "y"}]'),
    ],
)
def test_all_formats_give_the_same_rows(name: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, text)
    rows = read_rows(path)
    assert column(rows, "text", path, "--text-column") == ['one, "two"\nthree', "é"]
    assert column(rows, "label", path, "--label-column") == ["x", "y"]


def test_a_quotation_mark_in_tsv_is_a_character(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.tsv", 'label\ttext\nham\t"So it begins\nspam\twin "now"\n'))
    assert [row.fields["text"] for row in rows] == ['"So it begins', 'win "now"']


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_row_ends_at_a_line_feed_alone(name: str, tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0bfour\x0cfive"
    rows = {
        "a.csv": f"text,label\n{text},x\n", "a.tsv": f"text\tlabel\n{text}\tx\n",
        "a.jsonl": json.dumps({"text": text, "label": "x"}, ensure_ascii=False),
    }  # fmt: skip
    assert [row.fields for row in read_rows(write(tmp_path, name, rows[name]))] == [{"text": text, "label": "x"}]


def test_a_field_may_be_long(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.csv", f"text\n{'x' * 200_000}\n"))
    assert len(rows[0].fields["text"]) == 200_000


def test_numbers_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"stars": 5}\n{"stars": true}\n')
    assert column(read_rows(path), "stars", path, "--label-column") == ["5", "True"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "x", r"a file named \*.csv, \*.tsv, \*.jsonl, \*.json is needed"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "text\n", "has no rows"),
        ("a.csv", "text,label\na,b\nc\n", "line 3 has 1 fields, and the first line 2"),
        ("a.csv", "text,text\na,b\n", "two columns have the same name"),
        ("a.csv", 'text\na\n"b\nc\nd\n', "line 3: unexpected end of data"),
        ("a.csv", '"text\nb\n', "line 1: unexpected end of data"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not JSON: "),
        ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("a.json", '{"text": "a"}', "a list of objects is needed"),
        ("a.json", "[1]", "entry 1 is no JSON object"),
    ],
)
def test_what_is_no_table_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_rows(write(tmp_path, name, text))
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_missing_or_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a.csv cannot be read: No such file"):
        read_rows(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"text\n\xff\n")
    with pytest.raises(UserError, match="b.csv is not UTF-8 text: "):
        read_rows(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"texts": "a", "label": 1}', "line 1, has no such column; did you mean texts? (there are 'texts', 'label')"),
        ('{"text": "a"}\n{"text": " "}', "line 2: 'text' is empty: a text is needed"),
        ('{"text": null}', "line 1: 'text' is empty: a text is needed"),
        ('{"text": [1]}', "line 1: 'text' is [1]: a text is needed"),
    ],
)
def test_a_column_that_is_missing_or_empty_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", text)
    with pytest.raises(UserError) as raised:
        column(read_rows(path), "text", path, "--text-column")
    assert str(raised.value).endswith(message)
