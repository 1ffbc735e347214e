"""Input and checks on the pages of the arena in a browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from arena_runs import Running

SHOWN = """
    const ask = document.querySelector('#ask');
    return ask?.dataset.state === 'ready' ? ask.dataset.task : null;
"""
IS_OVER = "return !document.querySelector('#end').hidden"
DONE = "return Number(document.querySelector('#done').textContent)"
MIDDLE = """
    const box = document.querySelector(arguments[0]).getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
"""
SAVED = "return document.querySelector('#saved').dataset.state"


def until(browser: Any, script: str, wanted: Callable[[Any], bool] = bool, most: float = 40) -> Any:
    """What a script returns, once it is as wanted."""
    end = time.monotonic() + most
    while not wanted(found := browser.execute_script(script)):
        assert time.monotonic() < end, (script, found)
        time.sleep(0.01)
    return found


def join(browser: Any, server: Running, name: str, width: int = 1280, height: int = 860) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 600})
    browser.delete_all_cookies()
    browser.get(server.address)
    browser.find_element("id", "name").send_keys(name)
    browser.find_element("css selector", "#join button").click()
    until(browser, SHOWN)


def fresh_task(browser: Any, before: str | None) -> str | None:
    """The next task, once it takes input; None at the end."""
    script = """
        const [before, told] = arguments;
        const [ask, end] = ['#ask', '#end'].map((id) => document.querySelector(id));
        const look = () => {
            if (!end.hidden) return told(null);
            if (ask.dataset.state === 'ready' && ask.dataset.task !== before)
                return setTimeout(() => told(ask.dataset.task), 160);
            setTimeout(look, 5);
        };
        look();
    """
    return browser.execute_async_script(script, before)


def press(browser: Any, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key})


def click(browser: Any, selector: str, times: int = 1) -> None:
    """Real clicks of a mouse, the second of which is a double click's."""
    box = browser.execute_script(MIDDLE, selector)
    for count in range(1, times + 1):
        for kind in ("mousePressed", "mouseReleased"):
            browser.execute_cdp_cmd(
                "Input.dispatchMouseEvent",
                {"type": kind, "x": box[0], "y": box[1], "button": "left", "clickCount": count},
            )


def tap(browser: Any, selector: str) -> None:
    """A finger."""
    box = browser.execute_script(MIDDLE, selector)
    browser.execute_cdp_cmd(
        "Input.dispatchTouchEvent",
        {"type": "touchStart", "touchPoints": [{"x": box[0], "y": box[1]}]},
    )
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def vote_on(browser: Any, act: Callable[[int], None], most: int = 1000) -> int:
    """Answer up to `most` tasks, or all; returns how many."""
    task = None
    for number in range(most):
        task = fresh_task(browser, task)
        if task is None:
            return number
        act(number)
    return most


def by_key(browser: Any) -> Callable[[int], None]:
    return lambda number: press(browser, ("ArrowLeft", "ArrowRight", "ArrowDown")[number % 3])


def rate(browser: Any, levels: str) -> None:
    time.sleep(0.16)
    for level in levels:
        press(browser, level)


def assert_text_fits(browser: Any) -> str:
    """A long prompt takes four lines until it is expanded; returns the prompt."""
    look = """
        const [p, more] = document.querySelectorAll('#prompt, #more');
        return [p.textContent, p.clientHeight, more.offsetParent !== null];
    """
    shown, height, has_more = browser.execute_script(look)
    assert height <= 130 and has_more == (len(shown) > 20)
    if has_more:
        click(browser, "#more")
        assert browser.execute_script(
            "const p = document.querySelector('#prompt');"
            "return p.scrollHeight <= p.clientHeight && p.clientHeight > 300"
        )
        browser.execute_script(
            "document.querySelector('#more').click(); scrollTo(0, 0)"
        )  # it may stand below the window by now
        assert browser.execute_script(look) == [shown, height, has_more]
    return shown


def assert_accessible(browser: Any, selectors: tuple[str, ...]) -> None:
    """Every control has a name and room for a finger, every text contrast, light and dark."""
    unnamed = """
        const named = (e) => e.ariaLabel || e.alt || e.innerText.trim() || e.labels?.length
            || e.querySelector('img')?.alt || e.closest('dialog');
        const all = document.querySelectorAll('button, input, img, [role=progressbar]');
        return [...all].filter((e) => !named(e)).length;
    """
    assert browser.execute_script(unnamed) == 0
    small = """
        const isSmall = (b) => b.offsetParent && Math.min(b.offsetWidth, b.offsetHeight) < 44;
        return [...document.querySelectorAll('button, .level')].filter(isSmall).length;
    """
    assert browser.execute_script(small) == 0
    for scheme in ("dark", "light"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        for selector in (".where", "#prompt", ".mark", "#saved-text", *selectors):
            assert contrast(browser, selector) >= 4.5, (scheme, selector)


def contrast(browser: Any, selector: str) -> float:
    """Ratio of the luminances of a text and what lies under it (WCAG 2)."""
    script = """
        let node = document.querySelector(arguments[0]);
        const ink = getComputedStyle(node).color;
        const paper = () => getComputedStyle(node).backgroundColor;
        while (paper() === 'rgba(0, 0, 0, 0)') node = node.parentElement;
        return [ink, paper()];
    """
    luminances = []
    for color in browser.execute_script(script, selector):
        parts = [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        red, green, blue = (
            part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        luminances.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)
