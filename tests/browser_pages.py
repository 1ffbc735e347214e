"""Input to pages in a browser, and checks of what they look like."""

import time
from collections.abc import Callable
from typing import Any

CENTRE = """
    const box = document.querySelector(arguments[0]).getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
"""


def until(browser: Any, script: str, wanted: Callable[[Any], bool] = bool, most: float = 40) -> Any:
    """What a script returns, once it is as wanted."""
    end = time.monotonic() + most
    while not wanted(found := browser.execute_script(script)):
        assert time.monotonic() < end, (script, found)
        time.sleep(0.01)
    return found


def resize(browser: Any, width: int, height: int = 844, mobile: bool = False) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": mobile})


def assert_fits(browser: Any, width: int) -> None:
    """Nothing extends beyond the width of the window."""
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def press(browser: Any, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key})


def click(browser: Any, selector: str, times: int = 1, held: float = 0) -> None:
    """Real clicks of a mouse, the second of which is a double click's; `held`: seconds of each."""
    x, y = browser.execute_script(CENTRE, selector)
    for count in range(1, times + 1):
        for kind in ("mousePressed", "mouseReleased"):
            time.sleep(held if kind == "mouseReleased" else 0)
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": count}
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def tap(browser: Any, selector: str) -> None:
    """A touch of one finger."""
    x, y = browser.execute_script(CENTRE, selector)
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


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
