"""Rows with named fields, from a file of CSV, TSV, JSON or JSON lines."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt.cli import user_errors
from gpt.config import UserError, nearest

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".json")


class Row(NamedTuple):
    """The fields of a row, and where it is in the file, for messages: "line 3", or "entry 3" of a list in JSON."""

    place: str
    fields: dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read all rows, at least one; UserError, naming file and line, for what is not in the format of its name."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"data {path}: a file named {', '.join(f'*{suffix}' for suffix in SUFFIXES)} is needed")
    try:
        with user_errors(UnicodeDecodeError, about=f"data {path} is not UTF-8 text"):
            text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"data {path} cannot be read: {error.strerror}") from error
    with user_errors(about=f"data {path}"):
        if delimiter := DELIMITERS.get(path.suffix.lower()):
            rows = list(_split_fields(text, delimiter))
        else:
            rows = list(_parse_json(text, lines=path.suffix.lower() == ".jsonl"))
    if not rows:
        raise UserError(f"data {path} has no rows")
    return rows


def require_for_rows(given: Mapping[str, Any]) -> None:
    """Raise UserError for a flag of train.py that changes nothing where the data are rows of a file."""
    for name in ("encoding_errors", "normalize_whitespace", "allow_special"):
        of_general_data = name == "encoding_errors" and given.get("general_data") is not None
        if not of_general_data and given.get(name, False) not in (False, "strict"):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is for a text to continue, not for rows of a file: leave it out")


def column(rows: Iterable[Row], name: str, path: Path, flag: str) -> list[str]:
    """Return a field of every row as text without spaces around it; UserError where it is missing, empty or no text.

    flag: where the name was given, for the message.
    """
    values = []
    for place, fields in rows:
        if name not in fields:
            known = list(fields)
            raise UserError(
                f"{flag} {name!r}: data {path}, {place}, has no such column{nearest(name, known)} "
                f"(there are {', '.join(map(repr, known))})"
            )
        value = fields[name]
        if not isinstance(value, str | int) or not str(value).strip():
            what = "is empty" if value is None or value == "" or isinstance(value, str) else f"is {value!r:.40}"
            raise UserError(f"data {path}, {place}: {name!r} {what}: a text is needed")
        values.append(str(value).strip())
    return values


def _split_fields(text: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a field may be a long text
    # In a TSV file a quotation mark is a character as any other, as in the corpora that have this format.
    lines = csv.reader(
        io.StringIO(text), delimiter=delimiter, strict=True,
        quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
    )  # fmt: skip
    begins = 1  # the line in which a row begins
    try:
        names = next(lines, [])
        if len(set(names)) != len(names):
            raise ValueError("two columns have the same name")
        begins = lines.line_num + 1
        for values in lines:
            if len(values) != len(names) and values:
                raise ValueError(f"line {lines.line_num} has {len(values)} fields, and the first line {len(names)}")
            if values:
                yield Row(f"line {lines.line_num}", dict(zip(names, values, strict=True)))
            begins = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {begins}: {error}") from error


def _parse_json(text: str, *, lines: bool) -> Iterator[Row]:
    if lines:
        entries = [(f"line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        parsed = ((place, _loads(line, place)) for place, line in entries)
    else:
        whole = _loads(text, "the file")
        if not isinstance(whole, list):
            raise ValueError("a list of objects is needed")
        parsed = ((f"entry {i}", entry) for i, entry in enumerate(whole, 1))
    for place, entry in parsed:
        if not isinstance(entry, dict):
            raise ValueError(f"{place} is no JSON object")
        yield Row(place, entry)


def _loads(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
