"""Frozen layers: parts of a model that training leaves as they are."""

import re

from gpt.weights import Model


def freeze(model: Model, spec: str) -> None:
    """Freeze the parts that are named, separated by commas: wte, h.3, h.0-20 (both included), h.0-20.mlp.

    Of a classifier, they are those of the language model in it. Raises ValueError for a part that the model does not
    have, and where nothing is left to train.
    """
    parameters = {name.removeprefix("model."): p for name, p in model.named_parameters()}
    for part in spec.split(","):
        found = [p for name, p in parameters.items() if _pattern(part, model.config.n_layer).match(name)]
        if not found:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in parameters))
            blocks = f"h.0 to h.{model.config.n_layer - 1}"
            raise ValueError(f"freeze: the model has no {part!r}: it has {parts}, and in h the blocks {blocks}")
        for p in found:
            p.requires_grad = False
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"freeze {spec!r}: nothing is left to train")


def _pattern(part: str, n_layer: int) -> re.Pattern[str]:
    """Return what the names of a part's parameters begin with; it matches nothing for blocks that are not all there."""
    path = re.fullmatch(r"h\.(\d{1,4})-(\d{1,4})((?:\.\w+)*)", part)
    if path is None:
        return re.compile(re.escape(part) + r"\.")
    first, last = int(path[1]), int(path[2])
    blocks = "|".join(map(str, range(first, last + 1))) if last < n_layer else ""
    return re.compile(rf"h\.({blocks or '$.'}){re.escape(path[3])}\.")
