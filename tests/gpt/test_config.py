"""The model and the training configuration: their fields, refused values, and presets."""

import json
import math
from dataclasses import fields
from typing import Any

import pytest

from benchmarks.shakespeare_char import NANOGPT_CPU_ROW
from gpt.config import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPT_CONFIG_SHAKESPEARE_CHAR,
    GPT_CONFIG_SHAKESPEARE_CHAR_CPU,
    GPTConfig,
    nearest,
)
from gpt.model import GPT
from gpt.train.config import NAMED_CONFIGS, TrainConfig


@pytest.mark.parametrize(
    ("config", "n_layer", "n_head", "n_embd", "vocab_size", "block_size", "bias", "dropout"),
    [
        (GPT_CONFIG_124M, 12, 12, 768, 50257, 1024, True, 0.0),
        (GPT_CONFIG_355M, 24, 16, 1024, 50257, 1024, True, 0.0),
        (GPT_CONFIG_774M, 36, 20, 1280, 50257, 1024, True, 0.0),
        (GPT_CONFIG_1558M, 48, 25, 1600, 50257, 1024, True, 0.0),
        (GPT_CONFIG_SHAKESPEARE_CHAR_CPU, 4, 4, 128, 65, 64, False, 0.0),
        (GPT_CONFIG_SHAKESPEARE_CHAR, 6, 6, 384, 65, 256, False, 0.2),
    ],
)
def test_presets_have_the_published_model_settings(
    config: dict[str, Any], n_layer: int, n_head: int, n_embd: int, vocab_size: int,
    block_size: int, bias: bool, dropout: float,
) -> None:  # fmt: skip
    assert GPTConfig.from_dict(config) == GPTConfig(
        block_size=block_size, vocab_size=vocab_size, n_layer=n_layer, n_head=n_head,
        n_embd=n_embd, dropout=dropout, bias=bias,
    )  # fmt: skip


def test_the_error_for_names_from_llms_from_scratch_gives_our_names() -> None:
    theirs = {
        "vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12,
        "drop_rate": 0.1, "qkv_bias": False,
    }  # fmt: skip
    for build in (GPTConfig.from_dict, GPT):
        with pytest.raises(ValueError) as error:
            build(theirs)
        assert str(error.value) == (
            "unknown key 'context_length' in a model configuration; here context_length is called block_size, "
            "emb_dim is called n_embd, n_heads is called n_head, n_layers is called n_layer, "
            "drop_rate is called dropout, qkv_bias is called bias"
        )


def test_the_defaults_of_the_model_are_gpt2() -> None:
    assert GPTConfig() == GPTConfig.from_dict(GPT_CONFIG_124M)


def test_the_defaults_of_training_are_the_small_shakespeare_model() -> None:
    config = TrainConfig()
    assert config.model_config(65) == GPTConfig.from_dict(GPT_CONFIG_SHAKESPEARE_CHAR_CPU)
    assert (config.data, config.tokenizer, config.batch_size, config.max_iters) == (
        "shakespeare", "bpe", 12, 1800,
    )  # fmt: skip
    assert config.tokens_per_step == 12 * 64


def test_named_configurations_train_the_models_they_are_named_after() -> None:
    models = {name: TrainConfig.from_dict(values) for name, values in NAMED_CONFIGS.items()}
    assert models["shakespeare-char-cpu"] == TrainConfig(**NANOGPT_CPU_ROW, max_iters=2000)
    assert models["shakespeare-char-cpu"].model_config(65) == GPTConfig.from_dict(GPT_CONFIG_SHAKESPEARE_CHAR_CPU)
    assert models["shakespeare-char"].model_config(65) == GPTConfig.from_dict(GPT_CONFIG_SHAKESPEARE_CHAR)
    assert models["gpt2-124m"].model_config(50257) == GPTConfig.from_dict(GPT_CONFIG_124M)
    assert models["gpt2-1558m"].model_config(50257) == GPTConfig.from_dict(GPT_CONFIG_1558M)
    assert models["gpt2-124m"].tokens_per_step == 491_520  # nanoGPT: about half a million


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"n_embd": 130, "n_head": 4},
            "n_embd 130 is not divisible by n_head 4: every head gets an equal share of it",
        ),
        ({"n_layer": 0}, "n_layer must be at least 1, not 0"),
        ({"block_size": -1}, "block_size must be at least 1, not -1"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"dropout": math.nan}, "dropout must be at least 0 and below 1, not nan"),
        ({"n_head": True}, "n_head must be int, not True"),
        ({"bias": 1}, "bias must be bool, not 1"),
        ({"n_embd": "768"}, "n_embd must be int, not '768'"),
        ({"n_layer_": 2}, "unknown key 'n_layer_' in a model configuration; did you mean n_layer?"),
        ({"n_layers": 2}, "unknown key 'n_layers' in a model configuration; here n_layers is called n_layer"),
        ({"colour": 2}, "unknown key 'colour' in a model configuration"),
    ],
)
def test_an_invalid_model_configuration_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        GPTConfig.from_dict(values)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_embd": 130}, "n_embd 130 is not divisible by n_head 4"),
        ({"backend": "nunba"}, "unknown backend 'nunba'; did you mean numba?"),
        ({"backend": "?"}, r"unknown backend '\?' \(one of auto, numpy, numba, cupy\)"),
        ({"tokenizer": "gpt-2"}, "unknown tokenizer 'gpt-2'; did you mean gpt2?"),
        ({"tokenizer": 2}, "tokenizer must be str, not 2"),
        ({"max_iters": 0}, "max_iters must be at least 1, not 0"),
        ({"grad_accum": 0}, "grad_accum must be at least 1, not 0"),
        ({"eval_interval": 0}, "eval_interval must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0, not 0.0"),
        ({"lr": math.inf}, "lr must be above 0, not inf"),
        ({"lr": math.nan}, "lr must be above 0, not nan"),
        ({"lr": 1e-5}, r"min_lr must be between 0 and lr \(1e-05\), not 0.0001"),
        ({"beta2": 1.0}, "beta2 must be at least 0 and below 1, not 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, not -0.1"),
        ({"grad_clip": math.nan}, "grad_clip must be at least 0, not nan"),
        ({"warmup_iters": -1}, "warmup_iters must be at least 0"),
        ({"lr_decay_iters": 0}, "lr_decay_iters must be at least 1, not 0"),
        ({"seed": -1}, r"seed must be at least 0 and below 2\*\*64, not -1"),
        ({"seed": 2**64}, r"seed must be below 2\*\*64"),
        ({"tokenizer": "char", "vocab_size": 300}, "vocab_size 300 is for tokenizer bpe; char determines its own"),
        ({"tokenizer": "bpe", "vocab_size": 0}, "vocab_size must be at least 1, not 0"),
        ({"learning_rat": 1}, "unknown key 'learning_rat' in a training configuration"),
        ({"max_iter": 1}, "unknown key 'max_iter' .*; did you mean max_iters?"),
    ],
)
def test_an_invalid_training_configuration_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        TrainConfig.from_dict(values)
    assert "\n" not in str(error.value)


def test_an_int_is_accepted_for_a_float() -> None:
    assert TrainConfig(lr=1, min_lr=0, grad_clip=1).lr == 1


@pytest.mark.parametrize("config", [GPTConfig(n_layer=3), TrainConfig(seed=2**64 - 1, out="x")])
def test_a_configuration_survives_json(config: GPTConfig | TrainConfig) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_setting_has_a_group_and_a_text_in_the_help() -> None:
    for field in fields(TrainConfig):
        assert field.metadata["group"] in ("data", "model", "training", "finetuning", "run")
        assert field.metadata["help"]


def test_nearest_is_empty_if_no_name_is_close() -> None:
    assert nearest("beta", ["beta1", "gamma"]) == "; did you mean beta1?"
    assert nearest("xyz", ["beta1", "gamma"]) == ""
