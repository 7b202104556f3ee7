"""`python -m gpt inspect step`: every gradient that the page displays, compared with PyTorch's backward."""

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt import __main__ as program
from gpt.checkpoint import RunState, save_checkpoint
from gpt.cli import run as run_program
from gpt.config import GPTConfig
from gpt.fused import fuse
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer
from gpt.train.config import TrainConfig
from tensorgrad.inspect.contributions import contributions
from tensorgrad.inspect.explainer import Explainer
from tensorgrad.inspect.recording import record
from tests.browser import Browser

TEXT = "to be, or not"

# What the page displays in a step: its row, whether forward or backward, and the numbers of every gradient.
READ = """
const steps = [];
for (;;) {
  const cards = [...document.querySelectorAll("#detail .card.gradient")].map((card) => {
    card.querySelector("details").dispatchEvent(new Event("toggle"));  // makes the table, as opening it does
    return [card.dataset.role, [...card.querySelectorAll("tbody td")].map((cell) => cell.textContent)];
  });
  steps.push([document.querySelector("#detail h2").textContent, cards]);
  if (document.getElementById("next").disabled) return steps;
  document.getElementById("next").click();
}
"""


class Replay:
    """The recorded graph, computed again by PyTorch, from the parameters and from the integers that were given."""

    def __init__(self, torch: Any, model: GPT, steps: record) -> None:
        self.torch, self.steps = torch, steps
        self.leaves = {name: torch.tensor(p.numpy(), requires_grad=True) for name, p in model.named_parameters()}
        self.forward = {step["row"]: step for step in steps.steps if step["phase"] == "forward"}
        self.operands: dict[int, list[Any]] = {}
        self.results: dict[int, list[Any]] = {}
        for row, step in self.forward.items():
            if steps.rows[row]["tracked"]:  # the ops that make the mask are not
                self.operands[row] = [self.operand(x) for x in step["operands"]]
                self.results[row] = self.run(row, self.operands[row])
                for y in self.results[row]:
                    y.retain_grad()

    def operand(self, x: dict[str, Any]) -> Any:
        if x["row"] in self.results:
            return self.results[x["row"]][x["slot"]]
        if x.get("leaf"):
            return self.leaves[x["leaf"]]
        if x["array"] is None:
            return self.torch.tensor(float(x["text"]), dtype=self.torch.float64)
        shown = self.steps.arrays[x["array"]]
        numbers = np.frombuffer(base64.b64decode(shown["values"]["base64"]), shown["values"]["type"])
        return self.torch.tensor(numbers.astype(shown["dtype"]).reshape(shown["shape"]))

    def run(self, row: int, operands: list[Any]) -> list[Any]:
        """The results of the op of a row, whose options are read from the recording."""
        F, torch, options = self.torch.nn.functional, self.torch, self.forward[row]["options"]
        shape = self.steps.arrays[self.forward[row]["results"][0]]["shape"]
        functions = {
            "embedding": lambda w, i: F.embedding(i, w),
            "add": torch.add,
            "divide": torch.div,
            "matmul": torch.matmul,
            "where": torch.where,
            "linear": F.linear,
            "dropout": lambda x: x * 1,  # p = 0
            "layer_norm": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, float(options["eps"])),
            "split": lambda x: torch.split(x, x.shape[2] // 3, 2),
            "reshape": lambda x: x.reshape(shape),
            "permute_dims": lambda x: x.permute([int(n) for n in re.findall(r"\d+", options["axes"])]),
            "matrix_transpose": lambda x: x.mT,
            "softmax": lambda x: torch.softmax(x, -1),
            "gelu": lambda x: F.gelu(x, approximate="tanh"),
            "cross_entropy": lambda x, y: F.cross_entropy(x.flatten(0, -2), y.flatten()),
        }
        result = functions[self.steps.rows[row]["op"]](*operands)
        return list(result) if isinstance(result, tuple) else [result]

    def gradients(self, step: dict[str, Any]) -> list[Any]:
        """What arrives at an op, and what it sends to each operand: those of its results by this op alone."""
        arrived = [y.grad for y in self.results[step["row"]]]
        operands = [x.detach().requires_grad_(x.is_floating_point()) for x in self.operands[step["row"]]]
        results = self.run(step["row"], operands)
        asked = [operands[sent["operand"]] for sent in step["outgoing"]]
        return [*arrived, *self.torch.autograd.grad(results, asked, arrived)]


def small_model() -> GPT:
    """Two layers in float64, with weights so large that attention is not uniform."""
    tg.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8, dropout=0.0))
    model.astype(np.float64)
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data += 0.1 * rng.normal(size=p.shape)
    return model


def test_every_gradient_on_the_page_is_pytorchs(browser: Browser, tmp_path: Path) -> None:
    """What arrives at every op, what it sends on, and the sums of the parameters, to the printed digits."""
    torch = pytest.importorskip("torch")
    model, tokens = small_model(), np.random.default_rng(0).integers(11, size=(2, 6))
    with record(model) as steps:
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    replay = Replay(torch, model, steps)
    replay.results[len(steps.rows) - 1][0].backward()
    steps.save(tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    displayed = browser.run(READ)
    assert browser.messages() == []
    assert len(displayed) == len(steps.steps)
    compared = 0
    for step, (heading, cards) in zip(steps.steps, displayed, strict=True):
        if step["phase"] == "forward":
            assert cards == []
            continue
        assert heading == f"Backward of {steps.rows[step['row']]['op']}"
        shown = [numbers for role, numbers in cards if role != "sum"]
        for numbers, gradient in zip(shown, replay.gradients(step), strict=True):
            np.testing.assert_allclose(np.float64(numbers), gradient.reshape(-1), rtol=5.1e-4, atol=1e-15)
            compared += len(numbers)
    assert compared > 10_000
    sums = [numbers for _, cards in displayed for role, numbers in cards if role == "sum"]
    assert len(sums) == 1  # of wte alone: the output layer and the embedding share it
    np.testing.assert_allclose(np.float64(sums[0]), replay.leaves["wte.weight"].grad.reshape(-1), rtol=5.1e-4)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_the_parts_of_an_example_are_pytorchs_gradient_of_that_example(fused: bool) -> None:
    """Of every parameter: the contributions of an example, through all ops that used it, and their shares."""
    torch = pytest.importorskip("torch")
    model, tokens = small_model(), np.random.default_rng(1).integers(11, size=(3, 6))
    x, y = tokens[:, :-1], tokens[:, 1:]
    with record(model) as plain:
        model.loss(x, y).backward()
    replay = Replay(torch, model, plain)  # of PyTorch: its logits are those of all examples
    logits = replay.results[len(plain.rows) - 2][0]
    steps = plain
    if fused:
        fuse(model)
        with record(model) as steps:
            model.loss(x, y).backward()
    explainer, whole = Explainer(steps), {name: p.grad for name, p in model.named_parameters()}
    parts = {name: [] for name in whole}
    names = {p.node.sequence: name for name, p in model.named_parameters() if p.node is not None}
    for part in explainer.replay.parts:
        parts[names[part.leaf]].append(contributions(part))
    explained = {name: explainer.explain(leaf, name, 0) for leaf, name in names.items()}
    for b in range(3):
        one = torch.nn.functional.cross_entropy(logits[b], torch.tensor(y[b]), reduction="sum") / y.size
        gradients = torch.autograd.grad(one, list(replay.leaves.values()), retain_graph=True)
        for name, expected in zip(replay.leaves, gradients, strict=True):
            expected = expected.numpy()
            found = sum(part.gradient(b) for part in parts[name])
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)
            share = sum(use.shares[b].sum() for use in explained[name].uses)  # type: ignore[index]
            gradient = sum(part.gradient() for part in parts[name])
            assert share == pytest.approx(np.sum(expected * gradient) / np.sum(gradient**2), rel=1e-8)
            if len(parts[name]) == 1:
                examples: Any = explained[name].uses[0].examples
                assert examples[b] == pytest.approx(np.linalg.norm(expected), rel=1e-8)
    ops = {use.op for found in explained.values() for use in found.uses}
    assert ("linear of mlp" in ops) == ("layer_norm of add_layer_norm" in ops) == fused


def test_the_page_of_four_layers_is_small() -> None:
    model = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128))
    tokens = np.random.default_rng(0).integers(65, size=(4, 65))
    with record(model) as steps:
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    assert len(steps.steps) > 200
    assert len(steps.page(confirm=0)) < 15e6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run."""
    home = tmp_path_factory.mktemp("home")
    tokenizer = CharTokenizer.train(TEXT)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=8)
    tg.manual_seed(0)  # which op made the largest gradient depends on the weights
    model = GPT(config)
    fields = {name: value for name, value in config.to_dict().items() if name != "vocab_size"}
    state = RunState(0, config, TrainConfig(**fields), "", tg.random.default_generator.state_dict())
    save_checkpoint(home / "run", state, model, tg.optim.AdamW(model.parameters()), tokenizer)
    return home


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """call(*flags): the exit status, and what was written to stdout and stderr."""
    monkeypatch.chdir(home)

    def call(*flags: str) -> tuple[int, str, str]:
        with tg.use_backend("numpy"):
            status = run_program(lambda: program.main(["inspect", *flags, "--backend=numpy"]), prog="gpt")
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize("flags", [[], ["--fused"]])
def test_the_command_writes_a_page(flags: list[str], home: Path, call: Any, browser: Browser) -> None:
    status, out, err = call("step", "run", "--text", TEXT, "--out", "page.html", *flags)
    assert (status, err) == (0, "")
    assert re.fullmatch(r"\d+ steps, 0\.\d MB, in page\.html: open it in a browser\n", out)
    browser.open(home / "page.html")
    assert browser.text("h1") == f"A training step of run on {TEXT!r}"
    assert ("add_layer_norm" in browser.text("#rows")) == bool(flags)
    answer = browser.text("#answer").splitlines()  # why here? a formula alone
    why = answer[answer.index("why here") + 1]
    assert re.match(r"d\w+ = [^.]*, where dy, the gradient that arrives, has norm \S+; (x|weight) has norm ", why)
    assert "a part of the gradient of wte.weight" in answer[1]  # the embedding sends it another
    assert "called at gpt/" in answer[1]  # the op is in no module
    browser.open_details("#parameters")
    assert browser.text("#why .tokens") == TEXT[:-1]  # of one parameter, of which every row is a token
    assert browser.run("return document.querySelectorAll('#why tr td.wrong').length") == 0
    assert "confirmed" in browser.text("#why")
    browser.run("const s = document.getElementById('parameter'); s.selectedIndex = s.length - 1; "
                "s.dispatchEvent(new Event('change'))")  # fmt: skip
    assert "Not confirmed by finite differences" in browser.text("#why")
    assert browser.messages() == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["step", "run", "--text", "t"], "--text: 1 token: at least 2 are needed"),
        (["step", "run", "--text", "to" * 9], "--text: 18 tokens: at most 17 fit run, its block_size 16 and"),
        (["step", "run", "--text", "z"], "--text: "),
        (["step", "run", "--text", TEXT, "--confirm", "-1"], "--confirm: -1 is negative; 0 confirms no gradient"),
        (["step", "nowhere", "--text", TEXT], "nowhere"),
        (["step", "run", "--text", TEXT, "--out", "no/such/folder.html"], "its folder does not exist"),
        (["step", "run", "--text", TEXT, "--out", "."], "--out .: a folder; give a file"),
        (["step", "run", "--text", TEXT, "--out", ""], "--out .: a folder; give a file"),
        (["stepp"], "unknown command 'stepp'"),
    ],
)
def test_mistakes_are_reported_in_one_line(flags: list[str], message: str, call: Any) -> None:
    status, out, err = call(*flags)
    assert (status, out) == (2, "")
    assert message in err and err.count("\n") == 1
