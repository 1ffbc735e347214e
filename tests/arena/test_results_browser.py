"""The result page in a browser: it fits a phone, fetches nothing, and has contrast."""

import pytest
from arena_pages import assert_contrast, assert_fits, resize
from planted_answers import planted_ratings, planted_votes

from directalign.arena.results import gather, render_results

pytestmark = pytest.mark.browser
QUALITY = {"base": -0.5, "srpo": 0.7, "refl": 0.0, "draft": 0.2, "grpo": 0.3}
LABELS = {
    "base": "Base model",
    "srpo": "SRPO with learned tokens, two hundred updates",
    "refl": "ReFL",
    "draft": "runs/2026-11-23_draft_lv_without_a_space_to_break_at",
    "grpo": "GRPO",
}


def test_the_page_fits_fetches_nothing_and_has_contrast(browser, tmp_path):
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
