"""Input and checks on the pages of the arena in a browser."""

import time
from collections.abc import Callable
from typing import Any

from arena_servers import Server

TASK = """
    const ask = document.querySelector('#ask');
    return ask?.dataset.state === 'ready' ? ask.dataset.task : null;
"""
IS_OVER = "return !document.querySelector('#end').hidden"
DONE = "return Number(document.querySelector('#done').textContent)"
CENTRE = """
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


def until_saved(browser: Any) -> None:
    until(browser, SAVED, lambda state: state == "ok")


def resize(browser: Any, width: int, height: int = 844, mobile: bool = False) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": mobile})


def assert_fits(browser: Any, width: int) -> None:
    """Nothing extends beyond the width of the window."""
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def join(browser: Any, server: Server, name: str) -> None:
    browser.delete_all_cookies()
    browser.get(server.address)
    browser.find_element("id", "name").send_keys(name)
    browser.find_element("css selector", "#join button").click()
    until(browser, TASK)


def next_task(browser: Any, before: str | None) -> str | None:
    """The task after `before`, once it takes input; None at the end."""
    script = """
        const [before, found] = arguments;
        const [ask, end] = ['#ask', '#end'].map((id) => document.querySelector(id));
        const check = () => {
            if (!end.hidden) return found(null);
            if (ask.dataset.state === 'ready' && ask.dataset.task !== before)
                return setTimeout(() => found(ask.dataset.task), 160);
            setTimeout(check, 5);
        };
        check();
    """
    return browser.execute_async_script(script, before)


def press(browser: Any, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key})


def click(browser: Any, selector: str, times: int = 1) -> None:
    """Real clicks of a mouse, the second of which is a double click's."""
    x, y = browser.execute_script(CENTRE, selector)
    for count in range(1, times + 1):
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": count}
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def tap(browser: Any, selector: str) -> None:
    """A touch of one finger."""
    x, y = browser.execute_script(CENTRE, selector)
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def answer_tasks(browser: Any, act: Callable[[int], None], most: int = 1000) -> int:
    """Answer up to `most` tasks, or all; returns how many."""
    task = None
    for number in range(most):
        task = next_task(browser, task)
        if task is None:
            return number
        act(number)
    return most


def by_key(browser: Any) -> Callable[[int], None]:
    return lambda number: press(browser, ("ArrowLeft", "ArrowRight", "ArrowDown")[number % 3])


def assert_text_fits(browser: Any) -> str:
    """A long prompt takes four lines until it is expanded; returns the prompt."""
    state = """
        const [p, more] = document.querySelectorAll('#prompt, #more');
        return [p.textContent, p.clientHeight, more.offsetParent !== null];
    """
    text, height, has_more = browser.execute_script(state)
    assert height <= 130 and has_more == (len(text) > 20)
    if has_more:
        click(browser, "#more")
        assert browser.execute_script(
            "const p = document.querySelector('#prompt');"
            "return p.scrollHeight <= p.clientHeight && p.clientHeight > 300"
        )
        # by script, since the button may be below the window now
        browser.execute_script("document.querySelector('#more').click(); scrollTo(0, 0)")
        assert browser.execute_script(state) == [text, height, has_more]
    return text


def assert_accessible(browser: Any, selectors: tuple[str, ...]) -> None:
    """Every control has a name and room for a finger, every text contrast, light and dark."""
    unnamed = """
        const named = (e) => e.ariaLabel || e.alt || e.innerText.trim() || e.labels?.length
            || e.querySelector('img')?.alt || e.closest('dialog');
        const all = document.querySelectorAll('button, input, img, [role=progressbar]');
        return [...all].filter((e) => !named(e)).length;
    """
    small = """
        const isSmall = (b) => b.offsetParent && Math.min(b.offsetWidth, b.offsetHeight) < 44;
        return [...document.querySelectorAll('button, .level')].filter(isSmall).length;
    """
    assert browser.execute_script(unnamed) == browser.execute_script(small) == 0
    assert_contrast(browser, 4.5, (".where", "#prompt", ".mark", "#saved-text", *selectors))


def assert_contrast(browser: Any, least: float, selectors: tuple[str, ...]) -> None:
    """Ratio of the luminances of text and background (WCAG 2), in light and dark."""
    script = """
        let node = document.querySelector(arguments[0]);
        const text = getComputedStyle(node).color;
        const background = () => getComputedStyle(node).backgroundColor;
        while (background() === 'rgba(0, 0, 0, 0)') node = node.parentElement;
        return [text, background()];
    """
    for scheme in ("dark", "light"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for selector in selectors:
            low, high = sorted(map(luminance, browser.execute_script(script, selector)))
            assert (high + 0.05) / (low + 0.05) >= least, (scheme, selector)


def luminance(color: str) -> float:
    """Relative luminance of a CSS colour "rgb(r, g, b)"."""
    parts = [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
