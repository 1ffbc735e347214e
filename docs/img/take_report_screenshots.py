"""Takes the pictures of the report in docs/img (report-*.png): a run that stopped itself, runs side
by side, a comparison.

    python docs/img/take_report_screenshots.py WORK

WORK gets short runs on the embedded world and the comparison of them, some twenty minutes on one
thread; what is there already is kept, so that the pictures alone can be taken again. Needs the dev
extra, chromium and chromedriver.
"""

from __future__ import annotations

import base64
import csv
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

HERE = Path(__file__).parent
OFTEN = (
    "evaluate.every=5",
    "evaluate.num_samples_during=64",
    "evaluate.num_samples=96",
    "train.sample_every=5",
    "train.checkpoint_every=5",
)
CONTROLS = (
    "evaluate.off_topic=world",
    "evaluate.diversity_prompts=6",
    "evaluate.rewards={redness: {name: pixels, statistic: redness}}",
)
RUNS = {
    "srpo": ("world_srpo", "train.num_steps=30"),
    "direct_align": ("world_direct_align", "train.num_steps=30"),
    "refl": ("world_refl", "train.num_steps=40"),
    "official": ("world_official", "train.num_steps=50"),
}
STOPPING = ("world_stopping", "evaluate.num_samples=192", "evaluate.num_samples_during=192")
COLORS, SHAPES = (
    ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink"),
    ("star", "ring", "triangle", "circle", "square"),
)
GROUNDS = ("navy", "white", "gray", "brown", "olive", "black")
ANCHORED = "const right = document.querySelector('[name=right]'); right.value = 3; right.dispatchEvent(new Event('change')); "  # noqa: E501
ON = "document.querySelector('[name=on]').click(); "
WIDTHS = {"desktop": 1280, "phone": 375}


@dataclass(frozen=True)
class Shot:
    """A piece of a page: from the section with this heading on ("" for the top), so many CSS pixels
    high; `act` runs before it is taken."""

    name: str
    page: str
    device: str
    scheme: str
    heading: str
    height: int
    act: str = ""


SHOTS = (
    Shot("run-desktop", "stopping", "desktop", "light", "", 1130),
    Shot(
        "run-curves-desktop-dark",
        "stopping",
        "desktop",
        "dark",
        "What is gained, and what it costs",
        1290,
    ),
    Shot("run-extremes-desktop", "stopping", "desktop", "light", "Best and worst prompts", 900),
    Shot("run-phone", "stopping", "phone", "light", "", 1560),
    Shot("runs-desktop", "runs", "desktop", "light", "How much colour does a photo cost?", 1240),
    Shot("comparison-desktop", "compared", "desktop", "light", "", 1330, ANCHORED + 4 * ON),
    Shot("comparison-wins-desktop-dark", "compared", "desktop", "dark", "Who wins", 1000),
    Shot(
        "comparison-numbers-desktop",
        "compared",
        "desktop",
        "light",
        "What is gained, and what it costs",
        1250,
    ),
    Shot(
        "comparison-phone",
        "compared",
        "phone",
        "light",
        "Same prompt, same seed",
        1500,
        ANCHORED + 6 * ON,
    ),
    Shot("comparison-phone-dark", "compared", "phone", "dark", "Who wins", 1500),
)


def main() -> None:
    """Make what is missing, then photograph."""
    work = Path(sys.argv[1])
    make(work)
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        for shot in SHOTS:
            photograph(browser, work / shot.page / "report.html", shot)


def make(work: Path) -> None:
    """The runs, the comparison, and their pages."""
    for name, (recipe, *settings) in {
        **{f"runs/{name}": found for name, found in RUNS.items()},
        "stopping": STOPPING,
    }.items():
        if not (work / name / "summary.json").exists():
            changes = [
                part for setting in (*OFTEN, *CONTROLS, *settings) for part in ("--set", setting)
            ]
            directalign("train", recipe, "--out", work / name, *changes)
    if not (work / "stopping" / "evaluation" / "summary.json").exists():
        directalign("evaluate", work / "stopping", "--num-pairs", 64)
    if not (work / "compared" / "summary.json").exists():
        labels = {
            "Plain Direct-Align": "direct_align",
            "ReFL": "refl",
            "SRPO, anchored": "srpo",
            "SRPO, official ramps": "official",
        }
        sources = [f"{label}={work / 'runs' / name}" for label, name in labels.items()]
        directalign(
            "compare",
            *sources,
            "--base",
            "--prompts",
            f"drawbench:{prompts(work)}",
            "--off-topic",
            "world",
            "--out",
            work / "compared",
        )
    for page in ("runs", "stopping", "compared"):
        directalign("report", work / page)


def directalign(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "directalign", *map(str, words)], check=True)


def prompts(work: Path) -> Path:
    """Captions of the embedded world in groups, as DrawBench has its prompts."""
    file = work / "prompts.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("Prompts", "Category"))
        for place in range(48):
            color, shape, ground = (
                COLORS[place % 8],
                SHAPES[(place + place // 8) % 5],
                GROUNDS[(place * 5 + place // 6) % 6],
            )
            table.writerow(
                (
                    f"{article(color)} {color} {shape} on {article(ground)} {ground} background",
                    shape,
                )
            )
    return file


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    options, driver = webdriver.ChromeOptions(), shutil.which("chromedriver")
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "hide-scrollbars",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def photograph(browser: Any, page: Path, shot: Shot) -> None:
    """Write docs/img/report-NAME.png."""
    width, phone = WIDTHS[shot.device], shot.device == "phone"
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": shot.scheme}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 2 if phone else 1.25, "mobile": phone},
    )
    browser.get(page.resolve().as_uri())
    browser.execute_script(shot.act)
    find = (
        "const h = [...document.querySelectorAll('h2')].find(h => h.textContent === arguments[0]); "
        "return h ? h.getBoundingClientRect().top + scrollY - 32 : 0"
    )
    top = browser.execute_script(find, shot.heading)
    clip = {"x": 0, "y": top, "width": width, "height": shot.height, "scale": 1}
    taken = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
    )
    with Image.open(io.BytesIO(base64.b64decode(taken["data"]))) as picture:
        picture.convert("RGB").save(HERE / f"report-{shot.name}.png", optimize=True)


if __name__ == "__main__":
    main()
