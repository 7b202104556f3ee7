"""The rooms of the house, and that imports between them only ever point left."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From left to right: a module imports from its own room and from those before it. `tensorgrad` and
# `gpt` are their __init__.py alone; any other name stands for everything below it as well, but for
# what is named itself.
ROOMS = [
    ["tensorgrad.backend", "tensorgrad.memory"],
    ["tensorgrad.random"],
    ["tensorgrad.autograd"],
    ["tensorgrad.ops"],
    ["tensorgrad.tensor"],
    ["tensorgrad.creation"],
    [
        "tensorgrad.nn",
        "tensorgrad.optim",
        "tensorgrad.anomaly",
        "tensorgrad.distributed",
        "tensorgrad.doctor",
        "tensorgrad.gradcheck",
        "tensorgrad.recompute",
    ],
    ["tensorgrad.amp"],
    ["tensorgrad"],
    ["gpt", "gpt.config", "gpt.lock"],
    ["gpt.bpe", "gpt.gpt2_vocabulary", "gpt.tokenizer", "gpt.tokenizer_errors"],
    ["gpt.model", "gpt.pretrained"],
    ["gpt.corpora", "gpt.data"],
    ["gpt.checked_files", "gpt.checkpoint", "gpt.metrics", "gpt.run_folder", "gpt.step_folders"],
    ["gpt.evaluate", "gpt.generation", "gpt.kvcache", "gpt.sampling"],
    [
        "gpt.cli",
        "gpt.config_file",
        "gpt.dry_run",
        "gpt.flags",
        "gpt.footprint",
        "gpt.initial",
        "gpt.nonfinite",
        "gpt.observers",
        "gpt.plot",
        "gpt.progress",
        "gpt.replay",
        "gpt.run",
        "gpt.saver",
        "gpt.signals",
        "gpt.step",
        "gpt.trainer",
    ],
    ["generate", "gpt.compare", "gpt.data.__main__", "gpt.evaluate.__main__", "train"],
]

# Whatever else is imported has to be Python's own: above all, no deep-learning framework.
PACKAGES = {"numpy", "regex", "safetensors", "tiktoken", "tqdm"}
OPTIONAL = {"cuda", "cupy", "cupyx", "llvmlite", "matplotlib", "ml_dtypes", "mpi4py", "numba", "rustbpe"}

Graph = Mapping[str, set[str]]  # module -> what it imports


def find_modules(root: Path) -> dict[str, Path]:
    """Every module of the library and the programs, by its dotted name."""
    files = [*root.glob("*.py"), *root.glob("tensorgrad/**/*.py"), *root.glob("gpt/**/*.py")]
    names = {path: path.relative_to(root).with_suffix("").as_posix() for path in files}
    return {name.replace("/", ".").removesuffix(".__init__"): path for path, name in names.items() if name != "setup"}


def imports(name: str, path: Path, modules: Iterable[str]) -> Iterator[str]:
    """What a module imports, wherever in the file: `from a import b` is a.b if that is a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).strip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in modules else base


def read_graph(root: Path) -> Graph:
    modules = find_modules(root)
    return {name: set(imports(name, path, modules)) for name, path in modules.items()}


def room(module: str) -> int | None:
    """The number of the room that the module lies in: that of the longest name that it is or lies below."""
    numbers = {name: number for number, names in enumerate(ROOMS) for name in names}
    parts = module.split(".")
    above = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((numbers[name] for name in above if name in numbers and (name == module or "." in name)), None)


def pointing_right(graph: Graph) -> list[str]:
    wrong = []
    for module, targets in graph.items():
        for target in targets & graph.keys():
            here, there = room(module), room(target)
            if here is None or there is None or there > here:
                wrong.append(f"{module} imports {target}")
    return sorted(wrong)


def find_circle(graph: Graph) -> list[str]:
    """One circle of imports, or nothing."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for target in sorted(graph[module] & graph.keys()):
                if circle := search(target, [*path, module]):
                    return circle
            done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := search(module, []))), [])


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read_graph(ROOT)


def test_every_module_has_a_room(graph: Graph) -> None:
    assert {"tensorgrad", "tensorgrad.backend.math", "gpt.model", "train"} <= graph.keys()
    assert [module for module in graph if room(module) is None] == []


def test_imports_point_left(graph: Graph) -> None:
    assert pointing_right(graph) == []


def test_no_circle_of_imports(graph: Graph) -> None:
    assert find_circle(graph) == []


def test_the_model_is_built_from_the_library_alone(graph: Graph) -> None:
    roots = {name.split(".")[0] for name in graph["gpt.model"] - {"gpt.config"}}
    assert roots - sys.stdlib_module_names == {"tensorgrad"}


def test_nothing_but_the_named_packages_is_imported(graph: Graph) -> None:
    known = {"tensorgrad", "gpt"} | PACKAGES | OPTIONAL | sys.stdlib_module_names
    foreign = {name.split(".")[0] for targets in graph.values() for name in targets} - known
    assert foreign == set()


def test_importing_the_library_loads_no_optional_package() -> None:
    program = "import sys, tensorgrad; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "tensorgrad" in loaded
    # ml_dtypes is small, and NumPy learns bfloat16 from it
    assert loaded & (OPTIONAL - {"ml_dtypes"}) == set()


# --------------------------------------------------------------------------------------------------
# The checks themselves find what they are for


def written(root: Path, files: Mapping[str, str]) -> Graph:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_graph(root)


@pytest.mark.parametrize(
    "statement",
    [
        "import tensorgrad.tensor",
        "from tensorgrad import tensor",
        "from tensorgrad.tensor import Tensor",
        "from . import tensor",
        "from .tensor import Tensor",
        "def late():\n    from tensorgrad import tensor",
    ],
)
def test_an_import_to_the_right_is_found(statement: str, tmp_path: Path) -> None:
    graph = written(tmp_path, {"tensorgrad/autograd.py": statement, "tensorgrad/tensor.py": ""})
    assert pointing_right(graph) == ["tensorgrad.autograd imports tensorgrad.tensor"]


def test_a_module_without_a_room_is_found(tmp_path: Path) -> None:
    graph = written(tmp_path, {"gpt/model.py": "import gpt.new", "gpt/new.py": ""})
    assert pointing_right(graph) == ["gpt.model imports gpt.new"]


def test_a_circle_inside_one_room_is_found(tmp_path: Path) -> None:
    files = {
        "tensorgrad/ops/a.py": "from . import b",
        "tensorgrad/ops/b.py": "from .c import x",
        "tensorgrad/ops/c.py": "import tensorgrad.ops.a",
        "tensorgrad/ops/d.py": "from . import a",
    }
    circle = ["tensorgrad.ops.a", "tensorgrad.ops.b", "tensorgrad.ops.c", "tensorgrad.ops.a"]
    assert find_circle(written(tmp_path, files)) == circle


def test_a_relative_import_in_a_package_starts_from_the_package(tmp_path: Path) -> None:
    ops = tmp_path / "tensorgrad" / "ops"
    graph = written(tmp_path, {f"{ops}/__init__.py": "from .relu import y", f"{ops}/relu.py": ""})
    assert graph["tensorgrad.ops"] == {"tensorgrad.ops.relu"}
