"""Learned control tokens against the best words, in the anchored and in the relative reward: the photo rate at equal content loss.

Tokens are fitted anew for every seed, from a few dozen renders that no run is measured on, and lie in OUT/tokens.
"""

from __future__ import annotations

from .. import config
from ..reward_analysis.images import load_examples
from ..reward_analysis.soft_prompts import SoftPromptConfig, SoftPromptResult, fit_soft_prompts
from ..rewards import load_reward
from ..rewards.soft_prompts import write_tokens
from .control_tokens_story import draw, tell
from .running.experiment import run_arms, settings_of
from .running.pieces import piece
from .running.records import Arm, Row
from .running.sizes import sized
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "control_tokens"
TITLE = "Learned control tokens against the best control words"
QUESTION = (
    "The paper leaves open whether learned tokens can take the place of control words. Here two sets of vectors are fitted to the embedded reward from a few "
    "dozen pictures of photos and of other styles: once to tell styles apart alone, once so that pos − neg also says what the caption names. They train SRPO "
    "beside the recipe's own words, for the same updates and calls, under the anchored and the plain relative reward. "
    "Which photo rate is reached before a given share of the content is lost?"
)
RECIPE = "world_srpo"
SEEDS = (0, 1, 2)
FORMS = ("anchored", "relative")
IMAGES, COUNT, FIRST_SEED = "world:photo/rest", 48, 100
"""Pictures a side that tokens are fitted to; the fit beside run seed s has seed FIRST_SEED + s."""
OFTEN = ("evaluate.every=5", "evaluate.num_pairs=128", "evaluate.pairs_during=128")


@dataclass(frozen=True)
class Wanted:
    """What the reward is asked with: the recipe's words, or tokens fitted as `fitting` says."""

    name: str
    title: str
    fitting: SoftPromptConfig | None


WANTED = (
    Wanted("words", "words", None),
    Wanted("style_tokens", "style tokens", SoftPromptConfig(content=0.0)),
    Wanted("tokens", "full tokens", SoftPromptConfig()),
)


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Fit the tokens of every seed, then train with them and with the words; quick: one seed, few pictures, a short fit."""
    rows: list[Row] = []
    for seed in SEEDS[:1] if quick else SEEDS:
        fits = [row for each in WANTED if each.fitting for row in _fitted(each, seed, out, quick, recipes)]
        arms = sized([arm_of(each, form, seed, out) for each in WANTED for form in FORMS], quick)
        rows += [*fits, *run_arms(NAME, arms, [seed], out, recipes)]
    return rows


def arm_of(wanted: Wanted, form: str, seed: int, out: Path) -> Arm:
    """The recipe in one form of the reward, with the recipe's words or with this seed's tokens."""
    tokens = [f"method.words={json.dumps(_sides(wanted, seed, out))}"] if wanted.fitting else []
    return Arm(f"{wanted.name}_{form}", f"{wanted.title}, {form}", RECIPE, (*OFTEN, f"method.form={form}", *tokens))


def _sides(wanted: Wanted, seed: int, out: Path) -> dict[str, list[str]]:
    return {side: [str(_file(wanted, seed, out, side))] for side in ("positive", "negative")}


def _file(wanted: Wanted, seed: int, out: Path, side: str) -> Path:
    return out / "tokens" / f"{wanted.name}-seed{seed}.{side}.safetensors"


def _fitted(wanted: Wanted, seed: int, out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Two rows, the words and the tokens on held-out pictures; the files of tokens are written when they are not there."""
    settings = settings_of(Arm(wanted.name, wanted.title, RECIPE), seed, recipes)
    return piece(out, f"fit-{wanted.name}-seed{seed}", settings, lambda: _fit(wanted, seed, out, quick, settings))


def _fit(wanted: Wanted, seed: int, out: Path, quick: bool, settings: config.RunConfig) -> Sequence[Row]:
    assert wanted.fitting is not None
    fitting = SoftPromptConfig(content=wanted.fitting.content, num_steps=4 if quick else wanted.fitting.num_steps, seed=FIRST_SEED + seed)
    examples = load_examples(IMAGES, NAME, count=8 if quick else COUNT, seed=fitting.seed)
    fitted = fit_soft_prompts(load_reward(settings.reward), examples, settings.method.words, fitting)
    for side, made in (("positive", fitted.positive), ("negative", fitted.negative)):
        write_tokens(_file(wanted, seed, out, side), made)
    return _rows(wanted, seed, fitted)


def _rows(wanted: Wanted, seed: int, fitted: SoftPromptResult) -> list[Row]:
    assert fitted.words is not None
    found = (("words", "words", fitted.words), (wanted.name, wanted.title, fitted.learned))
    named = {"study": NAME, "kind": "fit", "seed": seed, "fit": wanted.name, "best_step": fitted.best_step, "pictures": fitted.held_out}
    return [{**named, "arm": name, "title": title, **asdict(separation)} for name, title, separation in found]
