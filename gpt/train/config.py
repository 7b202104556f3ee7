"""The configuration of a training run, and named ones; what a run is saved with and built from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from gpt.config import (
    BACKENDS,
    BPE_VOCAB_SIZE,
    ENCODING_ERRORS,
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPT_CONFIG_SHAKESPEARE_CHAR,
    GPT_CONFIG_SHAKESPEARE_CHAR_CPU,
    MODELS,
    TOKENIZERS,
    Config,
    GPTConfig,
    LlamaConfig,
    check_types,
    nearest,
    require,
)

T = TypeVar("T")

HIDDEN_MULTIPLE = 32  # of which n_hidden is a multiple, unless it is given
CHOICES = {
    "backend": BACKENDS,
    "dtype": ("auto", "float32", "tf32", "bfloat16", "float16"),
    "encoding_errors": ENCODING_ERRORS,
    "model": ("gpt2", "llama"),
    "gelu": ("tanh", "none"),
    "tokenizer": (*TOKENIZERS, "byte-level"),
    "quantize": ("none", "file", "q8_0", "q4_0", "q4_1"),
    "on_save_error": ("stop", "continue"),
    "on_nonfinite": ("stop", "skip"),
    "logger": ("tensorboard", "wandb"),
}


def flag(default: T, group: str, help: str) -> T:
    """Declare a field that is also a flag of train.py, under the heading `group` and with this text in `--help`."""
    option: T = field(default=default, metadata={"group": group, "help": help})
    return option


@dataclass(frozen=True)
class TrainConfig(Config):
    """The settings of a run, which are flags of train.py and keys in TOML; ValueError for one outside its range."""

    _what = "a training configuration"

    data: str = flag("shakespeare", "data", "shakespeare, kjv, python-docs, a file or folder, or prepared data")
    encoding_errors: str = flag("strict", "data", "bytes that are not UTF-8: strict (an error), replace or ignore")
    normalize_whitespace: bool = flag(False, "data", "remove white space at line ends, and repeated blank lines")
    allow_special: bool = flag(False, "data", "read <|endoftext|> in the text as that token, of bpe or gpt2")
    tokenizer: str = flag("bpe", "data", "bpe (trained on the text), char or gpt2")
    vocab_size: int | None = flag(None, "data", f"of --tokenizer bpe (default: {BPE_VOCAB_SIZE})")

    model: str = flag("gpt2", "model", "gpt2, or llama: rotary positions, RMSNorm, SwiGLU, shared key and value heads")
    n_layer: int = flag(4, "model", "transformer blocks")
    n_head: int = flag(4, "model", "attention heads per block; must divide --n-embd")
    n_embd: int = flag(128, "model", "width of the model")
    block_size: int = flag(64, "model", "context window, in tokens")
    dropout: float = flag(0.0, "model", "share of activations dropped during training")
    bias: bool = flag(False, "model", "biases in the linear layers and the layer norms")
    gelu: str = flag("tanh", "model", "gpt2's activation: tanh, its approximation, or none, the exact function")
    n_kv_head: int | None = flag(None, "model", "llama's heads of keys and values (default: --n-head)")
    n_hidden: int | None = flag(None, "model", "llama's width inside the MLP (default: 8/3 of --n-embd)")
    rope_base: float = flag(10000.0, "model", "llama's rotary embedding: the base of its wavelengths")
    tied: bool = flag(True, "model", "llama: the output layer shares the weight of the token embeddings")
    norm_eps: float = flag(1e-5, "model", "added to the mean square in the norms")

    max_iters: int = flag(1800, "training", "optimizer steps in total")
    batch_size: int = flag(12, "training", "context windows per batch")
    grad_accum: int = flag(1, "training", "batches whose gradients are accumulated for one step")
    recompute: bool = flag(False, "training", "recompute blocks in backward: less memory, more time")
    lr: float = flag(1e-3, "training", "highest learning rate, reached after the warm-up")
    min_lr: float = flag(1e-4, "training", "learning rate at the end of the cosine decay")
    warmup_iters: int = flag(100, "training", "steps in which the learning rate rises from 0")
    lr_decay_iters: int | None = flag(None, "training", "step at which --min-lr is reached (default: --max-iters)")
    weight_decay: float = flag(0.1, "training", "of matrices; biases and norms are not decayed")
    beta1: float = flag(0.9, "training", "AdamW: decay of the mean of the gradient")
    beta2: float = flag(0.99, "training", "AdamW: decay of the mean of its square")
    grad_clip: float = flag(1.0, "training", "largest norm of the whole gradient; 0: no limit")
    seed: int = flag(1337, "training", "of weights, dropout, batches and the sample")
    init_from: str | None = flag(None, "training", "a run, Hugging Face folder, GGUF file, smollm2 or gpt2")

    freeze: str | None = flag(None, "finetuning", "parts that stay as they are: wte, h.3, h.0-20, separated by commas")
    general_data: str | None = flag(None, "finetuning", "text whose loss shows what is forgotten, such as python-docs")
    lora_rank: int = flag(0, "finetuning", "train adapters of this rank beside frozen weights (LoRA); 0: all weights")
    lora_alpha: float | None = flag(None, "finetuning", "updates are scaled by alpha / rank (default: 2 --lora-rank)")
    lora_dropout: float = flag(0.0, "finetuning", "share of an adapter's inputs dropped during training")
    lora_targets: str | None = flag(None, "finetuning", "layers with adapters: q_proj,v_proj (default: all of a block)")
    quantize: str = flag("none", "finetuning", "frozen weights under LoRA: q8_0, q4_0, q4_1, file (as stored) or none")

    backend: str = flag("auto", "run", "numpy, numba, cupy or auto (the fastest that is available)")
    dtype: str = flag("auto", "run", "float32, tf32, bfloat16, float16 or auto (on a GPU bfloat16, else float32)")
    plain: bool = flag(False, "run", "train gpt/model.py as it is written, without fused operations: slower")
    cuda_graph: bool | None = flag(None, "run", "record a step once and replay it (default: on a GPU, where possible)")
    log_interval: int = flag(10, "run", "steps between transfers of the loss from a GPU, each of which waits for it")
    threads: int | None = flag(None, "run", "CPU threads for everything (default: every core)")
    eval_interval: int = flag(250, "run", "steps between validations")
    eval_iters: int = flag(20, "run", "batches that a validation averages")
    checkpoint_interval: int | None = flag(
        None, "run", "steps between checkpoints; the best step is always saved (default: at each validation)"
    )
    keep_checkpoints: int = flag(2, "run", "how many of the newest checkpoints to keep, besides the best")
    async_save: bool = flag(True, "run", "write checkpoints while training continues; needs memory for a copy")
    on_save_error: str = flag("stop", "run", "stop, or continue and try again at the next checkpoint")
    on_nonfinite: str = flag("stop", "run", "at a step with nan or infinity: stop, or skip it")
    plot: bool = flag(True, "run", "draw loss.png during training; needs matplotlib")
    logger: str | None = flag(None, "run", "also log every metric to tensorboard or wandb")
    sample_interval: int = flag(0, "run", "steps between texts that the model generates into samples.txt; 0: none")
    log_ratios: bool = flag(False, "run", "log the norm of the gradient over that of the weights, for every layer")
    out: str | None = flag(None, "run", "folder of the run (default: a new one under checkpoints/)")

    def __post_init__(self) -> None:
        check_types(self)
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                hint = nearest(value, known) or f" (one of {', '.join(known)})"
                raise ValueError(f"unknown {name} {value!r}{hint}")
        for name in ("max_iters", "batch_size", "grad_accum", "eval_interval", "eval_iters", "log_interval"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_iters", "weight_decay", "grad_clip", "sample_interval", "lora_rank"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        require(self, "seed", 0 <= self.seed < 2**64, "at least 0 and below 2**64")
        for name in ("vocab_size", "lr_decay_iters", "threads", "checkpoint_interval", "keep_checkpoints"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")
        for name in ("beta1", "beta2"):
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        require(self, "lr", 0 < self.lr < math.inf, "above 0")
        require(self, "min_lr", 0 <= self.min_lr <= self.lr, f"between 0 and lr ({self.lr:g})")
        if self.cuda_graph and self.log_ratios:
            raise ValueError("cuda_graph does not work with log_ratios: a replayed step does not show its gradients")
        if self.vocab_size is not None and self.tokenizer != "bpe":
            others = f"{self.tokenizer} determines its own vocabulary"
            raise ValueError(f"vocab_size {self.vocab_size} is for tokenizer bpe; {others}")
        self._require_fields_of_the_model()
        self.model_config(vocab_size=1)  # raises ValueError for an impossible shape

    def _require_fields_of_the_model(self) -> None:
        own = {f.name for f in fields(MODELS[self.model])}
        others = {f.name: name for name, kind in MODELS.items() for f in fields(kind) if f.name not in own}
        for f in fields(self):
            if f.name in others and getattr(self, f.name) != f.default:
                raise ValueError(f"{f.name} {getattr(self, f.name)!r} is for model {others[f.name]}, not {self.model}")

    @property
    def half(self) -> bool:
        """Whether weights and activations are in half precision, with float32 master weights; "auto" is undecided."""
        return self.dtype in ("bfloat16", "float16")

    @property
    def tokens_per_step(self) -> int:
        """Return the number of tokens in one optimizer step."""
        return self.batch_size * self.grad_accum * self.block_size

    def model_config(self, vocab_size: int) -> GPTConfig | LlamaConfig:
        """Return the configuration of the model; the tokenizer determines the size of the vocabulary."""
        kind = MODELS[self.model]
        values = {f.name: getattr(self, f.name) for f in fields(kind) if f.name != "vocab_size"}
        if kind is LlamaConfig:
            hidden = -(-8 * self.n_embd // (3 * HIDDEN_MULTIPLE)) * HIDDEN_MULTIPLE
            values |= {"n_kv_head": self.n_kv_head or self.n_head, "n_hidden": self.n_hidden or hidden}
        return kind(vocab_size=vocab_size, **values)


def _preset(shape: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {key: value for key, value in shape.items() if key != "vocab_size"} | settings


# nanoGPT's settings, half a million tokens per step: for a large --data and a large machine.
_GPT2_RUN: dict[str, Any] = {
    "tokenizer": "gpt2", "batch_size": 12, "grad_accum": 40, "max_iters": 600_000,
    "lr": 6e-4, "min_lr": 6e-5, "warmup_iters": 2000, "beta2": 0.95,
    "eval_interval": 1000, "eval_iters": 200,
}  # fmt: skip

_CHAR: dict[str, Any] = {"tokenizer": "char"}

# The values of `--config NAME`; flags take precedence over them.
NAMED_CONFIGS: dict[str, dict[str, Any]] = {
    "shakespeare-char-cpu": _preset(GPT_CONFIG_SHAKESPEARE_CHAR_CPU, **_CHAR, max_iters=2000),
    "llama-char": _preset(GPT_CONFIG_SHAKESPEARE_CHAR_CPU, **_CHAR, max_iters=2000, model="llama", n_kv_head=2),
    "shakespeare-char": _preset(GPT_CONFIG_SHAKESPEARE_CHAR, **_CHAR, batch_size=64, max_iters=5000, eval_iters=200),
    "gpt2-124m": _preset(GPT_CONFIG_124M, **_GPT2_RUN),
    "gpt2-355m": _preset(GPT_CONFIG_355M, **_GPT2_RUN),
    "gpt2-774m": _preset(GPT_CONFIG_774M, **_GPT2_RUN),
    "gpt2-1558m": _preset(GPT_CONFIG_1558M, **_GPT2_RUN),
}
