"""The result page in a browser: it fits a phone, fetches nothing, and has contrast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from arena_hands import contrast
from panels import planted_ratings, planted_votes

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


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = gather(
        planted_ratings(QUALITY, 12, 3, 0, at=1e9),
        planted_votes(QUALITY, 12, 3, 0, ties=0.2),
        LABELS,
    )
    written = tmp_path_factory.mktemp("page") / "results.html"
    written.write_text(
        render_results(
            results, "Five models on twelve prompts", [("All answers that count", "answers.csv")]
        ),
        encoding="utf-8",
    )
    return written


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_sticks_out(browser: Any, file: Path, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(file.as_uri())
    browser.execute_script(
        "for (const one of document.querySelectorAll('details')) one.open = true"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_nothing_is_fetched_or_wrong(browser: Any, file: Path) -> None:
    browser.get_log("performance")
    browser.get(file.as_uri())
    assert [
        entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ] == []
    sent = [
        entry["message"]
        for entry in browser.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    assert sent and not any('"url":"http' in message for message in sent)


def test_text_in_the_bars_has_contrast(browser: Any, file: Path) -> None:
    """At least 3:1 (WCAG 2, bold or large text), in light and dark."""
    browser.get(file.as_uri())
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for level in ("excellent", "good", "pass", "fail"):
            assert contrast(browser, f".levels .{level}") >= 3, (scheme, level)
