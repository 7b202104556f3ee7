"""Freed memory is reused; memory that is still referred to is not."""

import gc
import importlib
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad.memory import HUGE_PAGE_SIZE, MAX_HUGE_PAGE_BYTES, OVERCOMMIT, STRICT, keep_freed_memory

if not keep_freed_memory():
    pytest.skip("freed memory is kept on glibc only", allow_module_level=True)

ROUNDS = 40

# Frees 400 MB in arrays of 20 MB, and prints the physical memory before they were made and after they were freed.
FREE = """
import numpy as np
import tensorgrad as tg

def megabytes():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["VmRSS"].split()[0]) / 1e3

tg.use_backend(BACKEND)
tg.exp(tg.ones(8))
before = megabytes()
arrays = [np.ones(2_500_000) for _ in range(20)]
del arrays
print(before, megabytes())
"""


# Prints whether huge pages were asked for where arrays of 2 MB lie, which two threads have made.
HUGE = """
import re
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from tensorgrad.memory import keep_freed_memory

def is_huge(x):
    middle = x.ctypes.data + x.nbytes // 2
    smaps = open("/proc/self/smaps").read()
    for first, last, flags in re.findall(r"(?m)^([0-9a-f]+)-([0-9a-f]+) (?:.*\\n)+?VmFlags:(.*)$", smaps):
        if int(first, 16) <= middle < int(last, 16):
            return " hg" in flags

assert keep_freed_memory()
arrays = [np.ones(2**18) for _ in range(100)]
with ThreadPoolExecutor(1) as pool:
    arrays.append(pool.submit(np.ones, 2**18).result())
print(*{is_huge(x) for x in arrays})
"""


@pytest.fixture(autouse=True, params=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "numba":
        pytest.importorskip("numba")
    with tg.use_backend(request.param):
        yield


def block(x: Any, weights: list[Any]) -> list[Any]:
    """The results of a transformer block, large and small."""
    qkv = tg.linear(tg.layer_norm(x, weights[0], None), weights[1])
    q, key, v = (part.reshape(*x.shape[:-1], 4, -1).permute_dims(0, 2, 1, 3) for part in tg.split(qkv, 3, axis=-1))
    attended = tg.attention(q, key, v, causal=True)
    x = x + attended.permute_dims(0, 2, 1, 3).reshape(*x.shape)
    return [qkv, q, attended, x, tg.gelu(x), tg.softmax(x), x.sum()]


def test_memory_that_is_referred_to_is_never_reused() -> None:
    """Random views of results are kept from round to round, while everything else is freed and allocated again."""
    choose = random.Random(1)
    rng = np.random.default_rng(1)
    weights = [tg.Tensor(rng.standard_normal(n).astype(np.float32), requires_grad=True) for n in (64, (192, 64))]
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(ROUNDS):
        shape = (choose.choice([1, 4, 12]), choose.choice([16, 64, 100]), 64)
        x = tg.Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)
        results = block(x, weights)
        (results[4].sum() + results[5].sum()).backward()
        arrays = [tensor.data for tensor in results] + [tensor.grad for tensor in (x, *weights)]
        for weight in weights:
            weight.grad = None
        for array in choose.sample(arrays, 3):
            part = array[..., choose.randrange(array.shape[-1]) :] if array.ndim else array
            kept.append((part, part.copy()))
        del x, results, arrays, array, part
        choose.shuffle(kept)
        del kept[60:]
    gc.collect()
    assert len(kept) == 60
    assert all(np.array_equal(part, copy) for part, copy in kept)


def test_a_step_in_the_steady_state_touches_no_new_memory() -> None:
    x = tg.Tensor(np.ones(10_000_000, np.float32), requires_grad=True)  # 40 MB: by default malloc keeps up to 32

    def step() -> int:
        """Return the number of page faults of a step."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tg.exp(x).sum().backward()
        x.grad = None
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults = [step() for _ in range(8)]
    assert min(faults[3:]) < 100  # one new array would cause 9,766


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_backend_leaves_the_users_own_memory_alone() -> None:
    program = FREE.replace("BACKEND", repr(tg.get_backend().name))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(float, result.stdout.split())
    assert after - before < 100


@pytest.mark.parametrize("program", ["train", "generate", "gpt.evaluate.__main__"])
def test_programs_keep_freed_memory(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(program)
    monkeypatch.setattr(module, "keep_freed_memory", lambda: sys.exit("kept"))
    with pytest.raises(SystemExit, match="kept"):
        module.main()


@pytest.mark.skipif(not HUGE_PAGE_SIZE.exists(), reason="needs a kernel with huge pages")
@pytest.mark.parametrize(
    "limit",
    [
        "",
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))",
        "import pathlib, tensorgrad.memory as m; m.OVERCOMMIT = pathlib.Path('strict'); m.OVERCOMMIT.write_text('2')",
    ],
)
def test_arrays_of_all_threads_are_in_huge_pages(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where so large a heap is forbidden, or would be taken from others, memory is kept all the same."""
    monkeypatch.chdir(tmp_path)
    result = subprocess.run([sys.executable, "-c", limit + HUGE], capture_output=True, text=True, check=True)
    strict = OVERCOMMIT.read_text().strip() == STRICT
    asked = int(HUGE_PAGE_SIZE.read_text()) <= MAX_HUGE_PAGE_BYTES and not (limit or strict)
    assert result.stdout.split() == [str(asked)]
