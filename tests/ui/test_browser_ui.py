"""The page of runs in a browser: start a recipe, watch it, stop it, continue it, compare steps."""

import os
import signal
import time

import pytest
from ui_servers import commanded, served

from browser_pages import assert_contrast, assert_fits, click, resize, until
from chromium import headless
from directalign.io.atomic import is_locked
from directalign.report.read import read_run
from directalign.report.status import status_of
from synthetic_run import write_run

pytestmark = pytest.mark.browser
TINY = {
    "train.num_steps": "400",
    "train.save_every": "100",
    "train.sample_every": "2",
    "evaluate.every": "1",
    "evaluate.num_samples": "2",
    "data.batch_size": "1",
    "rollout.num_inference_steps": "2",
}
STATE = "return document.querySelector('.state').innerText"
STEP = "return Number(document.querySelector('.state').innerText.match(/step (\\d+)/)?.[1] ?? 0)"
CURVE = "return document.querySelector('#more polyline')?.points.length ?? 0"
SET = """
    const field = document.getElementById(arguments[0]);
    field.value = arguments[1];
    field.dispatchEvent(new Event('change', {bubbles: true}));
"""
SMALL = """
    const isSmall = (e) => e.offsetParent && e.offsetHeight < 44;
    return [...document.querySelectorAll('button, .button, input:not([type=range]), select')]
        .filter(isSmall).map((e) => e.outerHTML);
"""
LOADED = """
    const all = [...document.querySelectorAll('.stack img')];
    const isLoaded = (image) => image.complete && image.naturalWidth > 0;
    return all.every(isLoaded) && all.map((image) => image.getAttribute('src'));
"""
SLOW = 300
"""Seconds for a process that loads models on a busy machine."""


HURRY = "const real = setTimeout; window.setTimeout = (work, time) => real(work, time / 10);"
"""A page asks for news every 0.15 seconds instead of 1.5."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless(tmp_path_factory.mktemp("profile")) as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": HURRY})
        yield driver


@pytest.fixture
def folder(tmp_path):
    """Of runs; what still trains there in the end is killed."""
    yield tmp_path / "runs"
    for run in (tmp_path / "runs").glob("*/"):
        if is_locked(run, unknown=True):
            os.kill(status_of(read_run(run)).pid, signal.SIGKILL)


def set_fields(browser, given):
    for key, value in given.items():
        browser.execute_script(SET, key, value)
    shown = "return document.getElementById('text').value"
    # The first answer of a new server imports much: minutes on a busy machine.
    until(browser, shown, lambda text: all(v in text for v in given.values()), most=240)


def test_start_watch_stop_continue_and_compare(browser, folder):
    with commanded(folder) as link:
        resize(browser, 1280, 900)
        browser.get(f"{link}new?recipe=world_srpo_lora")
        set_fields(browser, {"train.num_steps": "many"})
        problem = "return document.querySelector('.wrong .problem')?.innerText"
        assert "valid integer" in until(browser, problem)
        set_fields(browser, TINY)
        browser.execute_script("document.getElementById('run-name').value = 'my first'")
        click(browser, ".start button")
        until(browser, "return location.pathname", lambda path: path == "/run/my%20first")
        until(browser, STATE, lambda text: "Running" in text, SLOW)
        before = until(browser, CURVE, lambda points: points > 1, SLOW)
        until(browser, CURVE, lambda points: points > before, SLOW)
    step = status_of(read_run(folder / "my first")).step
    with served(folder) as server:  # the run went on without one
        browser.get(f"{server.address}/")
        browser.get_log("browser")  # the first server was gone for a moment
        until(browser, STEP, lambda now: now > step, SLOW)
        browser.get(f"{server.address}/run/my%20first")
        click(browser, "[data-post='/api/stop']", held=1)  # the page changes meanwhile
        until(browser, STATE, lambda text: "Stopped at step" in text, SLOW)
        found = status_of(read_run(folder / "my first"))
        assert found.state == "stopped" and found.saved == found.step > step
        browser.execute_script(SET.replace("getElementById", "querySelector"), "[name=left]", "2")
        browser.execute_script(SET.replace("getElementById", "querySelector"), "[name=right]", "0")
        sources = until(browser, LOADED, lambda all: all and "/2/" in all[0])
        assert [source[-4:] for source in sources[:4]] == ["/2/0", "/0/0", "/2/1", "/0/1"]
        cut = """
            const [slider, stack] = ['[name=cut]', '.stack'].map((s) => document.querySelector(s));
            slider.value = 80;
            slider.dispatchEvent(new Event('input'));
            return getComputedStyle(stack).getPropertyValue('--cut');
        """
        assert browser.execute_script(cut) == "20%"
        resize(browser, 390, mobile=True)
        assert_fits(browser, 390)
        assert browser.execute_script(SMALL) == []
        click(browser, "[data-post='/api/resume']")
        until(browser, STEP, lambda now: now > found.step, SLOW)
        assert browser.get_log("browser") == []


def test_pages_fit_and_can_be_read(browser, tmp_path):
    for name in ("finished", "a-run-with-a-name-that-is-much-longer-than-a-phone-is-wide"):
        write_run(tmp_path / "runs" / name, name="<b>Hostile</b> & long " * 5)
    (tmp_path / "runs" / "finished" / "summary.json").unlink()
    with served(tmp_path / "runs") as server:
        for path in ("/", "/run/finished", "/new", "/none"):
            browser.get(server.address + path)
            for width in (360, 1280):
                resize(browser, width, mobile=width < 600)
                assert_fits(browser, width)
            assert (
                browser.execute_script("return document.querySelectorAll('main b i').length") == 0
            )
        browser.get_log("browser")  # of the page that is not there
        browser.get(f"{server.address}/run/finished")
        assert_contrast(browser, 4.5, (".where", ".state", ".primary", "figcaption"))
        browser.get(f"{server.address}/new")
        assert_contrast(browser, 4.5, (".field-name", "input", ".primary", "summary"))
        unnamed = """
            const named = (e) => e.ariaLabel || e.labels?.length || e.innerText.trim();
            const all = document.querySelectorAll('button, input, select, textarea');
            return [...all].filter((e) => !named(e)).length;
        """
        assert browser.execute_script(unnamed) == 0
        assert browser.get_log("browser") == []


def test_a_second_browser_without_the_token_is_refused(browser, tmp_path):
    write_run(tmp_path / "runs" / "a")
    title = "return document.querySelector('h1').innerText"
    with served(tmp_path / "runs", "0.0.0.0") as server:
        browser.get(server.link)
        assert browser.execute_script(title) == "Runs"
        browser.refresh()
        assert browser.execute_script(title) == "Runs"
        with headless(tmp_path / "profile") as second:
            second.get(f"{server.address}/run/a")
            assert second.execute_script(title) == "Access denied"
            status = "return performance.getEntriesByType('navigation')[0].responseStatus"
            assert second.execute_script(status) == 403


def test_a_server_that_is_gone_is_named(browser, tmp_path):
    write_run(tmp_path / "runs" / "a")
    with served(tmp_path / "runs") as server:
        browser.get(server.address)
    until(browser, "return !document.getElementById('lost').hidden")
    time.sleep(0.1)
    browser.get_log("browser")
