"""Where words do not reach: a base model that does not do what control phrases ask.

In the first world asking is enough (study `asking`). The second world's base was trained with style
words that say nothing, so only a reward knows what a photo is. The reward likes a red tint; its
judge may answer that an image has no style at all, so a tinted, blurred or half-converted image is
no photo.

Expected beforehand: asking moves the photo rate by at most ten points, held-out pairs are right as
often as trained ones within five, and prompt distillation does nothing. Yes to "alignment reaches
what prompting cannot": photo and content at or above .85 from at most .20, colour distance and
detail within 15 % of photographs. Settings were chosen on validation captions with one seed, three
to five trials per method; everything here is measured on the test captions.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from directalign.config import RunConfig

from .asking import REFERENCES, references
from .plots import Panel, curves, lines_along
from .rows import Row, Rows
from .runner import Arm, piece, run_arms, settings_of, sized
from .tables import Column, Table, means

WORLD2 = (
    "model.path=world2:flux",
    "reward.path=world2:reward_tint",
    "data.prompts=world2",
    "evaluate.prompts=world2:test",
    "evaluate.judge=world2",
    "evaluate.diversity_prompts=8",
    "evaluate.every=20",
    "train.num_steps=80",
    "train.sample_prompts=[a fox on a navy background]",
    "rollout.num_inference_steps=10",
    "method.control_phrases.negative=[CG render, Glossy plastic, Soft pastel]",
)
ARMS = [
    Arm("srpo", "SRPO, anchored, ceiling", "world2_srpo", WORLD2),
    Arm("official", "SRPO, official ramps", "world2_official", (*WORLD2, "rollout.shift=null")),
    Arm("direct_align", "Direct-Align", "world2_direct_align", WORLD2),
    Arm("raft", "RAFT", "world_raft", (*WORLD2, "data.batch_size=8", "train.learning_rate=2e-5")),
    Arm("distillation", "prompt distillation", "world_prompt_distillation", WORLD2),
]
OTHER_REWARDS = ("saturation", "smooth", "exposure", "tint_rho25", "tint_rho50", "tint_rho100")
TASTES = [
    Arm(name, f"SRPO, reward {name}", "world2_srpo", (*WORLD2, f"reward.path=world2:reward_{name}"))
    for name in OTHER_REWARDS
]
BASES = {
    "": (),
    "promptable_": ("model.path=world2:flux_promptable",),
    "held_out_": ("evaluate.prompts=world2:held_out",),
    "drawn_": ("evaluate.prompts=world2",),
}
"""Prefixes of the reference rows, and what differs from the arms: the base itself, the base whose
style words are true, and the base on held-out pairs and on others."""
STRETCH = 60
COLUMNS = (
    Column("photo_and_content", "photo and content"),
    Column("photo_rate", "photo rate"),
    Column("photo_among_styles", "photo, if no reject"),
    Column("style_reject", "rejected"),
    Column("content", "content"),
    Column("color_drift", "colour drift"),
    Column("color_distance", "colour distance"),
    Column("sharpness", "sharpness"),
    Column("diversity", "diversity"),
)


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of kind `reference`, one per stretch of pairs, and training runs."""
    rows: list[Row] = []
    size, stretches = (4, 1) if quick else (STRETCH, 8)
    for prefix, overrides in BASES.items():
        run = settings_of(ARMS[0].plus(*overrides), 0)
        for seed in range(stretches):
            make = partial(_references, run, seed, size, prefix)
            found = piece(out, f"{prefix}stretch-{seed}", run, make)
            rows += [
                {"study": "unpromptable", "kind": "reference", "seed": seed, **r} for r in found
            ]
    seeds = (0,) if quick else range(8)
    rows += run_arms("unpromptable", sized(ARMS, quick), seeds, out)
    return rows + run_arms("unpromptable", sized(TASTES, quick), seeds[:3], out)


def _references(run: RunConfig, seed: int, size: int, prefix: str) -> list[Row]:
    found = [row | {"arm": prefix + row["arm"]} for row in references(run, seed, size)]
    return found if not prefix else [row for row in found if "auto" not in row["arm"]]


def tables(rows: Rows) -> dict[str, Table]:
    titles = [column.title for column in COLUMNS]
    asked, runs = rows.where(kind="reference"), rows.runs
    names = {"": "", "promptable_": ", words true", "held_out_": ", held-out pairs"}
    names["drawn_"] = ", validation pairs"
    references = [
        [title + words, *means(COLUMNS, found)]
        for prefix, words in names.items()
        for arm, title in REFERENCES.items()
        if (found := asked.where(arm=prefix + arm))
    ]
    trained = [
        [title, str(step), *means(COLUMNS, runs.at(arm, step))]
        for arm, title in runs.arms.items()
        for step in sorted({row["step"] for row in runs if row["step"] > 0})
    ]
    return {
        "references": Table(["images", *titles], references),
        "trained": Table(["method", "updates", *titles], trained),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    panels = [
        Panel(column.title.capitalize(), "updates", "", lines_along(rows.runs, "step", column.key))
        for column in COLUMNS
    ]
    title = "Second world: a base model that does not do what words ask"
    return [curves(folder / "unpromptable_curves.png", title, panels, "Means over seeds")]
