"""What a run is built from: its dtype, tokenizer, data, optimizer and gradient scaler, as configured."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import tensorgrad as tg
from gpt.cli import user_errors
from gpt.config import BPE_VOCAB_SIZE, TOKENIZERS, UserError
from gpt.data import DataLoader, Tokens, load_text, split_text
from gpt.data.loaders import tokenize_cached
from gpt.data.shards import is_prepared, load_prepared
from gpt.tokenizer import END_OF_TEXT, CharTokenizer, GPT2Tokenizer, Tokenizer, TokenizerError
from gpt.tokenizer.cache import train_bpe_cached
from gpt.train.config import TrainConfig
from gpt.weights import Model
from tensorgrad.distributed import world


def resolve(config: TrainConfig, *, rows_of_one_length: bool = True) -> TrainConfig:
    """Return the configuration with dtype "auto" and an undecided cuda_graph decided for the current backend.

    A GPU that has bfloat16 gets it, and records its steps where they are all alike and nothing looks into them.
    """
    lacks = tg.get_backend().lacks
    on_gpu = lacks("cuda_graph") is None
    if config.dtype == "auto":
        half = on_gpu and config.quantize == "none" and lacks("bfloat16") is None
        config = replace(config, dtype="bfloat16" if half else "float32")
    if config.cuda_graph is None:
        alike = rows_of_one_length and world().size == 1 and not (config.log_ratios or config.plain)
        config = replace(config, cuda_graph=on_gpu and alike)
    return config


def make_tokenizer(config: TrainConfig, text: str) -> Tokenizer:
    """Return the tokenizer that the configuration names, trained on the text unless it is GPT-2's."""
    with user_errors(TokenizerError, about=f"data {config.data!r}"):
        if config.allow_special and config.tokenizer == "char":
            raise UserError("allow_special is for tokenizers bpe and gpt2: char has no <|endoftext|>")
        if config.tokenizer not in TOKENIZERS:
            raise UserError(f"tokenizer {config.tokenizer} comes with weights: give --init-from, or prepared data")
        if config.tokenizer == "bpe":
            text = text.replace(END_OF_TEXT, "") if config.allow_special else text
            return train_bpe_cached(text, config.vocab_size or BPE_VOCAB_SIZE)
        return CharTokenizer.train(text) if config.tokenizer == "char" else GPT2Tokenizer()


def make_optimizer(model: Model, config: TrainConfig) -> tg.optim.AdamW:
    """Return AdamW, with weight decay for the matrices, including embeddings, but not for biases and norms.

    Frozen parameters have no moments.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return tg.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), master_weights=config.half)


def make_scaler(config: TrainConfig) -> tg.amp.GradScaler:
    """Return a scaler that keeps gradients in the range of float16; for other dtypes it does nothing."""
    return tg.amp.GradScaler(enabled=config.dtype == "float16")


def with_prepared_settings(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """Return the configuration with the settings that its data was prepared with, if it was.

    Raises UserError for a flag, in `given`, that contradicts them.
    """
    if not is_prepared(config.data):
        return config
    data = load_prepared(config.data)
    prepared: dict[str, Any] = {
        "tokenizer": data.tokenizer.type_name, "vocab_size": data.tokenizer.vocab_size,
        **{name: data.manifest["plan"].get(name, False) for name in ("normalize_whitespace", "allow_special")},
    }  # fmt: skip
    for name, value in prepared.items():
        if given.get(name) not in (None, value):
            raise UserError(f"data {config.data!r} was prepared with {name} {value}: leave out {name} {given[name]}")
    return replace(config, **prepared | {"vocab_size": None})


def open_general_data(config: TrainConfig, tokenizer: Tokenizer) -> DataLoader | None:
    """Return the loader of the text that shows what is forgotten; None where there is none."""
    if config.general_data is None:
        return None
    name = f"general_data {config.general_data!r}"
    with user_errors(TokenizerError, about=name):
        tokens = tokenize_cached(load_text(config.general_data, errors=config.encoding_errors), tokenizer)
    options: dict[str, Any] = {"batch_size": config.batch_size, "block_size": config.block_size, "seed": config.seed}
    return DataLoader(tokens, tokenizer=tokenizer, name=name, **options)


def open_data(config: TrainConfig, tokenizer: Tokenizer | None = None) -> tuple[Tokenizer, DataLoader, DataLoader]:
    """Return the tokenizer, a new one where none is given, and the loaders of training and validation data."""
    parts: Iterable[Tokens]
    name = f"data {config.data!r}"
    if is_prepared(config.data):
        data = load_prepared(config.data)
        if tokenizer is not None and tokenizer.to_dict() != data.tokenizer.to_dict():
            raise UserError(f"{name} was prepared with another tokenizer than the weights were trained with")
        tokenizer, parts = data.tokenizer, (data.train, data.val)
    else:
        text = load_text(config.data, normalize=config.normalize_whitespace, errors=config.encoding_errors)
        tokenizer = tokenizer or make_tokenizer(config, text)
        with user_errors(TokenizerError, about=name):
            parts = [tokenize_cached(x, tokenizer, allow_special=config.allow_special) for x in split_text(text)]
    options: dict[str, Any] = {"batch_size": config.batch_size, "block_size": config.block_size, "seed": config.seed}
    train, val = (
        DataLoader(tokens, tokenizer=tokenizer, name=f"the {kind} part of {name}", **options)
        for kind, tokens in zip(("training", "validation"), parts, strict=True)
    )
    return tokenizer, train, val
