"""A reward that is taught to listen to control words, before and after: where it pushes, and what a model becomes that is aligned with it.

OUT/rewards/NAME/   the taught rewards, complete folders as `directalign listen` writes them
"""

from __future__ import annotations

from .. import config
from ..control.listen import Lessons
from ..control.tuned_folder import listen
from ..types import DirectAlignError
from .listening_story import draw, tell
from .running.experiment import run_arms, settings_of
from .running.pieces import piece
from .running.records import Arm, Row
from .running.sizes import sized
from .wordings import OTHERS, PHOTO
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "listening"
TITLE = "A reward that listens: taught to respond to control words, before and after"
QUESTION = (
    "Whether a reward that is tuned to respond to control words gives a straighter direction is left open by the paper. Here the embedded reward is "
    "fine-tuned on rendered pairs, photographs against the other styles of the same scenes, in its text tower alone. The angle between its pull and the way "
    "from a picture to its photograph is measured before and after on held-out captions; then SRPO is run with both, under the relative and the anchored "
    "reward, with the words that the reward knows and with two made-up ones. Does the tuned reward push straighter, and does the model drift less?"
)
SEEDS = (0, 1, 2)
SOURCE, IMAGES, COUNT, QUICK_COUNT = "world:reward", "world:photo/rest", 384, 32
SEED = 7
"""Of the examples and the fits; settings were chosen with others."""
KNOWN = config.ControlPhrases(positive=list(PHOTO), negative=list(OTHERS), order="average")
MADE_UP = config.ControlPhrases(positive=["Flarn"], negative=["Blick"], order="average")


@dataclass(frozen=True)
class Pupil:
    """A reward that is taught here."""

    name: str
    title: str
    words: config.ControlPhrases
    lessons: Lessons


PUPILS = (
    Pupil("tuned", "tuned", KNOWN, Lessons(part="text", learning_rate=3e-4, seed=SEED)),
    Pupil("wide", "tuned, gap three times as wide", KNOWN, Lessons(part="text", learning_rate=1e-3, gap=1.2, seed=SEED)),
    Pupil("made_up", "tuned to made-up words", MADE_UP, Lessons(part="text", learning_rate=1e-3, gap=0.4, seed=SEED)),
)
QUICK_PUPILS = ("tuned",)
LENGTHS = {"relative": ("train.num_steps=12", "evaluate.every=2"), "anchored": ("train.num_steps=25", "evaluate.every=5")}
"""The relative reward is fast and loses the object soon, so it is looked at more often."""


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Teach every reward that is not there yet, then train every arm with it; quick: one reward after four updates, two arms, one seed."""
    pupils = [pupil for pupil in PUPILS if not quick or pupil.name in QUICK_PUPILS]
    listened = [row for pupil in pupils for row in piece(out, f"reward-{pupil.name}", _kept(recipes), partial(_taught, pupil, out, quick))]
    chosen = arms(out)[:2] if quick else arms(out)
    return listened + run_arms(NAME, sized(chosen, quick), SEEDS[:1] if quick else SEEDS, out, recipes)


def arms(out: Path) -> list[Arm]:
    """SRPO with the original and with the taught rewards: the same recipe, words, updates and calls in each pair."""
    tuned, wide, made_up = (str(folder_of(out, pupil.name)) for pupil in PUPILS)
    return [
        _arm("relative_original", "relative, original", "relative", KNOWN, SOURCE),
        _arm("relative_tuned", "relative, tuned", "relative", KNOWN, tuned),
        _arm("relative_wide", "relative, tuned, wide gap", "relative", KNOWN, wide),
        _arm("anchored_original", "anchored, original", "anchored", KNOWN, SOURCE),
        _arm("anchored_tuned", "anchored, tuned", "anchored", KNOWN, tuned),
        _arm("made_up_original", "made-up words, original", "anchored", MADE_UP, SOURCE),
        _arm("made_up_tuned", "made-up words, tuned", "anchored", MADE_UP, made_up),
    ]


def _arm(name: str, title: str, form: str, words: config.ControlPhrases, reward: str) -> Arm:
    overrides = (f"method.form={form}", f"method.words={json.dumps(words.model_dump())}", f"reward.path={reward}", *LENGTHS[form])
    return Arm(name, title, "world_srpo", overrides)


def folder_of(out: Path, name: str) -> Path:
    """Where a taught reward lies."""
    return out / "rewards" / name


def _kept(recipes: Path) -> config.RunConfig:
    """The settings that rows about rewards are kept under: the recipe's, with the reward that is taught."""
    return settings_of(Arm("source", "", "world_srpo", (f"reward.path={SOURCE}",)), SEED, recipes)


def _taught(pupil: Pupil, out: Path, quick: bool) -> list[Row]:
    """Two rows, before and after: every measure on held-out captions, angles as three numbers."""
    lessons = replace(pupil.lessons, num_steps=4) if quick else pupil.lessons
    folder = folder_of(out, pupil.name)
    record = _record(folder, lessons) if folder.exists() else listen(SOURCE, IMAGES, pupil.words, folder, lessons, QUICK_COUNT if quick else COUNT)
    named = {"study": NAME, "kind": "listen", "arm": pupil.name, "title": pupil.title, "seed": SEED, "updates": record["best_step"]}
    return [{**named, "when": when, "held_out": record["held_out"], **_flat(record[when])} for when in ("before", "after")]


def _record(folder: Path, lessons: Lessons) -> dict[str, Any]:
    """listen.json of a reward that was taught before the study was stopped."""
    record = json.loads((folder / "listen.json").read_text(encoding="utf-8"))
    if record["lessons"] != json.loads(json.dumps(asdict(lessons))):
        raise DirectAlignError(f"{folder} was taught with other settings than the study has now: remove {folder}, or choose another --out")
    return record


def _flat(found: dict[str, Any]) -> Row:
    flat: Row = {f"bias_{probe.replace(' ', '_')}": moved["relative"] for probe, moved in found["bias"].items()}
    for name, value in found.items():
        if isinstance(value, float):
            flat[name] = value
        elif name != "bias":
            flat |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
    return flat
