"""What a finetuned model writes before and after the training, from the same prompts."""

from collections.abc import Iterator
from typing import Any

from gpt.checkpoint.files import BEFORE, MAX_JSON_BYTES
from gpt.cli import user_errors
from gpt.files import atomic_write, file_errors, read_json, write_json
from gpt.generate import generate_text
from gpt.heartbeat import Heartbeat
from gpt.train.run import Run

COMPARISON = "before_after.txt"
N_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 2, 32, 60  # of the text for validation, and as many of the general one


def write_before(run: Run) -> None:
    """Keep what the model writes now, in the folder of the run, where a resumed run finds it."""
    texts = continued(run, prompts := list(choose_prompts(run)))
    write_json(run.folder / BEFORE, {"prompts": prompts, "texts": texts})


def compare(run: Run) -> str:
    """Return what the model writes now beside what it wrote before; the folder of the run gets it, too."""
    path, before = run.folder / BEFORE, dict[str, Any]()
    if path.exists():  # not of a run that an earlier version of this program began
        with file_errors(path):
            before = read_json(path, MAX_JSON_BYTES)
    prompts = before.get("prompts") or list(choose_prompts(run))
    after = continued(run, prompts)
    old = [f"\nbefore: {text}" for text in before.get("texts", ())] or [""] * len(prompts)
    pairs = zip(prompts, old, after, strict=True)
    comparison = "\n\n".join(f"prompt: {prompt}{text}\nafter: {new}" for prompt, text, new in pairs)
    with atomic_write(run.folder / COMPARISON) as file:
        file.write(comparison.encode(errors="replace") + b"\n")
    return comparison


def choose_prompts(run: Run) -> Iterator[str]:
    """Yield parts of the text for validation, and of the general text if there is one, which begin with a word."""
    for loader in (run.val_loader, run.general_loader):
        if loader is not None:
            for window in loader.draw(N_PROMPTS, 0)[0]:
                text = run.tokenizer.decode(window[:PROMPT_TOKENS].tolist())
                yield text[text.find(" ") + 1 :]


def continued(run: Run, prompts: list[str]) -> list[str]:
    """Return what the model writes after each prompt, the same for the same weights."""
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 200, "seed": run.config.seed}
    with user_errors(FloatingPointError, about=str(run.folder)), Heartbeat("generating samples"):
        return generate_text(run.model, run.tokenizer, prompts, max_new_tokens=NEW_TOKENS, **options)
