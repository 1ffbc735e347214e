"""Input and checks on the pages of the arena in a browser."""

from collections.abc import Callable
from typing import Any

from arena_servers import Server

from browser_pages import assert_contrast, click, press, until

TASK = """
    const ask = document.querySelector('#ask');
    return ask?.dataset.state === 'ready' ? ask.dataset.task : null;
"""
IS_OVER = "return !document.querySelector('#end').hidden"
DONE = "return Number(document.querySelector('#done').textContent)"
SAVED = "return document.querySelector('#saved').dataset.state"


def until_saved(browser: Any) -> None:
    until(browser, SAVED, lambda state: state == "ok")


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
