"""Records, the live line, sample grids and random states."""

import io
import json
import math
import random
import re

import numpy as np
import torch
from rich.console import Console

from directalign.evaluation.generate import save_png
from directalign.training import checkpoint, run_log
from directalign.training.run_log import Display


def record(step: int, **more: object) -> dict[str, object]:
    used = {"images_per_second": 1.5, "peak_memory_gib": 2.25}
    own = {"reward": 0.5, "grad_norm": 2.0, "seconds": 3.0, "resources": used}
    return {"event": "step", "step": step, **own, **more}


def test_every_record_is_one_line_at_once(tmp_path):
    log = run_log.RunLog(tmp_path, step=-1)
    log.write(record(1, metrics={"odd": math.nan, "even": [1.0, math.inf]}, text="rote Blüte"))
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["metrics"] == {"odd": None, "even": [1.0, None]} and "Blüte" in line
    log.close()


def displayed(terminal: bool, silent: bool = False, width: int = 160) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width)
    with Display(10, 0, console, silent, every=4) as display:
        display.step(record(1))
        metrics = {"photo_rate": {"value": 0.75}, "color_drift": 0.125, "content": None}
        display.evaluation({"step": 1, "seconds": 5.0, **metrics}, {})
        display.step(record(2, reward=None))
    return stream.getvalue()


def test_without_a_terminal_there_are_plain_lines():
    first, second, third = displayed(terminal=False).splitlines()
    used = "images/s 1.5  GiB 2.25"
    assert first == f"step 1/10  27 s left  reward 0.5  grad norm 2  {used}"
    assert second == "evaluated at step 1  photo rate 0.75  color drift 0.125"
    assert third == f"step 2/10  34 s left  grad norm 2  {used}"


def test_a_terminal_has_a_live_line_and_other_ranks_none():
    live = displayed(terminal=True)
    assert "2/10" in live and "photo rate 0.75" in live and "color drift 0.125" in live
    narrow = displayed(terminal=True, width=80).split("\r")[-1].split("\n")[0]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", narrow)
    assert re.match(r"step +2/10 +\S+ +34 s left +grad norm 2 .*…", plain) and len(plain) <= 80
    assert displayed(terminal=False, silent=True) == displayed(terminal=True, silent=True) == ""


def test_grids_have_rows_of_four_filled_with_white(tmp_path):
    images = torch.rand(5, 3, 2, 3)
    grid = run_log.tiled(images)
    assert grid.shape == (1, 3, 4, 12)
    assert torch.equal(grid[0, :, :2, 3:6], images[1])
    assert torch.equal(grid[0, :, 2:, :3], images[4])
    assert bool((grid[0, :, 2:, 3:] == 1).all())
    run_log.describe_grids(tmp_path, [])
    save_png(grid[0], run_log.grid_path(tmp_path, 3))
    stored = run_log.load_grid(tmp_path / "samples" / "step-000003.png")
    assert (stored - grid).abs().max() <= 0.5 / 255 + 1e-6


def test_random_draws_of_every_kind_depend_on_seed_and_step_only():
    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(0, 1), float(np.random.randn()), float(torch.rand(()))

    drawn = []
    for seed, step in ((1, 2), (1, 3), (2, 2), (1, 2)):
        checkpoint.seed_step(seed, step)
        drawn.append(draw())
    assert drawn[0] == drawn[3] and len(set(drawn)) == 3
