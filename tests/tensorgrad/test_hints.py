"""Every public name of NumPy and PyTorch exists here, or is answered with what to write, or is left out by kind."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import hints, nn, optim

# Names that nobody looks for in a library of tensors: types, storage, compilers, devices, settings of NumPy's own.
MACHINERY = {
    "modules": "_hook$ ^share_memory$ ^to_empty$ extra_ _submodule$ add_module dump_patches call_super T_destination",
    "more": "flatiter CallStack map2?_$ Options$ share_memory_ ^torch ^view_as_real constant_pad",
    "NumPy's own machinery":
        "ufunc ndarray nditer ndenum ndindex nested_iters memmap matrix$ ^ma$ generic number$ integer$ "
        "flexible inexact floating ^c_$ s_$ index_exp finfo iinfo errstate err(call)?$ buf(size)?$ print info "
        "core ctypes lib$ f2py exceptions emath test typ vectorize frompyfunc fromfunction from(regex|string) "
        "apply_ piecewise select$ format_ array_?(repr|str|2string) may_share shares_mem can_cast promote "
        "iterable is(scalar|fortran) get_include show_ require asarray_chk bmat delete trim_ unravel "
        "ravel_multi diag_indices broadcast(_shapes)?$ "
        "^(e|pi|inf|nan|euler_gamma|ndim|shape|size|True_|False_)$ "
        "^(u|float|int)?(byte|short|intc?|long(long)?|intp|float128)_?$ ^clong ^ul ^uint ^mat ^ScalarType "
        "get(field) set(field|flags) strings",
    "PyTorch's own machinery":
        "Type Storage Tensor$ Script Error Graph JIT Sym sym_ Lazy Uninit cudnn miopen mkldnn vulkan _copy$ "
        "autocast dynamo parallel Parallel Dispatch Stream "
        "^(is_|set_|get_|has_|handle_|import_|parse_|prepare_|profiler|unify|merge_type|assert_|boolean_) "
        "deterministic Event Future ^(fork|wait|cond|while_loop|classproperty)$ mode$ Logger Benchmark Value "
        "Use$ Node Block Code Argument Gradient Capsule Class Compil Concrete DeepCopy Context Disable Dict "
        "Exec File Function IODesc Module Operator Optional Static Tag Tracing Throughput Alias Accel Aggre "
        "Await Bool List Tuple Interface PyT Qu Locking DType Callable Scaling Swizzle Container modules "
        "intrinsic common_types factory grad$ attention$ qat Warm hash_tensor memory_format layout "
        "thread_safe compiled_with clear_ unsafe scatter$ slice_ segment_reduce nan_to from_file to_dlpack "
        "empty_(perm|strid) grouped_mm scaled_ module_load pin_memory record_stream reinforce volatile ^name$ "
        "names output_nr as_subclass dim_order const_data new_empty_strided retains_grad to_padded values$ "
        "resolve_ fused constrain native_ convolution RNN jit ger$ FatalError NoopLogger",
}  # fmt: skip


def public(module: Any) -> set[str]:
    """Its public names, without its modules."""
    names = (name for name in dir(module) if not name.startswith("_"))
    return {name for name in names if not isinstance(getattr(module, name, None), ModuleType)}


HERE = {"tg": public(tg), "Tensor": public(tg.Tensor)}
HERE |= {"Module": public(nn.Module), "nn": public(nn) | {*nn.LATER}, "optim": public(optim) | {*optim.LATER}}


def unanswered(where: str, names: set[str]) -> list[str]:
    """The names that are neither here, nor answered, nor of a kind that is left out."""
    others = {"methods": HERE["Tensor"]} if where in ("tg", "Module") else {"functions": HERE["tg"]}
    answers = {name: hints.missing(where, name, HERE[where], **others) for name in names - HERE[where]}
    bare = [name for name, answer in answers.items() if answer == f"{where} has no {name!r}"]
    return sorted(name for name in bare if not any(hints.matches(name, kind) for kind in MACHINERY.values()))


def test_the_names_of_numpy() -> None:
    assert unanswered("tg", public(np)) == []
    assert unanswered("Tensor", public(np.ndarray)) == []


def functions_of(module: Any) -> set[str]:
    return {name for name in public(module) if callable(getattr(module, name))}


def test_the_names_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    assert unanswered("tg", functions_of(torch)) == []
    assert unanswered("Tensor", public(torch.Tensor)) == []
    assert unanswered("nn", public(torch.nn)) == []
    assert unanswered("tg", functions_of(torch.nn.functional)) == []
    assert unanswered("optim", public(torch.optim)) == []
    assert unanswered("Module", public(torch.nn.Module)) == []


def test_every_hint_is_for_a_name_of_numpy_or_pytorch_that_is_not_here() -> None:
    torch = pytest.importorskip("torch")
    modules = (np, np.ndarray, np.random, torch, torch.Tensor, torch.nn, torch.nn.Module, torch.nn.functional)
    others = (torch.optim, torch.nn.utils, torch.autograd, torch.amp)
    theirs = {name for module in (*modules, *others) for name in dir(module)}
    assert [name for name in hints.table() if name not in theirs] == []
    assert [name for name in hints.table() if any(name in names for names in HERE.values())] == []


def test_what_hints_name_is_here() -> None:
    text = " ".join(hints.table().values())
    assert [name for name in re.findall(r"\btg\.(\w+)", text) if not hasattr(tg, name)] == []
    assert [name for name in re.findall(r"\bx\.(\w+)", text) if not hasattr(tg.ones((2, 2)), name)] == []
    assert [name for name in re.findall(r"\btg\.optim\.(\w+)", text) if not hasattr(optim, name)] == []


def test_no_name_has_two_hints() -> None:
    names = [name for line in hints.INSTEAD.strip().splitlines() for name in line.split(" | ")[1].split()]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


X = tg.ones((2, 3))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: X.view(3, 2), r"Tensor has no 'view': here it is x.reshape\(shape\)"),
        (lambda: X.log_softmax(), "Tensor has no 'log_softmax': here it is a function, tg.log_softmax"),
        (lambda: X.add_(1), "Tensor has no 'add_', in place: here it is x"),
        (lambda: tg.cat, r"tensorgrad has no 'cat': here it is tg.concat\(\[x, y\]\)"),
        (lambda: tg.from_numpy, r"tensorgrad has no 'from_numpy': here it is tg.asarray\(data\)"),
        (lambda: tg.resahpe, "tensorgrad has no 'resahpe'; did you mean 'reshape'?"),
        (lambda: tg.tensor([1.0]), r"tensorgrad has no 'tensor': here it is tg.asarray\(data\)"),
        (lambda: tg.fft, "tensorgrad has no 'fft': Fourier transforms are left out"),
        (lambda: nn.functional, "tensorgrad.nn has no 'functional': here it is the functions of tg"),
        (lambda: nn.Conv2d, "tensorgrad.nn has no 'Conv2d': convolutions, .* are left out of this small library"),
        (lambda: nn.Linear(1, 1).cuda(), r"Linear has no 'cuda': here it is x.to\(backend\)"),
        (lambda: nn.Linear(1, 1).forwrd, "Linear has no 'forwrd'; did you mean 'forward'?"),
        (lambda: optim.RMSprop, "tensorgrad.optim has no 'RMSprop': other optimisers are left out"),
        (lambda: X.nothing_like_it, "^Tensor has no 'nothing_like_it'$"),
    ],
)
def test_names(use: Any, message: str) -> None:
    with pytest.raises(AttributeError, match=message):
        use()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: X.sum(dim=0), "sum: .* 'dim'; it takes x, axis, keepdims; dim= is axis= here"),
        (lambda: X.mean(0, keepdim=True), "mean: .*; keepdim= is keepdims= here"),
        (lambda: tg.concat([X, X], dim=0), "concat: .* 'dim'; it takes arrays, axis; dim= is axis= here"),
        (lambda: tg.full((2,), fill_value=1), "full: .*; fill_value= is value= here"),
        (lambda: tg.zeros((2,), device="cpu"), "zeros: .*; it takes [a-z_, ]+; the shape is one tuple$"),
        (lambda: tg.layer_norm(X, normalized_shape=(3,)), "layer_norm: .*; it takes x, weight, bias, eps$"),
        (lambda: tg.zeros(2, 3), r"zeros: dtype 3 is unknown: a shape is one tuple, as in zeros\(\(2, 3\)\)"),
        (lambda: tg.zeros(2, 3, 4), "zeros: too many positional arguments; it takes shape.*; the shape is one tuple"),
    ],
)
def test_arguments(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_an_error_inside_a_function_keeps_its_message() -> None:
    with pytest.raises(TypeError, match="^Tensor: 'text' of"):
        tg.asarray("text")


def test_the_page_is_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "names.md"
    assert page.read_text(encoding="utf-8") == hints.page(), "run python -m tensorgrad.hints"
