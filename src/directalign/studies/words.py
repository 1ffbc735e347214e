"""Control words: every style of the world as target, single and several pairs, signs swapped, rare and made-up words.

What is asked of each: does its target appear, does content hold, how much of the common bias cancels, and is a style that the
prompt itself asks for still delivered afterwards?
"""

from __future__ import annotations

from ..interfaces import Reward
from ..rewards import load_reward
from ..toyworld.scenes import STYLES
from .comparing.reading import before_training, ends, of_kind, of_runs, over
from .comparing.statistics import SeedInterval
from .running.experiment import folder_of as run_folder
from .running.experiment import run_arms, settings_of
from .running.looking import asked_images, measurer_of
from .running.pieces import piece
from .running.records import Arm, Row
from .running.sizes import sized
from .showing.figures import Column, dots_with_intervals
from .showing.tables import DASH, markdown, number, with_interval
from .wordings import WORDINGS, Wording, facts_of, seen_by
from collections.abc import Sequence
from functools import partial
from pathlib import Path


NAME = "words"
TITLE = "Control words: which pairs cancel the bias, and what they suppress"
QUESTION = (
    "The paper steers SRPO with pairs of control words and finds that words work in proportion to their frequency in the reward's training text; whether pairs "
    "beyond realistic and CG cancel the bias without suppressing legitimate style is left open. Here every style of the embedded world is a target once, with "
    "one pair, with several, with the signs swapped, and with words that the reward hardly knows. Measured are the rate of the target style, content, colour "
    "drift, the share of the common red bias that cancels in the difference, and whether a style that the prompt itself asks for is still delivered."
)
SEEDS = (0, 1, 2)
ASKED_PAIRS = 32
STYLE_HELD = 0.9
"""A style counts as suppressed when it is delivered in less than this share of the cases in which the base model delivers it."""
QUICK_NAMES = ("to_photo", "to_anime")


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train every wording, ask each model for every style, and measure every wording with the reward alone; quick: two wordings, one seed."""
    wordings = [wording for wording in WORDINGS if not quick or wording.name in QUICK_NAMES]
    arms, seeds = sized([wording.arm for wording in wordings], quick), SEEDS[:1] if quick else SEEDS
    count, styles = (4, STYLES[:2]) if quick else (ASKED_PAIRS, STYLES)
    rows = run_arms(NAME, arms, seeds, out, recipes)
    for arm in arms:
        for seed in seeds:
            folder = run_folder(arm, seed, out)
            rows += piece(out, f"asked-{arm.name}-seed{seed}", settings_of(arm, seed, recipes), partial(_asked, arm, seed, folder, styles, count))
    settings, base = settings_of(arms[0], 0, recipes), Arm("base", "base model", arms[0].recipe)
    rows += piece(out, "asked-base", settings, partial(_asked, base, 0, run_folder(arms[0], 0, out), styles, count))
    return rows + piece(out, "facts", settings, lambda: _facts(wordings, load_reward(settings.reward)))


def _asked(arm: Arm, seed: int, folder: Path, styles: Sequence[str], count: int) -> list[Row]:
    """One row per style: how often images are of it when the prompt asks for it, and how many keep their content."""
    measurer = measurer_of(folder, base=arm.name == "base")
    rows = []
    for style in styles:
        judged = measurer.per_image(asked_images(measurer, style, count))
        answers = {"delivered": judged[f"style_{style}"], "content": judged["content"]}
        means = {name: answer.double().mean().item() for name, answer in answers.items()}
        rows.append({"study": NAME, "kind": "asked", "arm": arm.name, "title": arm.title, "seed": seed, "asked": style, "pairs": count, **means})
    return rows


def _facts(wordings: Sequence[Wording], reward: Reward) -> list[Row]:
    named = [{"study": NAME, "kind": "facts", "arm": wording.name, "title": wording.title, "seed": 0, "target": wording.target} for wording in wordings]
    seen = seen_by(reward)
    return [{**name, **facts_of(wording, reward, seen)} for name, wording in zip(named, wordings, strict=True)]


# --- told -------------------------------------------------------------------------------------------------------------


def tell(rows: list[Row]) -> str:
    """Targets reached, bias cancelled, styles suppressed: one table and one sentence each."""
    facts = {row["arm"]: row for row in of_kind(rows, "facts")}
    return "\n\n".join([_reached(rows, facts), _cancelled(facts), _suppressed(rows, list(facts))])


def _reached(rows: list[Row], facts: dict[str, Row]) -> str:
    trained = of_runs(rows)
    begun = before_training(trained)
    lines = []
    for arm, fact in facts.items():
        last, target = ends(trained, arm), fact["target"]
        rates = [with_interval(over(last, key), 2) for key in (*(f"style_{style}" for style in STYLES), "content", "color_drift")]
        reached = [number(begun[f"style_{target}"]), with_interval(over(last, f"style_{target}"), 2)] if target else [DASH, DASH]
        lines.append([fact["title"], target or DASH, *reached, *rates])
    headers = ["words", "target", "target before", "target after", *STYLES, "content", "colour drift"]
    return f"## Does the target appear?\n\n{_reached_sentence(trained, facts)}\n\n{markdown(headers, lines)}"


def _reached_sentence(trained: Sequence[Row], facts: dict[str, Row]) -> str:
    after = {arm: over(ends(trained, arm), f"style_{fact['target']}") for arm, fact in facts.items() if fact["target"]}
    known = {arm: rate for arm, rate in after.items() if rate is not None}
    best, least = max(known, key=lambda arm: known[arm]["value"]), min(known, key=lambda arm: known[arm]["value"])
    worst = min(facts, key=lambda arm: _value(over(ends(trained, arm), "content")))
    left = with_interval(over(ends(trained, worst), "content"), 2)
    return (
        f"The target style is reached most with the words “{facts[best]['title']}” ({with_interval(known[best], 2)}) and least with "
        f"“{facts[least]['title']}” ({with_interval(known[least], 2)}). Content is lowest under “{facts[worst]['title']}”: {left}."
    )


def _value(interval: SeedInterval | None) -> float:
    assert interval is not None
    return interval["value"]


def _cancelled(facts: dict[str, Row]) -> str:
    share = {arm: fact["cancelled"] for arm, fact in facts.items()}
    best, least = max(share, key=lambda arm: share[arm]), min(share, key=lambda arm: share[arm])
    sentence = (
        f"A red cast raises every score. In pos − neg {_percent(share[best])} of it is gone with the words “{facts[best]['title']}”, and "
        f"{_percent(share[least])} with “{facts[least]['title']}”. Preferred style is the one whose true pictures have the largest pos − neg."
    )
    headers = ["words", "cast adds to pos", "cast adds to pos − neg", "cancelled", *(f"pos − neg of {style}" for style in STYLES), "prefers"]
    lines = [[fact["title"], *(number(fact[key], 3) for key in ("tint_pos", "tint_relative", "cancelled")), *_gaps(fact)] for fact in facts.values()]
    return f"## What cancels?\n\n{sentence}\n\n{markdown(headers, lines)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _gaps(fact: Row) -> list[str]:
    gaps = {style: fact[f"gap_{style}"] for style in STYLES}
    return [*(number(gap, 3) for gap in gaps.values()), max(gaps, key=lambda style: gaps[style])]


def _suppressed(rows: list[Row], arms: Sequence[str]) -> str:
    styles = list(dict.fromkeys(row["asked"] for row in of_kind(rows, "asked")))
    names = {row["arm"]: row["title"] for row in of_kind(rows, "asked")}
    lines = [[names[arm], *(with_interval(_delivered(rows, arm, style), 2) for style in styles)] for arm in ("base", *arms)]
    lost = [f"{style} under “{names[arm]}”" for arm in arms for style in styles if is_suppressed(rows, arm, style)]
    sentence = (
        f"A prompt that asks for a style itself no longer gets it as often as before ({_percent(STYLE_HELD)} of the base model's rate) for: {', '.join(lost)}."
    )
    nothing = f"Every style is still delivered at {_percent(STYLE_HELD)} of the base model's rate or more when the prompt asks for it."
    table = markdown(["words", *(f"{style} when asked" for style in styles)], lines)
    return f"## What is suppressed?\n\n{sentence if lost else nothing}\n\n{table}"


def _delivered(rows: Sequence[Row], arm: str, style: str) -> SeedInterval | None:
    return over(of_kind(rows, "asked", arm=arm, asked=style), "delivered")


def is_suppressed(rows: Sequence[Row], arm: str, style: str) -> bool:
    """Whether a style that the prompt asks for is delivered in less than `STYLE_HELD` of the base model's cases."""
    return _value(_delivered(rows, arm, style)) < STYLE_HELD * _value(_delivered(rows, "base", style))


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Three sheets of dots: styles on plain prompts, what that costs, and what prompts with a style still get."""
    facts, trained = {row["arm"]: row for row in of_kind(rows, "facts")}, of_runs(rows)

    def after(title: str, key: str, percent: bool = True) -> Column:
        return Column(title, {arm: over(ends(trained, arm), key) for arm in facts}, percent=percent, at=before_training(trained)[key])

    cancels = Column("bias cancelled", {arm: {"value": fact["cancelled"], "low": None, "high": None} for arm, fact in facts.items()}, percent=True)
    styles = list(dict.fromkeys(row["asked"] for row in of_kind(rows, "asked")))
    asked = [Column(f"{style} when asked", {arm: _delivered(rows, arm, style) for arm in ("base", *facts)}, percent=True) for style in styles]
    plain = [after(style, f"style_{style}") for style in STYLES]
    price = [after("content", "content"), after("colour drift", "color_drift", percent=False), cancels]
    note = "Plain prompts, after training; the dashed line is the base model."
    return [
        dots_with_intervals(folder / f"{NAME}_styles.png", "Which style the words bring out", plain, note),
        dots_with_intervals(folder / f"{NAME}_price.png", "What the words cost", price, note),
        dots_with_intervals(folder / f"{NAME}_asked.png", "Is a style that the prompt asks for still delivered?", asked),
    ]
