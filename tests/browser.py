"""A Chromium for tests of pages: opened from disk, without a network."""

import base64
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

WIDTHS = {"narrow": 400, "wide": 1280}


class Browser:
    """A headless Chromium with one page."""

    def __init__(self) -> None:
        webdriver = pytest.importorskip("selenium.webdriver")
        binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if binary is None or driver is None:
            pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "host-resolver-rules=MAP * ~NOTFOUND"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.driver.set_script_timeout(600)  # seconds: it only ends what hangs

    def open(self, path: Path, width: str = "wide", theme: str = "light") -> None:
        """Open a file; its script has run when this returns."""
        size = {"width": WIDTHS[width], "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(path.resolve().as_uri())
        ready = "document.readyState === 'complete' ? done() : addEventListener('load', () => done())"
        self.driver.execute_async_script(f"const done = arguments[0]; {ready}")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function of JavaScript with this body returns."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys, by the names of selenium's Keys or as characters, where the focus is."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.driver).send_keys(*(getattr(Keys, key, key) for key in keys)).perform()

    def click(self, selector: str) -> None:
        """Click on the first element that matches a CSS selector."""
        self.driver.find_element("css selector", selector).click()

    def open_details(self, selector: str) -> None:
        """Open a `<details>` by a click on its summary; what that shows is there when this returns."""
        self.click(f"{selector} > summary")
        self.run("document.querySelector(arguments[0]).dispatchEvent(new Event('toggle'))", selector)

    def point_at(self, element: Any) -> None:
        """Move the mouse to the middle of an element."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).move_to_element(element).perform()

    def text(self, selector: str) -> str:
        """The visible text of the first element that matches a CSS selector."""
        return self.driver.find_element("css selector", selector).text

    def messages(self) -> list[str]:
        """What the console has said since it was last asked: errors, warnings and refusals."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def too_wide(self) -> int:
        """By how many pixels the page is wider than its window."""
        return self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def screenshot(self, path: Path) -> None:
        """Keep a picture of the whole page."""
        script = "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        width, height = self.run(script)
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 6000), "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        path.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))

    def close(self) -> None:
        """End the browser."""
        self.driver.quit()


if __name__ == "__main__":  # python tests/browser.py PAGE.html FOLDER: pictures in both widths and both themes
    page, folder = Path(sys.argv[1]), Path(sys.argv[2])
    browser = Browser()
    for width in WIDTHS:
        for theme in ("light", "dark"):
            browser.open(page, width, theme)
            browser.screenshot(folder / f"{page.stem}-{width}-{theme}.png")
    print(*browser.messages(), sep="\n")
    browser.close()
