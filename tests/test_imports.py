"""The layers of the code: imports only ever point to the left."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From left to right: a module imports from its own layer and from those before it. `tensorgrad` and `gpt` are their
# __init__.py alone. Another package of tensorgrad stands for every module in it that is not named itself; of gpt, every
# module is named.
LAYERS = [
    ["tensorgrad.backend", "tensorgrad.calls", "tensorgrad.cli", "tensorgrad.hints", "tensorgrad.memory"],
    ["tensorgrad.tree"],
    ["tensorgrad.random"],
    ["tensorgrad.autograd", "tensorgrad.retain"],
    ["tensorgrad.ops"],
    ["tensorgrad.tensor"],
    ["tensorgrad.creation"],
    ["tensorgrad.numpy_functions"],
    ["tensorgrad.tracing"],
    [
        "tensorgrad.nn",
        "tensorgrad.optim",
        "tensorgrad.anomaly",
        "tensorgrad.counting",
        "tensorgrad.decoder",
        "tensorgrad.distributed",
        "tensorgrad.doctor",
        "tensorgrad.gradcheck",
        "tensorgrad.inspect",
        "tensorgrad.second_order",
    ],
    [
        "tensorgrad.adam",
        "tensorgrad.amp",
        "tensorgrad.containers",
        "tensorgrad.describe",
        "tensorgrad.interchange",
        "tensorgrad.lr_scheduler",
        "tensorgrad.shorthand",
    ],
    ["tensorgrad", "tensorgrad.__main__"],
    ["gpt", "gpt.config"],
    ["gpt.train", "gpt.train.config"],
    ["gpt.files", "gpt.heartbeat"],
    ["gpt.cache"],
    ["gpt.tokenizer.errors"],
    ["gpt.tokenizer.base", "gpt.tokenizer.merges", "gpt.tokenizer.patterns"],
    ["gpt.tokenizer.bpe", "gpt.tokenizer.pre_tokenizers"],
    ["gpt.tokenizer.gpt2"],
    ["gpt.tokenizer.byte_level"],
    ["gpt.tokenizer"],
    ["gpt.tokenizer.cache", "gpt.tokenizer.convert"],
    ["gpt.tokenizer.gguf", "gpt.tokenizer.huggingface"],
    ["gpt.cli"],
    ["gpt.model"],
    ["gpt.llama"],
    ["gpt.fused"],
    ["gpt.weights"],
    ["gpt.lora", "gpt.weights.names"],
    ["gpt.weights.adapter"],
    ["gpt.checkpoint.files"],
    ["gpt.checkpoint.steps"],
    ["gpt.checkpoint.run_folder", "gpt.checkpoint.runs"],
    ["gpt.checkpoint"],
    ["gpt.weights.gguf_file", "gpt.weights.published"],
    ["gpt.weights.arrays"],
    ["gpt.weights.gguf", "gpt.weights.huggingface"],
    ["gpt.weights.initial"],
    ["gpt.data.corpora", "gpt.data.shards", "gpt.data.writing"],
    ["gpt.data.documents", "gpt.data.loaders"],
    ["gpt.data"],
    ["gpt.data.encoding"],
    ["gpt.data.prepare"],
    ["gpt.generate.kvcache", "gpt.generate.sampling"],
    ["gpt.generate.on_gpu"],
    ["gpt.generate.jinja"],
    ["gpt.generate"],
    ["gpt.generate.template"],
    ["gpt.generate.chat"],
    ["gpt.generate.terminal"],
    ["gpt.evaluate", "gpt.evaluate.plot"],
    ["gpt.evaluate.compare"],
    ["gpt.train.build", "gpt.train.config_file", "gpt.train.footprint", "gpt.train.metrics"],
    ["gpt.train.freeze"],
    ["gpt.train.flags", "gpt.train.kernels", "gpt.train.progress", "gpt.train.signals", "gpt.train.step"],
    ["gpt.train.task"],
    ["gpt.train.run"],
    ["gpt.train.observers", "gpt.train.saver"],
    ["gpt.train.nonfinite"],
    ["gpt.train.before_after", "gpt.train.describe", "gpt.train.dry_run", "gpt.train.loop"],
    ["gpt.train.program"],
    ["gpt.finetune", "gpt.finetune.split", "gpt.finetune.scores", "gpt.finetune.tables"],
    ["gpt.finetune.baseline", "gpt.finetune.classifier"],
    ["gpt.finetune.classification", "gpt.finetune.conversations"],
    ["gpt.finetune.packing"],
    ["gpt.finetune.instruction"],
    ["gpt.finetune.classify", "gpt.finetune.instruct", "gpt.finetune.predict", "gpt.finetune.tasks"],
    ["gpt.inspect", "gpt.inspect.capture"],
    ["gpt.inspect.attribution"],
    ["gpt.inspect.explore", "gpt.inspect.trace"],
    ["gpt.inspect.explorer"],
    ["gpt.inspect.diverge", "gpt.inspect.model", "gpt.inspect.step"],
    [
        "gpt.data.__main__",
        "gpt.evaluate.__main__",
        "gpt.finetune.__main__",
        "gpt.inspect.__main__",
        "gpt.weights.__main__",
    ],
    ["gpt.__main__", "generate", "train"],
]

# Whatever else is imported has to be Python's own: above all, no deep-learning framework.
PACKAGES = {"numpy", "regex", "safetensors", "tiktoken", "tqdm"}
OPTIONAL = {
    "cuda", "cupy", "cupyx", "gguf", "huggingface_hub", "jinja2", "llvmlite", "matplotlib", "ml_dtypes", "mpi4py",
    "numba", "rustbpe",
}  # fmt: skip

Graph = Mapping[str, set[str]]  # module -> what it imports


def find_modules(root: Path) -> dict[str, Path]:
    """Every module of the library and the programs, by its dotted name."""
    files = [*root.glob("*.py"), *root.glob("tensorgrad/**/*.py"), *root.glob("gpt/**/*.py")]
    names = {path: path.relative_to(root).with_suffix("").as_posix() for path in files}
    return {name.replace("/", ".").removesuffix(".__init__"): path for path, name in names.items() if name != "setup"}


def imports(name: str, path: Path, modules: Iterable[str]) -> Iterator[str]:
    """What a module imports when it runs, wherever in the file: `from a import b` is a.b if that is a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    never_run = {id(node) for block in blocks for statement in block.body for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in never_run:
            continue
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


def layer(module: str) -> int | None:
    """The number of the layer that the module is in; None where it is in none."""
    numbers = {name: number for number, names in enumerate(LAYERS) for name in names}
    parts = module.split(".")
    packages = (".".join(parts[:n]) for n in range(len(parts) - 1, 1, -1)) if parts[0] == "tensorgrad" else ()
    return next((numbers[name] for name in (module, *packages) if name in numbers), None)


def imports_to_the_right(graph: Graph) -> list[str]:
    wrong = []
    for module, targets in graph.items():
        for target in targets & graph.keys():
            here, there = layer(module), layer(target)
            if here is None or there is None or there > here:
                wrong.append(f"{module} imports {target}")
    return sorted(wrong)


def find_cycle(graph: Graph) -> list[str]:
    """Return one cycle of imports, or an empty list."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for target in sorted(graph[module] & graph.keys()):
                if cycle := search(target, [*path, module]):
                    return cycle
            done.add(module)
        return []

    return next((cycle for module in sorted(graph) if (cycle := search(module, []))), [])


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read_graph(ROOT)


def test_every_module_is_in_a_layer(graph: Graph) -> None:
    assert {"tensorgrad", "tensorgrad.backend.math", "gpt.model", "train"} <= graph.keys()
    assert [module for module in graph if layer(module) is None] == []


def test_every_name_in_a_layer_is_a_module(graph: Graph) -> None:
    assert {name for names in LAYERS for name in names} - graph.keys() == set()


def test_imports_point_left(graph: Graph) -> None:
    assert imports_to_the_right(graph) == []


def test_imports_have_no_cycle(graph: Graph) -> None:
    assert find_cycle(graph) == []


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


@pytest.mark.parametrize("module", ["gpt.model", "gpt.fused", "gpt.train.step"])
def test_the_model_and_a_training_step_need_nothing_but_numpy(module: str) -> None:
    """With every other package blocked."""
    blocked = sorted((PACKAGES | OPTIONAL) - {"numpy", "ml_dtypes"})
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name for name in result.stdout.split() if name.startswith("gpt")}
    models = {"gpt", "gpt.config", "gpt.model", "gpt.llama", "gpt.fused", "gpt.weights"}
    assert loaded <= models | {"gpt.train", "gpt.train.config", "gpt.train.step"}


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
    assert imports_to_the_right(graph) == ["tensorgrad.autograd imports tensorgrad.tensor"]


def test_a_module_of_gpt_is_not_covered_by_its_package(tmp_path: Path) -> None:
    graph = written(tmp_path, {"gpt/data/__init__.py": "", "gpt/data/new.py": "import gpt.data"})
    assert imports_to_the_right(graph) == ["gpt.data.new imports gpt.data"]


def test_an_import_for_type_checkers_alone_does_not_count(tmp_path: Path) -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tensorgrad import tensor"
    graph = written(tmp_path, {"tensorgrad/autograd.py": source, "tensorgrad/tensor.py": ""})
    assert imports_to_the_right(graph) == []


def test_a_module_without_a_layer_is_found(tmp_path: Path) -> None:
    graph = written(tmp_path, {"gpt/model.py": "import gpt.new", "gpt/new.py": ""})
    assert imports_to_the_right(graph) == ["gpt.model imports gpt.new"]


def test_a_cycle_inside_one_layer_is_found(tmp_path: Path) -> None:
    files = {
        "tensorgrad/ops/a.py": "from . import b",
        "tensorgrad/ops/b.py": "from .c import x",
        "tensorgrad/ops/c.py": "import tensorgrad.ops.a",
        "tensorgrad/ops/d.py": "from . import a",
    }
    cycle = ["tensorgrad.ops.a", "tensorgrad.ops.b", "tensorgrad.ops.c", "tensorgrad.ops.a"]
    assert find_cycle(written(tmp_path, files)) == cycle


def test_a_relative_import_in_a_package_starts_from_the_package(tmp_path: Path) -> None:
    ops = tmp_path / "tensorgrad" / "ops"
    graph = written(tmp_path, {f"{ops}/__init__.py": "from .relu import y", f"{ops}/relu.py": ""})
    assert graph["tensorgrad.ops"] == {"tensorgrad.ops.relu"}
