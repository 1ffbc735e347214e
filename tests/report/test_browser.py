"""The pages in a browser: no errors, nothing fetched, controls, narrow windows, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from page_tags import HOSTILE
from synthetic_run import stop_run, write_demo

from comparison_folders import write_comparison
from directalign.report import write_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    demo = write_demo(tmp_path_factory.mktemp("browser") / "demo")
    stop_run(demo / "srpo_long", stop=45, kept=30)
    compared = write_comparison(tmp_path_factory.mktemp("browser") / "compared")
    hostile = write_comparison(
        tmp_path_factory.mktemp("browser") / "hostile",
        {"base": HOSTILE, "tuned": f"{HOSTILE}{'x' * 90}"},
        prompts=[HOSTILE, "y" * 900],
    )
    folders = {
        "run": demo / "srpo",
        "stopped": demo / "srpo_long",
        "runs": demo,
        "comparison": compared,
        "hostile": hostile,
    }
    return {name: write_page(folder) for name, folder in folders.items()}


def visit(browser: Any, file: Path, width: int = 1280) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(file.as_uri())


ALL = ["run", "stopped", "runs", "comparison", "hostile"]


@pytest.mark.parametrize("name", ALL)
def test_no_errors_and_no_requests(browser: Any, pages: dict[str, Path], name: str):
    browser.get_log("performance")
    visit(browser, pages[name])
    assert [
        entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ] == []
    sent = [
        entry["message"]
        for entry in browser.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    assert sent and not any('"url":"http' in message for message in sent)
    assert browser.execute_script(
        "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_sticks_out(browser: Any, pages: dict[str, Path], name: str, width: int):
    visit(browser, pages[name], width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = """
        const out = (e) => e.getBoundingClientRect().right > innerWidth + 1;
        const all = [...document.querySelectorAll('main *')];
        return all.filter((e) => !e.closest('.scroll, svg, pre') && out(e)).map((e) => e.outerHTML);
    """
    assert browser.execute_script(wide) == []


def test_sliders(browser: Any, pages: dict[str, Path]):
    visit(browser, pages["run"])
    choose(browser, "cut", "80")
    assert (
        browser.execute_script(
            "return [...document.querySelectorAll('.stack')]"
            ".map((s) => s.style.getPropertyValue('--cut'))"
        )
        == ["20%"] * 8
    )
    choose(browser, "step", "2")
    assert browser.execute_script("return document.querySelector('output').textContent") == "10"
    visible = """
        const isVisible = (image) => getComputedStyle(image).visibility === 'visible';
        return [...document.querySelectorAll('.after')].filter(isVisible).map((i) => i.alt);
    """
    assert browser.execute_script(visible) == ["After 10 updates"] * 8


def test_dark_follows_the_system(browser: Any, pages: dict[str, Path]):
    visit(browser, pages["run"])
    colors = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        colors.append(
            browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        )
    assert colors == ["rgb(252, 252, 250)", "rgb(18, 19, 23)"]


def choose(browser: Any, name: str, value: str) -> None:
    """What a person does with a select or a range."""
    change = """
        const e = document.querySelector(`[name=${arguments[0]}]`);
        e.value = arguments[1];
        for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind));
    """
    browser.execute_script(change, name, value)


def viewer(browser: Any) -> dict[str, Any]:
    """What the stage shows: its two pictures' texts, where they are from, the prompt, the count."""
    told = """
        const s = document.querySelector(".viewer"), images = [...s.querySelectorAll(".stack img")];
        const all = [...document.querySelectorAll("table.gallery img")];
        const from = images.map((i) => all.findIndex((one) => one.src === i.src));
        return {alts: images.map((i) => i.alt), from, asked: s.querySelector(".prompt").textContent,
                count: s.querySelector("output").textContent,
                told: s.querySelector(".values").innerText, hidden: s.hidden};
    """
    return browser.execute_script(told)


def test_any_two_models_stand_left_and_right(browser: Any, pages: dict[str, Path]):
    visit(browser, pages["comparison"])
    found = viewer(browser)
    assert (
        not found["hidden"]
        and found["count"] == "1 of 24"
        and found["from"] == [0, 2]
        and "Photo rate" in found["told"]
    )
    choose(browser, "left", "1")
    choose(browser, "right", "0")
    found = viewer(browser)
    assert [alt.split(":")[0] for alt in found["alts"]] == [
        "Plain Direct-Align",
        "Base model",
    ] and found["from"] == [1, 0]


def test_prompts_are_stepped_through_with_the_keyboard(browser: Any, pages: dict[str, Path]):
    keys = pytest.importorskip("selenium.webdriver").Keys
    visit(browser, pages["comparison"])
    forward = browser.find_element("css selector", ".viewer [name=on]")
    forward.send_keys(keys.ENTER)
    assert viewer(browser)["count"] == "2 of 24"
    browser.find_element("css selector", ".viewer [name=place]").send_keys(keys.ARROW_RIGHT)
    assert viewer(browser)["count"] == "3 of 24"
    for _ in range(3):
        browser.find_element("css selector", ".viewer [name=back]").send_keys(keys.SPACE)
    assert viewer(browser)["count"] == "24 of 24"
    line = browser.find_element("css selector", ".viewer [name=cut]")
    line.send_keys(keys.ARROW_LEFT)
    assert (
        browser.execute_script(
            "return document.querySelector('.viewer .stack').style.getPropertyValue('--cut')"
        )
        == "49%"
    )


def test_groups_and_rows_lead_to_the_stage(browser: Any, pages: dict[str, Path]):
    visit(browser, pages["comparison"])
    choose(browser, "group", "control_prompts")
    found = viewer(browser)
    assert found["asked"].startswith("Anime. ") and found["count"].startswith("1 of ")
    assert browser.execute_script(
        "return [...document.querySelectorAll('table.gallery tbody tr:not([hidden])')]"
        ".every((row) => row.dataset.group === 'control_prompts')"
    )
    browser.execute_script(
        "document.querySelectorAll('table.gallery tbody tr:not([hidden])')[2].click()"
    )
    assert viewer(browser)["count"].startswith("3 of ")


def test_without_scripts_all_pictures_are_there(browser: Any, pages: dict[str, Path]):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        visit(browser, pages["comparison"])
        shown = [
            image.is_displayed()
            for image in browser.find_elements("css selector", "table.gallery img")
        ]
        assert (
            len(shown) == 3 * 24
            and all(shown)
            and not browser.find_element("css selector", ".viewer").is_displayed()
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_paper_is_light(browser: Any, pages: dict[str, Path]):
    visit(browser, pages["comparison"])
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    told = browser.execute_script(
        "return [getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.viewer')).display]"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert told == ["rgb(252, 252, 250)", "none"]


def test_hostile_text_is_read_and_not_run(browser: Any, pages: dict[str, Path]):
    visit(browser, pages["hostile"])
    assert browser.execute_script("return document.querySelector('h1').textContent").endswith(
        f"against {HOSTILE}"
    )
    assert browser.execute_script("return [...document.querySelectorAll('.values th')].length") > 1
    choose(browser, "left", "1")
    assert (
        HOSTILE in viewer(browser)["alts"][0]
        and browser.execute_script(
            "return document.querySelectorAll('img[src=x], main script').length"
        )
        == 0
    )
