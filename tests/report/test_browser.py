"""The page in a real browser: no errors, nothing fetched, sliders that slide, and a phone's width."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import write_demo

from directalign.report import write_page

pytestmark = pytest.mark.browser
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync", "no-first-run")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    demo = write_demo(tmp_path_factory.mktemp("browser") / "demo")
    return {"run": write_page(demo / "srpo"), "runs": write_page(demo)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no chromium with chromedriver here: install Debian's chromium and chromium-driver to run the browser tests")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is in the dev extra")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


def visit(browser: Any, file: Path, width: int = 1280) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(file.as_uri())


@pytest.mark.parametrize("name", ["run", "runs"])
def test_no_errors_and_no_requests(browser: Any, pages: dict[str, Path], name: str):
    browser.get_log("performance")
    visit(browser, pages[name])
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    sent = [entry["message"] for entry in browser.get_log("performance") if "Network.requestWillBeSent" in entry["message"]]
    assert sent and not any('"url":"http' in message for message in sent)
    assert browser.execute_script("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("name", ["run", "runs"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(browser: Any, pages: dict[str, Path], name: str, width: int):
    visit(browser, pages[name], width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_sliders(browser: Any, pages: dict[str, Path]):
    visit(browser, pages["run"])
    slide = "const input = document.querySelector(arguments[0]); input.value = arguments[1]; input.dispatchEvent(new Event('input'))"
    browser.execute_script(slide, "[name=cut]", 80)
    assert browser.execute_script("return [...document.querySelectorAll('.stack')].map(s => s.style.getPropertyValue('--cut'))") == ["20%"] * 8
    browser.execute_script(slide, "[name=step]", 2)
    assert browser.execute_script("return document.querySelector('output').textContent") == "10"
    visible = "return [...document.querySelectorAll('.after')].filter(i => getComputedStyle(i).visibility === 'visible').map(i => i.alt)"
    assert browser.execute_script(visible) == ["After 10 updates"] * 8


def test_dark_follows_the_system(browser: Any, pages: dict[str, Path]):
    visit(browser, pages["run"])
    colors = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        colors.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(252, 252, 250)", "rgb(18, 19, 23)"]
