"""A reward finetuned to respond to control phrases (left open by the paper), before and after.

The embedded reward's text tower is finetuned on rendered pairs, photographs against other styles;
then SRPO runs with both rewards, with known phrases and with two made-up words.

OUT/rewards/NAME/   finetuned rewards, complete folders as `directalign reward finetune` writes them
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from directalign import config
from directalign.reward_analysis.finetune import RECORD, FinetuneConfig, finetune_to_folder
from directalign.types import DirectAlignError

from .control_phrases import OTHERS, PHOTO
from .plots import DotColumn, curves, dots_with_intervals, panels_over_updates
from .rows import Row, Rows, SeedInterval, after, at_photo_rate
from .runner import Arm, flat, piece, run_arms, settings_of, sized, unflat
from .tables import MEASURED, VERSUS, Table, means, number, versus, with_interval

SEEDS = (0, 1, 2)
SOURCE, IMAGES, COUNT, QUICK_COUNT = "world:reward", "world:photo/rest", 384, 32
SEED = 7
"""Of the examples and the fits; settings were chosen with other seeds."""
KNOWN = config.ControlPhrases(positive=list(PHOTO), negative=list(OTHERS), order="average")
MADE_UP = config.ControlPhrases(positive=["Flarn"], negative=["Blick"], order="average")
LEVELS = (0.5, 0.8)
"""Photo rates at which runs are compared."""


@dataclass(frozen=True)
class Finetuned:
    """A reward that is finetuned here."""

    name: str
    title: str
    short: str
    words: config.ControlPhrases
    settings: FinetuneConfig


def _text_tower(learning_rate: float, gap: float | None = None) -> FinetuneConfig:
    return FinetuneConfig(part="text", learning_rate=learning_rate, gap=gap, seed=SEED)


_WIDE, _MADE_UP = _text_tower(1e-3, gap=1.2), _text_tower(1e-3, gap=0.4)
REWARDS = (
    Finetuned("tuned", "finetuned", "known words", KNOWN, _text_tower(3e-4)),
    Finetuned("wide", "finetuned, gap three times as wide", "wide gap", KNOWN, _WIDE),
    Finetuned("made_up", "finetuned on made-up words", "made-up words", MADE_UP, _MADE_UP),
)
TITLES = {reward.name: reward.title for reward in REWARDS}
LENGTHS = {
    "relative": ("train.num_steps=12", "evaluate.every=2"),
    "anchored": ("train.num_steps=25", "evaluate.every=5"),
}
ARMS = {
    "relative_original": ("relative, original", "relative", KNOWN, None),
    "relative_tuned": ("relative, finetuned", "relative", KNOWN, "tuned"),
    "relative_wide": ("relative, finetuned, wide gap", "relative", KNOWN, "wide"),
    "anchored_original": ("anchored, original", "anchored", KNOWN, None),
    "anchored_tuned": ("anchored, finetuned", "anchored", KNOWN, "tuned"),
    "made_up_original": ("made-up words, original", "anchored", MADE_UP, None),
    "made_up_tuned": ("made-up words, finetuned", "anchored", MADE_UP, "made_up"),
}
"""{arm: (title, form of the reward, phrases, finetuned reward)}."""


def measure(out: Path, quick: bool) -> list[Row]:
    """Finetune every reward, train every arm; quick: one reward, two arms, one seed."""
    rows: list[Row] = []
    source = Arm("source", "", "world_srpo", (f"reward.path={SOURCE}",))
    settings = settings_of(source, SEED)
    for reward in REWARDS[:1] if quick else REWARDS:
        make = partial(_finetune, reward, out, quick)
        rows += piece(out, f"reward-{reward.name}", settings, make)
    chosen, seeds = (arms(out)[:2], SEEDS[:1]) if quick else (arms(out), SEEDS)
    return rows + run_arms("reward_finetuning", sized(chosen, quick), seeds, out)


def arms(out: Path) -> list[Arm]:
    """SRPO with original and finetuned rewards: same recipe, phrases and updates in each pair."""
    found = []
    for name, (title, form, words, reward) in ARMS.items():
        path = SOURCE if reward is None else str(out / "rewards" / reward)
        phrases = f"method.control_phrases={json.dumps(words.model_dump())}"
        overrides = (f"method.form={form}", phrases, f"reward.path={path}", *LENGTHS[form])
        found.append(Arm(name, title, "world_srpo", overrides))
    return found


def _finetune(reward: Finetuned, out: Path, quick: bool) -> list[Row]:
    """Two rows, before and after: every measure on held-out captions."""
    settings = replace(reward.settings, num_steps=4) if quick else reward.settings
    folder, count = out / "rewards" / reward.name, QUICK_COUNT if quick else COUNT
    if not folder.exists():
        record = finetune_to_folder(SOURCE, IMAGES, reward.words, folder, settings, count)
    else:  # finetuned before the study was interrupted
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["config"] != json.loads(json.dumps(asdict(settings))):
            raise DirectAlignError(
                f"{folder} was finetuned with other settings than the study has now: "
                f"remove {folder}, or choose another --out"
            )
    named = {"study": "reward_finetuning", "kind": "reward", "arm": reward.name}
    named |= {"title": reward.title, "seed": SEED, "updates": record["best_step"]}
    return [
        {**named, "when": when, "held_out": record["held_out"], **_flat(record[when])}
        for when in ("before", "after")
    ]


def _flat(found: dict[str, Any]) -> Row:
    biases = found["bias"].items()
    row: Row = {f"bias_{probe.replace(' ', '_')}": each["relative"] for probe, each in biases}
    for name, value in found.items():
        if isinstance(value, float):
            row[name] = value
        elif name != "bias":
            row |= flat(name, value)
    return row


# --- tables and figures ---------------------------------------------------------------------------

ANGLES = {"angle": "angle", "scene_angle": "angle by scene", "pixel_angle": "angle among pixels"}
PAIRS = {
    "relative": ("relative_tuned", "relative_original"),
    "anchored": ("anchored_tuned", "anchored_original"),
}


def angle_of(row: Row, name: str) -> SeedInterval:
    """An angle of a reward in degrees, with its interval over scenes."""
    interval = unflat(row, name)
    return SeedInterval(
        value=interval["value"], low=interval["low"], high=interval["high"], n=row["held_out"]
    )


def tables(rows: Rows) -> dict[str, Table]:
    runs, directions, differences = rows.runs, [], []
    titles = {name: ARMS[name][0] for name in runs.arms}
    for row in rows.where(kind="reward"):
        angles = [with_interval(angle_of(row, name), 1) for name in ANGLES]
        numbers = [number(row["responsiveness"], 2), number(row["auc"], 3), *angles]
        numbers += [number(row["content_with_words"], 3)]
        numbers += [number(row[f"bias_{probe}"], 4) for probe in ("red_tint", "brightness")]
        directions.append([TITLES[row["arm"]], row["when"], *numbers])
    begun = runs.base
    for form, (tuned, original) in PAIRS.items():
        if tuned in titles and original in titles:
            reached, begun_rate = runs.highest_common([tuned, original]), begun["photo_rate"]
            levels = [level for level in LEVELS if begun_rate < level <= reached]
            conditions = {f"at photo rate {level:g}": at_photo_rate(level) for level in levels}
            each = [(arm, seed) for arm in (tuned, original) for seed in runs.seeds(arm)]
            last = min(runs.run(*run)[-1]["step"] for run in each)
            conditions[f"after {last} updates"] = after(last)
            differences += [[form, *line] for line in versus(runs, tuned, original, conditions)]
    ends = [["base model", "0", *means(MEASURED, [begun])]]
    for arm, title in titles.items():
        last = runs.last(arm)
        ends.append([title, str(last[0]["step"]), *means(MEASURED, last)])
    columns = ["reward", "stage", "responsiveness", "AUC", *ANGLES.values()]
    columns += ["content under the phrases"]
    columns += [f"{probe} moves pos − neg" for probe in ("red tint", "brightness")]
    quality = [column.title for column in MEASURED]
    return {
        "direction": Table(columns, directions),
        "difference": Table(["objective", *VERSUS], differences),
        "end": Table(["run", "updates", *quality], ends),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    runs, measured = rows.runs, rows.where(kind="reward")
    dots = {f"{row['when']}_{row['arm']}": row for row in measured}
    columns = [
        DotColumn(f"{title}, degrees", {dot: angle_of(row, name) for dot, row in dots.items()})
        for name, title in ANGLES.items()
    ]
    short = {reward.name: reward.short for reward in REWARDS}
    names = {dot: f"{short[row['arm']]}, {row['when']}" for dot, row in dots.items()}
    note = "Between the reward's gradient and the direction to the photograph; over scenes."
    file, title = folder / "reward_finetuning_angles.png", "Angles of the finetuned reward"
    files = [dots_with_intervals(file, title, columns, note, names)]
    for form in ("relative", "anchored"):
        shown = [arm for arm in runs.arms if ARMS[arm][1] == form]
        if shown:
            file = folder / f"reward_finetuning_{form}.png"
            title, note = f"SRPO with the finetuned reward, {form}", "Means over seeds."
            panels, titles = panels_over_updates(runs, shown), {arm: ARMS[arm][0] for arm in shown}
            files.append(curves(file, title, panels, note, titles=titles))
    return files
