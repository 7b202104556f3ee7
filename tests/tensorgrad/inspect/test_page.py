"""Pages in one file: their scripts run, hostile data does not, heat maps show the numbers of their arrays."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorgrad.inspect.arrays import encode, heat_map
from tensorgrad.inspect.page import build_page, inline
from tests.browser import Browser

HOSTILE = [
    "</script><script>window.hacked = 1</script>", "<!-- <script>", "<img src=x onerror='window.hacked = 1'>",
    "\u2028\u2029", "\ud800", "&lt;b&gt;", "</style><b>", "' onload=alert(1) \"", "{data} %s \\u003c", "\x00\x1b",
]  # fmt: skip
SCRIPT = """import { el, heatMap, pageData } from "./base.js";

const shown = pageData();
for (const text of shown.texts) document.body.append(el("p", { class: "text", title: text }, text));
for (const map of shown.maps) document.body.append(heatMap(map, "a map"));
"""


@pytest.fixture
def make(tmp_path: Path) -> Any:
    (tmp_path / "body.html").write_text("<main></main>", encoding="utf-8")
    (tmp_path / "test.js").write_text(SCRIPT, encoding="utf-8")

    def make(title: str, data: Any) -> Path:
        page = build_page(title, data, body=tmp_path / "body.html", scripts=[tmp_path / "test.js"])
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        return path

    return make


def test_hostile_text_is_shown_and_never_run(make: Any, browser: Browser) -> None:
    path = make(HOSTILE[0], {"texts": HOSTILE, "maps": []})
    browser.open(path)
    assert browser.run("return window.hacked") is None
    lone = "\ufffd"  # what the browser shows for half a character
    shown = browser.run("return [...document.querySelectorAll('.text')].map(x => x.textContent.toWellFormed())")
    assert shown == [text.replace("\ud800", lone) for text in HOSTILE]
    assert browser.run("return document.title") == HOSTILE[0]
    assert browser.messages() == []


def test_a_script_that_gets_into_a_page_is_refused(make: Any, browser: Browser) -> None:
    """Were the escaping wrong, the content security policy would still refuse to run it."""
    path = make("a page", {"texts": [], "maps": []})
    attack = "<main></main><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    path.write_text(path.read_text(encoding="utf-8").replace("<main></main>", attack), encoding="utf-8")
    browser.open(path)
    assert browser.run("return window.hacked") is None
    assert any("Content Security Policy" in message for message in browser.messages())


class Parsed(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


@given(st.text(st.characters(codec=None) | st.sampled_from("<>/&!-'\"\\ script"), max_size=40))
def test_no_text_adds_an_element(text: str) -> None:
    body = Path(__file__).parent / "empty.html"
    page = build_page(text, {"x": text, text: [text]}, body=body)
    assert Parsed(page).tags == Parsed(build_page("a", {}, body=body)).tags
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data is not None and json.loads(data[1]) == {"x": text, text: [text]}
    page.encode()  # raises where half a character, as in an odd file name, is left
    assert Parsed(inline(page)).tags == ["iframe"]


def test_a_heat_map_shows_the_numbers(make: Any, browser: Browser) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    arrays = [x, np.array(2.5), np.array([True, False]), np.zeros((0, 3)), np.array([np.nan, -np.inf, 1e-30]),
              np.arange(3) + 2**40]  # fmt: skip
    browser.open(make("maps", {"texts": [], "maps": [heat_map(a) for a in arrays]}))
    browser.run("document.querySelectorAll('details').forEach(x => { x.open = true })")
    cells = "[...figure.querySelectorAll('tbody td')].map(x => x.textContent)"
    shown = browser.run(f"return [...document.querySelectorAll('figure')].map(figure => {cells})")
    first, scalar, flags, empty, odd, large = shown
    np.testing.assert_allclose(np.float64(first), x.reshape(-1), rtol=5e-4)
    assert (scalar, flags, empty) == (["2.500"], ["true", "false"], [])
    assert (odd, large) == (["nan", "-inf", "1.000e-30"], ["1.100e+12"] * 3)
    canvas = browser.driver.find_element("css selector", "canvas")
    browser.driver.execute_script("arguments[0].focus()", canvas)
    browser.press("ARROW_DOWN", "ARROW_DOWN", "ARROW_RIGHT", "ARROW_RIGHT")
    assert re.fullmatch(r"\[0, 1, 2\] = -?\d\.\d+", browser.text(".cell"))
    assert float(browser.text(".cell").split("= ")[1]) == pytest.approx(x[0, 1, 2], rel=5e-4)
    browser.point_at(canvas)  # its middle, where the fourth of six rows and the third of four columns begin
    assert browser.text(".cell").startswith("[1, 0, 2] = ")
    assert browser.messages() == []


def test_a_large_array_is_sampled_and_says_so(make: Any, browser: Browser) -> None:
    x = np.arange(200 * 300, dtype=np.float64).reshape(2, 100, 300)
    browser.open(make("maps", {"texts": [], "maps": [heat_map(x, max_side=10)]}))
    assert browser.text("figcaption") == "A sample: 10 x 10 of 60,000 elements, evenly spaced."
    canvas = browser.driver.find_element("css selector", "canvas")
    browser.run("arguments[0].focus()", canvas)
    browser.press(*["ARROW_RIGHT"] * 20, *["ARROW_DOWN"] * 20)
    assert browser.text(".cell") == "[1, 99, 299] = 59999"


def test_the_themes_and_keys(make: Any, browser: Browser) -> None:
    for theme in ("light", "dark"):
        browser.open(make("maps", {"texts": ["a" * 500], "maps": [heat_map(np.eye(64))]}), "narrow", theme)
        assert browser.run("return getComputedStyle(document.documentElement).colorScheme") == theme
        assert browser.too_wide() <= 0


@pytest.mark.parametrize("text", ["</script>", "<!--"])
def test_a_script_that_would_end_itself_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.js"
    path.write_text(f'const x = "{text}";', encoding="utf-8")
    with pytest.raises(ValueError, match="build_page: a style or script contains"):
        build_page("a", {}, body=Path(__file__).parent / "empty.html", scripts=[path])


def test_arrays_are_encoded_exactly() -> None:
    for x in (np.float32([1 / 3, -0.0]), np.array([1 / 3, np.nan]), np.int64([2**53]), np.float16([0.1])):
        data = encode(x)
        back = np.frombuffer(base64.b64decode(data["base64"]), data["type"]).reshape(data["shape"])
        np.testing.assert_array_equal(back.astype(x.dtype), x)
    statistics = heat_map(np.array([[1.0, -3.0], [np.nan, 2.0]]))
    assert (statistics["norm"], statistics["at"], statistics["notFinite"]) == (pytest.approx(14**0.5), [0, 1], 1)
