"""A run of LoRA, merged and exported: transformers, which loads it, computes what we do with the adapter beside it."""

from pathlib import Path

import numpy as np
import pytest

from gpt.checkpoint import load_checkpoint
from gpt.generate import generate
from gpt.lora import adapter_parameters
from gpt.weights.initial import build_checkpoint, load_initial
from tests.gpt.weights import make_merged_figures as merged

pytestmark = pytest.mark.usefixtures("numpy_backend")


@pytest.mark.parametrize("name", merged.CONFIGS)
def test_transformers_computes_with_the_exported_run_what_we_compute_with_its_adapter(
    name: str, tmp_path: Path
) -> None:
    figures = np.load(merged.FIGURES)
    exported = load_initial(str(merged.export(tmp_path, name))).build_model()
    beside = build_checkpoint(load_checkpoint(tmp_path / "run")).eval()
    assert len(adapter_parameters(beside)) > 0 == len(adapter_parameters(exported))
    x = merged.tokens_of(merged.PROMPTS)
    for model in (exported, beside):
        logits = model.eval()(x, x)[0].numpy()
        np.testing.assert_allclose(logits, figures[f"{name}_logits"], rtol=0, atol=2e-5)
        greedy = generate(model, x.tolist(), max_new_tokens=merged.N_NEW, temperature=0.0)
        assert greedy == figures[f"{name}_greedy"].tolist()
    without = load_initial(str(tmp_path / "base")).build_model().eval()
    assert generate(without, x.tolist(), max_new_tokens=merged.N_NEW, temperature=0.0) != greedy
