"""The pages in a browser: no errors, nothing fetched, controls, narrow windows, print."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from page_tags import HOSTILE

from comparison_folders import write_comparison
from directalign.io.atomic import exclusive
from directalign.report import write_page
from directalign.report.status import write_status
from synthetic_run import stop_run, write_demo, write_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    demo = write_demo(root / "demo")
    models = {"base": HOSTILE, "tuned": f"{HOSTILE}{'x' * 90}"}
    folders = {
        "run": demo / "srpo",
        "stopped": stop_run(demo / "srpo_long", stop=45, kept=30),
        "runs": demo,
        "comparison": write_comparison(root / "compared"),
        "hostile": write_comparison(root / "hostile", models, prompts=[HOSTILE, "y" * 900]),
        "many": write_comparison(root / "many", {name: f"Model {name}" for name in "abcdefghijkl"}),
    }
    return {name: write_page(folder) for name, folder in folders.items()}


def visit(browser: Any, file: Path, width: int = 1280) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(file.as_uri())


@pytest.mark.parametrize("name", ["run", "stopped", "runs", "comparison", "hostile", "many"])
def test_no_errors_no_requests_and_nothing_overflows(browser, pages, name):
    browser.get_log("performance")
    wide = """
        const out = (e) => e.getBoundingClientRect().right > innerWidth + 1;
        const all = [...document.querySelectorAll('main *')];
        return all.filter((e) => !e.closest('.scroll, svg, pre') && out(e)).map((e) => e.outerHTML);
    """
    for width in (375, 1280):
        visit(browser, pages[name], width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script(wide) == []
    logged = browser.get_log("browser")
    assert [entry for entry in logged if entry["level"] in ("SEVERE", "WARNING")] == []
    sent = [entry["message"] for entry in browser.get_log("performance")]
    sent = [message for message in sent if "Network.requestWillBeSent" in message]
    assert sent and not any('"url":"http' in message for message in sent)
    loaded = "return [...document.images].every((i) => i.complete && i.naturalWidth > 0)"
    assert browser.execute_script(loaded)


def test_sliders_move_the_line_and_the_update(browser, pages):
    visit(browser, pages["run"])
    choose(browser, "cut", "80")
    cuts = "[...document.querySelectorAll('.stack')].map((s) => s.style.getPropertyValue('--cut'))"
    assert browser.execute_script(f"return {cuts}") == ["20%"] * 8
    choose(browser, "step", "2")
    assert browser.execute_script("return document.querySelector('output').textContent") == "10"
    visible = """
        const isVisible = (image) => getComputedStyle(image).visibility === 'visible';
        return [...document.querySelectorAll('.after')].filter(isVisible).map((i) => i.alt);
    """
    assert browser.execute_script(visible) == ["After 10 updates"] * 8


def test_the_page_of_a_running_run_refreshes_itself_and_knows_when_it_is_late(browser, tmp_path):
    folder = write_run(tmp_path / "run", num_steps=60)
    write_status(folder, "running", processes=1)
    sentence = "return document.querySelector('.state').innerText"
    late = """
        const live = document.querySelector('[data-live]');
        return live.offsetHeight > 0 && live.innerText;
    """
    with exclusive(folder, "training in it"):
        file = write_page(folder)
        often = file.read_text().replace("10000)", "500)")  # instead of every ten seconds
        assert often != file.read_text()
        file.write_text(often)
        visit(browser, file, 375)
        browser.execute_script("scrollTo(0, 300)")
        assert "all 60 steps are done" in browser.execute_script(sentence)
        assert not browser.execute_script(late)
        (folder / "metrics.jsonl").write_text("")
        write_page(folder)
    until = time.monotonic() + 40
    while "60 steps to go" not in browser.execute_script(sentence):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert browser.execute_script("return scrollY") == 300
    html = file.read_text()
    file.write_text(re.sub(r'data-written="\d+"', f'data-written="{time.time() - 3000:.0f}"', html))
    visit(browser, file)
    found = browser.execute_script(late)
    assert "last written 50 min ago" in found and "--resume" in found


def choose(browser: Any, name: str, value: str) -> None:
    """What a person does with a select or a range."""
    change = """
        const e = document.querySelector(`[name=${arguments[0]}]`);
        e.value = arguments[1];
        for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind));
    """
    browser.execute_script(change, name, value)


def viewer(browser: Any) -> dict[str, Any]:
    """The viewer's two images (text, place in the gallery), prompt, count and table of values."""
    script = """
        const s = document.querySelector(".viewer"), images = [...s.querySelectorAll(".stack img")];
        const all = [...document.querySelectorAll("table.gallery img")];
        const from = images.map((i) => all.findIndex((one) => one.src === i.src));
        return {alts: images.map((i) => i.alt), from, hidden: s.hidden,
                prompt: s.querySelector(".prompt").textContent,
                count: s.querySelector("output").textContent,
                values: s.querySelector(".values").innerText};
    """
    return browser.execute_script(script)


def test_the_viewer_compares_any_two_models(browser, pages):
    visit(browser, pages["comparison"])
    found = viewer(browser)
    assert (found["hidden"], found["count"], found["from"]) == (False, "1 of 24", [0, 2])
    assert "Photo rate" in found["values"]
    choose(browser, "left", "1")
    choose(browser, "right", "0")
    found = viewer(browser)
    labels = [alt.split(":")[0] for alt in found["alts"]]
    assert (labels, found["from"]) == (["Plain Direct-Align", "Base model"], [1, 0])


def test_the_keyboard_steps_through_prompts(browser, pages):
    keys = pytest.importorskip("selenium.webdriver").Keys
    visit(browser, pages["comparison"])
    pressed = [("on", keys.ENTER, "2 of 24"), ("place", keys.ARROW_RIGHT, "3 of 24")]
    pressed += [("back", keys.SPACE, f"{count} of 24") for count in (2, 1, 24)]
    for name, key, count in pressed:
        browser.find_element("css selector", f".viewer [name={name}]").send_keys(key)
        assert viewer(browser)["count"] == count
    browser.find_element("css selector", ".viewer [name=cut]").send_keys(keys.ARROW_LEFT)
    cut = "document.querySelector('.viewer .stack').style.getPropertyValue('--cut')"
    assert browser.execute_script(f"return {cut}") == "49%"


def test_hostile_text_is_displayed_and_not_executed(browser, pages):
    visit(browser, pages["hostile"])
    title = browser.execute_script("return document.querySelector('h1').textContent")
    assert title.endswith(f"against {HOSTILE}")
    assert browser.execute_script("return document.querySelectorAll('.values th').length") > 1
    choose(browser, "left", "1")
    assert HOSTILE in viewer(browser)["alts"][0]
    injected = "return document.querySelectorAll('img[src=x], main script').length"
    assert browser.execute_script(injected) == 0


def test_a_desktop_shows_wide_tables_whole_and_no_empty_tile(browser, pages):
    hidden = """
        document.querySelectorAll("details").forEach((each) => (each.open = true));
        const all = [...document.querySelectorAll(".scroll")];
        return all.filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.ariaLabel);
    """
    gap = """
        const box = document.querySelector(".cards"), last = box.lastElementChild;
        return box.getBoundingClientRect().right - last.getBoundingClientRect().right;
    """
    for name in ("runs", "comparison", "many"):
        visit(browser, pages[name], 1280)
        assert browser.execute_script(hidden) == [], name
    assert browser.execute_script(gap) < 3  # eleven cards in rows of four
    targets = "return [...document.querySelectorAll('.contents a')].every((a) => $(a.hash))"
    targets = targets.replace("$(a.hash)", "document.querySelector(a.hash)")
    assert browser.execute_script(targets)


def test_runs_are_filtered_and_commands_copied(browser, pages):
    visit(browser, pages["runs"], 1280)
    shown = """
        const visible = (e) => e.getClientRects().length > 0;
        const all = (name) => [...document.querySelectorAll(name)].filter(visible).length;
        return [all("tr[data-run]"), all(".charts:not(details *) polyline.s2"), all("polyline.s0")];
    """
    before = browser.execute_script(shown)
    browser.find_element("css selector", ".filter input[name=s2]").click()
    after = browser.execute_script(shown)
    assert before[1] > 0 and after == [before[0] - 1, 0, before[2]]
    browser.find_element("css selector", ".with-copy button").click()
    assert "directalign train" in browser.execute_script("return String(getSelection())")
