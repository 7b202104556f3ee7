"""Writes tests/gpt/inspect/transformers.npz: attention and hidden states that transformers computes for small models.

    pip install torch transformers
    python tests/gpt/inspect/make_transformers_figures.py

The models are those in tests/gpt/weights/transformers/, which make_transformers_figures.py there has written.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
MODELS = HERE.parent / "weights" / "transformers"
NAMES = ("gpt2", "llama-tied", "llama-untied")


def main() -> None:
    idx = torch.tensor(np.load(MODELS / "tiny.npz")["idx"][:1])
    figures = {}
    for name in NAMES:
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        model = AutoModelForCausalLM.from_pretrained(MODELS / name, **options).eval()
        with torch.no_grad():
            out = model(idx, output_attentions=True, output_hidden_states=True)
        figures[f"{name}.attention"] = torch.cat(out.attentions).numpy()
        # transformers puts the last hidden state through the final norm: the others are the residual stream
        figures[f"{name}.stream"] = torch.cat(out.hidden_states[:-1]).numpy()
        figures[f"{name}.logits"] = out.logits[0].numpy()
    np.savez_compressed(HERE / "transformers.npz", idx=idx.numpy(), **figures)


if __name__ == "__main__":
    main()
