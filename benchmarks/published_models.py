"""The contenders of published.py: a published model from a GGUF file, in tensorgrad, llama.cpp and transformers.

Each class runs in its own process (see workers.py) and imports only its own library.
"""

import os
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.training import import_tensorgrad, import_torch
from benchmarks.workers import Unavailable


class Contender:
    """Base class: a model with a cache that is filled and emptied; tokens are given, so that all do the same work."""

    package = ""  # the library, as pip calls it

    def restart(self) -> None:
        """Empty the cache."""
        raise NotImplementedError

    def evaluate(self, tokens: list[int]) -> Any:
        """Add tokens to the cache and return the logits (V,) after the last, as a NumPy array."""
        raise NotImplementedError

    def logits(self, tokens: list[int], n_prompt: int) -> list[float]:
        """The logits after the tokens, of which all behind the prompt are given one at a time, as in decoding."""
        self.restart()
        result = self.evaluate(tokens[:n_prompt])
        for token in tokens[n_prompt:]:
            result = self.evaluate([token])
        return [float(x) for x in result]

    def prefill(self, tokens: list[int]) -> float:
        """Seconds to read a prompt."""
        self.restart()
        started = time.perf_counter()
        self.evaluate(tokens)
        return time.perf_counter() - started

    def decode(self, tokens: list[int], n_prompt: int) -> list[float]:
        """Seconds for each token behind the prompt."""
        self.restart()
        self.evaluate(tokens[:n_prompt])
        times = []
        for token in tokens[n_prompt:]:
            started = time.perf_counter()
            int(self.evaluate([token]).argmax())  # the next one would be chosen by this
            times.append(time.perf_counter() - started)
        return times

    def version(self) -> str:
        """The version of the library; empty for ours."""
        return common.version(self.package) or "" if self.package else ""

    def memory(self) -> float:
        """The peak memory in MB."""
        return common.peak_memory()


class Ours(Contender):
    """tensorgrad; the weights stay as they are in the file."""

    def __init__(self, file: str, threads: int, window: int, backend: str) -> None:
        import_tensorgrad(backend, threads)
        from gpt.weights.initial import load_initial

        self.model = load_initial(file).build_model()
        self.model.eval()
        self.window = window
        self.restart()

    def restart(self) -> None:
        """See Contender."""
        from gpt.generate.kvcache import KVCache

        self.cache = KVCache(self.model, 1, self.window)

    def evaluate(self, tokens: list[int]) -> Any:
        """See Contender."""
        import numpy as np

        import tensorgrad as tg

        with tg.no_grad():
            return self.model(np.array([tokens]), cache=self.cache)[0].numpy()[0, 0]


class LlamaCpp(Contender):
    """llama.cpp, by the package llama-cpp-python."""

    package = "llama_cpp_python"

    def __init__(self, file: str, threads: int, window: int) -> None:
        try:
            import llama_cpp
        except ImportError:
            raise Unavailable("llama-cpp-python is not installed (pip install llama-cpp-python)") from None
        self.model = llama_cpp.Llama(
            file, n_ctx=window, n_batch=window, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.vocab_size = self.model.n_vocab()

    def restart(self) -> None:
        """See Contender."""
        self.model.reset()

    def evaluate(self, tokens: list[int]) -> Any:
        """See Contender."""
        import llama_cpp
        import numpy as np

        self.model.eval(tokens)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.model.ctx, -1), (self.vocab_size,)).copy()


class Transformers(Contender):
    """Hugging Face transformers with eager PyTorch; it dequantises the weights."""

    package = "transformers"

    def __init__(self, file: str, threads: int, window: int) -> None:
        if any(common.version(name) is None for name in ("torch", "transformers", "gguf", "accelerate")):
            raise Unavailable("it needs pip install torch transformers gguf accelerate")
        self.torch = import_torch(threads)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from transformers import AutoModelForCausalLM

        folder, name = Path(file).parent, Path(file).name
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=self.torch.float32).eval()
        self.restart()

    def restart(self) -> None:
        """See Contender."""
        self.cache = None

    def evaluate(self, tokens: list[int]) -> Any:
        """See Contender."""
        with self.torch.inference_mode():
            ids = self.torch.tensor([tokens])
            out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return out.logits[0, -1].numpy()
