"""`python -m gpt finetune classify` and `predict`: whole runs, their resume, and their errors."""

import csv
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
import train as train_program
from gpt.__main__ import main
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import METRICS
from gpt.config import UserError
from gpt.finetune.classification import cut, restore_classifier, task_of
from gpt.finetune.classify import PICTURE, RESULTS
from gpt.tokenizer import CharTokenizer
from gpt.train import loop
from gpt.train.config import TrainConfig
from gpt.train.dry_run import dry_run
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.run import make_run, new_run
from gpt.weights.initial import load_initial

FREEZE = "--freeze=wte,wpe,h.0"
WORDS = {"ham": ["meeting", "dinner", "report"], "spam": ["prize", "cash", "win"]}
FLAGS = [
    "classify", "--data=data.csv", "--text-column=text", "--label-column=label", "--init-from=base", "--backend=numpy",
    "--lr=0.01", "--plot=False", "--pool=last", "--tune=all", "--epochs=6",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Texts with labels, a language model, and a classifier."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, tg.use_backend("numpy"):
        patch.chdir(home)
        draw = random.Random(0)
        with open("data.csv", "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["label", "text", "empty"])
            for i in range(60):
                label = "spam" if i % 3 == 0 else "ham"
                lines.writerow([label, " ".join([*draw.choices("abcd", k=3), draw.choice(WORDS[label])]), ""])
        Path("text.txt").write_text("a b c d meeting dinner report prize cash win\n" * 20)
        train(new_run(TrainConfig(
            data="text.txt", backend="numpy", n_layer=2, n_head=2, n_embd=16, block_size=32, batch_size=2, max_iters=1,
            eval_interval=1, eval_iters=1, plot=False, out="base", tokenizer="char",
        )))  # fmt: skip
        assert main(["finetune", *FLAGS, "--out=run"]) == 0
        yield home


def test_a_run_learns_labels_and_reports_them(call: Any) -> None:
    results = json.loads(Path("run", RESULTS).read_text())
    assert results["task"]["labels"] == ["ham", "spam"] and results["task"]["name"] == "classify"
    assert [results["model"][part]["n"] for part in ("train", "validation", "test")] == [42, 6, 12]
    assert results["model"]["train"]["accuracy"] > 0.9
    assert results["words"]["test"]["accuracy"] == 1.0  # one word of each text gives its label
    assert results["model"]["test"]["accuracy"] == pytest.approx(
        np.trace(results["model"]["test"]["confusion"]) / results["model"]["test"]["n"]
    )
    pytest.importorskip("matplotlib")
    assert Path("run", PICTURE).exists()


def test_the_report_of_another_run(call: Any, tmp_path: Path) -> None:
    status, out, err = call(*FLAGS, "--epochs=1", "--tune=last-block", f"--out={tmp_path / 'run'}", "--block-size=12")
    lines = out.splitlines()
    assert status == 0 and err == ""
    assert "data     data.csv: 42 texts for training, 6 for validation" in lines
    assert "labels   40 ham, 20 spam; 12 texts for a test" in lines
    cut = [line for line in lines if line.startswith("cut      ")]
    assert len(cut) == 1 and cut[0].endswith(" of 60 texts to their 6 first and 6 last tokens")
    assert [line.split()[:2] for line in lines if line.endswith("F1")] == [["true", "\\"]]
    assert sum(line.startswith(("this model ", "logistic regression ")) for line in lines) == 2
    base, tuned = (load_checkpoint(path, optimizer=False).weights for path in ("base", tmp_path / "run"))
    tuned = {name.removeprefix("model."): array for name, array in tuned.items()}
    changed = {name for name, array in base.items() if (tuned[name] != array[: len(tuned[name])]).any()}
    assert changed and all(name.startswith(("h.1.", "ln_f.")) for name in changed)


@pytest.mark.parametrize(("block_size", "kept"), [(1, "a"), (4, "abgh"), (5, "abcgh"), (7, "abcdfgh"), (8, "abcdefgh")])
def test_a_long_text_keeps_how_it_begins_and_ends(block_size: int, kept: str) -> None:
    tokenizer = CharTokenizer.train("abcdefgh")
    assert tokenizer.decode(cut(tokenizer.encode("abcdefgh"), block_size)) == kept


def test_predict_labels_new_texts(call: Any) -> None:
    status, out, err = call("predict", "run", "a b c cash", "d c b  dinner", "--backend=numpy")
    rows = [line.split("\t") for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [(row[0], row[2]) for row in rows] == [("spam", "a b c cash"), ("ham", "d c b dinner")]
    assert all(0.5 <= float(row[1]) <= 1 for row in rows)


def test_predict_measures_a_file_with_labels(call: Any) -> None:
    status, out, err = call("predict", "run", "--data=data.csv", "--label-column=label", "--backend=numpy")
    with open("data.csv") as file:
        true = [row["label"] for row in csv.DictReader(file)]
    right = sum(line.split("\t")[0] == label for line, label in zip(out.splitlines(), true, strict=True))
    assert status == 0 and f"\naccuracy {right / 60:.2%}, F1 (macro) " in err  # stdout has the labels alone


def test_predict_says_which_texts_it_cuts(call: Any) -> None:
    longest = load_checkpoint("run", optimizer=False).state.model_config.block_size
    status, out, err = call("predict", "run", "a" * longest, "b" * (longest + 1), "--backend=numpy")
    n_first, n_last = longest - longest // 2, longest // 2
    assert status == 0 and len(out.splitlines()) == 2
    assert err == f"cut 1 of 2 texts to their {n_first} first and {n_last} last tokens: the classifier reads no more\n"


def test_predict_prints_a_line_a_text_even_for_a_label_of_two_lines(call: Any, tmp_path: Path) -> None:
    with open("data.csv") as file:
        lines = [f"{row['label']},{row['text']}" for row in csv.DictReader(file)]
    data = tmp_path / "data.csv"
    data.write_text("label,text\n" + re.sub("^(ham|spam)", r'"\1\n\tmail"', "\n".join(lines), flags=re.MULTILINE))
    assert call(*FLAGS, f"--data={data}", "--epochs=1", f"--out={tmp_path / 'run'}")[0] == 0
    status, out, err = call("predict", str(tmp_path / "run"), "a  b", "c d", "--backend=numpy")
    rows = [line.split("\t") for line in out.splitlines()]
    assert (status, err) == (0, "") and [row[2] for row in rows] == ["a b", "c d"]
    assert all(row[0] in ("ham mail", "spam mail") for row in rows)


@pytest.mark.parametrize(
    "trained", [["--tune=last-block"], ["--tune=all", FREEZE], ["--lora-rank=2", "--lora-dropout=0.1", "--pool=mean"]]
)
def test_a_resumed_run_equals_an_uninterrupted_run(call: Any, trained: list[str], tmp_path: Path) -> None:
    flags = [*FLAGS[:-2], *trained, "--eval-interval=2", "--lr-decay-iters=4"]
    whole, run = str(tmp_path / "whole"), str(tmp_path / "run")
    assert call(*flags, "--max-iters=4", f"--out={whole}")[0] == 0
    assert call(*flags, "--max-iters=2", "--warmup-iters=0", f"--out={run}")[0] == 0
    status, out, err = call("classify", f"--resume={run}", "--max-iters=4")
    assert status == 0, err
    for name in ("step-000004/model.safetensors", "step-000004/optimizer.safetensors", METRICS):
        assert Path(run, name).read_bytes() == Path(whole, name).read_bytes()
    assert json.loads(Path(run, RESULTS).read_text())["model"] == json.loads(Path(whole, RESULTS).read_text())["model"]


def test_a_run_is_resumed_with_the_file_that_is_given(call: Any, tmp_path: Path) -> None:
    old, new, run = tmp_path / "old.csv", tmp_path / "new.csv", tmp_path / "run"
    old.write_bytes(Path("data.csv").read_bytes())
    assert call(*FLAGS[:-1], "--max-iters=1", f"--data={old}", f"--out={run}")[0] == 0
    old.rename(new)
    assert f"data {old} cannot be read" in call("classify", f"--resume={run}", "--max-iters=2")[2]
    assert call("classify", f"--resume={run}", "--max-iters=2", f"--data={new}")[0] == 0
    assert load_checkpoint(run).state.task["data"] == str(new)
    new.write_text(new.read_text().replace("meeting", "cash"))
    expected = f"data '{new}' is not the text that {run} was trained on"
    assert expected in call("classify", f"--resume={run}", "--max-iters=3")[2]


@pytest.mark.parametrize(
    ("flags", "changed", "n_trained"),
    [
        (["--lora-rank=2"], {"lora_A", "lora_B", "score"}, 2 * 2 * (64 + 32 + 80 + 80) + 2 * 16),
        (["--lora-rank=2", "--tune=last-block", "--lora-targets=c_attn"],
         {"lora_A", "lora_B", "score", "h.1", "ln_f"}, 2 * 2 * 64 + 12 * 16 * 16 + 3 * 16 + 2 * 16),
        ([FREEZE, "--tune=all"], {"score", "h.1", "ln_f"}, 12 * 16 * 16 + 3 * 16 + 2 * 16),
        ([FREEZE, "--tune=all", "--pool=mean"], {"score", "h.1", "ln_f"}, 12 * 16 * 16 + 3 * 16 + 2 * 16),
    ],
)  # fmt: skip
def test_adapters_or_a_part_are_trained_and_predict_reads_them(
    flags: list[str], changed: set[str], n_trained: int, call: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    status, out, err = call(*FLAGS[:-2], "--lr=0.03", "--epochs=8", *flags, f"--out={run}")
    assert (status, err) == (0, "") and f"trained  {n_trained:,} parameters" in out
    base, tuned = (load_checkpoint(path, optimizer=False).weights for path in ("base", run))
    for name, array in tuned.items():
        before = base.get(name.removeprefix("model."))
        moved = before is None or bool((array != before[: len(array)]).any())
        assert moved == any(f".{part}." in f".{name}" for part in changed), name
    results = json.loads((run / RESULTS).read_text())["model"]
    assert results["train"]["accuracy"] > 0.8
    _, _, err = call("predict", str(run), "--data=data.csv", "--label-column=label", "--backend=numpy")
    right = sum(round(results[part]["accuracy"] * results[part]["n"]) for part in results)
    assert f"\naccuracy {right / 60:.2%}, " in err


def test_a_classifier_pools_as_in_training_and_one_of_before_pool_reads_the_last_token(
    call: Any, tmp_path: Path
) -> None:
    by_default = tmp_path / "run"
    flags = [flag for flag in FLAGS if flag != "--pool=last"]
    assert call(*flags, "--epochs=1", f"--out={by_default}")[0] == 0
    for folder, pool in (("run", "last"), (by_default, "mean")):
        assert json.loads(Path(folder, RESULTS).read_text())["task"]["pool"] == pool
        checkpoint = load_checkpoint(folder, optimizer=False)
        assert restore_classifier(checkpoint).pool == pool
    del checkpoint.state.task["pool"]
    assert restore_classifier(checkpoint).pool == task_of(checkpoint.state).pool == "last"


def test_texts_are_encoded_once(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_text, seen = CharTokenizer.encode, Counter()

    def counted(self: CharTokenizer, text: str, **options: Any) -> list[int]:
        seen[text] += 1
        return encode_text(self, text, **options)

    monkeypatch.setattr(CharTokenizer, "encode", counted)
    assert call(*FLAGS, "--epochs=1", f"--out={tmp_path / 'run'}")[0] == 0
    with open("data.csv") as file:
        assert seen == Counter(row["text"] for row in csv.DictReader(file))


def test_a_step_that_is_not_finite_is_replayed(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = loop.batch_of

    def overflow(run: Any, step: int) -> Any:
        run.model.model.h[1].mlp.c_fc.weight.data[...] *= 1e36 if step == 2 else 1
        return draw(run, step)

    monkeypatch.setattr(loop, "batch_of", overflow)
    status, _, err = call(*FLAGS, f"--out={tmp_path / 'run'}")
    found = re.search(r"step 3: .* python train.py --replay (\S+) repeats it in float64", err)
    assert status == 2 and err.count("\n") == 1 and found is not None
    monkeypatch.setattr(sys, "argv", ["train.py", "--replay", found[1]])
    assert train_program.main() == 0
    out = capsys.readouterr().out
    assert out.startswith("replay   step 3, 8 windows of ")
    assert "gradient norm nan" in out
    assert out.endswith("the values exceed the range of float32: the mathematics is correct\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text-column=txt"], "--text-column 'txt': data data.csv, line 2, has no such column; did you mean text? "
         "(there are 'label', 'text', 'empty')"),
        (["--label-column=lable"], "data data.csv, line 2, has no such column; did you mean label?"),
        (["--text-column=empty"], "data data.csv, line 2: 'empty' is empty: a text is needed"),
        (["--data=one.csv"], "data one.csv: every 'label' is 'ham': at least two labels are needed"),
        (["--data=few.csv"], "data few.csv: 2 texts with 2 labels are too few: none is left for validation"),
        (["--label-column=text"], "data data.csv: 60 texts with 57 labels are too few: none is left for validation"),
        (["--encoding-errors=ignore"], "--encoding-errors is for a text to continue, not for rows of a file: leave it"),
        (["--normalize-whitespace"], "--normalize-whitespace is for a text to continue, not for rows of a file"),
        (["--data=unknown.csv"], "data unknown.csv: "),
        (["--init-from=nowhere"], "nowhere"),
        (["--batch-size=0"], "batch_size must be at least 1, not 0"),
        (["--seed=-1"], "seed must be at least 0 and below 2**64, not -1"),
        (["--grad-accum=0"], "grad_accum must be at least 1, not 0"),
        (["--epochs=0"], "--epochs must be at least 1"),
        (["--max-iters=3"], "--epochs must be at least 1, and replaces --max-iters"),
        (["--sample-interval=3"], "--cuda-graph and --sample-interval are for texts of one length"),
        (["--general-data=data.csv"], "--general-data is for models that predict text, not labels: leave it out"),
        (["--freeze=h.2"], "freeze: the model has no 'h.2': it has wte, wpe, h, ln_f, score, and in h the"),
        (["--tune=head", "--freeze=score"], "freeze 'score': nothing is left to train"),
        (["--lora-rank=2", FREEZE], "freeze 'wte,wpe,h.0': lora_rank 2 freezes all weights: leave it out"),
        (["--lora-rank=2", "--quantize=q8_0"], "quantize q8_0: the checkpoints of this run hold all weights"),
        (["--tune=heads"], "unknown value 'heads'; did you mean head?"),
        (["--pool=means"], "unknown value 'means'; did you mean mean?"),
        (["--lable-column=x"], "unknown flag --lable-column; did you mean --label-column?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags: list[str], message: str, call: Any, tmp_path: Path
) -> None:
    Path("one.csv").write_text("label,text\nham,a\nham,b\n")
    Path("few.csv").write_text("label,text\nham,a\nspam,b\n")
    Path("unknown.csv").write_text("label,text\n" + "ham,a\nspam,☃\n" * 9 + "".join(f"ham,b{i}\n" for i in range(9)))
    out_folder = tmp_path / "out"
    status, out, err = call(*FLAGS, *flags, f"--out={out_folder}")
    assert status == 2 and err.count("\n") == 1 and message in err
    assert not out_folder.exists()


def test_flags_without_a_file_and_its_columns_are_refused(call: Any) -> None:
    needed = "--data, --text-column and --label-column are needed"
    assert needed in call("classify", "--data=data.csv", "--text-column=text")[2]
    assert "--tune cannot be changed by --resume" in call("classify", "--resume=run", "--tune=all")[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["run"], "give texts, or a file of them with --data"),
        (["run", "a", "--label-column=label"], "--text-column and --label-column are of a file: give it with --data"),
        (["run", "  "], "a text to label is empty"),
        (["run", "☃"], "a text: "),
        (["base", "a"], "base is no classifier: python -m gpt finetune classify makes them"),
        (["run", "--data=data.csv", "--text-column=txt"], "has no such column; did you mean text?"),
        (["run", "--data=new.csv", "--label-column=label"],
         "data new.csv, line 3: label 'spamm' was not in the training data; did you mean spam? ('ham', 'spam' were)"),
    ],
)  # fmt: skip
def test_a_mistake_in_what_to_predict_is_one_line(flags: list[str], message: str, call: Any) -> None:
    Path("new.csv").write_text("label,text\nham,a\nspamm,b\n")
    status, out, err = call("predict", *flags, "--backend=numpy")
    assert (status, out) == (2, "") and err.count("\n") == 1 and message in err


def test_other_programs_name_the_one_for_a_classifier(call: Any) -> None:
    with pytest.raises(UserError, match="the run is of another program: python -m gpt finetune classify --resume"):
        make_run(Arguments({"max_iters": 99}, "run"))
    with pytest.raises(UserError, match="the run is of another program: python -m gpt finetune classify --resume"):
        dry_run(Arguments({"max_iters": 99}, "run"))
    assert "the run is no classifier" in call("classify", "--resume=base")[2]
    with pytest.raises(UserError) as raised:
        load_initial("run")  # of generate.py, evaluate, export and --init-from
    assert str(raised.value) == "run is a classifier, which writes no text: python -m gpt finetune predict uses it"


@pytest.mark.parametrize("command", ["classify", "instruct"])
def test_help_tells_the_defaults_of_finetuning(command: str, call: Any) -> None:
    status, out, _ = call(command, "--help")
    told = " ".join(out.split())
    assert status == 0 and "gpt2 (default: smollm2)" in told and "(default: shakespeare)" not in told
    for flag, default in {
        "--lr X": "0.0001; with --lora-rank 0.001", "--warmup-iters N": "a tenth of the steps, at most 100",
        "--max-iters N": "--epochs", "--batch-size N": {"classify": "8", "instruct": "4"}[command],
        "--n-layer N": "that of the weights", "--n-kv-head N": "that of the weights", "--dropout X": "0.0",
    }.items():  # fmt: skip
        assert re.search(rf" {flag} [^()]*\(default: {re.escape(default)}\)", told), flag


def test_the_commands_are_listed_and_suggested(call: Any) -> None:
    status, out, _ = call("--help")
    assert status == 0 and "  classify  train a model to label texts" in out
    assert call("clasify")[2].endswith("unknown command 'clasify'; did you mean classify?\n")
