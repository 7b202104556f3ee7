"""What the tape does without: it trains without its observers, and the library without any one of them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TAPE = ["accumulate", "arguments", "context", "inplace", "mode", "tape"]  # tape.py and what it imports

BACKEND = '''
"""One backend, the plain mathematics over NumPy."""
import numpy as np
from tensorgrad.backend.arrays import Array
from tensorgrad.backend.runtime import Backend

class NumPy(Backend):
    xp, name, array_type = np, "numpy", np.ndarray

NUMPY = NumPy()
def as_operand(name, x): return x
def backend_of(name, arrays): return NUMPY
def get_backend(): return NUMPY
def load(name): return NUMPY
'''

AUTOGRAD = '''
from tensorgrad.autograd.accumulate import SparseGradient
from tensorgrad.autograd.context import Context
from tensorgrad.autograd.inplace import note_write
from tensorgrad.autograd.mode import is_grad_enabled
from tensorgrad.autograd.tape import Leaf, Variable, backward, op
'''

TRAINING = '''
import sys
import numpy as np
from tensorgrad import ops
from tensorgrad.tensor import Tensor

rng = np.random.default_rng(0)
x = rng.standard_normal((64, 2))
targets = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
shapes = [(16, 2), (16,), (16,), (2, 16)]
w1, b1, scale, w2 = parameters = [Tensor(rng.standard_normal(s), requires_grad=True) for s in shapes]
losses = []
for _ in range(300):
    h = ops.layer_norm(ops.gelu(ops.linear(Tensor(x), w1, b1)), scale)
    a, b = ops.split(ops.linear(h, w2), 2, axis=1)
    loss = ops.cross_entropy(ops.concat([a, b], axis=1), Tensor(targets))
    loss.backward()
    for p in parameters:
        p.data -= 0.3 * p.grad
        p.grad = None
    losses.append(float(loss))
print(losses[0], losses[-1])
print(*sorted(name for name in sys.modules if name.startswith("tensorgrad")))
'''

STEP = '''
import numpy as np
import tensorgrad as tg
from tensorgrad import nn, optim

layer = nn.Linear(3, 2)
optimizer = optim.AdamW(layer.parameters(), lr=0.1)
for _ in range(30):
    loss = tg.cross_entropy(layer(tg.Tensor(np.eye(3, dtype=np.float32))), np.array([0, 1, 0]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(2.0, float(loss))
'''


def run(program: str, folder: Path) -> list[str]:
    """The lines that a program prints in another process, which finds tensorgrad in that folder alone."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last = map(float, done.stdout.split()[:2])
    assert last < first / 4
    return done.stdout.splitlines()


def test_the_tape_the_ops_the_mathematics_and_the_tensor_train_alone(tmp_path: Path) -> None:
    package, copy = ROOT / "tensorgrad", tmp_path / "tensorgrad"
    files = ["tensor.py", "random.py", "calls.py", *(f"autograd/{name}.py" for name in TAPE)]
    names = ("arrays", "decoder", "erf", "math", "mlp", "philox", "runtime", "threads")
    files += [f"backend/{name}.py" for name in names]
    files += [path.relative_to(package).as_posix() for path in package.glob("ops/*.py")]
    for file in files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(package / file, copy / file)
    (copy / "__init__.py").touch()
    (copy / "backend/__init__.py").write_text(BACKEND)
    (copy / "autograd/__init__.py").write_text(AUTOGRAD)
    _, modules = run(TRAINING, tmp_path)
    assert {f"tensorgrad.autograd.{name}" for name in TAPE} <= set(modules.split())


def test_the_tape_names_nothing_that_watches_it() -> None:
    source = (ROOT / "tensorgrad/autograd/tape.py").read_text().lower()
    for word in ("checkpoint", "recompute", "nan", "anomaly", "profil", "process", "distributed", "sparse", "count"):
        assert word not in source.replace("enumerate", ""), word


@pytest.mark.parametrize("file", ["anomaly.py", "autograd/recompute.py", "counting.py"])
def test_the_library_works_without_an_observer(file: str, tmp_path: Path) -> None:
    copy = tmp_path / "tensorgrad"
    shutil.copytree(ROOT / "tensorgrad", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / file).unlink()
    run(STEP, tmp_path)
