"""`python -m gpt.data prepare`: sources of any size to shards of tokens, from where an earlier attempt came to.

    inspect sources -> tokenizer -> pieces -> tokens (workers) -> shards, and every few pieces progress.json

What is in the shards up to the lengths in progress.json is done; whatever was written after it is cut off and done
again. So an end at any moment, by Ctrl-C, SIGKILL or a full disk, costs a few seconds of work. The manifest comes last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt.config import ENCODING_ERRORS, TOKENIZERS, UserError, nearest
from gpt.data.documents import PIECE_BYTES, Place, Source, find_sources, inspect, pieces
from gpt.data.encoding import Encoded, Encoder, Settings, ordered_map, separator_of
from gpt.data.shards import DTYPES, FORMAT, MANIFEST, PROGRESS, SPLITS, TOKENIZER, VERSION, read_manifest
from gpt.data.writing import ShardWriter, sha256_of, write_whole
from gpt.files import FolderLock
from gpt.tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer, TokenizerError, load_tokenizer

BPE_VOCAB_SIZE = 4096
SAMPLE_BYTES = 2**24  # what a byte-pair encoding learns from, at most, spread over all sources
SHARD_TOKENS = 10**8
SAVE_BYTES = 2**25  # of sources, between one progress.json and the next
SPLIT_BY = {
    "end": "the first part of all the text is for training, the rest for validation",
    "document": "each document is whole in one of the two, drawn by the seed",
}


@dataclass(frozen=True)
class Preparation:
    """What is asked for: the same again goes on with the same folder, or finds it done."""

    sources: Sequence[str]
    out: str
    tokenizer: str = "gpt2"  # char, bpe, gpt2, or where a tokenizer.json lies
    vocab_size: int | None = None
    field: str = "text"
    val_fraction: float = 0.1
    split_by: str = "end"
    encoding_errors: str = "strict"
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
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise UserError(f"vocab_size {self.vocab_size} is how much tokenizer bpe learns; {self.tokenizer} does not")

    def settings(self, tokenizer: Tokenizer | None = None) -> Settings:
        """What a worker has to know."""
        known = None if tokenizer is None else tokenizer.to_dict()
        dtype = "<u2" if tokenizer is None else DTYPES[_dtype_of(tokenizer)].str
        by_document = self.split_by == "document"
        return Settings(self.field, self.encoding_errors, self.seed, self.val_fraction, by_document, known, dtype)


def prepare(asked: Preparation, *, workers: int = 1, show: bool = False) -> dict[str, Any]:
    """Fill the folder `asked.out`, from where an earlier attempt came to, and return its manifest.

    The result does not depend on `workers`. show: progress bars, where stderr is a terminal. Raises UserError for
    sources that cannot be read and for a folder of something else; what is done by then is kept.
    """
    folder = Path(asked.out).expanduser()
    earlier = _read_earlier(folder)
    sources = _inspect_all(find_sources(asked.sources), show)
    plan = _plan(asked, sources)
    if earlier is not None:
        _refuse_other(folder, earlier["plan"], plan)
        if earlier["format"] == FORMAT:  # a manifest: there is nothing left to do
            return earlier
    with _writing(folder), FolderLock(folder):
        if earlier is None:
            tokenizer, described = _make_tokenizer(asked, sources, workers, show)
            described["sha256"] = sha256_of(tokenizer.save(folder))
        else:
            tokenizer, described = load_tokenizer(folder), earlier["tokenizer"]
        with closing(_Work(folder, plan, tokenizer, described, earlier)) as work:
            work.save()
            _encode_all(asked, sources, work, workers, show)
            return work.finish()


def _plan(asked: Preparation, sources: Sequence[Source]) -> dict[str, Any]:
    """Everything that decides the result, as JSON has it."""
    plan = {name: value for name, value in asdict(asked).items() if name not in ("sources", "out")}
    plan["sources"] = [asdict(source) for source in sources]
    if _is_path(asked.tokenizer):
        path = Path(asked.tokenizer)
        if not path.exists():
            guess = nearest(asked.tokenizer, TOKENIZERS) or " (char, bpe, gpt2, or the path of a tokenizer.json)"
            raise UserError(f"unknown tokenizer {asked.tokenizer!r}{guess}")
        plan["tokenizer_sha256"] = sha256_of(path / TOKENIZER if path.is_dir() else path)
    return plan


def _inspect_all(names: Sequence[str], show: bool) -> list[Source]:
    sizes = [Path(name).stat().st_size if Path(name).is_file() else 0 for name in names]
    with _bar("reading", sum(sizes), show) as bar:
        sources = [inspect(name, bar.update) for name in names]
    if not any(source.n_bytes for source in sources):
        raise UserError(f"data {', '.join(map(repr, names[:3]))}: empty, all {len(names)}: give sources with text")
    return sources


# --- the folder -----------------------------------------------------------------------------------


def _read_earlier(folder: Path) -> dict[str, Any] | None:
    """Return the manifest or the progress of an earlier attempt; UserError for a folder of anything else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file; prepared data needs a folder")
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    path = folder / PROGRESS
    if path.exists():
        try:
            values = json.loads(path.read_bytes())
            if values["format"] == f"{FORMAT}, begun" and values["version"] == VERSION:
                return dict(values) if Place(**values["place"]) != Place() else None  # None: not a piece was done
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise UserError(f"{path}: damaged: delete the folder and start again")
    if folder.is_dir():
        foreign = [path.name for path in folder.iterdir() if path.name.lstrip(".").split(".")[0] not in _UNFINISHED]
        if foreign:
            raise UserError(f"out {folder} has {sorted(foreign)[0]} in it: give a new --out, or an empty folder")
    return None


_UNFINISHED = ("tokenizer", "progress", "run")  # what an attempt leaves that ended before it had begun


def _refuse_other(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in {**before, **now}:
        was: Any = before.get(name)
        asked: Any = now.get(name)
        if was == asked:
            continue
        if name == "sources":
            changed = next((f"{s['name']} is new or has changed" for s in asked if s not in was), "some are missing")
            raise UserError(f"out {folder} was begun with other sources: {changed}; give a new --out")
        raise UserError(f"out {folder} was begun with {name} {was}, not {asked}: give that, or a new --out")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: {error.strerror}; what is done is kept: the same command goes on") from error


# --- tokenizers -----------------------------------------------------------------------------------


def _is_path(name: str) -> bool:
    return name not in TOKENIZERS


def _dtype_of(tokenizer: Tokenizer) -> str:
    return "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"


def _make_tokenizer(
    asked: Preparation, sources: Sequence[Source], workers: int, show: bool
) -> tuple[Tokenizer, dict[str, Any]]:
    """Return a tokenizer, and for the manifest what it is and has learnt from."""
    total, learnt = sum(source.n_bytes for source in sources), None
    tokenizer: Tokenizer
    try:
        if asked.tokenizer == "char":
            tokenizer, learnt = _learn_characters(asked, sources, workers, show), f"all {total:,} bytes"
        elif asked.tokenizer == "bpe":
            text = _sample(asked, sources)
            tokenizer = BPETokenizer.train(text, asked.vocab_size or BPE_VOCAB_SIZE)
            learnt = f"{len(text.encode()):,} of {total:,} bytes, spread evenly"
        elif asked.tokenizer == "gpt2":
            tokenizer = GPT2Tokenizer()
        else:
            tokenizer = load_tokenizer(asked.tokenizer)
    except TokenizerError as error:
        raise UserError(f"tokenizer {asked.tokenizer}: {error}") from error
    return tokenizer, {"type": tokenizer.type_name, "vocab_size": tokenizer.vocab_size, "learnt_from": learnt}


def _learn_characters(asked: Preparation, sources: Sequence[Source], workers: int, show: bool) -> CharTokenizer:
    found = {"\n"} if len(sources) > 1 or sources[0].is_lines else set()  # it stands between documents
    cut = pieces(sources, piece_bytes=asked.piece_bytes)
    with _bar("characters", sum(source.n_bytes for source in sources), show) as bar:
        for piece, characters in ordered_map(Encoder.characters, cut, asked.settings(), workers):
            found |= characters
            bar.update(piece)
    return CharTokenizer("".join(sorted(found)))


def _sample(asked: Preparation, sources: Sequence[Source]) -> str:
    """Return every so many pieces' text: SAMPLE_BYTES at most, but for a piece."""
    every = -(-sum(source.n_bytes for source in sources) // SAMPLE_BYTES)
    encoder, taken = Encoder(asked.settings()), []
    for i, piece in enumerate(pieces(sources, piece_bytes=asked.piece_bytes)):
        if i % every == 0:
            taken += [document.text for document in encoder.documents(piece)]
    return "\n".join(taken)


# --- encoding -------------------------------------------------------------------------------------


class _Work:
    """What is done so far: the shards, and the place in the sources that they reach to."""

    def __init__(
        self, folder: Path, plan: dict[str, Any], tokenizer: Tokenizer, described: dict[str, Any],
        earlier: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        self.folder, self.plan, self.tokenizer, self.described = folder, plan, tokenizer, described
        self.separator = separator_of(tokenizer)
        self.dtype = _dtype_of(tokenizer)
        states = earlier["splits"] if earlier else {}
        self.place = Place(**earlier["place"]) if earlier else Place()
        self.n_empty: int = earlier["empty_documents"] if earlier else 0
        self.writers = [
            ShardWriter(folder, split, DTYPES[self.dtype], plan["shard_tokens"], states.get(split)) for split in SPLITS
        ]
        self.done = self._state()

    def add(self, encoded: Encoded) -> None:
        """Write what a piece became."""
        for writer, part in zip(self.writers, encoded.parts, strict=True):
            if part.begins and part.tokens and writer.n_tokens and self.separator is not None:
                writer.append(DTYPES[self.dtype].type(self.separator).tobytes())
            writer.append(part.tokens)
            writer.n_documents += part.n_documents
            writer.n_bytes += part.n_bytes
        self.place, self.n_empty = encoded.after, self.n_empty + encoded.n_empty
        self.done = self._state()  # at once: an interrupt before this line leaves the piece undone

    def save(self) -> None:
        """Write progress.json, when all that it speaks of is on the disk."""
        done = self.done
        for writer in self.writers:
            writer.sync()
        write_whole(self.folder / PROGRESS, {"format": f"{FORMAT}, begun", "version": VERSION, **done})

    def close(self) -> None:
        """Let go of the files."""
        for writer in self.writers:
            writer.close()

    def _state(self) -> dict[str, Any]:
        splits = {writer.split: writer.state() for writer in self.writers}
        return {"place": asdict(self.place), **self._described(splits)}

    def finish(self) -> dict[str, Any]:
        """End the last shards and write the manifest, which makes the folder complete."""
        for writer in self.writers:
            writer.complete()
        splits = {writer.split: writer.state() for writer in self.writers}
        for split in splits.values():
            del split["open"]
        if not any(writer.n_tokens for writer in self.writers):
            raise UserError(f"data: all {self.n_empty} documents are empty: give sources with text")
        manifest = {"format": FORMAT, "version": VERSION, **self._described(splits)}
        write_whole(self.folder / MANIFEST, manifest)
        (self.folder / PROGRESS).unlink(missing_ok=True)
        return manifest

    def _described(self, splits: dict[str, Any]) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": self.described,
            "separator": self.separator,
            "split": f"{SPLIT_BY[self.plan['split_by']]}; {self.plan['val_fraction']:g} for validation",
            "empty_documents": self.n_empty,
            "splits": splits,
            "plan": self.plan,
        }


def _encode_all(asked: Preparation, sources: Sequence[Source], work: _Work, workers: int, show: bool) -> None:
    total = sum(source.n_bytes for source in sources)
    val_from = None if asked.split_by == "document" else total - round(total * asked.val_fraction)
    rest = pieces(sources, work.place, val_from=val_from, piece_bytes=asked.piece_bytes)
    before = sum(source.n_bytes for source in sources[: work.place.source]) + work.place.offset
    unsaved = 0
    with _bar("tokens", total, show, before) as bar:
        all_encoded = ordered_map(Encoder.encode, rest, asked.settings(work.tokenizer), workers)
        try:
            for encoded in all_encoded:
                work.add(encoded)
                bar.update(encoded.size)
                unsaved += encoded.size
                if unsaved >= SAVE_BYTES:
                    work.save()
                    unsaved = 0
        except (KeyboardInterrupt, UserError):
            work.save()
            raise
        finally:
            all_encoded.close()  # ends the workers


def _bar(what: str, total: int, show: bool, initial: int = 0) -> tqdm[Any]:
    return tqdm(
        desc=what, total=total, initial=initial, unit="B", unit_scale=True, dynamic_ncols=True,
        disable=None if show else True,
    )  # fmt: skip
