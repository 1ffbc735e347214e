"""The paper's main table, with what its reviewers missed: strong baselines, equal compute, equal reward, intervals over seeds.

Every method trains the embedded FLUX against the same biased reward with the words of its recipe, and is judged by what
it was not trained on: held-out judges, drift from photographs, diversity.
"""

from __future__ import annotations

from . import table1_figures, table1_text
from .running.arms import ARMS, sized, watched
from .running.budget import Budget, within
from .running.experiment import run_arms
from .running.photographs import with_drift
from .running.records import Row
from pathlib import Path


NAME = "table1"
TITLE = "All methods side by side, at matched compute and at matched reward"
QUESTION = (
    "The paper reports that SRPO makes images real where ReFL, DRaFT-LV, DanceGRPO and plain Direct-Align make them glossy, at a fraction of the cost "
    "(arXiv 2509.06942, table 1), but compares the methods neither at equal compute nor at equal reward. "
    "Here each of them trains the same embedded model against the same biased reward, with a learning rate that was chosen in the same way. "
    "Measured are the reward, held-out judges of style and content, the drift of colour, saturation and sharpness from real photographs, "
    "the diversity of the images of one prompt, and what it cost."
)
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
FULL = Budget(calls=5_000, measurements=5, num_pairs=64, diversity_prompts=8)
QUICK = Budget(calls=32, measurements=1, num_pairs=8, diversity_prompts=1, probed=1)


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train every arm within its budget from every seed."""
    budget = QUICK if quick else FULL
    arms = [within(watched(arm, budget), arm, out, recipes) for arm in sized(ARMS, quick)]
    rows = run_arms(NAME, arms, QUICK_SEEDS if quick else SEEDS, out, recipes)
    return with_drift(rows, budget.num_pairs)


def tell(rows: list[Row]) -> str:
    """Three tables, and what they say about the paper's claims."""
    return table1_text.tell(rows)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Trails of photo rate, drift and content; photo rate over calls; all arms where most have come equally far."""
    return table1_figures.draw(rows, folder / NAME)
