#!/usr/bin/env python3
"""Run the chapters, compare them with the kept outputs, and build the site.

    python chapters/build.py run [00 04b ...]      execute chapters and keep their outputs in chapters/*.ipynb
    python chapters/build.py check [00 04b ...]    execute them, and compare what they print with what was kept
    python chapters/build.py site                  make the pages from the kept notebooks, in build/site

A chapter is `NN_name.py`, in jupytext's percent format, and is executed from a clean kernel. Text has to be equal. On
the kind of processor that kept the outputs, numbers have to be equal, too; on others they may differ by 1 %, and the
outputs of cells with the tag `sampled` may differ altogether. A cell with the tag `varies` is never compared.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llvmlite import binding

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
RELATIVE, ABSOLUTE = 0.01, 1e-6  # how far a number may be from the kept one on another kind of processor
CODE = re.compile(r"\]\(([\w./-]+\.py)(#\w+)?\)")  # a link to a file of code
TIMEOUT = 1800  # seconds for a cell: only what hangs takes so long


def processor() -> str:
    """Return the kind of this processor, such as `znver3 on linux`."""
    return f"{binding.get_host_cpu_name()} on {sys.platform}"


def chapters(names: list[str]) -> list[Path]:
    """Return the files of the chapters with these numbers, of all without any."""
    found = sorted(HERE.glob("[0-9]*_*.py"))
    missing = set(names) - {path.stem.split("_")[0] for path in found}
    if missing:
        raise SystemExit(f"no chapter {', '.join(sorted(missing))}: there are {', '.join(p.stem for p in found)}")
    return [path for path in found if not names or path.stem.split("_")[0] in names]


def execute(path: Path) -> Any:
    """Return the notebook of a chapter, with outputs and without what differs from run to run."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    notebook = jupytext.read(path)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem.split('_')[0]}-{i}"
    os.environ.pop("MPLBACKEND", None)  # pictures are drawn into the notebook
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": HERE}})
    client.extra_arguments = ["--log-level=40"]  # errors alone
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times
        if cell.cell_type == "code":
            cell.outputs = joined([output for output in cell.outputs if is_kept(output)])
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "processor": processor(),
        }
    )
    return notebook


def is_kept(output: Any) -> bool:
    """Whether it was printed or drawn on purpose: no progress bar, and not the value of a cell's last line."""
    return output.get("name") != "stderr" and output.output_type != "execute_result"


def joined(outputs: list[Any]) -> list[Any]:
    """Put together what was printed in several parts: where it is divided depends on the time."""
    found: list[Any] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def printed(cell: Any) -> str:
    """Return the text of a cell's outputs; a picture or a page is its place only."""
    texts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            texts.append("(picture)\n")
        elif "text/html" in data:
            texts.append("(page)\n")
        else:
            texts.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
    return "".join(texts)


def differences(path: Path, kept: Any, new: Any) -> list[str]:
    """Return a line for everything in which a chapter differs from its kept notebook."""
    if [cell.source for cell in kept.cells] != [cell.source for cell in new.cells]:
        return [f"{path.stem}: the notebook is not that of the chapter"]
    exact = kept.metadata.get("processor") == processor()
    found = []
    for i, (old_cell, new_cell) in enumerate(zip(kept.cells, new.cells, strict=True)):
        tags = new_cell.metadata.get("tags", [])
        if "varies" in tags or ("sampled" in tags and not exact):
            continue
        before, after = printed(old_cell), printed(new_cell)
        if before != after and (exact or not alike(before, after)):
            diff = difflib.unified_diff(before.splitlines(), after.splitlines(), "kept", "now", n=0, lineterm="")
            found.append("\n".join([f"{path.stem}: the outputs of cell {i} differ", *diff]))
    return found


def alike(before: str, after: str) -> bool:
    """Whether two texts differ in their numbers alone, and in those by little."""
    if NUMBER.sub("#", before).split() != NUMBER.sub("#", after).split():
        return False
    pairs = zip(NUMBER.findall(before), NUMBER.findall(after), strict=True)
    values = [(float(x.replace(",", "")), float(y.replace(",", ""))) for x, y in pairs]
    return all(abs(x - y) <= RELATIVE * max(abs(x), abs(y)) + ABSOLUTE for x, y in values)


def run(names: list[str], *, keep: bool) -> int:
    """Execute chapters, and keep their outputs or compare them with the kept ones."""
    import nbformat

    n_different = 0
    started = time.monotonic()
    for path in chapters(names):
        began = time.monotonic()
        new = execute(path)
        seconds = time.monotonic() - began
        kept = path.with_suffix(".ipynb")
        if keep:
            nbformat.write(new, kept)
            print(f"{path.stem}: {seconds:.0f} s", flush=True)
            continue
        found = differences(path, nbformat.read(kept, as_version=4), new) if kept.exists() else [f"{kept}: missing"]
        print("\n".join(found) or f"{path.stem}: as kept, {seconds:.0f} s", flush=True)
        n_different += bool(found)
    print(f"{time.monotonic() - started:.0f} s for all; they may take 3 minutes each, 12 minutes together")
    return 1 if n_different else 0


def site() -> int:
    """Build the pages, treating every warning as an error."""
    source, target = ROOT / "build" / "source", ROOT / "build" / "site"
    shutil.rmtree(source, ignore_errors=True)
    for pattern in ("*.md", "benchmarks/*.md", "chapters/*.ipynb", "chapters/*.md", "checkpoints/*.md", "docs/*"):
        for path in ROOT.glob(pattern):
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(CODE.sub(r"](\1.md\2)", path.read_text()).encode())
    for path in ROOT.glob("benchmarks/results/**/*.png"):  # README's pictures
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    folders = ("", "benchmarks/", "chapters/*s/", "gpt/**/", "tensorgrad/**/", "tests/**/")
    for folder in folders:  # the code, as pages that the chapters link to
        for path in ROOT.glob(f"{folder}*.py"):
            name = path.relative_to(ROOT).as_posix()
            page = source / f"{name}.md"
            page.parent.mkdir(parents=True, exist_ok=True)
            code = f"~~~~{{code-block}} python\n:linenos:\n{path.read_text()}\n~~~~"
            page.write_text(f"---\norphan: true\n---\n# `{name}`\n\n{code}\n")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", HERE / "site", source, target]
    failed = subprocess.run(list(map(str, command)), check=False).returncode
    if not failed:
        print(f"open {(target / 'chapters' / 'index.html').relative_to(ROOT)}")
    return failed


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "check", "site"))
    parser.add_argument("chapter", nargs="*", help="numbers such as 00 or 04b; all without any")
    options = parser.parse_args()
    return site() if options.what == "site" else run(options.chapter, keep=options.what == "run")


if __name__ == "__main__":
    raise SystemExit(main())
