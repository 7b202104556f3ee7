"""The benchmarks run, count correctly, and refuse to time contenders with different results. Speed is not tested."""

import dataclasses
import importlib
import importlib.util
import json
import math
import mmap
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import tensorgrad as tg
from benchmarks import common, fusions, train_step, training
from benchmarks.configurations import SETUPS, parameter_shapes, write_inputs
from benchmarks.contenders import groups_in_memory, start, torch_mode
from benchmarks.generate import check_scores
from benchmarks.watching import Profiler
from benchmarks.workers import Unavailable, Worker, alternate
from gpt.config import UserError
from gpt.model import GPT
from tests.processes import HANG_S

ROOT = Path(__file__).resolve().parents[2]
TINY = SETUPS["tiny"]
HAS_TORCH = importlib.util.find_spec("torch") is not None


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{program}.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)


def result_of(program: str, out: Path, *arguments: str) -> dict[str, Any]:
    """Run a benchmark and return the result that it wrote."""
    done = run(program, *arguments, "--out", str(out), "--no-chart")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    assert result["program"] == program
    assert result["environment"]["dtype"] == "float32"
    assert result["environment"]["threads"] == 1
    return result


# --- the programs -------------------------------------------------------------------------------

NUMPY = ["--config", "tiny", "--backends", "numpy", "--threads", "1"]


def torch_flags(*modes: str) -> list[str]:
    """The flags that include PyTorch in the benchmark if it is installed."""
    return ["--torch", *modes] if HAS_TORCH else ["--no-torch"]


def test_train_step_measures_every_contender(tmp_path: Path) -> None:
    arguments = [*NUMPY, "--rounds", "2", "--steps", "2", *torch_flags("eager+keep+fused")]
    result = result_of("train_step", tmp_path / "result.json", *arguments)["results"]["tiny"]
    names = ["numpy", *(["torch eager+fused+keep"] if HAS_TORCH else []), train_step.PRODUCTS]
    assert list(result["rows"]) == names
    ours = result["rows"]["numpy"]
    assert ours["ratio"] == 1
    assert len(ours["times_ms"]) == 2 * 2
    assert ours["peak_mb"] >= ours["steady_peak_mb"] > 1
    assert ours["losses"][0] == pytest.approx(math.log(TINY.vocab_size), rel=0.05)
    if HAS_TORCH:
        theirs = result["rows"]["torch eager+fused+keep"]
        assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-4)
        assert theirs["environment"] == common.KEEP_MEMORY
        assert result["summary"]["torch_best_over_ours"] == theirs["ms"] / ours["ms"]
        assert result["summary"]["torch_fastest_over_ours"] == theirs["fastest_ms"] / ours["fastest_ms"]


def test_a_sweep_measures_every_point(tmp_path: Path) -> None:
    arguments = [*NUMPY, "--no-torch", "--rounds", "1", "--steps", "1"]
    arguments += ["--sweep", "context", "--points", "32", "8"]
    result = result_of("train_step", tmp_path / "result.json", *arguments)
    assert [row["tokens"] for row in result["results"]["numpy"]["rows"]] == [8, 32]


def test_generate_measures_every_contender(tmp_path: Path) -> None:
    arguments = [
        *NUMPY,
        "--rounds",
        "1",
        "--prompt",
        "5",
        "--new",
        "6",
        "--read-mb",
        "8",
        *torch_flags("huggingface", "plain"),
    ]
    result = result_of("generate", tmp_path / "result.json", *arguments)
    assert result["bound"]["parameter_bytes"] == 4 * TINY.n_params()
    assert all(len(row["tokens"]) == 6 for row in result["rows"].values())
    scores = [row["score"] for row in result["rows"].values()]
    assert scores == pytest.approx(scores[:1] * len(scores), rel=1e-4)
    if HAS_TORCH:
        assert "torch plain" in result["rows"]
        assert "torch huggingface" in {**result["rows"], **result["left_out"]}


def test_published_measures_a_model_of_a_file(tmp_path: Path) -> None:
    """A tiny Llama, whose tokens are those of a small vocabulary."""
    from gpt.config import LlamaConfig
    from gpt.tokenizer import BPETokenizer
    from gpt.weights import build_model, gguf

    tokenizer = BPETokenizer.train("to be, or not to be: that is the question. " * 9, 270)
    config = LlamaConfig(64, tokenizer.vocab_size, 1, 2, 32, n_kv_head=1, n_hidden=64)
    file = tmp_path / "q8_0.gguf"
    gguf.write_model(file, config, build_model(config).state_dict(), tokenizer, "q8_0")
    arguments = ["--files", str(file), "--first-token", "5", "--prompt", "6", "--new", "4", "--prefill", "12"]
    arguments += ["--backends", "numpy", "numba", "--rivals", "--rounds", "1", "--threads", "1"]
    rows = result_of("published", tmp_path / "result.json", *arguments)["results"]["q8_0"]
    assert list(rows) == ["numpy", "numba"]
    assert rows["numpy"]["difference"] == 0 < rows["numba"]["difference"] < 1e-2
    assert all(row["decode_tokens_per_s"] > 0 and row["prefill_tokens_per_s"] > 0 for row in rows.values())


def test_recompute_compares_time_and_memory(tmp_path: Path) -> None:
    result = result_of("recompute", tmp_path / "x.json", "--config", "tiny", "--backend", "numpy", "--threads", "1",
                       "--rounds", "1")  # fmt: skip
    kept, again = (result["rows"][name] for name in ("kept", "recomputed"))
    assert kept["ms"] > 0 and again["ms"] > 0
    assert result["less"] == kept["activations_mb"] / again["activations_mb"]


def test_fusions_measures_every_variant(tmp_path: Path) -> None:
    result = result_of("fusions", tmp_path / "result.json", *NUMPY, "--rounds", "2", "--steps", "1")
    rows = result["results"]["tiny on numpy"]
    assert list(rows) == list(fusions.VARIANTS)
    assert rows["fused"]["time_ratio"] == rows["fused"]["arrays_ratio"] == rows["fused"]["peak_ratio"] == 1
    assert rows["plain"]["arrays_mb"] > rows["without attention"]["arrays_mb"] > rows["fused"]["arrays_mb"]
    assert {op: s["keep"] for op, s in result["savings"].items()}["attention"]


def test_a_variant_has_the_expected_classes(tmp_path: Path) -> None:
    path = tmp_path / "inputs.safetensors"
    write_inputs(path, TINY, 0)
    options = {"setup": vars(TINY), "inputs": str(path), "threads": 1, "backend": "numpy", "recompute_gelu": False}
    for op, fused in fusions.FUSIONS.items():
        with tg.use_backend("numpy"):
            model = fusions.Variant(**options, without=[op]).model
        names = {type(module).__name__ for module in model.modules()}
        assert names >= {fused.removeprefix("Fused"), *fusions.FUSIONS.values()} - {fused}
        assert fused not in names


def test_ops_measures_every_operation(tmp_path: Path) -> None:
    arguments = [*NUMPY, "--rounds", "1", "--turn-ms", "1", *torch_flags("eager")]
    result = result_of("ops", tmp_path / "result.json", *arguments)
    rows = result["results"]["tiny"]
    assert {"attention", "layer_norm", "linear head", "linear head + cross_entropy", "adamw"} <= rows.keys()
    assert rows["attention"]["times"]["numpy"]["backward_ms"] > 0
    assert (rows["attention"]["ratio"] is not None) == HAS_TORCH


def test_products_compares_libraries(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    arguments = ["--config", "tiny", "--threads", "1", "--rounds", "1", "--turn-ms", "1"]
    rows = result_of("products", tmp_path / "result.json", *arguments)["results"]["tiny"]
    assert [row["product"] for row in rows] == ["y", "dx", "dW"] * 5
    assert {"ours", "OpenBLAS"} <= rows[0]["gflop_per_s"].keys()
    assert all(speed > 0 for row in rows for speed in row["gflop_per_s"].values())


def test_profile_step_counts_calls_and_operations(tmp_path: Path) -> None:
    arguments = ["--config", "tiny", "--backend", "numpy", "--threads", "1", "--rounds", "2", "--read-mb", "8"]
    result = result_of("profile_step", tmp_path / "result.json", *arguments)
    rows = {(row["phase"], row["op"]): row for row in result["rows"]}
    linear = 2 * TINY.tokens * sum(n_out * n_in * count for n_out, n_in, count in TINY.linears()) / 1e9
    head = 2 * TINY.tokens * TINY.vocab_size * TINY.n_embd / 1e9  # its three products are made in forward
    for phase, gflop in (("forward", linear + 2 * head), ("backward", 2 * (linear - head))):
        found = [row for (of, op), row in rows.items() if of == phase and op.startswith(("linear", "mlp"))]
        assert sum(row["matmul_gflop"] for row in found) == pytest.approx(gflop)
        assert sum(row["calls"] for row in found) == 4  # an MLP's two are one
    assert rows["update", "optimizer.step"]["gb"] == pytest.approx(28 * TINY.n_params() / 1e9)
    assert sum(row["ms"] for row in result["rows"]) <= result["profiled_ms"]
    assert result["skeleton_ms"] > 0
    assert all(chain["op_us"] > chain["numpy_us"] for chain in result["overhead"].values())


def test_commits_compares_two_commits(tmp_path: Path) -> None:
    result = result_of("commits", tmp_path / "result.json", "HEAD", *NUMPY, "--rounds", "1", "--steps", "1")
    (row,) = result["rows"].values()
    assert row["ratio"] == row["this_ms"] / row["other_ms"]
    assert row["memory_ratio"] == row["this_mb"] / row["other_mb"] > 0


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train_step", ["--config", "D"], "argument --config: unknown value 'D' (one of A, B, C, tiny)"),
        ("train_step", ["--torch", "eager+fusd"], "argument --torch: unknown value 'fusd'; did you mean fused?"),
        ("train_step", ["--points", "3"], "--points needs --sweep batch or --sweep context"),
        ("generate", ["--new", "2000"], "--prompt 64 and --new 2000 do not fit the window, 1024 tokens"),
        ("ops", ["--op", "conv"], "--op: no kernel's name contains 'conv'"),
        ("ops", ["--threads", "10000"], "argument --threads: '10000' is not a whole number from 1 to "),
        ("profile_step", ["--rounds", "0"], "argument --rounds: '0' is not a whole number from 1"),
    ],
)
def test_user_errors_are_one_line(
    program: str,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"benchmarks.{program}").main()
    error_text = capsys.readouterr().err
    assert error_text.startswith(f"{program}.py: error: {message}")
    assert error_text.count("\n") == 1


# --- configurations, counts and checks ----------------------------------------------------------


@pytest.mark.parametrize("name", ["A", "B", "tiny"])
def test_parameter_shapes_equal_those_of_the_model(name: str) -> None:
    model = GPT(SETUPS[name].model())
    assert dict(parameter_shapes(SETUPS[name])) == {key: p.shape for key, p in model.named_parameters()}
    assert SETUPS[name].n_params() == model.num_params()


def test_the_124m_configuration_has_124_million_parameters() -> None:
    assert SETUPS["124M"].n_params() == 124_439_808


def test_the_operations_of_the_products_are_counted() -> None:
    linears = 3 * 2 * 64 * (12 * 16**2 + 11 * 16)  # three products; 12 C^2 weights in a layer, and the head
    attention = 6 * 2 * 2 * 16 * 32**2  # six products, in a single block of queries
    assert training.Products(vars(TINY)).gflop() * 1e9 == pytest.approx(linears + attention)


@pytest.mark.parametrize(("n", "first"), [(1, 0), (5, 0), (6, 0), (9, 1), (15, 3), (31, 9)])
def test_the_median_interval_equals_the_table_of_the_sign_test(n: int, first: int) -> None:
    """A table of the sign test gives these ranks for 95 %: for example rank 4 of 15 and rank 10 of 31."""
    values = np.random.default_rng(0).permutation(n).tolist()
    assert common.median_interval(values) == (first, n - 1 - first)


def test_contenders_with_different_losses_are_not_timed() -> None:
    train_step.check_losses({"a": {"losses": [4.0, 3.0]}, "b": {"losses": [4.0003, 3.0002]}})
    for losses in ([4.0, 3.01], [4.0, math.nan]):
        with pytest.raises(UserError, match=r"not timed: at step 1 b has loss .*, a 3\.0+: they differ by more than"):
            train_step.check_losses({"a": {"losses": [4.0, 3.0]}, "b": {"losses": losses}})
    with pytest.raises(UserError, match="not timed: b has a loss of"):
        check_scores({"a": 2.0, "b": 2.1})


@pytest.mark.parametrize(("last", "counts"), [(104.0, True), (94.0, False), (107.0, False)])
def test_ratios_count_only_where_the_control_stays(
    last: float, counts: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    products = [{"ms": [ms]} for ms in (100.0, 300.0, last)]
    turns = {"numba": [{"ms": [1.0]}] * 3, train_step.PRODUCTS: products}
    assert train_step.report_control(turns) == pytest.approx(last / 100 - 1)
    assert ("do not count" not in capsys.readouterr().out) == counts


def test_contenders_with_different_weights_are_not_timed(tmp_path: Path) -> None:
    replies = {}
    for name, seed in (("a", 1), ("b", 2)):
        write_inputs(tmp_path / name, TINY, seed)
        with start("numpy", TINY, str(tmp_path / name), threads=1) as worker:
            replies[name] = worker.call("warm_up", steps=1)
    with pytest.raises(UserError, match="they do not compute the same"):
        train_step.check_losses(replies)


def test_pytorch_modes_are_normalised() -> None:
    assert torch_mode("compile+keep+fused") == "compile+fused+keep"
    with pytest.raises(Exception, match="unknown value 'compiled'; did you mean compile"):
        torch_mode("compiled")


def test_contenders_that_do_not_fit_in_memory_run_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = ["numba", "numpy", "torch eager", "torch compile"]
    monkeypatch.setattr(common, "memory_available", lambda: 4.1 * TINY.memory() / 0.8)
    assert groups_in_memory(contenders[:2], contenders[2:], TINY) == [contenders]
    monkeypatch.setattr(common, "memory_available", lambda: 3.1 * TINY.memory() / 0.8)
    assert groups_in_memory(contenders[:2], contenders[2:], TINY) == [contenders[:3], ["numba", "torch compile"]]
    monkeypatch.setattr(common, "memory_available", lambda: 0)
    assert groups_in_memory(contenders[:2], contenders[2:], TINY) == [["numba", name] for name in contenders[1:]]


def test_pytorch_is_skipped_if_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unavailable, match="PyTorch is not installed"):
        training.Torch(vars(TINY), "inputs", threads=1)


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
def test_compiled_modes_are_skipped_without_a_compiler(tmp_path: Path) -> None:
    write_inputs(tmp_path / "inputs", TINY, seed=0)
    spec = {"setup": vars(TINY), "inputs": str(tmp_path / "inputs"), "threads": 1, "compiled": "default"}
    with pytest.raises(Unavailable, match=r"torch.compile needs a C\+\+ compiler"):
        Worker("torch compile", "benchmarks.training:Torch", spec, threads=1, environment={"PATH": str(tmp_path)})


# --- workers ------------------------------------------------------------------------------------


def test_workers_take_turns_one_at_a_time() -> None:
    order: list[str] = []

    def turn(worker: Worker) -> float:
        order.append(worker.name)
        return float(worker.call("gflop"))

    spec = {"setup": vars(TINY)}
    with (
        Worker("a", "benchmarks.training:Products", spec, threads=1) as a,
        Worker("b", "benchmarks.training:Products", spec, threads=1) as b,
    ):
        replies, idle = alternate([a, b], 3, turn)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert replies["a"] == replies["b"] == [training.Products(vars(TINY)).gflop()] * 3
    assert 0 <= idle < 1
    assert a.process.returncode == b.process.returncode == 0


def test_a_worker_that_fails_reports_the_reason() -> None:
    with pytest.raises(Unavailable, match="ModuleNotFoundError: No module named 'benchmarks.missing'"):
        Worker("x", "benchmarks.missing:Missing", {}, threads=1)
    with Worker("x", "benchmarks.training:Products", {"setup": vars(TINY)}, threads=1) as worker:
        with pytest.raises(Unavailable, match="TypeError: 'str' object cannot be interpreted as an integer"):
            worker.call("run", steps="three")
        assert worker.call("gflop") > 0  # the worker still responds
        worker.process.kill()
        with pytest.raises(Unavailable, match=r"its process ended with status -9 \(out of memory\?\)"):
            worker.call("gflop")


def test_weights_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, as much memory as they take is free when training begins, which the arrays of a step do not fill."""
    setup = dataclasses.replace(TINY, n_layer=4, n_embd=128)  # what Python takes is small beside it
    make = training.Ours.make

    def make_and_forget_the_peak(self: training.Ours, own: Any) -> None:
        make(self, own)
        tracemalloc.reset_peak()

    monkeypatch.setattr(training.Ours, "make", make_and_forget_the_peak)
    monkeypatch.setattr(training, "import_tensorgrad", lambda *_: tg)  # settings of the process stay as they are
    write_inputs(tmp_path / "inputs", setup, seed=0)
    sizes = [4 * math.prod(shape) for _, shape in parameter_shapes(setup)]
    with tg.use_backend("numpy"):
        tracemalloc.start()
        try:
            contender = training.Ours(dataclasses.asdict(setup), str(tmp_path / "inputs"), threads=1, backend="numpy")
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak - held < 2 * max(sizes) < 0.7 * sum(sizes)
    with safe_open(str(tmp_path / "inputs"), framework="numpy") as weights:
        for name, p in contender.model.named_parameters():
            np.testing.assert_array_equal(p.data, weights.get_tensor(name))


def test_page_faults_and_peak_memory_are_counted() -> None:
    size = 64 * 2**20
    common.reset_peak_memory()
    before, faults = common.peak_memory(), common.page_faults()
    touched = np.frombuffer(mmap.mmap(-1, size), np.uint8)  # new pages: malloc might reuse touched ones
    touched[:] = 1
    assert common.peak_memory() - before == pytest.approx(touched.nbytes / common.MB, rel=0.2)
    assert common.page_faults() > faults


# --- the profiler -------------------------------------------------------------------------------


def test_the_profiler_times_every_op_and_restores_the_functions() -> None:
    backend = tg.get_backend()
    before = tg.gelu, tg.ops.linear, vars(backend).copy()
    x, w = tg.ones((3, 4), requires_grad=True), tg.ones((5, 4), requires_grad=True)

    def compute() -> None:
        tg.gelu(tg.ops.linear(x, w)).sum().backward()

    with tg.count() as cost:
        compute()
    with Profiler() as profiler:
        compute()
    profiler.add_costs(cost, steps=1)
    compute()  # no longer timed
    assert (tg.gelu, tg.ops.linear, vars(backend)) == before
    calls = {key: row.calls for key, row in profiler.rows.items()}
    assert calls == {(phase, op): 1 for phase in ("forward", "backward") for op in ("linear", "gelu", "sum")}
    linear = profiler.rows["forward", "linear"]
    assert linear.flop == linear.matmul_flop == 2 * 3 * 4 * 5
    assert linear.bytes == 4 * (3 * 4 + 5 * 4 + 3 * 5)
    assert 0 < linear.kernel_seconds <= linear.seconds
    assert profiler.rows["backward", "linear"].flop == 2 * linear.flop
    assert profiler.n_ops == 3


# --- statistics, tables and charts --------------------------------------------------------------


def test_growth_spread_and_tables_equal_values_computed_by_hand() -> None:
    assert common.growth([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert common.growth([1, 2, 4], [1, 4, 16]) == pytest.approx(2)
    assert common.spread([1.0, 1.0, 1.0, 1.0]) == 0
    assert common.table(["", "ms"], [["a", "1.5"], ["bcd", "22.0"]]) == "       ms\na     1.5\nbcd  22.0"


def test_a_chart_is_written_if_matplotlib_is_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chart.png"
    common.bar_chart(path, "Title", {"A": [("ours", 1.0, common.OURS)], "empty": []}, "ms", "note")
    if importlib.util.find_spec("matplotlib") is None:
        assert "no chart: matplotlib is not installed" in capsys.readouterr().out
    else:
        assert path.read_bytes().startswith(b"\x89PNG")
