"""Processes that were forked after a kernel, and threads that compute at the same time."""

import multiprocessing
import os
import subprocess
import sys
import textwrap

import pytest

from tests.processes import HANG_S

PROGRAM = """
import multiprocessing, sys, threading, zlib
import numpy as np
import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.fused import FusedGPT

tg.use_backend("numba")

def step(seed):  # every kind of kernel: elementwise, products, attention, the optimizer
    tg.random.manual_seed(seed)
    model = FusedGPT(GPTConfig(block_size=64, vocab_size=65, n_layer=1, n_head=2, n_embd=64))
    optimizer = tg.optim.AdamW(model.parameters(), lr=0.01)
    tokens = np.arange(16 * 64).reshape(16, 64) % 65
    loss = model.loss(tokens, tokens)
    loss.backward()
    optimizer.step()
    weights = b"".join(p.data.tobytes() for p in model.parameters())
    return loss.item(), zlib.crc32(weights)

def in_forked_processes():
    before = step(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(step, [0, 0, 0]) == [before] * 3
    assert step(0) == before

def in_threads():
    x = tg.Tensor(np.ones((512, 512), np.float32))
    expected = tg.softmax(x @ x).data.tobytes()
    wrong = []
    def compute():
        for _ in range(50):
            if tg.softmax(x @ x).data.tobytes() != expected:
                wrong.append(1)
    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not wrong

globals()[sys.argv[1]]()
print("done")
"""


def run(function: str, threading_layer: str) -> None:
    environment = {**os.environ, "NUMBA_THREADING_LAYER": threading_layer}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), function], check=False, env=environment, capture_output=True,
        text=True, timeout=HANG_S,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.parametrize("threading_layer", ["default", "workqueue"])
def test_a_process_forked_after_a_kernel_computes_the_same(threading_layer: str) -> None:
    run("in_forked_processes", threading_layer)


@pytest.mark.parametrize("threading_layer", ["default", "workqueue"])
def test_threads_compute_at_the_same_time(threading_layer: str) -> None:
    run("in_threads", threading_layer)
