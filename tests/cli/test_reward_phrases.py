"""`directalign reward phrases` as it is called: table, files and page, the page in a real browser,
and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from chromium import headless
from directalign.cli import app

HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One call on the embedded reward, with a phrase that is an attack."""
    out = tmp_path_factory.mktemp("words") / "out"
    named = [
        "--positive",
        "Realistic photo",
        "--positive",
        HOSTILE,
        "--negative",
        "CG render",
        "--negative",
        "Anime",
        "--negative",
        "[bold]Oil painting",
    ]
    return CliRunner().invoke(
        app,
        [
            "reward",
            "phrases",
            "--reward",
            "world:reward",
            *named,
            "--count",
            "12",
            "--out",
            str(out),
        ],
    ), out


def test_the_table_and_the_files(finished: tuple[Result, Path]) -> None:
    result, out = finished
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(out / "phrases.html") and result.stderr == ""
    assert (
        "Realistic" in result.stdout
        and "[bold]Oil" in result.stdout
        and "tolerance" in result.stdout
    )
    data = json.loads((out / "phrases.json").read_text())
    assert data["phrases"][0]["phrase"] == "Realistic photo" and data["suggestion"]["pair"][
        "positive"
    ] == ["Realistic photo"]
    assert set(data["suggestion"]["recipes"]) == {"anchored", "relative"}
    assert {file.name for file in out.iterdir()} == {
        "phrases.html",
        "phrases.json",
        "anchored.yaml",
        "relative.yaml",
    }
    assert data["command"].startswith(
        "directalign reward phrases --reward world:reward --images world --positive 'Realistic "
        "photo'"
    )


def test_a_recipe_names_reward_and_words(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        [
            "reward",
            "phrases",
            "--reward",
            "world_srpo",
            "--count",
            "6",
            "--out",
            str(tmp_path),
        ],
    )
    assert result.exit_code == 0, result.output
    assert {
        word["phrase"] for word in json.loads((tmp_path / "phrases.json").read_text())["phrases"]
    } == {*("Realistic photo", "Natural lighting", "CG render", "Oil painting", "Anime")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "nowhere"], "--reward nowhere: no config.json there"),
        (["--reward", "world:reward", "--positive", " "], "--positive: phrase 1 is empty"),
        (["--reward", "world:reward", "--negative", "x" * 300], "--negative: phrase 1"),
        (
            ["--reward", "world:reward", "--images", "world:photo/photo"],
            "--images: world:photo/photo: write it as world:WANTED/UNWANTED",
        ),
        (
            ["--reward", "world:reward", "--images", "here"],
            "--images: here: no folder wanted/ in it",
        ),
        (
            ["--reward", "world:reward", "--candidates", "none.txt"],
            "none.txt: no such file of candidates",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["reward", "phrases", *arguments])
    assert (
        result.exit_code == 1
        and result.stderr.startswith(f"directalign: {message}")
        and result.stderr.count("\n") == 1
    )
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with headless(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def visit(browser: Any, finished: tuple[Result, Path]) -> Callable[[int], Any]:
    """The page at a width in pixels."""

    def visited(width: int) -> Any:
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get((finished[1] / "phrases.html").as_uri())
        return browser

    return visited


@pytest.mark.browser
def test_the_page_loads_nothing_runs_nothing_and_reports_no_error(
    visit: Callable[[int], Any],
) -> None:
    visit(1280).get_log("performance")  # what the browser itself did when it started
    browser = visit(1280)
    assert [
        entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ] == []
    sent = [
        entry["message"]
        for entry in browser.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    assert sent and not any('"url":"http' in message for message in sent)
    assert (
        browser.title == "Control phrases for world:reward"
        and HOSTILE in browser.execute_script("return document.body.textContent")
    )
    assert browser.execute_script(
        "return [...document.images].every(image => image.complete && image.naturalWidth > 0) && "
        "document.scripts.length === 0"
    )


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_page(visit: Callable[[int], Any], width: int) -> None:
    assert visit(width).execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_the_page_is_dark_where_the_system_is(visit: Callable[[int], Any]) -> None:
    browser, colours = visit(1280), []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        colours.append(
            browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        )
    assert colours[0] != colours[1]
