"""Takes the pictures in docs/img: the page of the demo, the page of all runs, and the arena.

    python docs/img/take_screenshots.py runs/demo/report.html

For the arena two folders are sampled from world:flux, one with a style phrase before the prompt,
which is then removed from the record: both count as models that got one prompt. Needs the dev
extra, chromium and chromedriver.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

HERE = Path(__file__).parent
STYLES = {"tuned": "Realistic photo. ", "base": ""}
PROMPTS = (
    "a red star on a navy background",
    "a pink ring on a gray background",
    "a green square on a white background",
    "a yellow circle on a brown background",
    "a cyan triangle on a black background",
    "a purple star on an olive background",
)
SIZES = {"desktop": (1280, 860, 1.5, False), "phone": (390, 844, 2, True)}
SCHEMES = {("vote", "desktop"): "light", ("vote", "phone"): "dark"}
SCHEMES |= {("rate", "desktop"): "dark", ("rate", "phone"): "light"}


def main() -> None:
    """The page, then both modes of the arena."""
    page_file = Path(sys.argv[1]).resolve()
    page = page_file.as_uri()
    with tempfile.TemporaryDirectory() as work:
        samples = sample(Path(work, "samples"))
        with chromium(Path(work, "profile")) as browser:
            resize(browser, 1280, 1480, 1, False)
            browser.get(page)
            heading = (
                "[...document.querySelectorAll('h2')].find(e => /^Same prompts/.test(e.innerText))"
            )
            browser.execute_script(f"{heading}.scrollIntoView()")
            save(browser, "demo")
            with serving("ui", page_file.parent, "--port", "0") as address:
                for size, scheme in (("desktop", "light"), ("phone", "dark")):
                    resize(browser, *SIZES[size])
                    color(browser, scheme)
                    browser.get(f"{address}run/srpo")
                    time.sleep(2)
                    save(browser, f"ui-{size}-{scheme}")
            for mode, act in (("vote", vote), ("rate", rate)):
                with arena(samples, Path(work, f"{mode}.sqlite"), mode) as address:
                    photograph(browser, address, mode, act)


def sample(folder: Path) -> Path:
    """One folder of images for each style."""
    for name, words in STYLES.items():
        asked = [part for prompt in PROMPTS for part in ("--prompt", words + prompt)]
        subprocess.run(
            [
                "directalign",
                "sample",
                "world:flux",
                *asked,
                "--seed",
                "3",
                "--seed",
                "4",
                "--out",
                folder / name,
            ],
            check=True,
        )
        record = folder / name / "images.jsonl"
        rows = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
        record.write_text(
            "".join(
                json.dumps({**row, "prompt": row["prompt"].removeprefix(words)}) + "\n"
                for row in rows
            ),
            encoding="utf-8",
        )
    return folder


@contextmanager
def arena(samples: Path, database: Path, mode: str) -> Iterator[str]:
    """A running arena; its address."""
    sources = (samples / name for name in STYLES)
    with serving("arena", *sources, "--out", database, "--mode", mode, "--port", "0") as address:
        yield address


@contextmanager
def serving(*words: str | Path) -> Iterator[str]:
    """A running server of the command; the address in its first line."""
    command = ["directalign", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A headless browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "hide-scrollbars",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    yield driver
    driver.quit()


def photograph(browser: Any, address: str, mode: str, act: Callable[[Any], None]) -> None:
    """A new annotator on each size, a few answers in."""
    for size, (width, height, scale, mobile) in SIZES.items():
        resize(browser, width, height, scale, mobile)
        browser.delete_all_cookies()
        scheme = SCHEMES[mode, size]
        color(browser, scheme)
        browser.get(address)
        browser.find_element("id", "name").send_keys(f"Visitor on a {size}")
        browser.find_element("css selector", "#join button").click()
        act(browser)
        save(browser, f"arena-{mode}-{size}-{scheme}")


def resize(browser: Any, width: int, height: int, scale: float, mobile: bool) -> None:
    """The window's size in CSS pixels, and touch on a phone."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": mobile})


def color(browser: Any, scheme: str) -> None:
    """Light or dark, as the system would say."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def vote(browser: Any) -> None:
    """Four votes."""
    for choice in ("left", "right", "tie", "left"):
        ready(browser)
        browser.find_element("css selector", f"[data-choice={choice}]").click()
    ready(browser)
    time.sleep(1)


def rate(browser: Any) -> None:
    """Two items in full, half of a third."""
    for levels in ("1221 2131", "2112 1234", "212"):
        ready(browser)
        for level in levels.replace(" ", ""):
            browser.execute_script(
                f"dispatchEvent(new KeyboardEvent('keydown', {{key: '{level}'}}))"
            )
        if len(levels) > 4:
            browser.find_element("id", "next").click()
    browser.execute_script("scrollTo(0, 0)")
    time.sleep(1)


def ready(browser: Any) -> None:
    """Wait until a task is shown and takes input."""
    until = time.monotonic() + 20
    while browser.execute_script("return document.querySelector('#ask')?.dataset.state") != "ready":
        assert time.monotonic() < until, "the page does not come up"
        time.sleep(0.05)
    time.sleep(0.3)


def save(browser: Any, name: str) -> None:
    """The window as a small PNG."""
    file = HERE / f"{name}.png"
    browser.save_screenshot(str(file))
    with Image.open(file) as taken:
        taken.convert("RGB").save(file, optimize=True)
    print(file.name, file.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()
