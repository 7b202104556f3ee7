"""A tiny model with a chat template, as a checkpoint: what the tests of answers start from."""

from pathlib import Path

import tensorgrad as tg
from gpt.checkpoint import RunState, save_checkpoint
from gpt.config import GPTConfig, LlamaConfig
from gpt.tokenizer.bpe import SINGLE_BYTES
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.train.config import TrainConfig
from gpt.weights import build_model

EOT, START, END = 256, 257, 258
SPECIAL = {"<|endoftext|>": EOT, "<|im_start|>": START, "<|im_end|>": END}
CONFIG = LlamaConfig(
    block_size=128, vocab_size=259, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, n_hidden=24, norm_eps=1e-5
)


def make_tokenizer(chat_template: str | None = None) -> ByteLevelTokenizer:
    """Return a tokenizer of bytes, with ChatML's special tokens."""
    return ByteLevelTokenizer(
        SINGLE_BYTES, range(256), "smollm", special=SPECIAL, roles={"eos": END}, chat_template=chat_template
    )


def save_base(folder: Path, tokenizer: ByteLevelTokenizer, config: GPTConfig | LlamaConfig = CONFIG) -> None:
    """Write a checkpoint with random weights."""
    tg.manual_seed(3)
    model = build_model(config)
    fields = {name: value for name, value in config.to_dict().items() if name != "vocab_size"}
    train_config = TrainConfig(tokenizer="byte-level", **fields)
    state = RunState(0, config, train_config, "", tg.random.default_generator.state_dict())
    save_checkpoint(folder, state, model, tg.optim.AdamW(model.parameters()), tokenizer)
