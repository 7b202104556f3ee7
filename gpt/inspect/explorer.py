"""The explorer: one page that shows what a model computes on a text, that of two models, or of a run as it trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gpt.config import GPTConfig, LlamaConfig, UserError
from gpt.files import atomic_write
from gpt.inspect.explore import Exploration, explore
from gpt.tokenizer import Tokenizer
from gpt.weights import Model
from tensorgrad.inspect.arrays import encode
from tensorgrad.inspect.page import build_page, inline

STATIC = Path(__file__).with_name("static")
MAX_PAGE_BYTES = 30_000_000
BYTES_PER_NUMBER = 16 / 3  # float32 as base64


@dataclass(frozen=True)
class Page:
    """A page in one file; a notebook shows it."""

    html: str

    def _repr_html_(self) -> str:
        return inline(self.html)

    def save(self, path: str | Path) -> None:
        """Write it, completely or not at all."""
        with atomic_write(Path(path)) as file:
            file.write(self.html.encode())


@dataclass(frozen=True)
class Explored:
    """A model on a text. frames: pairs of a step, None where there are no steps, and what the model computed then."""

    name: str
    config: GPTConfig | LlamaConfig
    tokenizer: Tokenizer
    frames: Sequence[tuple[int | None, Exploration]]


def show_model(model: Model, tokenizer: Tokenizer, text: str, *, name: str = "the model") -> Page:
    """Return the page of a model, plain or fused, which a notebook shows.

    Raises ValueError for an empty text, and for one with more tokens than the window or than fit on a page.
    """
    ids = prompt_ids(tokenizer, text, model.config)
    return explorer_page([Explored(name, model.config, tokenizer, [(None, explore(model, ids))])])


def prompt_ids(
    tokenizer: Tokenizer, text: str, config: GPTConfig | LlamaConfig, n_frames: int = 1, special: bool = False
) -> list[int]:
    """Return the tokens of a text, after the token that the model expects first.

    special: read <|endoftext|> as that token. Raises ValueError for none, and for more than the window or a page holds.
    """
    ids = [] if tokenizer.bos is None else [tokenizer.bos]
    ids += tokenizer.encode(text, allow_special=special)
    if not ids:
        raise ValueError("the prompt has no token: give at least one")
    if len(ids) > config.block_size:
        raise ValueError(f"the prompt has {len(ids)} tokens, and the model sees at most block_size {config.block_size}")
    numbers = n_frames * config.n_layer * config.n_head  # in which attention dominates
    if numbers * len(ids) ** 2 * BYTES_PER_NUMBER > MAX_PAGE_BYTES:
        at_most = int((MAX_PAGE_BYTES / BYTES_PER_NUMBER / numbers) ** 0.5)
        what = f"the attention of {numbers:,} heads" + (f" ({n_frames} checkpoints)" if n_frames > 1 else "")
        raise ValueError(f"the prompt has {len(ids)} tokens: {what} fits on a page for at most {at_most}")
    return ids


def explorer_page(models: Sequence[Explored]) -> Page:
    """Return the page of one model, of two side by side, or of one with a frame for each step."""
    names = [model.name for model in models]
    data = {"models": [_data(model) for model in models]}
    html = build_page(
        f"Inside {' and '.join(names)}", data, body=STATIC / "explorer.html", styles=[STATIC / "explorer.css"],
        scripts=[STATIC / "tokens.js", STATIC / "panels.js", STATIC / "attention.js", STATIC / "explorer.js"],
    )  # fmt: skip
    return Page(html)


def _data(model: Explored) -> dict[str, Any]:
    config, tokenizer = model.config, model.tokenizer
    ids = model.frames[0][1].ids.tolist()
    lengths = [len(tokenizer.decode_bytes([i], skip_special=True)) for i in ids]
    return {
        "name": model.name.encode(errors="backslashreplace").decode(),
        "kind": "Llama" if isinstance(config, LlamaConfig) else "GPT-2",
        "parameters": config.count_parameters().total,
        "nLayer": config.n_layer, "nHead": config.n_head, "width": config.n_embd, "vocabulary": config.vocab_size,
        "tokens": ids,
        "ends": [sum(lengths[: i + 1]) for i in range(len(ids))],  # of each token, in bytes of the text
        "texts": {i: token_text(tokenizer, i) for i in sorted(set(_shown_ids(model)))},
        "frames": [{"step": step, **_arrays(frame)} for step, frame in model.frames],
    }  # fmt: skip


def _arrays(frame: Exploration) -> dict[str, Any]:
    arrays = {f.name: getattr(frame, f.name) for f in fields(frame) if f.name != "ids"}
    arrays |= {name: x.astype("float32") for name, x in arrays.items() if x.dtype.kind == "f"}
    return {name: encode(x) for name, x in arrays.items()}


def _shown_ids(model: Explored) -> Iterator[int]:
    for _, frame in model.frames:
        for ids in (frame.ids, frame.top_ids, frame.neighbour_ids):
            yield from ids.reshape(-1).tolist()


def page_file(name: str) -> Path:
    """Return the file that --out names; UserError for a folder, and for a file in one that does not exist."""
    out = Path(name).expanduser()
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out}: {'a folder' if out.is_dir() else 'its folder does not exist'}; give a file")
    return out


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""Return the text of a token, or its bytes as \xe2\x82 where they are only a part of a character."""
    written = tokenizer.decode_bytes([token])
    try:
        return written.decode() or f"[id {token}]"
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in written)
