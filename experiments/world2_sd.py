"""The second world on Stable Diffusion (epsilon and v), where words do not ask for the look either.

Both networks learned all looks with true words before their text encoder alone was trained with any
words (see `unpromptable` for FLUX). The recipes differ from world2_srpo in what a
variance-preserving path needs: levels of equal gain, and classifier-free guidance.

Expected beforehand: asking moves the photo rate by at most ten points, and SRPO raises photo and
content by at least .20 without loss of content. Settings were chosen on validation captions with
one seed; everything here is measured on the test captions.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .asking import REFERENCES
from .plots import Panel, curves, lines_along
from .rows import Row, Rows
from .runner import Arm, piece, run_arms, settings_of, sized
from .tables import Table, means
from .unpromptable import COLUMNS, STRETCH, derived, stretch

TEST = (
    *("evaluate.prompts=world2:test", "evaluate.diversity_prompts=8", "evaluate.every=25"),
    "train.sample_prompts=[a fox on a navy background]",
)
ARMS = [
    Arm("sd", "SRPO, SD epsilon", "world2_sd", TEST),
    Arm("sd_v", "SRPO, SD v", "world2_sd_v", TEST),
]


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of kind `reference`, one per stretch of pairs, and training runs."""
    rows: list[Row] = []
    for arm in ARMS:
        run = settings_of(arm, 0)
        for seed in range(1 if quick else 4):
            make = partial(stretch, run, seed, 4 if quick else STRETCH, f"{arm.name}_", REFERENCES)
            found = piece(out, f"{arm.name}-stretch-{seed}", run, make)
            named = {"study": "world2_sd", "kind": "reference", "seed": seed}
            rows += [{**named, **row} for row in found]
    rows += run_arms("world2_sd", sized(ARMS, quick), (0,) if quick else range(8), out)
    return [row | derived(row, Rows(rows), f"{_prefix(row)}_") for row in rows]


def _prefix(row: Row) -> str:
    return "sd_v" if row["arm"].startswith("sd_v") else "sd"


def tables(rows: Rows) -> dict[str, Table]:
    titles = [column.title for column in COLUMNS]
    asked, runs, lines = rows.where(kind="reference"), rows.runs, []
    for arm, title in runs.arms.items():
        found = {name: asked.where(arm=f"{arm}_{name}") for name in REFERENCES}
        lines += [
            [f"{title}: {REFERENCES[n]}", "", *means(COLUMNS, own)] for n, own in found.items()
        ]
        lines += [
            [title, str(step), *means(COLUMNS, runs.at(arm, step))]
            for step in sorted({row["step"] for row in runs if row["arm"] == arm and row["step"]})
        ]
    return {"trained": Table(["images", "updates", *titles], lines)}


def draw(rows: Rows, folder: Path) -> list[Path]:
    panels = [
        Panel(column.title.capitalize(), "updates", "", lines_along(rows.runs, "step", column.key))
        for column in COLUMNS[:-1]
    ]
    title = "Second world, Stable Diffusion: a base model that does not do what words ask"
    return [curves(folder / "world2_sd_curves.png", title, panels, "Means over seeds")]
