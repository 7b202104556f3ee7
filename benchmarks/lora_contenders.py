"""The contenders of lora_step.py: a step of finetuning SmolLM2 by tensorgrad, all weights or LoRA, and by PEFT.

Each class runs in its own process (see workers.py) and imports only its own library. All begin with the same weights:
A of an adapter follows from its name, and B is 0.
"""

import itertools
import os
import zlib
from pathlib import Path
from typing import Any

from benchmarks import common, training
from benchmarks.training import Training, decay_groups, import_tensorgrad, import_torch
from benchmarks.workers import Unavailable

LR, BETAS = 1e-4, (0.9, 0.99)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Finetuning(Training):
    """Base class: a step is forward, backward, gradients clipped, AdamW.

    batches: rows of T + 1 tokens each. options: see prepare.
    """

    def __init__(self, batches: list[list[list[int]]], **options: Any) -> None:
        self.prepare(**options)
        self.batches = itertools.cycle(self.split(batches))
        common.reset_peak_memory()  # reading the file is not part of training

    def split(self, batches: list[list[list[int]]]) -> list[tuple[Any, Any]]:
        """[(idx, targets)], each (B, T)."""
        raise NotImplementedError

    def step(self, idx: Any, targets: Any) -> float:
        """See Training."""
        loss = self.loss(idx, targets)
        loss.backward()
        self.update()
        return float(loss.item())

    def loss(self, idx: Any, targets: Any) -> Any:
        """The mean loss of a batch."""
        raise NotImplementedError

    def version(self) -> str:
        """What computes, with its version."""
        raise NotImplementedError


class Ours(Finetuning):
    """tensorgrad; rank 0 trains all weights."""

    update = training.Ours.update

    def prepare(self, file: str, threads: int, backend: str, rank: int) -> None:
        """See Training."""
        tg = import_tensorgrad(backend, threads)
        from gpt.lora import LoRA, adapter_parameters, add_lora
        from gpt.train.config import TrainConfig
        from gpt.train.kernels import kernels
        from gpt.weights.adapter import to_peft
        from gpt.weights.initial import load_initial

        self.model = load_initial(file, quantize="none").build_model()
        self.name = f"{backend}, {'LoRA' if rank else 'all weights'}"
        if rank:
            add_lora(self.model, LoRA(rank, 2.0 * rank))
            for name, p in to_peft(adapter_parameters(self.model), self.model.config).items():
                if "lora_A" in name:
                    p.data[...] = initial_a(name, p.shape)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = tg.optim.AdamW(decay_groups(self.parameters), lr=LR, betas=BETAS)
        self.norm_and_factor = tg.optim.norm_and_factor
        names = kernels(TrainConfig(model="llama", tokenizer="gpt2"))
        if (compilation := tg.get_backend().compile_ahead(names)) is not None:
            compilation.wait()

    def split(self, batches: list[list[list[int]]]) -> list[tuple[Any, Any]]:
        """See Finetuning."""
        import numpy as np

        arrays = [np.array(batch) for batch in batches]
        return [(array[:, :-1], array[:, 1:]) for array in arrays]

    def loss(self, idx: Any, targets: Any) -> Any:
        """See Finetuning."""
        return self.model.loss(idx, targets)

    def version(self) -> str:
        """See Finetuning."""
        return self.name


class Peft(Finetuning):
    """PEFT on transformers, which computes the loss from the labels."""

    def prepare(self, file: str, threads: int, rank: int) -> None:
        """See Training."""
        if any(common.version(name) is None for name in ("torch", "transformers", "peft", "gguf", "accelerate")):
            raise Unavailable("it needs pip install torch transformers peft gguf accelerate")
        self.torch = torch = import_torch(threads)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        folder, name = Path(file).parent, Path(file).name
        base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        base.config.use_cache = False
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
        self.model = get_peft_model(base, config).train()
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if "lora_A" in name:
                    p.copy_(torch.tensor(initial_a(name.replace(".default", ""), p.shape)))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(decay_groups(self.parameters), lr=LR, betas=BETAS)
        self.clip_grad_norm = torch.nn.utils.clip_grad_norm_

    def split(self, batches: list[list[list[int]]]) -> list[tuple[Any, Any]]:
        """See Finetuning."""
        tensors = [self.torch.tensor(batch) for batch in batches]
        return [(tensor[:, :-1].contiguous(), tensor[:, 1:].contiguous()) for tensor in tensors]

    def loss(self, idx: Any, targets: Any) -> Any:
        """See Finetuning."""
        return self.model(input_ids=idx, labels=targets, shift_labels=targets).loss

    def version(self) -> str:
        """See Finetuning."""
        return ", ".join(f"{name} {common.version(name)}" for name in ("torch", "transformers", "peft"))


def initial_a(name: str, shape: tuple[int, ...]) -> Any:
    """A of the adapter of that name in PEFT's files, (rank, n_in), float32."""
    import numpy as np

    draw = np.random.default_rng(zlib.crc32(name.encode()))
    return (draw.uniform(-1, 1, tuple(shape)) / shape[1] ** 0.5).astype(np.float32)
