"""What asking reaches: the baselines that every table lacked.

Expected beforehand: if the base model, asked with a positive phrase before the prompt, is judged as
often a photo as an aligned model, alignment in this world removes a prefix and no more. If prompt
distillation, which sees no reward, ends where SRPO ends or above, the reward adds nothing here.

References are measured on eight stretches of prompt-noise pairs; a stretch counts as a seed.
Detail is relative to photographs of the same captions that went through the autoencoder, which no
model of this world can exceed by skill. Last, every trained model is asked for each style by name:
one that lost the others draws photographs all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch

from directalign.config import RunConfig
from directalign.evaluation import image_metrics
from directalign.evaluation.eval_prompts import Pairs, fixed_pairs, measured_prompts
from directalign.evaluation.generate import generate
from directalign.evaluation.references import photographs, through_autoencoder
from directalign.interfaces import Judge
from directalign.models import load_model
from directalign.toyworld.judges import load_judge
from directalign.toyworld.scenes import STYLES
from directalign.toyworld.worlds import WORLDS
from directalign.types import Images

from .control_phrases import delivered, styles_in_prompts
from .plots import Panel, curves, lines_along
from .rows import Row, Rows
from .runner import Arm, folder_of, piece, run_arms, settings_of, sized
from .tables import Column, Table, means, with_interval

EVERY = 30
TRAINED = ("train.num_steps=150", f"evaluate.every={EVERY}", "evaluate.diversity_prompts=8")
ARMS = [
    Arm("srpo", "SRPO, anchored", "world_srpo", TRAINED),
    Arm("keep_detail", "SRPO, keeps detail", "world_srpo_keep_detail", TRAINED),
    Arm("distillation", "prompt distillation", "world_prompt_distillation", TRAINED),
]
REFERENCES = {
    "photographs": "photographs",
    "autoencoded": "photographs through the autoencoder",
    "base": "base model",
    "asked": 'base model, asked "Realistic photo."',
    "asked_light": 'base model, asked "Natural lighting."',
}
PHRASES = {"asked": "Realistic photo", "asked_light": "Natural lighting"}
KEPT = {"sharpness": "sharpness", "high_frequency": "fine detail", "diversity": "diversity"}
"""Numbers that are given relative to photographs through the autoencoder."""
STRETCH, DIVERSE = 64, 8
COLUMNS = (
    Column("photo_rate", "photo rate"),
    Column("content", "content"),
    Column("color_drift", "colour drift"),
    *(Column(f"{key}_kept", title) for key, title in KEPT.items()),
)


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of kind `reference`, one per stretch of pairs, and training runs."""
    run, rows = settings_of(ARMS[0], 0), []
    size, stretches = (4, 1) if quick else (STRETCH, 8)
    for seed in range(stretches):
        found = piece(out, f"stretch-{seed}", run, lambda s=seed: references(run, s, size))
        rows += [{"study": "asking", "kind": "reference", "seed": seed, **row} for row in found]
    arms, seeds = sized(ARMS, quick), (0,) if quick else range(8)
    rows += run_arms("asking", arms, seeds, out)
    for arm, seed in product(arms, seeds):
        folder = folder_of(arm, seed, out)
        make = partial(styles_in_prompts, "asking", arm, seed, folder, STYLES, size)
        rows += piece(out, f"asked-{arm.name}-seed{seed}", settings_of(arm, seed), make)
    return with_kept(Rows(rows))


def references(run: RunConfig, seed: int, size: int) -> Iterator[Row]:
    """Photographs and the untrained model, plain and asked, on the `seed`-th stretch of pairs."""
    every = fixed_pairs(measured_prompts(run), size * (seed + 1))
    pairs = Pairs(every.prompts[-size:], every.seeds[-size:])
    several = image_metrics.diversity_pairs(pairs.prompts, min(DIVERSE, size))
    model = load_model(run.model, torch.device("cpu"))
    judge = load_judge(WORLDS[run.evaluate.judge])

    def made(arm: str, wanted: Pairs) -> Images:
        batch = run.evaluate.batch_size
        if arm in ("photographs", "autoencoded"):
            drawn = photographs(wanted)
            return drawn if arm == "photographs" else through_autoencoder(model, drawn, batch)
        asked = wanted.asked(PHRASES[arm]) if arm in PHRASES else wanted
        return generate(model, asked.prompts, asked.seeds, run.rollout, batch)

    for arm, title in REFERENCES.items():
        numbers = judged(judge, made(arm, pairs), pairs)
        numbers["diversity"] = image_metrics.diversity(made(arm, several))
        yield {"arm": arm, "title": title, **numbers, "pairs": size}


@torch.no_grad()
def judged(judge: Judge, images: Images, pairs: Pairs) -> Row:
    """What the judge answers, colour drift, and means of the statistics of images of pairs."""
    answers, numbers = judge(images, pairs.prompts), image_metrics.statistics(images)
    rates, truth = {name: float(each.mean()) for name, each in answers.items()}, photographs(pairs)
    drift = {"color_drift": image_metrics.color_drift(images, truth)}
    drift["color_distance"] = image_metrics.color_distance(images, truth)
    detail = {name: float(values.double().mean()) for name, values in numbers.items()}
    return rates | drift | detail


def tables(rows: Rows) -> dict[str, Table]:
    asked, runs = rows.where(kind="reference"), rows.runs
    titles = [column.title for column in COLUMNS]
    references = [
        [title, *means(COLUMNS, asked.where(arm=arm))] for arm, title in REFERENCES.items()
    ]
    trained = [
        [title, str(step), *means(COLUMNS, runs.at(arm, step))]
        for arm, title in runs.arms.items()
        for step in sorted({row["step"] for row in runs if row["step"] > 0})
    ]
    obeys = [
        [title, *(with_interval(delivered(rows, arm, style), 2) for style in STYLES)]
        for arm, title in runs.arms.items()
    ]
    return {
        "obeys": Table(["method, 150 updates", *STYLES], obeys),
        "references": Table(["images", *titles], references),
        "trained": Table(["method", "updates", *titles], trained),
    }


def with_kept(rows: Rows) -> list[Row]:
    """Rows with the numbers of `KEPT` relative to photographs through the autoencoder."""
    best = rows.where(kind="reference", arm="autoencoded")
    scale = {key: sum(row[key] for row in best) / len(best) for key in KEPT}
    return [
        row | {f"{key}_kept": row[key] / scale[key] for key in KEPT if key in row} for row in rows
    ]


def draw(rows: Rows, folder: Path) -> list[Path]:
    panels = [
        Panel(column.title.capitalize(), "updates", "", lines_along(rows.runs, "step", column.key))
        for column in COLUMNS
    ]
    title = "With a reward and without one, five times the recommended length"
    return [curves(folder / "asking_curves.png", title, panels, "Means over seeds")]
