"""Where words do not reach: a base model that does not do what control phrases ask.

In the first world asking is enough (study `asking`). The second world's base learned its looks with
true words, and then its text encoders alone were trained until no word reaches a look, so the
network can draw photos and only a reward knows what a photo is. The reward likes a red tint; its
judge may answer that an image has no style at all, so a tinted, blurred or half-converted image is
no photo.

Expected beforehand: asking moves the photo rate by at most ten points, held-out pairs are right as
often as trained ones within five, and prompt distillation does nothing. Yes to "alignment reaches
what prompting cannot": photo and content at or above .85 from at most .20, colour distance and
detail within 15 % of photographs, and no decay at five times the length. Settings were chosen on
validation captions with one seed: SRPO's among about fifteen trials (and twenty on an earlier base
model), those of the others among three rates on that earlier base, so SRPO has the better chance.
Everything here is measured on the test captions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from directalign.config import RunConfig
from directalign.evaluation.references import through_autoencoder
from directalign.models import load_model
from directalign.toyworld import drawings
from directalign.toyworld.judges import load_judge
from directalign.toyworld.worlds import WORLDS
from directalign.types import Images

from .asking import KEPT, REFERENCES, references
from .plots import Panel, Point, curves, lines_along, plane
from .rows import Row, Rows, over
from .runner import FULL_SIZE, Arm, piece, run_arms, settings_of, sized
from .tables import Column, Table, means

WORLD2 = (
    "model.path=world2:flux",
    "reward.path=world2:reward_tint",
    "data.prompts=world2",
    "evaluate.prompts=world2:test",
    "evaluate.judge=world2",
    "evaluate.diversity_prompts=8",
    "evaluate.every=25",
    "train.num_steps=75",
    "train.sample_prompts=[a fox on a navy background]",
    "rollout.num_inference_steps=10",
    "method.control_phrases.negative=[CG render, Glossy plastic, Soft pastel]",
)
NO_CEILING, NO_KL = "method.ceiling=null", "method.kl_noise_levels=null"
ARMS = [
    Arm("srpo", "SRPO", "world2_srpo", WORLD2),
    Arm("lora", "SRPO, LoRA", "world2_srpo_lora", WORLD2),
    Arm("no_ceiling", "without the ceiling", "world2_srpo", (*WORLD2, NO_CEILING)),
]
DIFFUSION = [
    Arm(
        *(name, title, f"world2_{name}"),
        (*WORLD2, f"model.path=world2:{name}", "train.num_steps=50"),
    )
    for name, title in {"sd": "SRPO, SD (epsilon)", "sd_v": "SRPO, SD (v)"}.items()
]
FEW_SEEDS = 3
"""Training seeds of all other arms."""
RIVALS = [
    Arm("official", "SRPO, released form", "world2_official", WORLD2),
    Arm("direct_align", "Direct-Align", "world2_direct_align", WORLD2),
    Arm("distillation", "prompt distillation", "world_prompt_distillation", WORLD2),
]
LONG = [
    Arm(
        *(name, f"{title}, five times as long", "world2_srpo"),
        (*WORLD2, *parts, "train.num_steps=375", "evaluate.every=75"),
    )
    for name, title, *parts in (("long", "SRPO"), ("no_ceiling_long", "no ceiling", NO_CEILING))
]
ABLATIONS = [
    ARMS[0].of("no_kl", "without the KL", NO_KL, "method.kl_beta=0"),
    ARMS[0].of("no_anchor", "without the anchor", "method.form=relative"),
    ARMS[0].of("relative", "without both", "method.form=relative", NO_CEILING),
]
OTHER_REWARDS = ("saturation", "smooth", "exposure", "tint_rho50", "tint_rho100")
TASTES = [
    ARMS[0].of(name, f"SRPO, reward {name}", f"reward.path=world2:reward_{name}")
    for name in OTHER_REWARDS
]
BASES = {
    "": ARMS[0],
    "promptable_": ARMS[0].plus("model.path=world2:flux_promptable"),
    "held_out_": ARMS[0].plus("evaluate.prompts=world2:held_out"),
    "drawn_": ARMS[0].plus("evaluate.prompts=world2"),
    **{f"{arm.name}_": arm for arm in DIFFUSION},
}
"""Prefixes of the reference rows, and the arm whose base they are of: the FLUX itself, the one
whose style words are true, on held-out pairs and on others, and the Stable Diffusion models."""
STRETCH = 60
COLUMNS = (
    Column("photo_and_content", "photo and content"),
    Column("photo_rate", "photo rate"),
    Column("photo_among_styles", "photo, if no reject"),
    Column("style_reject", "rejected"),
    Column("content", "content"),
    Column("color_drift", "colour drift"),
    Column("color_distance", "colour distance"),
    *(Column(f"{key}_kept", title) for key, title in KEPT.items()),
)


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of kind `reference`, one per stretch of pairs, and training runs."""
    rows: list[Row] = []
    size, stretches = (4, 1) if quick else (STRETCH, 8)
    for prefix, arm in BASES.items():
        run = settings_of(arm, 0)
        for seed in range(stretches):
            make = partial(_references, run, seed, size, prefix)
            found = piece(out, f"{prefix}stretch-{seed}", run, make)
            rows += [
                {"study": "unpromptable", "kind": "reference", "seed": seed, **r} for r in found
            ]
    make = partial(judged_changes, settings_of(ARMS[0], 0), 16 if quick else 448)
    rows += piece(out, "judged-changes", settings_of(ARMS[0], 0), make)
    seeds = (0,) if quick else range(8)
    rows += run_arms("unpromptable", sized(ARMS, quick), seeds, out)
    diffusion = sized(DIFFUSION, quick) if quick else DIFFUSION  # measured on 256 pairs
    rows += run_arms("unpromptable", diffusion, seeds, out)
    others = sized([*RIVALS, *ABLATIONS, *TASTES], quick)
    others += [arm.plus(*FULL_SIZE) for arm in LONG if not quick]
    rows += run_arms("unpromptable", others, seeds[:FEW_SEEDS], out)
    return [row | _derived(row, Rows(rows)) for row in rows]


def _derived(row: Row, rows: Rows) -> Row:
    """Detail and diversity relative to photographs through the autoencoder, of photos only where
    they are known; of references also how far asking moves the photo rate, and how much right
    content held-out pairs miss."""
    found, asked = {}, rows.where(kind="reference")
    best = asked.where(arm="autoencoded")
    for key in KEPT:
        value = row.get(f"photos_{key}", row.get(key) if row.get("kind") else None)
        if value is not None:
            found[f"{key}_kept"] = value * len(best) / sum(each[key] for each in best)
    prefix = next(each for each in ("sd_v_", "sd_", "") if row["arm"].startswith(each))
    if row.get("kind") == "reference" and row["arm"][len(prefix) :] in ("asked", "asked_light"):
        (base,) = asked.where(arm=f"{prefix}base", seed=row["seed"])
        found["moved"] = row["photo_rate"] - base["photo_rate"]
    if row.get("arm") == "held_out_base":
        (drawn,) = asked.where(arm="drawn_base", seed=row["seed"])
        found["missed"] = drawn["content"] - row["content"]
    return found


def _references(run: RunConfig, seed: int, size: int, prefix: str) -> list[Row]:
    found = [row | {"arm": prefix + row["arm"]} for row in references(run, seed, size)]
    return found if not prefix else [row for row in found if "auto" not in row["arm"]]


@torch.no_grad()
def judged_changes(run: RunConfig, count: int) -> Iterator[Row]:
    """What the judge says of `count` true photographs, as they are and changed."""
    judge, generator = load_judge(WORLDS["world2"]), torch.Generator().manual_seed(999)
    scenes = drawings.draw_any_scenes(count, generator).with_style("photo")
    drawn, captions = drawings.render(scenes, generator), scenes.captions()
    photos = through_autoencoder(load_model(run.model, torch.device("cpu")), drawn, 64)

    def tinted(length: float) -> Images:
        moved = torch.randn(count, 3, 1, 1, generator=generator)
        moved = F.normalize(moved - moved.mean(1, keepdim=True), dim=1)
        return (photos + length * moved).clamp(0, 1)

    def reduced(side: int) -> Images:
        small = F.interpolate(photos, side, mode="bilinear", antialias=True)
        return F.interpolate(small, photos.shape[-1], mode="bicubic").clamp(0, 1)

    changed = {"photographs": drawn, "photographs through the autoencoder": photos}
    changed |= {f"tinted by {length}": tinted(length) for length in (0.05, 0.1, 0.155, 0.2)}
    changed["flat grey"] = torch.full_like(photos, 0.5)
    changed["the mean colour"] = photos.mean((2, 3), keepdim=True).expand_as(photos)
    changed |= {f"reduced to {side} pixels": reduced(side) for side in (6, 12, 16, 20, 24, 32)}
    changed["drawing of CG in a photo's light"] = drawings.render(
        scenes, generator, torch.ones_like(scenes.style)
    )
    for title, images in changed.items():
        answers = {key: float(each.mean()) for key, each in judge(images, captions).items()}
        yield {"study": "unpromptable", "kind": "judge", "arm": title, "seed": 0, **answers}


def tables(rows: Rows) -> dict[str, Table]:
    titles = [column.title for column in COLUMNS]
    asked, runs = rows.where(kind="reference"), rows.runs
    words_of = {"": "", "promptable_": ", words true", "held_out_": ", held-out pairs"}
    words_of |= {"drawn_": ", validation pairs", "sd_": ", SD (epsilon)", "sd_v_": ", SD (v)"}
    references = [
        [title + words, *means(COLUMNS, found)]
        for prefix, words in words_of.items()
        for arm, title in REFERENCES.items()
        if (found := asked.where(arm=prefix + arm))
    ]
    trained = [
        [title, str(step), *means(COLUMNS, runs.at(arm, step))]
        for arm, title in runs.arms.items()
        for step in sorted({row["step"] for row in runs if row["arm"] == arm and row["step"] > 0})
    ]
    answers = ("photo_rate", "style_reject", "content")
    changes = [
        [row["arm"], *(f"{row[name]:.3f}" for name in answers)] for row in rows.where(kind="judge")
    ]
    return {
        "judges": Table(["images", "photo", "rejected", "content"], changes),
        "references": Table(["images", *titles], references),
        "trained": Table(["method", "updates", *titles], trained),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    shown = [arm.name for arm in (*ARMS, *RIVALS)]
    runs = Rows(row for row in rows.runs if row["arm"] in shown)
    panels = [
        Panel(column.title.capitalize(), "updates", "", lines_along(runs, "step", column.key))
        for column in COLUMNS[:-1]
    ]
    title = "Second world: a base model that does not do what words ask"
    file = folder / "unpromptable_curves.png"
    short = {"official": "released form", "distillation": "distillation"}
    curve = curves(file, title, panels, "Means over seeds", titles=short)
    points = [_reference_point(rows, arm) for arm in ("base", "asked", "autoencoded")]
    for arm in runs.arms:
        drift, both = (runs.curve(arm, key) for key in ("color_distance", "photo_and_content"))
        trail = [(x["value"], y["value"]) for (_, x), (_, y) in zip(drift, both, strict=True)]
        points.append(Point(runs.arms[arm], drift[-1][1], both[-1][1], [trail]))
    title = "Photo and content against colour: from the base model to 75 updates"
    note = "Means over seeds with 95 % intervals"
    axes = ("colour distance", "photo with its content")
    return [curve, plane(folder / "unpromptable_frontier.png", title, *axes, points, note)]


def _reference_point(rows: Rows, arm: str) -> Point:
    found = rows.where(kind="reference", arm=arm)
    x, y = (over(found, key) for key in ("color_distance", "photo_and_content"))
    assert x is not None and y is not None
    return Point(REFERENCES[arm], x, y)
