"""The stepper in Chromium: every control, hostile names, answers and numbers that are those of the recording."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import nn
from tensorgrad.inspect.recording import record
from tests.browser import Browser


class Model(nn.Module):
    """Two layers, whose names give two groups that fold."""

    def __init__(self) -> None:
        tg.manual_seed(0)
        self.h = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2)]

    def forward(self, x: Any) -> Any:
        for layer in self.h:
            x = x + layer(x)
        return x


@pytest.fixture(scope="module")
def steps() -> record:
    model = Model()
    with record(model) as steps:
        model(tg.asarray(np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32))).square().sum().backward()
    return steps


@pytest.fixture
def page(steps: record, browser: Browser, tmp_path: Path) -> Browser:
    steps.save(tmp_path / "step.html", "Two layers")
    browser.open(tmp_path / "step.html")
    return browser


def here(page: Browser) -> int:
    """The number of the step that is shown."""
    found = re.match(r"Step (\d+) of (\d+)", page.text("#where"))
    assert found
    return int(found[1])


def test_every_button_and_key(page: Browser, steps: record) -> None:
    n = len(steps.steps)
    assert page.text("h1") == "Two layers"
    result = steps.arrays[next(step for step in reversed(steps.steps) if step["phase"] == "forward")["results"][0]]
    loss = re.search(r"Backward begins at the result of sum, ([\d.]+)\.", page.text("#summary"))
    assert loss and float(loss[1]) == pytest.approx(result["largest"], rel=1e-3)
    assert here(page) == 1
    visits = [
        ("#next", 2), ("#next", 3), ("#back", 2), ("#last", n), ("#first", 1), ("ARROW_RIGHT", 2), ("ARROW_LEFT", 1),
        ("END", n), ("HOME", 1),
    ]  # fmt: skip
    for control, number in visits:
        page.click(control) if control.startswith("#") else page.press(control)
        assert here(page) == number
    layers = [(steps.rows[step["row"]]["module"].split(".")[:2], step["phase"]) for step in steps.steps]
    changes = [i + 1 for i in range(1, n) if layers[i] != layers[i - 1]]
    seen = []
    while here(page) < n:
        page.click("#layer") if len(seen) % 2 else page.press("n")
        seen.append(here(page))
    assert seen[: len(changes)] == changes
    page.press("p")
    assert here(page) < n
    page.click("#first")
    page.click("#other")
    assert page.text("#detail h2") == "Backward of linear"
    page.press("b")
    assert here(page) == 1
    page.run("const s = document.getElementById('slider'); s.value = 5; s.dispatchEvent(new Event('input'))")
    assert here(page) == 6
    slider = page.driver.find_element("css selector", "#slider")
    slider.send_keys("\ue014")  # the right arrow, in the slider
    assert here(page) == 7
    slider.send_keys("b")  # no key of a slider
    assert page.text("#detail h2").startswith("Backward of")
    assert page.messages() == []


def test_the_graph_and_the_timeline(page: Browser, steps: record) -> None:
    drawn = page.run("return document.querySelector('.arcs path').getAttribute('d').match(/M/g).length")
    assert drawn == sum(x["row"] is not None for step in steps.steps for x in step.get("operands", []))
    assert page.text("#fold") == "Fold all"
    page.click("#fold")
    shown = "return [...document.querySelectorAll('.row')].filter(x => x.checkVisibility()).length"
    assert page.run(shown) == sum(row["module"] == "" for row in steps.rows)
    page.click("#fold")
    assert page.run(shown) == len(steps.rows)
    page.click(".row:nth-of-type(1) .op")
    assert here(page) == 1
    page.click("#rows .grad")
    assert page.text("#detail h2") == "Backward of linear"
    assert page.run("return document.querySelectorAll('.row.current.backward').length") == 1
    page.click("#rows summary")
    assert page.run("return document.querySelector('#rows details').open") is False
    page.click("#timeline")
    assert abs(here(page) - len(steps.steps) / 2) <= 1
    page.click("#theme button")
    assert page.run("return getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert page.messages() == []


def test_the_answer_names_the_largest_gradient_and_its_reason(page: Browser, steps: record) -> None:
    """The largest by a count that is independent of the page: over all that was sent and was not only passed on."""
    norms = []
    for i, step in enumerate(steps.steps):
        arrived = {steps.arrays[dy]["norm"] for dy in step.get("incoming", []) if dy is not None}
        for sent in step.get("outgoing", []):
            norm = steps.arrays[sent["array"]]["norm"]
            if not any(abs(norm - other) <= 1e-6 * other for other in arrived):
                norms.append((norm, i + 1, steps.rows[step["row"]]["op"]))
    norm, number, op = max(norms)
    text = page.text("#answer")
    assert f"step {number}" in text and op in text
    assert "a part of" not in text  # no parameter is used twice
    assert float(re.search(r"with norm ([\d.e+-]+)\.", text)[1]) == pytest.approx(norm, rel=1e-3)
    assert re.search(r"dy, the gradient that arrives, has norm [\d.]+", text)
    page.click("#largest summary")
    rows = page.run("return [...document.querySelectorAll('#ranking tbody tr')].map(x => x.cells[5].textContent)")
    assert np.float64(rows) == pytest.approx(sorted((n for n, *_ in norms), reverse=True)[: len(rows)], rel=1e-3)
    page.run("const s = document.getElementById('measure'); s.value = 'largest'; s.dispatchEvent(new Event('change'))")
    assert "largest element" in page.text("#ranking")
    page.click("#answer button.link")
    assert here(page) == number
    opened = "document.querySelectorAll('#detail details').forEach(x => { x.open = true; "
    page.run(opened + "x.dispatchEvent(new Event('toggle')) })")
    path = page.run("return [...document.querySelectorAll('.path tbody tr')].map(x => x.cells[3].textContent)")
    arrives = [max(steps.arrays[dy]["norm"] for dy in steps.steps[number - 1]["incoming"])]
    assert np.float64(path)[-1] == pytest.approx(arrives[0], rel=1e-3)
    assert "def " in page.text(".source pre")
    assert page.messages() == []


def open_parameters(page: Browser) -> None:
    page.open_details("#parameters")
    page.run("document.querySelectorAll('#why details').forEach(x => { x.open = true })")


def table(page: Browser, selector: str) -> list[list[str]]:
    rows = "return [...document.querySelectorAll(arguments[0])].map(x => [...x.cells].map(cell => cell.textContent))"
    return page.run(rows, f"{selector} tbody tr")


def test_why_a_parameter_has_its_gradient(page: Browser, steps: record) -> None:
    """Every number, of every parameter, is the one that `explain` gives."""
    open_parameters(page)
    by_size = sorted(steps.gradients.values(), key=lambda gradient: -np.linalg.norm(gradient))
    names = page.run("return [...document.querySelectorAll('#parameter option')].map(x => x.textContent)")
    assert [name.split(", norm ")[0] for name in names] != [] and len(names) == len(by_size) == 8
    model_parameters = {found.name: found for found in map(steps.explain, parameters_of(steps))}
    for i, name in enumerate(names):
        found = model_parameters[name.split(", norm ")[0]]
        assert float(name.split(", norm ")[1]) == pytest.approx(np.linalg.norm(by_size[i]), rel=1e-3)
        select = "const s = document.getElementById('parameter'); s.selectedIndex = arguments[0];"
        page.run(select + "s.dispatchEvent(new Event('change'))", i)
        text = page.text("#why dl")
        assert f"{found.ratio:.4g}" == f"{float(re.search(r', ([^ ]+) times', text)[1]):.4g}"  # type: ignore[index]
        assert float(re.search(r"by ([^ ]+) % with SGD", text)[1]) == pytest.approx(
            100 * found.sgd_change(1e-3), rel=1e-3
        )  # type: ignore[index]
        assert float(re.search(r"by ([^ ]+) % with Adam", text)[1]) == pytest.approx(
            100 * found.adam_change(1e-3), rel=1e-3
        )  # type: ignore[index]
        entries = table(page, "#why > .scroll")
        assert [row[0] for row in entries] == [str(list(entry.index)) for entry in found.entries]
        numbers = [[entry.recorded, entry.float64, entry.difference] for entry in found.entries]
        np.testing.assert_allclose(np.float64([row[2:5] for row in entries]), numbers, rtol=5.1e-4)
        assert {row[1] for row in entries} == {"confirmed"}
        (use,) = found.uses
        assert f"{100 * use.share:.1f} % through linear, as {use.operand}" in page.text("#why h3")
        assert f"step {use.step + 1}" in page.text("#why .uses")
        rows = table(page, "#why .uses > section > .scroll")
        assert [row[0] for row in rows] == [str(list(row)) for row in use.largest(3)]
        shares: Any = use.shares
        assert [row[1] for row in rows] == [f"{100 * shares[row]:.1f} %" for row in use.largest(3)]
    assert page.messages() == []


def parameters_of(steps: record) -> list[tg.Tensor]:
    model = steps._models[0]
    return list(model.parameters())


def test_a_link_brings_its_step_into_view(page: Browser, tmp_path: Path) -> None:
    page.open(tmp_path / "step.html", "narrow")
    top = "return document.querySelector('#detail h2').getBoundingClientRect().top / innerHeight"
    assert page.run(top) > 0.8
    page.click("#answer button.link")
    assert 0 < page.run(top) < 0.8
    assert page.run("const h = document.querySelector('#detail h2').getBoundingClientRect();"
                    "return document.elementFromPoint(h.left + 5, h.top + 5).closest('#detail') !== null")  # fmt: skip


def test_a_gradient_leads_to_its_explanation(page: Browser) -> None:
    page.click("#answer button:nth-of-type(2)")  # why?
    assert page.run("return document.getElementById('parameters').open")
    assert page.run("return document.activeElement.id") == "parameter"
    largest = page.text("#parameter").splitlines()[0]
    assert largest.split(", norm ")[0] in page.text("#answer")
    page.press("ARROW_DOWN")  # in the list of parameters, and not a step
    assert here(page) == 1
    page.click("#why .uses button.link")
    assert page.text("#detail h2") == "Backward of linear"
    page.run("document.querySelector('#detail .card.gradient button.link:last-of-type').focus()")
    assert page.run("return [...document.querySelectorAll('#detail .card button')].some(x => x.textContent === 'why?')")
    assert page.messages() == []


HOSTILE = "<img src=x onerror='window.hacked=1'></script><script>window.hacked=1</script>"


def test_hostile_names_are_shown_and_never_run(browser: Browser, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.parts = {HOSTILE: nn.Linear(2, 2)}
    source = f"y = model.parts[name](model(x)).sum()  # {HOSTILE}\ny.backward()"
    path = tmp_path / "<img src=x onerror=hacked=1>.py"
    path.write_text(source, encoding="utf-8")
    with record(model, texts=[[HOSTILE] * 2]) as steps:
        exec(compile(source, str(path), "exec"), {"model": model, "name": HOSTILE, "x": tg.ones((1, 2, 2))})
    steps.save(tmp_path / "page.html", HOSTILE)
    browser.open(tmp_path / "page.html")
    open_parameters(browser)
    assert f"parts.{HOSTILE}.weight" in browser.text("#parameter") and HOSTILE in browser.text("#why .tokens")
    assert json.dumps(HOSTILE) in browser.text("#why .uses > section > .scroll")
    for _ in steps.steps:
        browser.press("ARROW_RIGHT")
    browser.click("#first")
    browser.press("ARROW_RIGHT")
    assert browser.run("return window.hacked") is None
    assert browser.text("h1") == HOSTILE
    assert HOSTILE in browser.text("#detail") and path.name in browser.text("#detail")
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.messages() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", ["narrow", "wide"])
def test_no_step_is_wider_than_the_window(
    width: str, theme: str, steps: record, browser: Browser, tmp_path: Path
) -> None:
    steps.save(tmp_path / "step.html")
    browser.open(tmp_path / "step.html", width, theme)
    open_parameters(browser)
    for _ in steps.steps:
        assert browser.too_wide() <= 0
        browser.press("ARROW_RIGHT")
    names = "return [...document.querySelectorAll('button, input, select, canvas')].filter(x => !(x.textContent.trim() "
    unnamed = browser.run(names + "|| x.ariaLabel || x.labels?.length)).map(x => x.outerHTML)")
    assert unnamed == []
    assert browser.messages() == []


def test_nothing_recorded(browser: Browser, tmp_path: Path) -> None:
    record().save(tmp_path / "empty.html")
    browser.open(tmp_path / "empty.html")
    assert browser.text("#summary") == "Nothing was recorded."
    with record() as steps, tg.no_grad():
        tg.exp(tg.ones((2,)))
    steps.save(tmp_path / "forward.html")
    browser.open(tmp_path / "forward.html")
    assert "No backward was recorded" in browser.text("#answer")
    browser.open_details("#parameters")
    assert browser.text("#why") == "No parameter got a gradient."
    assert browser.messages() == []


def test_the_page_says_why_a_gradient_is_not_explained(browser: Browser, tmp_path: Path) -> None:
    weight, x = tg.ones((2,), requires_grad=True), tg.ones((2,), requires_grad=True)
    with record() as steps, np.errstate(invalid="ignore"):
        (weight * (x * float("inf")) + x).sum().backward()
    steps.save(tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    browser.open_details("#parameters")
    assert "is not finite: tg.detect_anomaly() finds the op" in browser.text("#why")
    y = weight * 2  # before the recording
    with record() as steps:
        (weight * y).sum().backward()
    steps.save(tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    browser.open_details("#parameters")
    assert "2 ops sent a gradient to a given tensor, 1, and 1 when replayed" in browser.text("#why")
    assert browser.messages() == []


def test_a_notebook_shows_it_inline(steps: record, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{steps._repr_html_()}", "utf-8")
    browser.open(tmp_path / "notebook.html")
    browser.driver.switch_to.frame(0)
    try:
        browser.click("#next")
        assert here(browser) == 2
    finally:
        browser.driver.switch_to.default_content()
    assert browser.messages() == []
