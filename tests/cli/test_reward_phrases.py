"""`directalign reward phrases`: table, files, the page in a real browser, refusals."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from chromium import headless
from directalign.cli import app

HOSTILE = '<img src=x onerror="document.title=1">'
POSITIVE, NEGATIVE = ("Realistic photo", HOSTILE), ("CG render", "Anime", "[bold]Oil painting")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["reward", "phrases", *map(str, words)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One call on the embedded reward, with a phrase that is an attack."""
    out = tmp_path_factory.mktemp("phrases") / "out"
    named = [word for phrase in POSITIVE for word in ("--positive", phrase)]
    named += [word for phrase in NEGATIVE for word in ("--negative", phrase)]
    return call("--reward", "world:reward", *named, "--count", 12, "--out", out), out


def test_the_table_and_the_files(finished):
    result, out = finished
    assert result.exit_code == 0 and result.stderr == "", result.output
    assert result.stdout.splitlines()[-1] == str(out / "phrases.html")
    assert all(text in result.stdout for text in ("Realistic", "[bold]Oil", "tolerance"))
    data = json.loads((out / "phrases.json").read_text())
    assert data["phrases"][0]["phrase"] == "Realistic photo"
    assert data["suggestion"]["pair"]["positive"] == ["Realistic photo"]
    assert set(data["suggestion"]["recipes"]) == {"anchored", "relative"}
    wanted = {"phrases.html", "phrases.json", "anchored.yaml", "relative.yaml"}
    assert {file.name for file in out.iterdir()} == wanted
    command = "directalign reward phrases --reward world:reward --images world --positive "
    assert data["command"].startswith(f"{command}'Realistic photo'")


def test_a_recipe_names_reward_and_phrases(tmp_path):
    result = call("--reward", "world_srpo", "--count", 6, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "phrases.json").read_text())["phrases"]
    wanted = {"Realistic photo", "Natural lighting", "CG render", "Oil painting", "Anime"}
    assert {each["phrase"] for each in found} == wanted


@pytest.mark.parametrize(
    ("reward", "options", "message"),
    [
        ("nowhere", (), "--reward nowhere: no config.json there"),
        ("world:reward", ("--negative", "x" * 300), "--negative: phrase 1"),
        ("world:reward", ("--images", "here"), "--images: no folder here/wanted; give a"),
        ("world:reward", ("--candidates", "none.txt"), "none.txt: no such file of candidates"),
    ],
)
def test_wrong_options_are_one_line(reward, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("--reward", reward, *options)
    assert result.exit_code == 1 and result.stderr.startswith(f"directalign: {message}")
    assert result.stderr.count("\n") == 1 and not Path("runs").exists()


@pytest.mark.browser
def test_the_page_in_a_browser(finished, tmp_path_factory):
    """It loads and runs nothing, fits a phone, and is dark where the system is."""
    page = (finished[1] / "phrases.html").as_uri()
    with headless(tmp_path_factory.mktemp("profile")) as browser:
        browser.get(page)
        browser.get_log("performance")  # what the browser itself did when it started
        browser.get(page)
        levels = [entry["level"] for entry in browser.get_log("browser")]
        assert not {"SEVERE", "WARNING"} & set(levels)
        log = [entry["message"] for entry in browser.get_log("performance")]
        sent = [message for message in log if "Network.requestWillBeSent" in message]
        assert sent and not any('"url":"http' in message for message in sent)
        assert browser.title == "Control phrases for world:reward"
        assert HOSTILE in browser.execute_script("return document.body.textContent")
        images = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
        assert browser.execute_script(f"return {images} && document.scripts.length === 1")
        for width in (390, 1280):
            size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            script = "return document.documentElement.scrollWidth"
            assert browser.execute_script(script) <= width
        colours = []
        for scheme in ("light", "dark"):
            features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
            script = "return getComputedStyle(document.body).backgroundColor"
            colours.append(browser.execute_script(script))
        assert colours[0] != colours[1]
