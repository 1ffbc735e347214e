"""The anchored relative reward, tried hard: over tolerance, learning rate, length, word gap, models and methods, beside its rivals."""

from __future__ import annotations

from ..config.load import load_run
from ..rewards import load_reward
from ..rewards.clip import ClipReward
from .anchor_cases import GAPS, Case, cases, lengthened, recommended
from .anchor_story import draw, tell
from .running.experiment import run_arms, settings_of
from .running.pieces import piece
from .running.records import Row
from .wordings import facts_of, seen_by, text_cosine
from pathlib import Path


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "anchor"
TITLE = "The anchored reward against the ramps, and where it fails"
QUESTION = (
    "This project's own candidate drops the inversion branch and the ramps and holds the bare prompt's score where the base model had it. It is set against "
    "the official two branches, the half-cost branch and the plain relative reward from five seeds, and tried from two seeds over tolerance, learning rate, "
    "word pairs with a narrow and a wide gap, LoRA, Stable Diffusion, and inside ReFL and DRaFT-LV, up to ten times the recommended length. "
    "Where does it keep the picture, what does it cost, and when does it fail?"
)


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train every case to its reach, and measure the word gaps with the reward alone; quick: two cases, one seed, two updates."""
    rows = [row for case in cases(quick) for row in _trained(case, out, quick, recipes)]
    settings = settings_of(cases(quick)[0].arm, 0, recipes)
    return rows + piece(out, "gaps", settings, lambda: _gaps(recipes))


def _trained(case: Case, out: Path, quick: bool, recipes: Path) -> list[Row]:
    """The rows of one case, each with its group and with its updates in units of the recipe's length."""
    length = recommended(case.arm, quick, recipes)
    rows = run_arms(NAME, [lengthened(case, quick, recipes)], case.seeds, out, recipes)
    return [{**row, "group": case.group, "length": row["step"] / length} for row in rows]


def _gaps(recipes: Path) -> list[Row]:
    """One row per choice of words: how near its texts lie, and what pos − neg gives true pictures of each style."""
    reward = load_reward(load_run(recipes / f"{GAPS[0].arm.recipe}.yaml").reward)
    assert isinstance(reward, ClipReward)
    named = [{"study": NAME, "kind": "gap", "arm": gap.name, "title": gap.title, "seed": 0, "cosine": text_cosine(gap, reward)} for gap in GAPS]
    seen = seen_by(reward)
    return [{**name, **facts_of(gap, reward, seen)} for name, gap in zip(named, GAPS, strict=True)]
