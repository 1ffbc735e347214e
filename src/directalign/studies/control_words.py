"""Does `directalign reward phrases` find the words and the settings? Its ranking on the embedded world, and trainings with what it suggests.

Two halves: every style of the world as the wanted one, thirty candidates ranked by the reward alone; and the official ramps against the
suggested ramp on the same words and the same calls, with the suggested anchor as a third.
"""

from __future__ import annotations

from ..config.load import load_run
from ..reward_analysis import COMMON
from ..reward_analysis.images import load_examples
from ..reward_analysis.phrases import PhraseStats, PhraseTable, Suggestion, encode_examples, settings_for
from ..reward_analysis.phrases_report import ramp
from ..rewards import load_reward
from ..toyworld.scenes import STYLE_WORDS, STYLES
from .control_words_story import draw, tell
from .running.experiment import run_arms, settings_of
from .running.pieces import piece
from .running.records import Arm, Row
from .running.sizes import sized
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "control_words"
TITLE = "Control words by measurement: are the right ones found, and is the suggested ramp better?"
QUESTION = (
    "`directalign reward phrases` ranks candidate control words on wanted and unwanted images, "
    "before any training, and computes from the reward's geometry how much "
    "absolute preference must go with the relative one. Here every style of the embedded world is the wanted one in turn, with thirty candidates; and SRPO is "
    "trained with the official ramps and with the suggested ramp, same words, same network calls, nothing else changed, up to twice the recommended length; "
    "the suggested anchor stands beside them."
)
SEEDS = (0, 1, 2)
RECIPE, ANCHORED = "world_official", "world_srpo"
COUNT, QUICK_COUNT = 96, 8
UPDATES, EVERY = 60, 10


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train the arms, and rank the candidates for every style; quick: two arms, one seed, two updates, one style."""
    chosen = arms(recipes)[:2] if quick else arms(recipes)
    rows = run_arms(NAME, sized([_longer(arm) for arm in chosen], quick), SEEDS[:1] if quick else SEEDS, out, recipes)
    settings = settings_of(Arm("ranking", "ranking", RECIPE), 0, recipes)
    styles, count = (STYLES[:1], QUICK_COUNT) if quick else (STYLES, COUNT)
    return rows + piece(out, "ranked", settings, lambda: [row for style in styles for row in ranked(style, count, recipes)])


def arms(recipes: Path) -> list[Arm]:
    """Official ramps; the suggested ramp in both branches of the same recipe; the suggested tolerance in the anchored recipe."""
    found = suggested(recipes)
    assert found.mu is not None and found.tolerance is not None, "the embedded reward has texts that can be read"
    ramps = json.dumps(ramp(round(found.mu, 2)))
    both = (f"method.denoise={ramps}", f"method.inversion={ramps}")
    return [
        Arm("official", "official ramps", RECIPE),
        Arm("suggested", f"suggested ramp, k_pos − k_neg from 0 to {2 * round(found.mu, 2):g}", RECIPE, both),
        Arm("anchored", f"suggested anchor, tolerance {found.tolerance:g}", ANCHORED, (f"method.anchor.tolerance={found.tolerance}",)),
    ]


def _longer(arm: Arm) -> Arm:
    return Arm(arm.name, arm.title, arm.recipe, (f"train.num_steps={UPDATES}", f"evaluate.every={EVERY}", *arm.overrides))


@cache
def suggested(recipes: Path) -> Suggestion:
    """Ramp and tolerance for the recipe's own words, photographs against all other styles."""
    words = load_run(recipes / f"{RECIPE}.yaml").method.words
    return settings_for(_table("photo", COUNT, recipes), words.positive, words.negative)


def _table(style: str, count: int, recipes: Path) -> PhraseTable:
    reward = load_reward(load_run(recipes / f"{RECIPE}.yaml").reward)
    return PhraseTable(reward, encode_examples(reward, load_examples(f"world:{style}/rest", "images", count=count)))


def ranked(style: str, count: int, recipes: Path) -> list[Row]:
    """One row per candidate, from the most wanted to the most unwanted, when pictures of `style` are wanted."""
    table = _table(style, count, recipes)
    words = sorted((table.phrase(phrase) for phrase in COMMON), key=lambda word: -word.lift.size)
    return [_row(style, word, place) for place, word in enumerate(words, start=1)]


def _row(style: str, word: PhraseStats, place: int) -> Row:
    lift = {"lift": word.lift.value, "lift_low": word.lift.low, "lift_high": word.lift.high, "size": word.lift.size}
    named = {"study": NAME, "kind": "ranked", "arm": style, "title": style, "seed": 0, "phrase": word.phrase, "place": place, "names": named_by(word.phrase)}
    return {**named, **lift, "content": word.content, "cut": word.cut}


def named_by(phrase: str) -> str:
    """The style whose word a phrase is or is part of ("Render" of "CG render"); "" for any other."""
    return next((style for style, words in STYLE_WORDS.items() if _is_part(phrase, words)), "")


def _is_part(phrase: str, words: Sequence[str]) -> bool:
    return any(set(phrase.casefold().split()) <= set(word.casefold().split()) for word in words)
