"""The report of gpu_check.py: the figures of its parts as tables, and the targets of the project."""

from typing import Any

from benchmarks import common

Parts = dict[str, dict[str, Any]]
FLOP_PER_TOKEN = 854.8e6  # GPT-2 124M at 1024 tokens: six for every weight, and attention (nanoGPT's formula)

# What was expected before any card had run it, of an H200 with copies at 4.0 TB/s and products at 780 TFLOP/s: the
# milliseconds of steps by contender and batch, and for kernels, the share of these speeds. LOG.md says how.
PREDICTED_GAINS_MS = {  # of our step at B 64 and B 4, since it was expected to take 128 and 11
    "the factor of clipping inside AdamW": (0.25, 0.25),
    "residual sums with the norm that reads them": (2.7, 0.2),
    "the backward of layer norm in one pass": (1.8, 0.1),
    "norms that are kept": (1.2, 0.1),
    "GELU inside the products of the MLP": (6.0, 0.4),
    "algorithms of products that were timed": (3.0, 0.3),
}
PREDICTED_MS = {
    ("ours, graph", 64): 128.0 - sum(gain for gain, _ in PREDICTED_GAINS_MS.values()),
    ("ours, graph", 4): 11.0 - sum(gain for _, gain in PREDICTED_GAINS_MS.values()),
    ("PyTorch, compile", 64): 129.0,
    ("PyTorch, eager", 64): 210.0,
}
PREDICTED_TOKEN_MS = {"ours": 0.25, "torch": 1.8}  # decoding
COPY_GB_PER_S, PRODUCT_TFLOP_PER_S = 4000.0, 780.0
PREDICTED_SHARES = {
    "attention": 0.27, "attention_backward": 0.21, "attention over a cache": 0.3, "add": 0.5,
    "linear c_fc, GELU": 0.7, "dx mlp.c_proj, GELU": 0.7,
    "layer_norm_backward": 0.7,  # its sums are in shared memory, read and written for every number
}  # fmt: skip
PREDICTED_SHARE = {"flop": 0.82, "bytes": 0.8}  # of the other kernels

# target: the least value
TARGETS = {
    "tokens/s, B 64, ours / compiled PyTorch": 1.0,
    "tokens/s, B 64, ours / eager PyTorch": 1.8,
    "tokens/s, B 4, ours from a CUDA graph / compiled PyTorch": 1.0,
    "share of the measured product peak (MFU), B 64": 0.45,
    "attention forward, TFLOP/s": 200,
    "attention backward, TFLOP/s": 150,
    "memory-bound kernels, share of copy speed, the lowest": 0.8,
    "decoding, share of the bandwidth bound": 0.6,
}


def report(parts: Parts) -> str:
    """The report as text."""
    sections = [
        status_table(parts),
        losses_table(parts),
        step_table(parts),
        kernel_table(parts),
        decoding_table(parts),
        target_table(parts),
    ]
    return "\n\n".join(section for section in sections if section)


def figures(parts: Parts, name: str) -> dict[str, Any]:
    """The figures of a part; empty if it did not run, or failed before the first figure."""
    found = parts.get(name, {}).get("figures", {})
    return found if isinstance(found, dict) else {}


def status_table(parts: Parts) -> str:
    """How every part ended, and the last output of those that failed."""
    rows = [[name, part["status"], f"{part.get('seconds', 0):.0f} s"] for name, part in parts.items()]
    lines = [common.table(["part", "", ""], rows)]
    for name, part in parts.items():
        if part["status"].startswith(("failed", "out of time")):
            lines += [f"\n{name}, {part['status']}:", *(f"    {line}" for line in part.get("said", [])[-6:])]
        elif part["status"] == "left out":
            lines.append(f"{name}: {part['reason']}")
    return "\n".join(lines)


def losses_table(parts: Parts) -> str:
    """The GPU's losses beside the CPU's."""
    rows = figures(parts, "losses").get("rows", [])
    cells = [
        [
            row["dtype"], f"{row['mean_gpu']:.4f}", f"{row['mean_cpu']:.4f}", f"{row['of_mean_of_last']:.2%}",
            f"{row['worst_of_first']:.1e}", "yes" if row["passed"] else "NO",
        ]
        for row in rows
    ]  # fmt: skip
    header = ["training beside the CPU", "GPU's last 100", "CPU's", "difference", "of first steps", "passed"]
    return common.table(header, cells) if cells else ""


def steps(parts: Parts) -> list[tuple[str, dict[str, Any]]]:
    """(contender, row) of every measured training step."""
    names = {"ours": "ours", "torch_compile": "PyTorch", "torch_eager": "PyTorch"}
    found = []
    for part in ("ours", "torch compile", "torch eager"):
        for row in figures(parts, part).get("rows", []):
            found.append((f"{names[part.replace(' ', '_')]}, {row['mode']}", row))
    return sorted(found, key=lambda pair: pair[1]["batch"])


def step_table(parts: Parts) -> str:
    """Every contender at every batch."""
    peak = figures(parts, "kernels").get("product_tflop_per_s")
    cells = []
    for name, row in steps(parts):
        if "ms" not in row:
            cells.append([name, str(row["batch"]), "does not fit", "", "", "", "", "", "", ""])
            continue
        flops = row["tokens_per_s"] * FLOP_PER_TOKEN / 1e12
        expected = PREDICTED_MS.get((name, row["batch"]))
        cells.append([
            name, str(row["batch"]), f"{row['ms']:.2f}", f"{expected:.0f}" if expected else "",
            f"{row['spread']:.1%}", f"{row['tokens_per_s']:,.0f}",
            f"{flops / peak:.2f}" if peak else "", f"{row['memory_gib']:.1f}",
            "" if row["launches"] is None else str(row["launches"]), f"{row['losses'][-1]:.4f}",
        ])  # fmt: skip
    header = ["a training step", "batch", "ms", "predicted", "+-", "tokens/s", "MFU", "GiB", "launches", "third loss"]
    return common.table(header, cells) if cells else ""


def kernel_table(parts: Parts) -> str:
    """Every kernel beside its roofline."""
    found = figures(parts, "kernels")
    cells = []
    for row in found.get("rows", []):
        if "failure" in row:
            cells.append([row["kernel"], row["failure"], "", "", ""])
            continue
        expected = predicted_ms(row)
        speed = f"{row['tflop_per_s']:.0f} TFLOP/s" if "tflop_per_s" in row else f"{row['gb_per_s']:.0f} GB/s"
        share = f"{row['share_of_roof']:.2f}" if "share_of_roof" in row else ""
        cells.append([row["kernel"], f"{row['ms'] * 1e3:,.1f}", f"{expected * 1e3:,.1f}", speed, share])
    if not cells:
        return ""
    roofs = "the speeds of a copy and of a large product were not measured"
    if "copy_gb_per_s" in found:
        roofs = f"a copy: {found['copy_gb_per_s']:,.0f} GB/s; a product: {found['product_tflop_per_s']:.0f} TFLOP/s"
    header = ["kernel", "microseconds", "predicted", "", "of roofline"]
    return f"{found.get('gpu', 'a GPU')}; {roofs}\n" + common.table(header, cells)


def predicted_ms(row: dict[str, Any]) -> float:
    """The time that was expected of a kernel."""
    kind = "flop" if "flop" in row else "bytes"
    share = PREDICTED_SHARES.get(row["kernel"], PREDICTED_SHARE[kind])
    speed = PRODUCT_TFLOP_PER_S * 1e9 if kind == "flop" else COPY_GB_PER_S * 1e6
    return float(row[kind] / (share * speed))


def decoding_table(parts: Parts) -> str:
    """Decoding, beside the bound of bandwidth."""
    cells = []
    for part in ("decoding", "torch decoding"):
        row = figures(parts, part)
        if row:
            share = share_of_bandwidth(parts, row)
            of_bound = "" if share is None else f"{share:.2f}"
            expected = f"{PREDICTED_TOKEN_MS[row['contender']]:.3f}"
            speeds = (f"{row[name]:.0f}" for name in ("tokens_per_s", "whole_tokens_per_s"))
            cells.append([row["contender"], *speeds, f"{row['later_ms']:.3f}", expected, of_bound])
    header = ["decoding, one sequence", "tokens/s", "with the prompt", "ms a token", "predicted", "of bound"]
    return common.table(header, cells) if cells else ""


def share_of_bandwidth(parts: Parts, row: dict[str, Any]) -> float | None:
    """Time to read all weights once, over the time of a token."""
    speed = figures(parts, "kernels").get("copy_gb_per_s")
    return float(row["weight_bytes"] / speed / 1e6 / row["later_ms"]) if speed else None


def measured(parts: Parts) -> dict[str, float | None]:
    """The figures of TARGETS, None for what was not measured."""
    speed = {(name, row["asked"]): row.get("tokens_per_s") for name, row in steps(parts)}
    kernels = {row["kernel"]: row for row in figures(parts, "kernels").get("rows", []) if "ms" in row}
    # what is read for one token's attention is too little to fill the card: decoding tells what that comes to
    large = [row for name, row in kernels.items() if not name.startswith("attention")]
    shares = [row["share_of_roof"] for row in large if "gb_per_s" in row and "share_of_roof" in row]
    peak, decoding = figures(parts, "kernels").get("product_tflop_per_s"), figures(parts, "decoding")
    best = max((x for x in (speed.get((f"ours, {mode}", "64")) for mode in ("launched", "graph")) if x), default=None)
    values = [
        ratio(best, speed.get(("PyTorch, compile", "64"))),
        ratio(best, speed.get(("PyTorch, eager", "64"))),
        ratio(speed.get(("ours, graph", "4")), speed.get(("PyTorch, compile", "4"))),
        ratio(None if best is None else best * FLOP_PER_TOKEN / 1e12, peak),
        kernels.get("attention", {}).get("tflop_per_s"),
        kernels.get("attention_backward", {}).get("tflop_per_s"),
        min(shares, default=None),
        share_of_bandwidth(parts, decoding) if decoding else None,
    ]
    return dict(zip(TARGETS, values, strict=True))


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b where both are there."""
    return None if a is None or not b else a / b


def target_table(parts: Parts) -> str:
    """The targets of the project, and the values."""
    cells = [
        [name, f"{TARGETS[name]:g}", "not measured" if value is None else f"{value:.2f}",
         "" if value is None else "met" if value >= TARGETS[name] else "MISSED"]
        for name, value in measured(parts).items()
    ]  # fmt: skip
    return common.table(["target", "at least", "value", ""], cells)
