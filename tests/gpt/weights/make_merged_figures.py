"""Writes tests/gpt/weights/transformers/merged.npz: what transformers computes with a merged adapter that was exported.

    pip install torch transformers tiktoken
    PYTHONPATH=. python tests/gpt/weights/make_merged_figures.py

Of a small Llama and a small GPT-2, each with a run of LoRA that `python -m gpt weights export` has merged and written:
the logits of some prompts, and the tokens that follow them, greedily. All weights follow from their names.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import tensorgrad as tg
from gpt.checkpoint import RunState, save_checkpoint
from gpt.config import GPTConfig, LlamaConfig
from gpt.lora import LoRA, adapter_parameters, add_lora
from gpt.train.config import TrainConfig
from gpt.weights import Model, build_model
from gpt.weights.__main__ import main as weights
from gpt.weights.initial import load_initial
from tests.gpt.finetune.chat_model import make_tokenizer
from tests.gpt.weights.make_peft_figures import base_weight, numbers

FIGURES = Path(__file__).parent / "transformers" / "merged.npz"
CONFIGS: dict[str, GPTConfig | LlamaConfig] = {
    "llama": LlamaConfig(block_size=24, vocab_size=259, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, n_hidden=40),
    "gpt2": GPTConfig(block_size=24, vocab_size=259, n_layer=2, n_head=4, n_embd=32),
}
PROMPTS = ["To be, ", "the que", "Ophelia"]  # of one length
N_NEW = 12


def write_run(folder: Path, name: str) -> Path:
    """Write a base as a run, and a run of LoRA beside it; return the folder of the latter."""
    config, tokenizer = CONFIGS[name], make_tokenizer()
    fields = {key: value for key, value in config.to_dict().items() if key != "vocab_size"}
    settings: dict[str, Any] = {"tokenizer": tokenizer.type_name, **fields}
    model = build_model(config)
    for key, p in model.named_parameters():
        p.data[...] = base_weight(key, p.shape)
    save(folder / "base", model, TrainConfig(**settings))
    initial = load_initial(str(folder / "base"))
    add_lora(model, LoRA(4, 6.0))
    for key, p in adapter_parameters(model).items():
        p.data[...] = 0.4 * numbers(key, p.shape)
    settings |= {"init_from": "base", "lora_rank": 4, "lora_alpha": 6.0}
    save(folder / "run", model, TrainConfig(**settings), base=initial.base)
    return folder / "run"


def save(folder: Path, model: Model, config: TrainConfig, **more: Any) -> None:
    state = RunState(0, model.config, config, "", tg.random.default_generator.state_dict(), **more)
    trained = [p for p in model.parameters() if p.requires_grad]
    save_checkpoint(folder, state, model, tg.optim.AdamW(trained), make_tokenizer())


def export(folder: Path, name: str) -> Path:
    """Export a run of LoRA, by the command of a user; return the folder."""
    run = write_run(folder, name)
    assert weights(["export", str(run), "--to", "hf", "--out", str(folder / "merged")]) == 0
    return folder / "merged"


def tokens_of(prompts: list[str]) -> np.ndarray:
    return np.array([make_tokenizer().encode(prompt) for prompt in prompts])


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    figures = {}
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            model = AutoModelForCausalLM.from_pretrained(export(Path(folder), name), dtype=torch.float32).eval()
        x = torch.tensor(tokens_of(PROMPTS))
        with torch.no_grad():
            figures[f"{name}_logits"] = model(x).logits.numpy()
            rows = model.generate(x, max_new_tokens=N_NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
            top = torch.topk(model(rows).logits[:, x.shape[1] - 1 : -1], 2).values
        figures[f"{name}_greedy"] = rows[:, x.shape[1] :].numpy()
        closest = (top[..., 0] - top[..., 1]).min()
        print(name, figures[f"{name}_greedy"].tolist(), f"the closest choice by {closest:.4f}")
    np.savez_compressed(FIGURES, **figures)


if __name__ == "__main__":
    tg.use_backend("numpy")
    main()
