"""The arena in a browser: reload, double click, killed server, phone; each vote counts once."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from arena_hands import (
    DONE,
    IS_OVER,
    SAVED,
    SHOWN,
    assert_accessible,
    assert_text_fits,
    by_key,
    click,
    fresh_task,
    join,
    press,
    rate,
    tap,
    until,
    vote_on,
)
from arena_runs import SECRETS, Running, running, write_comparison

pytestmark = pytest.mark.browser
ITEMS = 30
SCRIPT = (
    "<img src=x onerror=document.title='broken'><script>document.title='broken'</script> & \u202e"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = [f"prompt {index} {SCRIPT}" for index in range(ITEMS)]
    return write_comparison(tmp_path_factory.mktemp("browser") / "source", prompts)


def table(server: Running, name: str) -> list[dict[str, str]]:
    with server.owner() as owner:
        return list(csv.DictReader(io.StringIO(owner.get(f"/results/{name}").text)))


def assert_clean(browser: Any, besides: tuple[str, ...] = ()) -> None:
    """No error, no violation of the content policy, nothing received that names a model."""
    entries = [
        entry
        for entry in browser.get_log("browser")
        if not any(word in entry["message"] for word in besides)
    ]
    assert entries == []
    received = [entry["message"] for entry in browser.get_log("performance")]
    assert not any(secret in message for secret in SECRETS for message in received)


def test_three_annotators(browser: Any, source: Path, tmp_path: Path):
    """A desktop with reload, undo and double clicks; one with a killed server; a phone."""
    database = tmp_path / "votes.sqlite"
    with running(source, database) as server:
        join(browser, server, "Ann")
        assert (
            SCRIPT.strip() in "".join(collected_prompts(browser, 6))
            and browser.title == "Which image is better?"
        )
        for _ in range(3):
            press(browser, "u")
        until(browser, DONE, lambda done: done == 3)
        until(browser, SAVED, lambda state: state == "ok")
        assert vote_on(browser, by_key(browser), 7) == 7
        browser.refresh()
        assert until(browser, DONE, lambda done: done == 10)
        vote_on(browser, lambda _: click(browser, "[data-choice=left]", times=2), 5)
        until(browser, SAVED, lambda state: state == "ok")
        assert browser.execute_script(DONE) == 15
        vote_on(browser, by_key(browser))
        assert browser.execute_script(IS_OVER) and browser.execute_script(DONE) == ITEMS
        assert_clean(browser)

        join(browser, server, "Ben")
        vote_on(browser, by_key(browser), 12)
        until(browser, SAVED, lambda state: state == "ok")
        server.kill()
        vote_on(browser, by_key(browser), 3)
        until(browser, SAVED, lambda state: state == "problem")
        assert "3 answers stored here" in browser.find_element("id", "saved").text
    with running(source, database, port=server.port) as again:
        until(browser, SAVED, lambda state: state == "ok")
        assert browser.execute_script(DONE) == 15
        vote_on(browser, by_key(browser))
        assert browser.execute_script(DONE) == ITEMS
        assert_clean(
            browser,
            besides=(
                "ERR_CONNECTION_REFUSED",
                "ERR_CONNECTION_RESET",
                "ERR_EMPTY_RESPONSE",
                "ERR_SOCKET_NOT_CONNECTED",
            ),
        )

        join(browser, again, "Cem", 390, 844)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert_accessible(browser, ("[data-choice=left]", "#back"))
        vote_on(
            browser,
            lambda number: tap(browser, f"[data-choice={('left', 'tie', 'right')[number % 3]}]"),
        )
        until(browser, IS_OVER)
        assert_clean(browser)
        counted, history = table(again, "answers.csv"), table(again, "history.csv")
    assert len(counted) == 3 * ITEMS == len({(row["annotator"], row["item"]) for row in counted})
    assert (
        len(history) == 3 * ITEMS + 6 == len({row["request"] for row in history})
    )  # three taken back, three given again
    assert {(row["left"] < row["right"]) for row in counted} == {True, False}


def test_two_tabs_and_a_join_whose_answer_is_lost(browser: Any, source: Path, tmp_path: Path):
    """Both tabs of one annotator keep unsent answers; a join whose response is lost is repeated."""
    database = tmp_path / "tabs.sqlite"
    with running(source, database) as server:
        browser.delete_all_cookies()
        browser.get(server.address)
        browser.find_element("id", "name").send_keys("Ann")
        browser.execute_script(
            "const sent = fetch; window.fetch = async (...all) => {"
            "await sent(...all); window.fetch = sent; throw new TypeError('lost'); }"
        )
        click(browser, "#join button")
        until(
            browser,
            "return document.querySelector('#problem').textContent",
            lambda text: "Try again" in text,
        )
        browser.delete_all_cookies()
        click(browser, "#join button")
        until(browser, SHOWN)
        first = browser.current_window_handle
        browser.switch_to.new_window("tab")
        browser.get(server.address)
        until(browser, SHOWN)
        second = browser.current_window_handle
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False},
        )
        assert (
            browser.execute_script("return document.documentElement.scrollWidth") <= 390
        )  # a narrow window, with keys
        server.kill()
        for tab in (second, first):
            browser.switch_to.window(tab)
            vote_on(browser, by_key(browser), 3)
        until(browser, "return Object.keys(localStorage).length", lambda kept: kept == 6)
    with running(source, database, port=server.port) as again:
        for tab in (second, first):
            browser.switch_to.window(tab)
            until(browser, SAVED, lambda state: state == "ok")
        counted, history = table(again, "answers.csv"), table(again, "history.csv")
        assert browser.execute_script("return Object.keys(localStorage).length") == 0
    assert (
        len(history) == 6 == len({row["request"] for row in history}) and len(counted) == 3
    )  # both tabs were asked the same
    browser.switch_to.window(second)
    browser.close()
    browser.switch_to.window(first)
    browser.get_log("browser")


def collected_prompts(browser: Any, most: int) -> list[str]:
    """The prompts as they stand on the page, voted away one by one."""
    found: list[str] = []

    def act(_: int) -> None:
        found.append(browser.find_element("id", "prompt").get_property("textContent"))
        press(browser, "ArrowLeft")

    vote_on(browser, act, most)
    until(browser, SAVED, lambda state: state == "ok")
    return found


def test_rating_by_keyboard_zoom_help_and_long_texts(browser: Any, tmp_path: Path):
    texts = [" ".join(["wordy"] * 333), "unbroken" * 250, "short"]
    source = write_comparison(tmp_path / "source", texts)
    with running(source, tmp_path / "ratings.sqlite", "--mode", "rate", "--items", "3") as server:
        join(browser, server, "Ann")
        seen = [assert_text_fits(browser)]
        click(browser, ".picture")
        assert (
            browser.execute_script(
                "return document.querySelector('#zoom').open"
                " && document.querySelector('#zoom-image').alt"
            )
            == "Left image"
        )
        press(browser, "ArrowRight")
        assert (
            browser.execute_script("return document.querySelector('#zoom-image').alt")
            == "Right image"
        )
        browser.execute_script("document.querySelector('#zoom').close()")
        press(browser, "?")
        link = browser.execute_script(
            "return document.querySelector('#help').open && document.querySelector('#link').value"
        )
        assert link.startswith(f"{server.address}/me/")
        browser.execute_script("document.querySelector('#help').close()")
        rate(browser, "12")
        until(browser, SAVED, lambda state: state == "ok")
        browser.get(link)
        browser.find_element("css selector", ".button.primary").click()
        until(browser, SHOWN)
        assert (
            browser.execute_script("return document.querySelectorAll('.axis input:checked').length")
            == 2
        )  # the half-rated one comes first
        assert browser.execute_script("return document.querySelector('#next').disabled")
        assert_accessible(browser, (".axis legend", ".level span", ".level input:checked + span"))
        rate(browser, "341234")
        task = browser.execute_script(SHOWN)
        click(browser, "#next", times=2)
        for number in range(2):
            task = fresh_task(browser, task)
            assert task is not None and browser.execute_script(DONE) == number + 1
            seen.append(assert_text_fits(browser))
            rate(browser, "11223344")
            press(browser, "Enter")
        until(browser, IS_OVER)
        assert sorted(seen) == sorted(texts)
        assert_clean(browser)
        browser.get(server.links[-1])
        browser.find_element("css selector", ".button.primary").click()
        assert "SECRETMODEL-a" in until(
            browser, "return location.pathname === '/results' && document.body.innerText"
        )
        browser.get_log("performance")
        assert_clean(browser)
        counted = table(server, "answers.csv")
    levels = [row["level"] for row in counted]
    assert (
        len(counted)
        == 3 * 2 * 4
        == len({(row["item"], row["model"], row["axis"]) for row in counted})
    )
    assert {level: levels.count(level) for level in set(levels)} == dict.fromkeys(
        ("excellent", "good", "pass", "fail"), 6
    )
