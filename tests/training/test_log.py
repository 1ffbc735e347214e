"""Records, the live line and the sample grids, each by itself."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import torch
from rich.console import Console

from directalign.training import checkpoint, run_log
from directalign.training.run_log import Display


def record(step: int, **more: object) -> dict[str, object]:
    return {"event": "step", "step": step, "reward": 0.5, "grad_norm": 2.0, "seconds": 3.0, **more}


def test_every_record_is_one_line_that_is_there_at_once(tmp_path: Path):
    written = run_log.RunLog(tmp_path, step=-1)
    written.write(record(1, metrics={"odd": math.nan, "even": [1.0, math.inf]}, text="rote Blüte"))
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert (
        json.loads(lines[0])["metrics"] == {"odd": None, "even": [1.0, None]}
        and "Blüte" in lines[0]
    )
    written.close()


def test_going_on_drops_what_lies_ahead_and_a_torn_line(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(record(s)) + "\n" for s in (1, 2, 3)) + '{"event": "st'
    )
    written = run_log.RunLog(tmp_path, step=2)
    assert (
        [r["step"] for r in run_log.read(tmp_path)] == [1, 2]
        and written.has("step", 2)
        and not written.has("step", 3)
    )
    written.write(record(3))
    written.close()
    assert [r["step"] for r in run_log.read(tmp_path)] == [1, 2, 3]


def shown(terminal: bool, silent: bool = False) -> str:
    stream = io.StringIO()
    with Display(
        10, 0, Console(file=stream, force_terminal=terminal, width=160), silent
    ) as display:
        display.step(record(1))
        display.evaluation(
            {"step": 1, "photo_rate": {"value": 0.75}, "color_drift": 0.125, "content": None}, {}
        )
        display.step(record(2, reward=None))
    return stream.getvalue()


def test_without_a_terminal_there_are_plain_lines_with_everything():
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "step 1/10  reward 0.5  grad norm 2  27 s left"
    assert (
        lines[1]
        == "evaluated at step 1  reward 0.5  grad norm 2  photo rate 0.75  color drift 0.125"
    )
    assert (
        lines[2].startswith("step 2/10  reward 0.5")
        and "photo rate 0.75" in lines[2]
        and "24 s left" in lines[2]
    )


def test_on_a_terminal_the_line_lives_and_other_ranks_are_silent():
    live = shown(terminal=True)
    assert "2/10" in live and "photo rate 0.75" in live and "color drift 0.125" in live
    assert shown(terminal=False, silent=True) == shown(terminal=True, silent=True) == ""


def test_grids_are_rows_of_four_filled_up_with_white():
    images = torch.rand(5, 3, 2, 3)
    grid = run_log.tiled(images)
    assert grid.shape == (1, 3, 4, 12)
    assert torch.equal(grid[0, :, :2, 3:6], images[1]) and torch.equal(
        grid[0, :, 2:, :3], images[4]
    )
    assert bool((grid[0, :, 2:, 3:] == 1).all())


def test_a_saved_grid_reads_back_to_a_grey_level(tmp_path: Path):
    grid = torch.rand(1, 3, 6, 5)
    run_log.save_grid(grid, run_log.grid_path(tmp_path, 3))
    assert (
        run_log.load_grid(tmp_path / "samples" / "step-000003.png") - grid
    ).abs().max() <= 0.5 / 255 + 1e-6


def test_random_states_of_every_kind_come_back(tmp_path: Path):
    import random

    import numpy as np

    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(0, 1), float(np.random.randn()), float(torch.rand(()))

    checkpoint.seed_all(5)
    draw()
    torch.save(checkpoint.random_state(), tmp_path / "state.pt")
    wanted = draw()
    checkpoint.restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == wanted


def test_every_update_has_its_own_seed():
    def first(seed: int, step: int) -> float:
        checkpoint.seed_step(seed, step)
        return float(torch.rand(()))

    assert first(1, 2) == first(1, 2)
    assert len({first(1, 2), first(1, 3), first(2, 2)}) == 3
