"""Base, plain Direct-Align, ReFL and SRPO by the comparison that users run; and that comparison itself, held against truths that are known.

Each method is trained by its own recipe from each seed, and `evaluate.compare` is given the runs. What it says of them rests on intervals and
tests, which are tried on models made of renders (`compared_planted`), and on votes of made-up annotators (`compared_votes`).
"""

from __future__ import annotations

from ..config import RunConfig
from ..evaluation.compare import SUMMARY, Request, compare
from ..training.run_folder import commit, machine, versions
from .compared_planted import Planted, power, rendered_bank, simulated
from .compared_story import draw, tell
from .compared_votes import Electorate, simulated_votes
from .running.experiment import run_arm, settings_of
from .running.pieces import piece
from .running.records import Arm, Row
from .running.sizes import sized
from .showing.palette import title_of
import json
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "compared"
TITLE = "The comparison: who wins on the world, and do its intervals hold what they promise?"
QUESTION = (
    "Base, plain Direct-Align, ReFL and SRPO go through `directalign compare`: win rates on the same prompts and seeds, by the world's judges and by a reward "
    "that none was trained on. What such numbers are worth depends on their intervals, so these are tried where the truth is known: renders of the world "
    "stand in for models that show a photo with probability p and the right content with probability q, the same judges look, and the same statistics speak. "
    "How often do the 95 % intervals hold the truth, how often does the sign test see a difference that is not there, and how large must one be to be seen? "
    "The arena's votes are tried in the same way."
)
SEEDS = (0, 1, 2)
RECIPES = {"direct_align": "world_direct_align", "refl": "world_refl", "srpo": "world_srpo"}
ARMS = tuple(Arm(name, title_of(name), recipe, ("evaluate.every=0",)) for name, recipe in RECIPES.items())
QUICK_ARMS = ("direct_align", "srpo")
HELD_OUT = "second={name: clip, path: 'world:second_reward'}"
IMAGES, QUICK_IMAGES = 240, 8
"""Of each model in a comparison, two of a prompt."""
PLANTED = (
    Planted("equal", "equal models", (0.5, 0.5), (0.9, 0.9)),
    Planted("slight", "slightly apart", (0.45, 0.55), (0.95, 0.9)),
    Planted("far", "far apart", (0.2, 0.8), (0.97, 0.85)),
    Planted("rare", "rates near 0 and 1", (0.02, 0.05), (0.99, 0.97)),
    Planted("few", "16 prompts alone", (0.3, 0.6), (0.9, 0.8), prompts=16),
    Planted("many_seeds", "8 seeds a prompt", (0.4, 0.6), (0.9, 0.8), prompts=40, seeds=8, likeness=0.5),
    Planted("by_image", "8 seeds a prompt, counted by image", (0.4, 0.6), (0.9, 0.8), prompts=40, seeds=8, likeness=0.5, by_image=True),
)
ELECTORATES = (
    Electorate("equal_votes", "equal models, 30 items", (0.0, 0.0, 0.0, 0.0)),
    Electorate("unequal_votes", "unequal models, 30 items", (0.9, 0.3, -0.3, -0.9)),
    Electorate("more_votes", "unequal models, 100 items", (0.9, 0.3, -0.3, -0.9), items=100),
)
EFFECTS, PROMPTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3), (30, 120, 480)
SIMULATED, QUICK_SIMULATED = 1000, 4
CAPTIONS, VARIANTS = 240, 4


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train and compare, then simulate; quick: two arms, one seed, two updates, a handful of simulations."""
    arms = sized([arm for arm in ARMS if not quick or arm.name in QUICK_ARMS], quick)
    rows = [row for seed in (SEEDS[:1] if quick else SEEDS) for row in compared(arms, seed, out, recipes, QUICK_IMAGES if quick else IMAGES)]
    return rows + planted(out, quick, settings_of(arms[0], 0, recipes))


def compared(arms: list[Arm], seed: int, out: Path, recipes: Path, images: int) -> list[Row]:
    """The runs of one seed against each other and their base."""
    sources = tuple(f"{arm.name}={run_arm(arm, seed, out, recipes)}" for arm in arms)
    where = {"commit": commit(), "machine": machine(), "versions": versions()}
    request = Request(sources, out / "comparisons" / f"seed{seed}", base=True, num_pairs=images, rewards=(HELD_OUT,), where=where)
    summary = json.loads((compare(request, lambda words: print(words, flush=True)) / SUMMARY).read_text(encoding="utf-8"))
    return [{**row, **where} for row in summarised(summary, seed)]


def summarised(summary: Row, seed: int) -> Iterator[Row]:
    """A row per number of each model, and per pair and number that is won or lost."""
    for key, numbers in summary["models"].items():
        for name, interval in numbers.items():
            yield {"study": NAME, "kind": "model", "arm": key, "title": title_of(key), "seed": seed, "number": name, **interval}
    for won in summary["wins"]:
        yield {"study": NAME, "kind": "wins", "arm": won["b"], "title": title_of(won["b"]), "seed": seed, **won}


def planted(out: Path, quick: bool, settings: RunConfig) -> list[Row]:
    """Everything simulated, piece by piece."""
    bank = rendered_bank(*((8, 1) if quick else (CAPTIONS, VARIANTS)))
    count = QUICK_SIMULATED if quick else SIMULATED
    pieces = {"judges": bank.rows}
    pieces |= {f"planted-{each.name}": partial(simulated, each, bank, count) for each in PLANTED}
    pieces |= {"power": lambda: [power(effect, prompts, count) for prompts, effect in product(PROMPTS, EFFECTS)]}
    pieces |= {f"votes-{each.name}": partial(simulated_votes, each, count) for each in ELECTORATES}
    return [{"study": NAME, **row} for name, make in pieces.items() for row in piece(out, name, settings, make)]
