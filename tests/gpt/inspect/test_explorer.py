"""The explorer's page in Chromium: its numbers are the model's, every control works, hostile text is never run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.config import GPTConfig, LlamaConfig
from gpt.inspect.explore import Exploration, explore
from gpt.inspect.explorer import Explored, Page, explorer_page, prompt_ids, show_model, token_text
from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.weights import Model, build_model
from tests.browser import Browser

TEXT = "a cab, back"
CHARACTERS = CharTokenizer.train("abc k,")
CONFIGS = {
    "gpt": GPTConfig(vocab_size=6, block_size=16, n_layer=2, n_head=2, n_embd=8, bias=True),
    "llama": LlamaConfig(
        vocab_size=6, block_size=16, n_layer=3, n_head=4, n_kv_head=2, n_embd=16, n_hidden=24, tied=True
    ),
}
HOSTILE = [
    "</script><script>window.hacked = 1</script>", "<img src=x onerror='window.hacked = 1'>", "\u202ebackwards",
    "&lt;b&gt;", "<!--", "'\" onload=alert(1)", "\x1b[31m", "\u2028", "e\u0301" * 30, "${window.hacked = 1}",
    "\U000e0041",
]  # fmt: skip
TEXTS = "return [...document.querySelectorAll(arguments[0])].map(x => x.textContent)"


@pytest.fixture(autouse=True)
def backend(numpy_backend: None) -> None:
    """NumPy: other backends compute the same and are tested as such."""


def randomised(config: Any, seed: int = 0) -> Model:
    model = build_model(config)
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data[...] += 0.4 * rng.standard_normal(p.shape)
    return model


def hostile_tokenizer() -> ByteLevelTokenizer:
    """Every byte is a token, and so are the hostile texts."""
    added = {text: 256 + i for i, text in enumerate(HOSTILE)}
    single = [bytes([i]) for i in range(256)]
    return ByteLevelTokenizer(single, range(256), "gpt-2", special={}, added=added)


@pytest.fixture
def opened(tmp_path: Path, browser: Browser) -> Callable[..., Path]:
    def opened(page: Page, width: str = "wide", theme: str = "light") -> Path:
        path = tmp_path / "page.html"
        page.save(path)
        browser.open(path, width, theme)
        return path

    return opened


def percent(p: float) -> str:
    return "<0.1 %" if np.float32(p) < 0.0005 else f"{100 * float(np.float32(p)):.1f} %"


def visible(text: str) -> str:
    return text.replace(" ", "␣")


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def same(shown: list[str], expected: Any, digits: int) -> None:
    """Equal to the printed digits, whichever way a 5 behind them was rounded."""
    assert {len(text.partition(".")[2]) for text in shown} == {digits}
    numbers = [number(text) for text in shown]
    np.testing.assert_allclose(numbers, np.ravel(expected), atol=0.50001 * 10.0**-digits, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_on_the_page_is_the_models(name: str, opened: Any, browser: Browser) -> None:
    model, config = randomised(CONFIGS[name]), CONFIGS[name]
    found = explore(model, CHARACTERS.encode(TEXT))
    opened(show_model(model, CHARACTERS, TEXT))
    logits = model(found.ids[None], found.ids[None])[0].numpy()[0].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shown = browser.run(TEXTS, "#text .number")
    assert shown == ["first", *(percent(probabilities[t, i]) for t, i in enumerate(found.ids[1:]))]
    check_lens(browser, found)
    for t in reversed(range(len(TEXT))):
        check_position(browser, found, probabilities[t], t)
        browser.press("ARROW_LEFT")
    for layer in range(config.n_layer):
        for head in range(config.n_head):
            browser.run(f"document.querySelectorAll('.head')[{layer * config.n_head + head}].click()")
            assert browser.text(".one-head h3").startswith(f"Layer {layer + 1}, head {head + 1}")
            same(browser.run(TEXTS, ".one-head .chip .number"), found.attention[layer, head, 0, :1], 3)
    assert browser.messages() == []


def check_lens(browser: Browser, found: Exploration) -> None:
    cells = browser.run(TEXTS, ".lens tbody td")
    expected = zip(found.top_ids[..., 0].ravel(), found.top_probabilities[..., 0].ravel(), strict=True)
    assert cells == [f"{visible(CHARACTERS.decode([i]))} {percent(p)}" for i, p in expected]


def check_position(browser: Browser, found: Exploration, probabilities: Any, t: int) -> None:
    order = np.argsort(-probabilities)
    rows = [[str(rank + 1), visible(CHARACTERS.decode([i])), percent(probabilities[i])] for rank, i in enumerate(order)]
    cells = "[...x.children].slice(0, 3).map(cell => cell.querySelector('bdi')?.textContent ?? cell.textContent)"
    shown = browser.run(f"return [...document.querySelectorAll('#prediction tbody tr')].map(x => {cells})")
    if t + 1 < len(TEXT):
        following = found.ids[t + 1]
        rows.append([str(list(order).index(following) + 1), visible(TEXT[t + 1]), percent(probabilities[following])])
    assert shown == rows
    shown = browser.run(TEXTS, "#why .chip .number")
    digits = len(shown[0].partition(".")[2])
    assert digits >= 2
    same(shown, found.attribution[t, : t + 1], digits)
    same(browser.run(TEXTS, ".sum"), found.attribution[t].sum(), digits)
    same(browser.run(TEXTS, ".slope"), found.slope[t], digits)
    same(browser.run(TEXTS, ".logit"), found.logit[t], 2)
    last = len(found.attention) - 1
    same(browser.run(TEXTS, ".one-head .chip .number"), found.attention[last, 0, t, : t + 1], 3)
    norms = [found.stream_norms[0, t]]
    for layer in range(last + 1):
        norms += [*found.added_norms[2 * layer : 2 * layer + 2, t], found.stream_norms[2 * layer + 2, t]]
    same(browser.run(TEXTS, "#stream td .number"), norms, 2)
    assert browser.run(TEXTS, "#near li bdi") == [visible(CHARACTERS.decode([i])) for i in found.neighbour_ids[t]]
    same(browser.run(TEXTS, "#near .number"), found.neighbour_cosines[t], 3)


def test_every_control(opened: Any, browser: Browser) -> None:
    model = randomised(CONFIGS["llama"])
    found = explore(model, CHARACTERS.encode(TEXT))
    opened(show_model(model, CHARACTERS, TEXT, name="a name"))
    assert browser.text("h1") == "Inside a name"
    chosen = "return [...document.querySelectorAll('[role=radio]')].findIndex(x => x.ariaChecked === 'true')"
    assert browser.run(chosen) == len(TEXT) - 1
    browser.click("[role=radio]:nth-child(4)")
    assert browser.run(chosen) == 3
    browser.press("ARROW_RIGHT", "ARROW_RIGHT")
    assert browser.run(chosen) == 5 and browser.run("return document.activeElement.ariaChecked") == "true"
    browser.press(*["ARROW_LEFT"] * 9)
    assert browser.run(chosen) == 0
    browser.press("L", "h", "h")
    assert browser.text(".detail h3").startswith("After layer 2 of 3")
    assert browser.text(".one-head h3").startswith("Layer 2, head 3")
    browser.press("H", "L", "L", "L")
    assert browser.text(".detail h3").startswith("In the embedding")
    browser.press(*["l"] * 9)
    assert browser.text(".one-head h3").startswith("Layer 3, head 2")
    browser.click(".head[aria-pressed=true]")
    browser.press("h", "H")
    assert browser.run("return document.activeElement.ariaLabel") == "layer 3, head 2"
    browser.run("document.querySelector('.lens tbody tr:nth-child(2) td:nth-child(8)').click()")
    assert browser.run(chosen) == 6
    assert browser.text(".detail h3").startswith("After layer 1 of 3")
    same(browser.run(TEXTS, ".one-head .chip .number"), found.attention[0, 1, 6, :7], 3)
    pointed = """const canvas = document.querySelector(".large"), box = canvas.getBoundingClientRect();
        const at = (part) => ({ clientX: box.left + 1, clientY: box.top + box.height * part, bubbles: true });
        canvas.dispatchEvent(new PointerEvent("pointermove", at(0.95)));
        canvas.dispatchEvent(new MouseEvent("click", at(0.2)));"""
    browser.run(pointed)
    assert browser.run(chosen) == 2
    assert browser.text(".cell") == f"k reads a: {found.attention[0, 1, 10, 0]:.3f}"
    browser.run("document.querySelector('#bar button').click()")
    assert browser.run("return getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert browser.messages() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", ["narrow", "wide"])
def test_the_page_is_no_wider_than_its_window(width: str, theme: str, opened: Any, browser: Browser) -> None:
    models = [Explored("x" * 300, config, CHARACTERS, [(None, explore(randomised(config), CHARACTERS.encode(TEXT)))])
              for config in CONFIGS.values()]  # fmt: skip
    opened(explorer_page(models), width, theme)
    assert browser.too_wide() <= 0 and browser.messages() == []
    canvas = "document.querySelector('.head canvas').getContext('2d').getImageData(5, 0, 1, 1).data"  # not yet read: 0
    assert (sum(browser.run(f"return [...{canvas}]")[:3]) > 600) == (theme == "light")


def test_two_models_side_by_side(opened: Any, browser: Browser) -> None:
    """With different tokenizers: the token that covers the same end of the text is chosen in both."""
    tokenizer = hostile_tokenizer()
    text = "a cab" + HOSTILE[4] + " k"
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=16, n_layer=1, n_head=1, n_embd=8)
    other = CharTokenizer.train(text)
    small = GPTConfig(vocab_size=other.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=8)
    pages = [(config, tokenizer), (small, other)]
    frames = [[(None, explore(randomised(c), t.encode(text)))] for c, t in pages]
    models = [Explored(f"model {i}", c, t, f) for i, ((c, t), f) in enumerate(zip(pages, frames, strict=True))]
    opened(explorer_page(models))
    chosen = """return [...document.querySelectorAll('[role=radiogroup]')].map(
        group => [...group.children].findIndex(x => x.ariaChecked === 'true'))"""
    assert browser.run(chosen) == [7, 10]
    browser.press("ARROW_LEFT", "ARROW_LEFT")
    assert browser.run(chosen) == [5, 8]  # the end of <!--
    browser.click("#text .model:nth-child(2) [role=radio]:nth-child(7)")  # inside of it
    assert browser.run(chosen) == [5, 6]
    browser.press("ARROW_RIGHT")  # of the model that has the focus
    assert browser.run(chosen) == [5, 7]
    browser.press(*["l"] * 3, "h")
    titles = browser.run(TEXTS, ".one-head h3")
    assert titles[0].startswith("Layer 1, head 1") and titles[1].startswith("Layer 2, head 2")
    assert browser.messages() == []


def test_a_movie(opened: Any, browser: Browser) -> None:
    config = CONFIGS["gpt"]
    frames = [(step, explore(randomised(config, step), CHARACTERS.encode(TEXT))) for step in (10, 2000, 30_000)]
    opened(explorer_page([Explored("run", config, CHARACTERS, frames)]))
    shown = "return document.querySelector('.step').textContent"
    assert browser.run(shown) == "step 30,000"
    browser.press("S")
    assert browser.run(shown) == "step 2,000"
    same(browser.run(TEXTS, ".one-head .chip .number"), frames[1][1].attention[1, 0, -1], 3)
    check_lens(browser, frames[1][1])
    [total] = browser.run(TEXTS, ".sum")
    same([total], frames[1][1].attribution[-1].sum(), len(total.partition(".")[2]))
    browser.press("s", "s")
    assert browser.run(shown) == "step 30,000"
    browser.run("const s = document.getElementById('step'); s.value = 0; s.dispatchEvent(new Event('input'))")
    assert browser.run(shown) == "step 10"
    check_lens(browser, frames[0][1])
    browser.press("ARROW_LEFT")
    cells = "[...x.children].map(y => y.textContent)"
    rows = browser.run(f"return [...document.querySelectorAll('#training tbody tr')].map(x => {cells})")
    assert [row[0] for row in rows] == ["10", "2,000", "30,000"]
    assert [row[3] for row in rows] == [percent(f.next_probability[-1, -1]) for _, f in frames]
    assert [row[1] for row in rows] == [visible(CHARACTERS.decode([f.top_ids[-1, -2, 0]])) for _, f in frames]
    browser.run("document.querySelectorAll('#training tbody tr')[1].click()")
    assert browser.run(shown) == "step 2,000"
    browser.click("#play")
    assert browser.run("return document.getElementById('play').textContent") == "Pause"
    browser.driver.set_script_timeout(60)
    ended = "const done = arguments[0]; const ask = () => document.querySelector('.step').textContent === 'step 30,000'"
    browser.driver.execute_async_script(f"{ended} ? done() : setTimeout(ask, 50); ask()")
    assert browser.run("return document.getElementById('play').textContent") == "Play"
    browser.press("p")
    assert browser.run(shown) == "step 10"
    browser.press("p")
    assert browser.messages() == []


def test_hostile_text_is_shown_and_never_run(opened: Any, browser: Browser) -> None:
    tokenizer = hostile_tokenizer()
    text = "".join(HOSTILE)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=1, n_head=1, n_embd=8)
    page = show_model(randomised(config), tokenizer, text, name=HOSTILE[0] + "\udcff")
    opened(page, "narrow")
    assert browser.too_wide() <= 0
    shown = browser.run(TEXTS, "#text bdi")
    assert shown[:2] == [HOSTILE[0].replace(" ", "␣"), HOSTILE[1].replace(" ", "␣")]
    assert shown[2] == "\\u{202e}backwards" and shown[6] == "\\u{1b}[31m" and shown[7] == "\\u{2028}"
    assert shown[10] == "\\u{e0041}" and len(shown) == len(HOSTILE)
    for _ in range(len(HOSTILE)):
        browser.press("ARROW_LEFT")
    browser.run("document.querySelectorAll('.lens td').forEach(x => x.click())")
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.querySelectorAll('main img, main script, main b script').length") == 0
    assert browser.text("h1") == f"Inside {HOSTILE[0]}?"
    assert browser.messages() == []


def test_random_text_is_shown_and_never_run(opened: Any, browser: Browser) -> None:
    """Pieces of markup and odd characters in any order, as tokens that are texts and single bytes."""
    tokenizer = hostile_tokenizer()
    rng = np.random.default_rng(0)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=256, n_layer=1, n_head=1, n_embd=8)
    model = randomised(config)
    odd = ["<", ">", "</", "script", '"', "'", "&", "\\", "\0", "é", "日", "\U0001f600", "\ufeff", "\u200f", "\r\n"]
    for _ in range(5):
        text = "".join(rng.choice([*HOSTILE, *odd], size=20))
        opened(show_model(model, tokenizer, text, name=text))
        expected = [token_text(tokenizer, i) for i in prompt_ids(tokenizer, text, config)]
        shown = browser.run(TEXTS, "#text bdi")
        assert len(shown) == len(expected)
        assert [a for a, b in zip(shown, expected, strict=True) if b.isascii() and b.isalnum() and a != b] == []
        assert browser.run("return window.hacked") is None and browser.messages() == []


def test_a_notebook_shows_it(tmp_path: Path, browser: Browser) -> None:
    page = show_model(randomised(CONFIGS["gpt"]), CHARACTERS, TEXT)
    path = tmp_path / "cell.html"
    path.write_text(page._repr_html_(), encoding="utf-8")
    browser.open(path)
    browser.driver.switch_to.frame(0)
    assert browser.text("h1") == "Inside the model" and len(browser.run(TEXTS, "[role=radio]")) == len(TEXT)
    browser.driver.switch_to.default_content()
    assert browser.messages() == []


def test_tokens_that_are_no_text() -> None:
    tokenizer: Tokenizer = hostile_tokenizer()
    assert [token_text(tokenizer, i) for i in (97, 0xE2, 256)] == ["a", "\\xe2", HOSTILE[0]]
    padded = ByteLevelTokenizer([b"a"], [0], "gpt-2", special={}, vocab_size=3)
    assert token_text(padded, 2) == "[id 2]"


def test_prompts_that_are_refused() -> None:
    config = CONFIGS["gpt"]
    for text, says in (("", "no token"), ("a" * 17, "has 17 tokens, and the model sees at most block_size 16")):
        with pytest.raises(ValueError, match=says):
            prompt_ids(CHARACTERS, text, config)
    large = GPTConfig(vocab_size=6, block_size=2048, n_layer=30, n_head=9, n_embd=9)
    with pytest.raises(ValueError, match="500 tokens: the attention of 270 heads fits on a page for at most 144"):
        prompt_ids(CHARACTERS, "a" * 500, large)
