"""Decoding with GPT-2 124M on a GPU, one sequence with a KV cache in bfloat16, for gpu_check.py.

    python -m benchmarks.gpu_decode CONTENDER INPUTS OUT [--stand-in]

CONTENDER is `ours` or `torch`. PyTorch's host reads each token before it asks for the next one; ours reads it some
tokens later. Every token reads every weight once: the bound is their bytes over the bandwidth of the card's memory.
"""

import argparse
import sys
import time
from typing import Any

from benchmarks import common
from benchmarks.configurations import SETUPS, Setup
from benchmarks.gpu_card import Figures, Ours, Theirs
from benchmarks.gpu_training import GPT2

PROMPT, NEW, ROUNDS = 64, 192, 3


def ours(setup: Setup, inputs: str, stand_in: bool, prompt: int, new: int) -> tuple[Any, Any]:
    """Return a function that decodes and returns the seconds of each token, and the card."""
    from safetensors.numpy import load_file

    from gpt.fused import FusedGPT
    from gpt.generate import Generation
    from tensorgrad.creation import skip_init

    card, arrays = Ours(stand_in), load_file(inputs)
    with skip_init():
        model = FusedGPT(setup.model())
    model.load_state_dict({name: x for name, x in arrays.items() if name not in ("idx", "targets")})
    model.astype("bfloat16")
    model.eval()
    tokens = arrays["idx"][0, 0, :prompt].tolist()

    def write() -> list[float]:
        times = [time.perf_counter()]
        for _ in Generation(model, [tokens], max_new_tokens=new, temperature=0.0):
            times.append(time.perf_counter())
        return [after - before for before, after in zip(times, times[1:], strict=False)]

    return write, card


def theirs(setup: Setup, inputs: str, stand_in: bool, prompt: int, new: int) -> tuple[Any, Any]:
    """The same by PyTorch, with the model and the cache of torch_gpt.py."""
    import torch
    from safetensors import safe_open

    from benchmarks.torch_gpt import Cache, TorchGPT, load_weights

    card = Theirs(stand_in)
    model = TorchGPT(setup).eval()
    load_weights(model, inputs)
    model = model.to(card.device, torch.bfloat16)
    with safe_open(inputs, framework="pt") as arrays:
        tokens = arrays.get_tensor("idx")[0, :1, :prompt].to(card.device)

    def write() -> list[float]:
        times = [time.perf_counter()]
        with torch.inference_mode():
            cache, ids = Cache(setup), tokens
            cache.both = cache.both.to(card.device, torch.bfloat16)
            for _ in range(new):
                ids = model(ids, cache=cache)[0].argmax(-1)  # (1, 1)
                ids.item()
                times.append(time.perf_counter())
        return [after - before for before, after in zip(times, times[1:], strict=False)]

    return write, card


def main() -> int:
    parser = argparse.ArgumentParser(description="Time decoding with GPT-2 124M on a GPU.")
    parser.add_argument("contender", choices=("ours", "torch"))
    parser.add_argument("inputs", help="weights and tokens, the file of write_inputs")
    parser.add_argument("out", help="the JSON file")
    parser.add_argument("--stand-in", action="store_true", help="no GPU: a tiny model, and times that mean nothing")
    options = parser.parse_args()
    setup, prompt, new = (SETUPS["tiny"], 4, 4) if options.stand_in else (GPT2, PROMPT, NEW)
    make = ours if options.contender == "ours" else theirs
    write, card = make(setup, options.inputs, options.stand_in, prompt, new)
    write()  # includes compilation
    rounds = [write() for _ in range(ROUNDS)]
    later = [seconds for times in rounds for seconds in times[1:]]
    Figures(options.out).add(
        contender=options.contender, prompt=prompt, new=new, first_ms=common.median([x[0] for x in rounds]) * 1e3,
        later_ms=common.median(later) * 1e3, spread=common.spread(later), tokens_per_s=1 / common.median(later),
        whole_tokens_per_s=new / common.median([sum(x) for x in rounds]),  # with the prompt, and recording the step
        weight_bytes=2 * setup.n_params(), memory_gib=card.used_gib(),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
