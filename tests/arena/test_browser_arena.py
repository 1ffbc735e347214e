"""The arena in a browser: reload, double click, stopped server, phone; each vote counts once. The
page of results: it fits a phone, fetches nothing, and has contrast."""

from collections import Counter
from typing import Any

import pytest
from arena_pages import (
    DONE,
    IS_OVER,
    SAVED,
    TASK,
    answer_tasks,
    assert_accessible,
    assert_text_fits,
    by_key,
    join,
    next_task,
    until_saved,
)
from arena_servers import SECRETS, served, write_comparison
from planted_answers import planted_ratings, planted_votes

from browser_pages import assert_contrast, assert_fits, click, press, resize, tap, until
from directalign.arena.results import gather, render_results

pytestmark = pytest.mark.browser
ITEMS = 12
QUALITY = {"base": -0.5, "srpo": 0.7, "refl": 0.0, "draft": 0.2, "grpo": 0.3}
LABELS = {
    "base": "Base model",
    "srpo": "SRPO with learned tokens, two hundred updates",
    "refl": "ReFL",
    "draft": "runs/2026-11-23_draft_lv_without_a_space_to_break_at",
    "grpo": "GRPO",
}
SCRIPT = (
    "<img src=x onerror=document.title='broken'><script>document.title='broken'</script> & \u202e"
)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A source whose prompts hold HTML and scripts."""
    prompts = [f"prompt {index} {SCRIPT}" for index in range(ITEMS)]
    return write_comparison(tmp_path_factory.mktemp("browser") / "source", prompts)


def assert_clean(browser: Any) -> None:
    """No error, no violation of the content policy, nothing received that names a model."""
    assert browser.get_log("browser") == []
    received = [entry["message"] for entry in browser.get_log("performance")]
    assert not any(secret in message for secret in SECRETS for message in received)


def test_votes_by_key_mouse_and_touch(browser, scripts, tmp_path):
    """A desktop with reload, undo and double clicks; a phone."""
    with served(scripts, tmp_path / "votes.sqlite") as server:
        resize(browser, 1280, 860)
        join(browser, server, "Ann")
        prompts: list[str] = []

        def read_and_vote(_: int) -> None:
            prompts.append(browser.find_element("id", "prompt").get_property("textContent"))
            press(browser, "ArrowLeft")

        answer_tasks(browser, read_and_vote, 4)
        until_saved(browser)
        assert SCRIPT.strip() in "".join(prompts) and browser.title == "Which image is better?"
        for _ in range(2):
            press(browser, "u")
        until(browser, DONE, lambda done: done == 2)
        until_saved(browser)
        assert answer_tasks(browser, by_key(browser), 4) == 4
        until_saved(browser)
        browser.refresh()
        assert until(browser, DONE, lambda done: done == 6)
        answer_tasks(browser, lambda _: click(browser, "[data-choice=left]", times=2), 3)
        until_saved(browser)
        assert browser.execute_script(DONE) == 9
        answer_tasks(browser, by_key(browser))
        assert browser.execute_script(IS_OVER) and browser.execute_script(DONE) == ITEMS
        assert_clean(browser)

        resize(browser, 390, mobile=True)
        join(browser, server, "Cem")
        assert_fits(browser, 390)
        assert_accessible(browser, ("[data-choice=left]", "#back"))
        choices = [f"[data-choice={choice}]" for choice in ("left", "tie", "right")]
        answer_tasks(browser, lambda number: tap(browser, choices[number % 3]))
        until(browser, IS_OVER)
        assert_clean(browser)
        counted, history = server.table("answers.csv"), server.table("history.csv")
    assert len(counted) == 2 * ITEMS == len({(row["annotator"], row["item"]) for row in counted})
    # two were taken back and given again
    assert len(history) == 2 * ITEMS + 4 == len({row["request"] for row in history})
    assert {(row["left"] < row["right"]) for row in counted} == {True, False}


def test_two_tabs_a_stopped_server_and_a_lost_response(browser, scripts, tmp_path):
    """Both tabs of one annotator keep unsent answers; a join whose response is lost is repeated."""
    database = tmp_path / "tabs.sqlite"
    with served(scripts, database) as server:
        browser.delete_all_cookies()
        browser.get(server.address)
        browser.find_element("id", "name").send_keys("Ann")
        browser.execute_script(
            "const sent = fetch; window.fetch = async (...all) => {"
            "await sent(...all); window.fetch = sent; throw new TypeError('lost'); }"
        )
        click(browser, "#join button")
        problem = "return document.querySelector('#problem').textContent"
        until(browser, problem, lambda text: "Try again" in text)
        browser.delete_all_cookies()
        click(browser, "#join button")
        until(browser, TASK)
        first = browser.current_window_handle
        browser.switch_to.new_window("tab")
        browser.get(server.address)
        until(browser, TASK)
        second = browser.current_window_handle
        resize(browser, 390)
        assert_fits(browser, 390)  # a narrow window, with keys
    for tab in (second, first):
        browser.switch_to.window(tab)
        answer_tasks(browser, by_key(browser), 3)
    until(browser, "return Object.keys(localStorage).length", lambda stored: stored == 6)
    until(browser, SAVED, lambda state: state == "problem")
    assert "answers stored here" in browser.find_element("id", "saved").text
    with served(scripts, database, port=server.port) as again:
        for tab in (second, first):
            browser.switch_to.window(tab)
            until_saved(browser)
        counted, history = again.table("answers.csv"), again.table("history.csv")
        assert browser.execute_script("return Object.keys(localStorage).length") == 0
    assert len(history) == 6 == len({row["request"] for row in history})
    assert len(counted) == 3  # both tabs had the same tasks
    browser.switch_to.window(second)
    browser.close()
    browser.switch_to.window(first)
    browser.get_log("browser")


def test_rating_by_keyboard_zoom_help_and_long_texts(browser, tmp_path):
    texts = [" ".join(["wordy"] * 333), "unbroken" * 250, "short"]
    source = write_comparison(tmp_path / "source", texts)
    zoomed = (
        "return document.querySelector('#zoom').open && document.querySelector('#zoom-image').alt"
    )

    def rate(levels: str) -> None:
        next_task(browser, None)
        for level in levels:
            press(browser, level)

    with served(source, tmp_path / "ratings.sqlite", "rate", 3) as server:
        resize(browser, 1280, 860)
        join(browser, server, "Ann")
        seen = [assert_text_fits(browser)]
        click(browser, ".picture")
        assert browser.execute_script(zoomed) == "Left image"
        press(browser, "ArrowRight")
        assert browser.execute_script(zoomed) == "Right image"
        browser.execute_script("document.querySelector('#zoom').close()")
        press(browser, "?")
        link = browser.execute_script(
            "return document.querySelector('#help').open && document.querySelector('#link').value"
        )
        assert link.startswith(f"{server.address}/me/")
        browser.execute_script("document.querySelector('#help').close()")
        rate("12")
        until_saved(browser)
        browser.get(link)
        browser.find_element("css selector", ".button.primary").click()
        until(browser, TASK)
        checked = "return document.querySelectorAll('.axis input:checked').length"
        assert browser.execute_script(checked) == 2  # the half-rated one comes first
        assert browser.execute_script("return document.querySelector('#next').disabled")
        assert_accessible(browser, (".axis legend", ".level span", ".level input:checked + span"))
        rate("341234")
        task = browser.execute_script(TASK)
        click(browser, "#next", times=2)
        for number in range(2):
            task = next_task(browser, task)
            assert task is not None and browser.execute_script(DONE) == number + 1
            seen.append(assert_text_fits(browser))
            rate("11223344")
            press(browser, "Enter")
        until(browser, IS_OVER)
        assert sorted(seen) == sorted(texts)
        assert_clean(browser)
        browser.get(server.owner_link)
        browser.find_element("css selector", ".button.primary").click()
        page = "return location.pathname === '/results' && document.body.innerText"
        assert "SECRETMODEL-a" in until(browser, page)
        browser.get_log("performance")
        assert_clean(browser)
        counted = server.table("answers.csv")
    assert len({(row["item"], row["model"], row["axis"]) for row in counted}) == 3 * 2 * 4
    levels = Counter(row["level"] for row in counted)
    assert levels == dict.fromkeys(("excellent", "good", "pass", "fail"), 6)


def test_the_page_of_results_fits_fetches_nothing_and_has_contrast(browser, tmp_path):
    ratings = planted_ratings(QUALITY, 6, 2, 0, at=1e9)
    results = gather(ratings, planted_votes(QUALITY, 6, 2, 0, ties=0.2), LABELS)
    html = render_results(results, "Five models", [("All answers that count", "answers.csv")])
    (tmp_path / "results.html").write_text(html, encoding="utf-8")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get((tmp_path / "results.html").as_uri())
    problems = [one for one in browser.get_log("browser") if one["level"] in ("SEVERE", "WARNING")]
    requests = [one["message"] for one in browser.get_log("performance")]
    requests = [message for message in requests if "Network.requestWillBeSent" in message]
    assert problems == [] and requests
    assert not any('"url":"http' in message for message in requests)
    open_all = "for (const one of document.querySelectorAll('details')) one.open = true"
    browser.execute_script(open_all)
    for width in (360, 390, 768, 1280):
        resize(browser, width, mobile=width < 600)
        assert_fits(browser, width)
    levels = (".excellent", ".good", ".pass", ".fail")
    assert_contrast(browser, 3, tuple(f".levels {level}" for level in levels))  # bold text
