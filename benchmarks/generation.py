"""The contenders of generate.py: decoding one sequence with a KV cache, and the bandwidth of memory.

Each class runs in its own process (see workers.py) and imports only its own library.
"""

import contextlib
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import common
from benchmarks.configurations import Setup
from benchmarks.training import import_tensorgrad, import_torch
from benchmarks.workers import Unavailable

Stamp = Callable[[], None]


class Decoder:
    """Base class of the contenders: the prompt, the timing, and a score by which they are compared."""

    def __init__(self, setup: dict[str, Any], inputs: str, prompt: int, **options: Any) -> None:
        from safetensors import safe_open

        self.setup = Setup(**setup)
        self.prepare(inputs, **options)
        with safe_open(inputs, framework="numpy") as arrays:
            tokens = arrays.get_tensor("idx")[0, 0].tolist()
        self.prompt, self.continuation = tokens[:prompt], tokens[prompt:]

    def prepare(self, inputs: str, **options: Any) -> None:
        """Create the model."""
        raise NotImplementedError

    def generate(self, n: int, stamp: Stamp) -> list[int]:
        """Generate n tokens after the prompt, the likeliest each time; calls `stamp` after each."""
        raise NotImplementedError

    def logits(self) -> Any:
        """A function from the next tokens, a list, to the logits after them, a list of V; its cache starts empty."""
        raise NotImplementedError

    def score(self) -> float:
        """The mean loss of a given continuation, each token fed through the cache as in decoding."""
        run, ids, total = self.logits(), self.prompt, 0.0
        for token in self.continuation:
            logits = run(ids)
            top = max(logits)
            total += top + math.log(sum(math.exp(x - top) for x in logits)) - logits[token]
            ids = [token]
        return total / len(self.continuation)

    def run(self, n: int) -> dict[str, Any]:
        """Do a turn. Returns seconds in all, until the first token, and of later tokens; page faults per token."""
        times, faults = [time.perf_counter()], common.page_faults()
        tokens = self.generate(n, lambda: times.append(time.perf_counter()))
        faults, seconds = common.page_faults() - faults, time.perf_counter() - times[0]
        later = [after - before for before, after in zip(times[1:], times[2:], strict=False)]
        return {"s": seconds, "first_s": times[1] - times[0], "later_s": later, "faults": faults / n, "tokens": tokens}

    def memory(self) -> float:
        """The peak memory in MB."""
        return common.peak_memory()


class Ours(Decoder):
    """tensorgrad, with gpt/generate/__init__.py."""

    def prepare(self, inputs: str, threads: int, backend: str) -> None:
        """See Decoder."""
        from safetensors import safe_open

        from gpt.fused import FusedGPT

        import_tensorgrad(backend, threads)
        self.model = FusedGPT(self.setup.model())
        with safe_open(inputs, framework="numpy") as weights:  # one at a time, as the other contenders do
            for name, p in self.model.named_parameters():
                p.data[...] = weights.get_tensor(name)
        self.model.eval()

    def generate(self, n: int, stamp: Stamp) -> list[int]:
        """See Decoder."""
        from gpt.generate import Generation

        written = []
        for new in Generation(self.model, [self.prompt], max_new_tokens=n, temperature=0.0):
            written.append(new[0])
            stamp()
        return written

    def logits(self) -> Any:
        """See Decoder."""
        import numpy as np

        import tensorgrad as tg
        from gpt.generate.kvcache import KVCache

        cache = KVCache(self.model, 1)

        def run(ids: list[int]) -> Any:
            with tg.no_grad():
                return self.model(np.array([ids]), cache=cache)[0].numpy()[0, 0].tolist()

        return run


class Torch(Decoder):
    """PyTorch, with the model and cache of torch_gpt.py, in a plain loop."""

    def prepare(self, inputs: str, threads: int) -> None:
        """See Decoder."""
        self.torch = import_torch(threads)
        from benchmarks.torch_gpt import TorchGPT, load_weights

        self.model = TorchGPT(self.setup).eval()
        load_weights(self.model, inputs)

    def generate(self, n: int, stamp: Stamp) -> list[int]:
        """See Decoder."""
        from benchmarks.torch_gpt import Cache

        with self.torch.inference_mode():
            cache, written = Cache(self.setup), []
            ids = self.torch.tensor([self.prompt])
            for _ in range(n):
                ids = self.model(ids, cache=cache)[0].argmax(-1)  # (1, 1)
                written.append(ids.item())
                stamp()
        return written

    def logits(self) -> Any:
        """See Decoder."""
        from benchmarks.torch_gpt import Cache

        cache = Cache(self.setup)

        def run(ids: list[int]) -> Any:
            with self.torch.inference_mode():
                return self.model(self.torch.tensor([ids]), cache=cache)[0][0, 0].tolist()

        return run


class Streamer:
    """Gets every token from `generate` of transformers, after the prompt."""

    def __init__(self, stamp: Stamp) -> None:
        self.stamp, self.after_prompt = stamp, False

    def put(self, _: Any) -> None:
        """Called with the prompt, then with every token."""
        if self.after_prompt:
            self.stamp()
        self.after_prompt = True

    def end(self) -> None:
        """Called after the last token."""


class HuggingFace(Decoder):
    """GPT-2 of Hugging Face transformers with its own cache and `generate`."""

    def prepare(self, inputs: str, threads: int) -> None:
        """See Decoder."""
        self.torch = import_torch(threads)
        if not self.setup.bias:
            raise Unavailable("transformers' GPT-2 always has biases, and this configuration has none")
        if common.version("transformers") is None:
            raise Unavailable("transformers is not installed (pip install transformers)")
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError as error:
            raise Unavailable(f"transformers cannot be imported: {error}") from None

        s = self.setup
        config = GPT2Config(
            vocab_size=s.vocab_size, n_positions=s.block_size, n_embd=s.n_embd, n_layer=s.n_layer, n_head=s.n_head,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()
        self._load(inputs)

    def _load(self, inputs: str) -> None:
        from safetensors import safe_open

        with self.torch.no_grad(), safe_open(inputs, framework="pt") as weights:
            for name, p in self.model.transformer.named_parameters():
                w = weights.get_tensor(name)
                p.copy_(w.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else w)

    def generate(self, n: int, stamp: Stamp) -> list[int]:
        """See Decoder."""
        ids = self.torch.tensor([self.prompt])
        with self.torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False,
                use_cache=True, streamer=Streamer(stamp),
            )  # fmt: skip
        return out[0, len(self.prompt) :].tolist()

    def logits(self) -> Any:
        """See Decoder."""
        cache = None

        def run(ids: list[int]) -> Any:
            nonlocal cache
            with self.torch.inference_mode():
                out = self.model(self.torch.tensor([ids]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            return out.logits[0, -1].tolist()

        return run


class Bandwidth:
    """The bandwidth of memory: several ways to read a large array once."""

    def __init__(self, threads: int, read_mb: int, with_numba: bool = False) -> None:
        import numpy as np

        self.np = np
        self.x = np.ones((read_mb * 2**20 // 4 // 1024, 1024), np.float32)
        self.pool = ThreadPoolExecutor(threads)
        self.parts = np.array_split(self.x.reshape(-1), threads)
        self.vector = np.ones(1024, np.float32)
        self.numba: Any = None
        if with_numba:
            with contextlib.suppress(Unavailable):
                self.numba = import_tensorgrad("numba", threads).get_backend()
            import_tensorgrad("numpy", threads)  # the numba backend sets NumPy's BLAS to one thread

    def run(self) -> dict[str, float]:
        """Do a turn. Returns GB/s of each way."""
        flat = self.x.reshape(-1)
        ways = {
            "matrix times vector": lambda: self.x @ self.vector,
            "dot product": lambda: self.np.dot(flat, flat),
            "maximum, one part per thread": lambda: list(self.pool.map(self.np.max, self.parts)),
        }
        if self.numba is not None:
            ways["matrix times vector, by numba"] = lambda: self.numba.linear(self.vector[None], self.x, None)
        speeds = {}
        for name, read in ways.items():
            started = time.perf_counter()
            read()
            speeds[name] = self.x.nbytes / (time.perf_counter() - started) / 1e9
        return speeds
