"""The size of a training run before its first step: parameters, operations, memory and disk.

Of the model, only shapes and dtypes are read, and what is trained: it may have been made inside `skip_init`.

The largest part of memory is what the blocks save for backward: it is observed in blocks of a small model and scaled
up. N is the number of tokens in a batch, C the width, T the time, V the vocabulary.
"""

import math
import os
import sys
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig, UserError
from gpt.lora import LoRA, add_lora
from gpt.train.config import TrainConfig
from gpt.weights import Model, build_model
from tensorgrad.autograd import Observer, saved_arrays
from tensorgrad.autograd.inplace import owner
from tensorgrad.backend import load
from tensorgrad.backend.numpy.blocks import BLOCK_ELEMENTS as NUMPY_BLOCK
from tensorgrad.backend.threads import cpu_count
from tensorgrad.ops.cross_entropy import rows_at_a_time

FLOAT32 = 4  # bytes
# Of N x C: what the last block's backward needs beside what was saved before the first of that is freed: the gradient
# of the stream, of the MLP's inside (4), and what goes on from there.
WORKING = 6
FORWARD = 15  # of N x C: what a block needs that saves nothing, most of it inside the MLP
WIDTH, TIMES = 128, (8, 16)  # of the block that is observed
BYTES_OF_A_PAIR = 2 * 8  # a token and the one that follows it, as int64; a step draws those of all its batches at once
PREDICTION_ERROR = 0.1
MOST_OF_A_GPU = 10**13  # bytes: the memory of a GPU is known when it runs out
DROPPING = 7  # of an array, in float32: what dropout needs for its random bits


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs beside the program and its data."""

    weights: int  # with the float32 master weights of half precision
    moments: int
    gradients: int  # all of them, as they are when backward ends
    activations: int  # what backward keeps and works with where it begins
    logits: int  # and their loss, with what is worked on of them at a time
    snapshot: int  # the copy from which a checkpoint is written while training continues
    peak: int  # the most of it that is needed at one time


class Parts:
    """A model as training sees it: its blocks, the output layer, and what of them is trained."""

    def __init__(self, model: Model) -> None:
        language_model = getattr(model, "model", model)  # of a classifier, the one in it
        self.blocks: Sequence[tg.nn.Module] = language_model.h
        embeddings = [getattr(language_model, name).weight for name in ("wte", "wpe") if hasattr(language_model, name)]
        self.head: tg.Tensor = getattr(model, "score", getattr(language_model, "lm_head", language_model.wte)).weight
        self.predicts_tokens = model is language_model
        self.looked_up = [weight for weight in embeddings if weight is not self.head]
        self.trained = n_trained(model.parameters())
        self.inputs = []  # of every block: whether its input has a gradient
        passed = any(weight.requires_grad for weight in embeddings)
        for block in self.blocks:
            self.inputs.append(passed)
            passed = passed or n_trained(block.parameters()) > 0
        self.passed = [*self.inputs[1:], passed]  # of every block: whether backward passes it


def n_trained(parameters: Iterable[tg.Tensor]) -> int:
    """Return how many numbers are trained in these parameters."""
    return sum(p.size for p in parameters if p.requires_grad)


def require_memory(config: TrainConfig, model: Model, n_processes: int = 1) -> None:
    """Raise UserError for a run that needs more than all the memory that this machine has, by the prediction."""
    config = replace(config, batch_size=-(-config.batch_size // n_processes))
    backend = tg.get_backend().name
    total = MOST_OF_A_GPU if backend == "cupy" else total_memory()
    if _least_bytes(config, model) < total / 100:  # a small run begins without a prediction
        return
    if (need := memory(config, model, backend).peak) > total * (1 + PREDICTION_ERROR):
        has = "any GPU has" if backend == "cupy" else f"this machine has, {as_size(total)}"
        raise UserError(
            f"{as_size(need)} of memory are needed, more than {has}: give a smaller model, window or batch; "
            "--dry-run shows what needs how much"
        )


def _least_bytes(config: TrainConfig, model: Model) -> int:
    """Bytes that a step certainly needs: weights, gradients and moments, and the input of every block."""
    shape, parts = model.config, Parts(model)
    tokens = config.batch_size * config.block_size
    inputs = 2 * tokens * shape.n_embd * sum(parts.passed)
    return weight_bytes(model) + 3 * FLOAT32 * parts.trained + inputs + BYTES_OF_A_PAIR * tokens * config.grad_accum


def weight_bytes(model: Model, size: int = FLOAT32) -> int:
    """Return what the weights take; size: of a number that is not quantised."""
    arrays = model.state_dict().values()
    return sum(array.nbytes if isinstance(array, tg.QuantizedArray) else size * array.size for array in arrays)


def total_memory() -> int:
    """Return the bytes of memory and swap space that this machine has; the largest number where that is unknown."""
    try:
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        lines = Path("/proc/meminfo").read_text().splitlines() if sys.platform == "linux" else []
        return pages + sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapTotal"))
    except (OSError, ValueError, AttributeError):
        return sys.maxsize


def as_size(n_bytes: float) -> str:
    """1536000 -> 1.54 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}" if n_bytes < 999.5 * size else f"{n_bytes / size:,.0f} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"


def flops_per_token(model: Model, recompute: bool = False) -> int:
    """Return the operations of training on one token, and of recomputation; see GPT.estimate_flops_per_token.

    Of the six for every weight, the two for its gradient are left out where it is frozen, and two more where backward
    ends before it.
    """
    parts, attention = Parts(model), model.config.n_embd * model.config.block_size
    looked_up = sum(weight.size for weight in parts.looked_up)
    n_blocks, n_passed = len(parts.blocks), sum(parts.passed)
    passed = sum(block.num_params() for block in parts.blocks[n_blocks - n_passed :])
    outside = model.num_params() - looked_up - sum(block.num_params() for block in parts.blocks)
    forward = 2 * (model.num_params() - looked_up) + 4 * n_blocks * attention
    backward = 2 * (passed + outside + parts.trained - n_trained(parts.looked_up)) + 8 * n_passed * attention
    return forward + backward + (2 * passed + 4 * n_passed * attention if recompute else 0)


def memory(config: TrainConfig, model: Model, backend: str) -> Memory:
    """Return what a training step with these settings needs, on that backend.

    When backward begins, all activations exist and few gradients; when it ends, all gradients. Where gradients are
    accumulated over several batches, those of the earlier batches always exist.
    """
    shape, parts = replace(model.config, block_size=config.block_size), Parts(model)  # a longer window costs nothing
    size = 2 if config.half else FLOAT32
    n = parts.trained
    weights = weight_bytes(model, size) + (FLOAT32 * n if config.half else 0)
    moments, gradients = 2 * FLOAT32 * n, FLOAT32 * n

    tokens = config.batch_size * shape.block_size
    stream = size * tokens * shape.n_embd
    threads = config.threads or cpu_count()
    scores = _attention_weights(config, shape, backend, stream)
    inside = 2 * FLOAT32 * min(4 * tokens * shape.n_embd, threads * NUMPY_BLOCK) if backend == "numpy" else 0
    inside = max(0, inside - scores)  # of the blocks of GELU's backward, at another time than attention's
    hidden = stream // shape.n_embd * getattr(shape, "n_hidden", 4 * shape.n_embd)
    if config.lora_rank:  # by then, the adapter after the GELU has freed its input
        inside = max(0, inside - hidden)
    dropping = DROPPING * hidden if config.lora_dropout and backend != "numba" else 0
    kept_gelu = hidden if _keeps_gelu(config, shape, backend, hidden) else 0
    saved = [n + kept_gelu for n in saved_in_blocks(config, parts, shape, backend)]
    recomputed = max(saved) + scores if config.recompute else 0
    kept = stream * sum(parts.passed) if config.recompute else sum(saved)
    predicted = tokens if parts.predicts_tokens else config.batch_size
    logits, before_head, beside_head = _logits(predicted, parts.head.shape[0], size, backend, threads)
    before = gradients if config.grad_accum > 1 else 0  # of the earlier batches
    head_there = FLOAT32 * n_trained([parts.head]) + before
    last = 0 if before else FLOAT32 * n_trained(parts.looked_up)  # the gradient of embeddings that are no output layer
    first = FLOAT32 * next((n for block in parts.blocks if (n := n_trained(block.parameters()))), 0)
    peaks = [
        FORWARD * stream,  # a block that backward does not pass
        kept + dropping,  # the last adapter
        kept + 3 * stream + logits + before_head + before,  # the loss
        kept + 3 * stream + logits + beside_head + head_there,  # and the gradient of its head
        kept + (recomputed or scores) + inside + WORKING * stream + head_there,  # the last block
        recomputed + inside + WORKING * stream + gradients - last - first,  # the first one
        gradients - last + WORKING * stream,  # its end
        gradients + 2 * stream,  # and that of backward
    ]
    batches = BYTES_OF_A_PAIR * tokens * config.grad_accum
    snapshot = checkpoint_bytes(config, model) if config.async_save else 0
    copies = _packed(shape, threads) if backend == "numba" else 0
    return Memory(
        weights, moments, gradients, kept + recomputed + WORKING * stream,
        logits + max(before_head, beside_head), snapshot, weights + moments + max(peaks) + batches + copies + snapshot,
    )  # fmt: skip


def _packed(shape: GPTConfig | LlamaConfig, threads: int) -> int:
    """Bytes of the packed blocks of a product's operands, which every thread of compiled kernels has."""
    from tensorgrad.backend.numba.macrokernel import KC, MC, NC  # here, where Numba is installed

    width = getattr(shape, "n_hidden", 4 * shape.n_embd)
    return FLOAT32 * threads * (MC * min(width, KC) + min(shape.n_embd, KC) * min(width, NC))


class _Saved(Observer):
    """The arrays that ops save for backward, by the identity of their memory."""

    def __init__(self) -> None:
        self.arrays: dict[int, Any] = {}

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, *call: Any) -> None:
        """Look into the node of an op."""
        node = (output[0] if isinstance(output, list) else output).node
        self.arrays |= {id(owner(array)): owner(array) for array in saved_arrays(node and node.saved())}


def saved_in_blocks(config: TrainConfig, parts: Parts, shape: GPTConfig | LlamaConfig, backend: str) -> list[int]:
    """Return the bytes that each block of the model saves for backward, which are equal where the same is trained."""
    known: dict[Any, int] = {}
    saved = []
    for block, has_gradient in zip(parts.blocks, parts.inputs, strict=True):
        trained = frozenset(name for name, p in block.named_parameters() if p.requires_grad)
        kind = trained, has_gradient
        if kind not in known:
            known[kind] = _saved_in_a_block(config, shape, backend, trained, has_gradient)
        saved.append(known[kind])
    return saved


def _saved_in_a_block(
    config: TrainConfig, shape: GPTConfig | LlamaConfig, backend: str, trained: Container[str], has_gradient: bool
) -> int:
    """Return the bytes that a block saves; trained: names of parameters; has_gradient: whether its input has one.

    Observed in a block of a small model, at two values of T, since only the weights of plain attention grow with its
    square. It has enough tokens for NumPy to recompute what the backend recomputes in the large one.
    """
    stream = (2 if config.half else FLOAT32) * config.batch_size * shape.block_size * shape.n_embd
    share = min(1.0, stream / load(backend).min_recompute_bytes)
    numbers = share * load("numpy").min_recompute_bytes / (2 if config.half else FLOAT32)
    dtype = "float16" if config.half else "float32"
    small = _narrow(shape, keep_dropout=backend == "numpy" or config.plain)  # other kernels keep no dropped weights
    C = small.n_embd
    tokens = math.ceil(numbers / C)
    state = tg.random.default_generator.state_dict()
    of_a_token = []
    with tg.use_backend("numpy"):  # the others save the same, and their kernels would have to be compiled here
        model = build_model(small, plain=config.plain)
        if lora := LoRA.of(config):
            add_lora(model, replace(lora, rank=max(1, round(lora.rank * C / shape.n_embd))))
        model.astype(dtype)
        (block,) = model.h
        for name, p in block.named_parameters():
            p.requires_grad = name in trained
        weights = {id(p.data) for p in block.parameters()}
        for T in TIMES:
            x = tg.zeros((math.ceil(tokens / T), T, C), dtype=dtype, requires_grad=has_gradient)
            with _Saved() as saved:
                block(x, tg.arange(T))
            n_bytes = sum(array.nbytes for key, array in saved.arrays.items() if key not in weights)
            of_a_token.append(n_bytes / (x.shape[0] * T))
    tg.random.default_generator.load_state_dict(state)
    slope = (of_a_token[1] - of_a_token[0]) / (TIMES[1] - TIMES[0])
    scaled = of_a_token[0] + slope * (shape.block_size - TIMES[0])
    return round(scaled * config.batch_size * shape.block_size * shape.n_embd / C)


def _narrow(shape: GPTConfig | LlamaConfig, keep_dropout: bool) -> GPTConfig | LlamaConfig:
    """Return a small model of that kind, of one block: a head has its size, but there are fewer heads."""
    D = min(shape.head_size, WIDTH)
    shared = shape.n_head // shape.n_kv_head
    n_kv_head = max(1, min(shape.n_kv_head, WIDTH // (D * shared)))
    n_head, C = n_kv_head * shared, n_kv_head * shared * D
    if isinstance(shape, GPTConfig):
        return GPTConfig(max(TIMES), 1, 1, n_head, C, shape.dropout if keep_dropout else 0.0, shape.bias)
    return LlamaConfig(max(TIMES), 1, 1, n_head, C, n_kv_head, max(1, shape.n_hidden * C // shape.n_embd))


def _logits(tokens: int, vocab_size: int, size: int, backend: str, threads: int) -> tuple[int, int, int]:
    """Bytes of logits that are kept, and of what is worked on of them before the head has a gradient, and after."""
    rows = rows_at_a_time(load(backend), tokens, vocab_size)
    whole, block = tokens * vocab_size, rows * vocab_size * FLOAT32
    several = rows < tokens  # while the next block is made, the gradient of the head is already there
    if size != FLOAT32:
        return size * whole, 2 * FLOAT32 * whole, (2 if several else 1) * block
    if backend == "numba":
        return 0, block, block  # fused loops need the block alone
    if backend == "numpy":
        working = 2 * min(block, FLOAT32 * threads * NUMPY_BLOCK)
        return 0, block + working, block + (working if several else 0)
    return 0, 3 * block, (3 if several else 1) * block


def _keeps_gelu(config: TrainConfig, shape: GPTConfig | LlamaConfig, backend: str, hidden: int) -> bool:
    """Whether a GPU keeps GELU's result; hidden: its bytes."""
    fused = backend == "cupy" and config.half and not (config.plain or config.lora_rank)
    return fused and getattr(shape, "gelu", "") == "tanh" and hidden < load(backend).min_recompute_bytes


def _attention_weights(config: TrainConfig, shape: GPTConfig | LlamaConfig, backend: str, stream: int) -> int:
    """Bytes of the T x T matrices that attention makes in backward where it is left to the plain mathematics."""
    matrix = FLOAT32 * config.batch_size * shape.n_head * shape.block_size**2
    if config.plain:  # the MLP's backward has freed 8 streams by then
        return max(0, 2 * matrix - 8 * stream)
    return DROPPING * matrix if config.dropout and backend != "numba" else 0


def checkpoint_bytes(config: TrainConfig, model: Model) -> int:
    """Return what a checkpoint takes on the disk: weights, or adapters alone, and both moments, in float32."""
    parts = Parts(model)
    alone = config.lora_rank and parts.predicts_tokens  # a classifier's checkpoints hold all weights
    return FLOAT32 * (parts.trained if alone else model.num_params()) + 2 * FLOAT32 * parts.trained


def disk_bytes(config: TrainConfig, model: Model) -> int:
    """Return the most that a run takes on the disk: the last checkpoints, the best, and the one being written."""
    lines = config.max_iters * (100 + 80 + (60 + 35 * (config.n_layer + 3) if config.log_ratios else 0))
    return (config.keep_checkpoints + 2) * checkpoint_bytes(config, model) + lines
