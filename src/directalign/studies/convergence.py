"""What it costs to come equally far: every method of `table1` along its way, in seconds, network calls and updates.

A finished `table1` beside this study's folder lends its runs: the arms, seeds and budgets are the same. Beside them stands
`depth`: what one injection costs, and what the gradient looks like, against back-propagation through the rollout.
"""

from __future__ import annotations

from . import convergence_figures, convergence_text, depth, table1
from .running.arms import ARMS, sized, watched
from .running.budget import within
from .running.experiment import run_arms
from .running.records import Row
from .showing.publish import MARK
import json
from pathlib import Path


NAME = "convergence"
TITLE = "What it costs to reach the same judge level"
QUESTION = (
    "The paper trains SRPO on FLUX.1-dev in 5.3 GPU hours where ReFL takes 16, DRaFT-LV 24 and DanceGRPO 480, and speaks of 75 times the efficiency of the "
    "latter (arXiv 2509.06942, table 1); it stops each method where its authors do, not where they are equally good. "
    "Here the methods are compared where an independent judge sees equally many photos, in network calls, in seconds and in updates. "
    "And one injection is compared with back-propagation through K steps of sampling, with the same reward at the same weights: "
    "how long an update takes, and whether the gradient explodes or vanishes on its way."
)
QUICK_ARMS = ("srpo", "flow_grpo")


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """The measurements of the runs, trained where no finished `table1` of this size lends them, and the rows of `depth`. A quick run takes two methods."""
    home, budget = home_of(out, quick), table1.QUICK if quick else table1.FULL
    arms = [arm for arm in ARMS if not quick or arm.name in QUICK_ARMS]
    paid = [within(watched(arm, budget), arm, home, recipes) for arm in sized(arms, quick)]
    return run_arms(NAME, paid, table1.QUICK_SEEDS if quick else table1.SEEDS, home, recipes) + depth.measure(NAME, out, quick, recipes)


def home_of(out: Path, quick: bool) -> Path:
    """The folder of the runs: that of a finished `table1` of the same size beside `out`, else `out` itself."""
    beside = out.parent / f"study_{table1.NAME}"
    finished = (beside / MARK).is_file() and (beside / "results.jsonl").is_file()
    wanted = {"study": table1.NAME, "size": "quick" if quick else "full"}
    return beside if finished and json.loads((beside / MARK).read_text(encoding="utf-8")) == wanted else out


def tell(rows: list[Row]) -> str:
    """Costs of each level, their ratios beside the paper's, and one injection beside K steps."""
    return convergence_text.tell(rows)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Curves over seconds, calls and updates; ratios of cost with their intervals; the gradient by depth."""
    return convergence_figures.draw(rows, folder / NAME)
