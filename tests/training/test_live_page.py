"""The page of a run while it trains, and what it says when the run has ended, in any way."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import train_stubs as stubs
from launching import exit_code, fork
from train_stubs import stop_at

from directalign.io import atomic
from directalign.report import write_page
from directalign.report.read import read_run
from directalign.report.status import KILLED, Status, status_of
from directalign.training.live_page import LivePage
from directalign.training.loop import Interrupted
from directalign.types import DirectAlignError

pytestmark = pytest.mark.usefixtures("live_pages")


def train(out: Path, resume: bool = False, **more: object) -> None:
    """Six steps with a page, measured at every second one."""
    out.mkdir(exist_ok=True)
    run = stubs.make_run(out.with_suffix(".txt"))
    with atomic.exclusive(out, "training in it"), LivePage(out, 1) as page:
        stubs.start(run, out, resume, page=page, **more)  # type: ignore[arg-type]


def status(out: Path) -> Status:
    return status_of(read_run(out))


def page_of(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def at_step(step: int, act: Callable[[], object]) -> Callable[[int], None]:
    """`on_step` that acts once, at the first batch of a step."""
    left = [step]

    def on_step(current: int) -> None:
        if left and current == step:
            left.pop()
            act()

    return on_step


def test_the_page_exists_from_step_0_and_follows_the_run(tmp_path):
    out = tmp_path / "out"
    seen: list[tuple[Status, str]] = []
    train(out, on_step=lambda step: seen.append((status(out), page_of(out))))
    states, pages = zip(*seen, strict=True)
    steps = [each.step for each in states]
    assert steps == sorted(steps) and {each.state for each in states} == {"running"}
    assert states[0].seconds_left is None and states[-1].step == 5
    assert (states[-1].seconds_left or 0) > 0 and states[-1].pid == os.getpid()
    assert "6 steps to go" in pages[0] and "data-live" in pages[0]
    assert "step 4 of 6" in pages[-1]  # of the last measurement
    assert status(out).state == "finished"
    assert "<b>Finished</b>: 6 steps" in page_of(out) and "data-live data" not in page_of(out)
    assert "directalign evaluate" in page_of(out)


@pytest.mark.parametrize("ending", ["signal", "error"])
def test_a_stopped_or_failed_run_says_so_and_how_to_continue(tmp_path, ending):
    out = tmp_path / "out"

    def fail() -> None:
        raise DirectAlignError("my_reward.py: no <file>")

    act = stop_at(3) if ending == "signal" else at_step(3, fail)
    with pytest.raises(Interrupted if ending == "signal" else DirectAlignError):
        train(out, on_step=act)
    found, page = status(out), page_of(out)
    assert f"directalign train {out}/run.yaml --out {out} --resume" in page
    if ending == "signal":
        assert (found.state, found.step, found.saved) == ("stopped", 4, 4)
        assert "<b>Stopped</b> at step 4 of 6" in page
    else:
        assert (found.state, found.step, found.saved) == ("failed", 3, 3)
        assert "<b>Failed</b> at step 3 of 6: my_reward.py: no &lt;file&gt;; step 3 of 6" in page
    train(out, resume=True)
    assert status(out).state == "finished"


def test_a_killed_run_is_stopped_and_names_its_checkpoint(tmp_path):
    out = tmp_path / "out"
    kill = at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert exit_code(fork(lambda: train(out, on_step=kill))) == -signal.SIGKILL
    assert "<b>Running</b>" in page_of(out)  # nobody was left to write it
    found = status(out)
    assert (found.state, found.step, found.saved) == ("stopped", 5, 4) and found.reason == KILLED
    html = write_page(out).read_text()
    assert "<b>Stopped</b> at step 5 of 6" in html and "from the checkpoint of step 4" in html


def test_a_page_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    out = tmp_path / "out"

    def spoil() -> None:
        (out / "report.html").unlink()
        (out / "report.html").mkdir()

    train(out, on_step=at_step(0, spoil))
    warnings = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert len(warnings) == 1 and "the page of the run cannot be written" in warnings[0]
    assert status(out).state == "finished" and (out / "lora.safetensors").exists()
