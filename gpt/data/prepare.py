"""`python -m gpt data prepare`: sources of any size to shards of tokens; an interrupted preparation resumes.

    read sources -> tokenizer -> pieces -> tokens (workers) -> shards, and every few pieces progress.json

progress.json records how much of the shards is complete; whatever was written after it is truncated and done again. So
an end at any moment, by Ctrl-C, SIGKILL or a full disk, costs a few seconds of work. The manifest is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt.config import BPE_VOCAB_SIZE, ENCODING_ERRORS, TOKENIZERS, UserError, nearest
from gpt.data.documents import FIELD, PIECE_BYTES, Place, Source, find_sources, inspect, pieces
from gpt.data.encoding import Encoded, Encoder, Settings, end_if_importing, ordered_map, separator_of
from gpt.data.shards import DTYPES, FORMAT, MANIFEST, PROGRESS, SPLITS, TOKENIZER, VERSION, dtype_name, read_manifest
from gpt.data.writing import ShardWriter
from gpt.files import FolderLock, sha256_of, write_json
from gpt.heartbeat import Heartbeat, progress_bar
from gpt.tokenizer import END_OF_TEXT, CharTokenizer, GPT2Tokenizer, Tokenizer, TokenizerError, load_tokenizer
from gpt.tokenizer.cache import train_bpe_cached

SAMPLE_BYTES = 2**24  # that byte-pair encoding is trained on, at most, spread over all sources
SHARD_TOKENS = 10**8
SAVE_BYTES = 2**25  # of sources, between one progress.json and the next
UNFINISHED = f"{FORMAT}, begun"  # the format of progress.json
SPLIT_BY = {
    "end": "the first part of all the text is for training, the rest for validation",
    "document": "each document is whole in one of the two, drawn by the seed",
}


@dataclass(frozen=True)
class Preparation:
    """The options of a preparation; the same options again resume an unfinished one, or find it done."""

    sources: Sequence[str]
    out: str
    tokenizer: str = "gpt2"  # char, bpe, gpt2, or the path of a tokenizer.json
    vocab_size: int | None = None
    field: str = FIELD
    val_fraction: float = 0.1
    split_by: str = "end"
    encoding_errors: str = "strict"
    normalize_whitespace: bool = False
    allow_special: bool = False
    seed: int = 1337
    shard_tokens: int = SHARD_TOKENS
    piece_bytes: int = PIECE_BYTES

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction <= 1:
            raise UserError(f"val_fraction {self.val_fraction} is not between 0 and 1")
        for name in ("shard_tokens", "piece_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.split_by not in SPLIT_BY or self.encoding_errors not in ENCODING_ERRORS:
            raise UserError(f"unknown split_by {self.split_by!r} or encoding_errors {self.encoding_errors!r}")
        if self.allow_special and self.tokenizer == "char":
            raise UserError("allow_special is for tokenizers with <|endoftext|>, which char does not have")
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise UserError(f"vocab_size {self.vocab_size} is for tokenizer bpe, not {self.tokenizer}")

    def settings(self, tokenizer: Tokenizer | None = None) -> Settings:
        """Return what the workers need."""
        entries = None if tokenizer is None else tokenizer.to_dict()
        dtype = "<u2" if tokenizer is None else DTYPES[dtype_name(tokenizer)].str
        return Settings(
            self.field, self.encoding_errors, self.seed, self.val_fraction, self.split_by == "document",
            self.normalize_whitespace, self.allow_special, entries, dtype,
        )  # fmt: skip

    def plan(self, sources: Sequence[Source]) -> dict[str, Any]:
        """Return everything that determines the result, as plain values for JSON."""
        plan = {name: value for name, value in asdict(self).items() if name not in ("sources", "out")}
        for name in ("normalize_whitespace", "allow_special"):
            if not plan[name]:
                del plan[name]  # so that the plans of earlier programs, which did not have it, are equal
        plan["sources"] = [asdict(source) for source in sources]
        if self.tokenizer not in TOKENIZERS:
            path = Path(os.path.expanduser(self.tokenizer))
            if not path.exists():
                guess = nearest(self.tokenizer, TOKENIZERS) or " (char, bpe, gpt2, or the path of a tokenizer.json)"
                raise UserError(f"unknown tokenizer {self.tokenizer!r}{guess}")
            plan["tokenizer_sha256"] = sha256_of(path / TOKENIZER if path.is_dir() else path)
        return plan


def prepare(options: Preparation, *, workers: int = 1, show: bool = False) -> dict[str, Any]:
    """Fill the folder `options.out`, continuing an earlier attempt, and return its manifest.

    The result does not depend on `workers`. show: the progress, on stderr. Raises UserError for
    sources that cannot be read and for a folder with other files; what is done by then is kept.
    """
    end_if_importing()
    folder = Path(os.path.expanduser(options.out))
    earlier = _read_earlier(folder)
    sources = _inspect_all(find_sources(options.sources), show)
    plan = options.plan(sources)
    if earlier is not None:
        _require_same_plan(folder, earlier["plan"], plan)
        if earlier["format"] == FORMAT:  # a manifest: nothing is left to do
            return earlier
    with _write_errors(folder), FolderLock(folder):
        if earlier is None:
            tokenizer, described = _make_tokenizer(options, sources, workers, show)
            described["sha256"] = sha256_of(tokenizer.save(folder))
        else:
            tokenizer, described = load_tokenizer(folder), earlier["tokenizer"]
        with closing(_Output(folder, plan, tokenizer, described, earlier)) as output:
            output.save()
            _encode_all(options, sources, output, workers, show)
            return output.finish()


def _inspect_all(names: Sequence[str], show: bool) -> list[Source]:
    sizes = [Path(name).stat().st_size if Path(name).is_file() else 0 for name in names]
    with progress_bar("reading", sum(sizes), "B", show=show) as advance:
        sources = [inspect(name, advance) for name in names]
    if not any(source.n_bytes for source in sources):
        raise UserError(f"data {', '.join(map(repr, names[:3]))}: all {len(names)} are empty: give sources with text")
    return sources


def _read_earlier(folder: Path) -> dict[str, Any] | None:
    """Return the manifest or the progress of an earlier attempt; UserError for a folder with other files."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file; prepared data needs a folder")
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    path = folder / PROGRESS
    if path.exists():
        try:
            values = json.loads(path.read_bytes())
            if values["format"] == UNFINISHED and values["version"] == VERSION:
                return dict(values) if Place(**values["place"]) != Place() else None  # None: no piece was complete
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise UserError(f"{path}: damaged: delete the folder and start again")
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        if foreign := [name for name in names if name.lstrip(".").split(".")[0] not in _LEFTOVERS]:
            raise UserError(f"out {folder} has {foreign[0]} in it: give a new --out, or an empty folder")
    return None


_LEFTOVERS = ("tokenizer", "progress", "run")  # of an attempt that was interrupted before its first piece


def _require_same_plan(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in {**before, **now}:
        old: Any = before.get(name)
        new: Any = now.get(name)
        if old == new:
            continue
        if name == "sources":
            changed = next((f"{s['name']} is new or has changed" for s in new if s not in old), "some are missing")
            raise UserError(f"out {folder} was started with other sources: {changed}; give a new --out")
        raise UserError(f"out {folder} was started with {name} {old}, not {new}: give that, or a new --out")


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: {error.strerror}; what is done is kept: the same command continues") from error
    finally:
        with suppress(OSError):  # not empty, unless it failed before its first file
            for path in made:
                path.rmdir()


def _make_tokenizer(
    options: Preparation, sources: Sequence[Source], workers: int, show: bool
) -> tuple[Tokenizer, dict[str, Any]]:
    """Return a tokenizer, and its description for the manifest."""
    total, learned = sum(source.n_bytes for source in sources), None
    tokenizer: Tokenizer
    try:
        if options.tokenizer == "char":
            tokenizer, learned = _learn_characters(options, sources, workers, show), f"all {total:,} bytes"
        elif options.tokenizer == "bpe":
            with Heartbeat("training the tokenizer") if show else nullcontext():
                text = _sample(options, sources)
                text = text.replace(END_OF_TEXT, "") if options.allow_special else text
                tokenizer = train_bpe_cached(text, options.vocab_size or BPE_VOCAB_SIZE)
            learned = f"{len(text.encode()):,} of {total:,} bytes, spread evenly"
        elif options.tokenizer == "gpt2":
            tokenizer = GPT2Tokenizer()
        else:
            tokenizer = load_tokenizer(os.path.expanduser(options.tokenizer))
    except TokenizerError as error:
        raise UserError(f"tokenizer {options.tokenizer}: {error}") from error
    return tokenizer, {"type": tokenizer.type_name, "vocab_size": tokenizer.vocab_size, "learnt_from": learned}


def _learn_characters(options: Preparation, sources: Sequence[Source], workers: int, show: bool) -> CharTokenizer:
    found = {"\n"} if len(sources) > 1 or sources[0].is_lines else set()  # the separator of documents
    all_pieces = pieces(sources, piece_bytes=options.piece_bytes)
    with progress_bar("characters", sum(source.n_bytes for source in sources), "B", show=show) as advance:
        for size, characters in ordered_map(Encoder.characters, all_pieces, options.settings(), workers):
            found |= characters
            advance(size)
    return CharTokenizer("".join(sorted(found)))


def _sample(options: Preparation, sources: Sequence[Source]) -> str:
    """Return the text of evenly spaced pieces, about SAMPLE_BYTES at most."""
    every = -(-sum(source.n_bytes for source in sources) // SAMPLE_BYTES)
    encoder, taken = Encoder(options.settings()), []
    for i, piece in enumerate(pieces(sources, piece_bytes=options.piece_bytes)):
        if i % every == 0:
            taken += [document.text for document in encoder.documents(piece)]
    return "\n".join(taken)


class _Output:
    """What is written so far: the shards, and the place in the sources that they reach."""

    def __init__(
        self, folder: Path, plan: dict[str, Any], tokenizer: Tokenizer, described: dict[str, Any],
        earlier: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        self.folder, self.plan, self.tokenizer, self.described = folder, plan, tokenizer, described
        self.separator = separator_of(tokenizer)
        self.dtype = dtype_name(tokenizer)
        states = earlier["splits"] if earlier else {}
        self.place = Place(**earlier["place"]) if earlier else Place()
        self.n_empty: int = earlier["empty_documents"] if earlier else 0
        self.writers = [
            ShardWriter(folder, split, DTYPES[self.dtype], plan["shard_tokens"], states.get(split)) for split in SPLITS
        ]
        self.progress = self._progress()

    def add(self, encoded: Encoded) -> None:
        """Write the tokens of a piece."""
        for writer, part in zip(self.writers, encoded.parts, strict=True):
            if part.begins and part.tokens and writer.n_tokens and self.separator is not None:
                writer.append(DTYPES[self.dtype].type(self.separator).tobytes())
            writer.append(part.tokens)
            writer.n_documents += part.n_documents
            writer.n_bytes += part.n_bytes
        self.place, self.n_empty = encoded.after, self.n_empty + encoded.n_empty
        self.progress = self._progress()  # in one assignment: after an interrupt before it the piece counts as not done

    def save(self) -> None:
        """Write progress.json, once everything that it describes is on the disk."""
        progress = self.progress
        for writer in self.writers:
            writer.sync()
        write_json(self.folder / PROGRESS, {"format": UNFINISHED, "version": VERSION, **progress}, indent=1)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()

    def finish(self) -> dict[str, Any]:
        """Complete the last shards and write the manifest, with which the folder is complete."""
        for writer in self.writers:
            writer.complete()
        if not any(writer.n_tokens for writer in self.writers):
            for name in (PROGRESS, TOKENIZER):  # nothing is kept: other sources may follow
                (self.folder / name).unlink()
            raise UserError(f"data: all {self.n_empty} documents are empty: give sources with text")
        manifest = {"format": FORMAT, "version": VERSION, **self._progress()}
        del manifest["place"]
        for split in manifest["splits"].values():
            del split["open"]
        write_json(self.folder / MANIFEST, manifest, indent=1)
        (self.folder / PROGRESS).unlink(missing_ok=True)
        return manifest

    def _progress(self) -> dict[str, Any]:
        return {
            "place": asdict(self.place),
            "dtype": self.dtype,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": self.described,
            "separator": self.separator,
            "split": f"{SPLIT_BY[self.plan['split_by']]}; {self.plan['val_fraction']:g} for validation",
            "empty_documents": self.n_empty,
            "splits": {writer.split: writer.state() for writer in self.writers},
            "plan": self.plan,
        }


def _encode_all(options: Preparation, sources: Sequence[Source], output: _Output, workers: int, show: bool) -> None:
    total = sum(source.n_bytes for source in sources)
    val_from = None if options.split_by == "document" else total - round(total * options.val_fraction)
    rest = pieces(sources, output.place, val_from=val_from, piece_bytes=options.piece_bytes)
    before = sum(source.n_bytes for source in sources[: output.place.source]) + output.place.offset
    unsaved = 0
    with progress_bar("tokens", total, "B", initial=before, show=show) as advance:
        all_encoded = ordered_map(Encoder.encode, rest, options.settings(output.tokenizer), workers)
        try:
            for encoded in all_encoded:
                output.add(encoded)
                advance(encoded.size)
                unsaved += encoded.size
                if unsaved >= SAVE_BYTES:
                    output.save()
                    unsaved = 0
        except (KeyboardInterrupt, UserError):
            output.save()
            raise
        finally:
            all_encoded.close()  # ends the workers
