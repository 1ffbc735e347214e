"""Methods on the second world, each at its own best rate and length, at equal compute.

The base model there does not do what words ask (study `unpromptable`). SRPO as released,
Direct-Align and GRPO are trained in their published form (GRPO on the relative reward), LeapAlign
and DRaFT-LV with the objective of the recipe world2_srpo: anchor, ceiling and a KL at low noise.
All may spend the same NFE. Six learning rates from one training seed, the best two of them from two
more; the rate and the length with the best mean of photo and content on validation captions are
trained again from eight other seeds and told on test captions. Intervals are over seeds and
captions together (two-level bootstrap); differences to SRPO are corrected for their number (Holm
1979).

Expected beforehand: with the same objective the other ways to differentiate the reward come within
.10 of Direct-Align's, since anchor, ceiling and KL do most of it; in their published, absolute
forms none gains .10, since the reward's taste is for a tint. Yes to "SRPO is the best method here"
only if every other arm is worse after correction. ReFL, RAFT and the published forms of LeapAlign
and DRaFT-LV were planned as well; the time for them ran out.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from directalign.config import RunConfig
from directalign.evaluation.eval_prompts import fixed_pairs, prompts_to_measure
from directalign.evaluation.generate import generate
from directalign.evaluation.in_training import photographs
from directalign.evaluation.references import through_autoencoder
from directalign.models import load_model
from directalign.stats import Z_95, holm, t_quantile
from directalign.toyworld.judges import load_judge
from directalign.toyworld.worlds import WORLDS
from directalign.types import Images

from .asking import PHRASES, REFERENCES, judged
from .learning_rates import with_rate
from .plots import Line, Panel, Point, curves, plane, strips
from .rows import Row, Rows, SeedInterval, over
from .runner import (
    ALWAYS,
    Arm,
    Budget,
    drop_weights,
    measurer_of,
    piece,
    row_of,
    rows_of,
    run_arm,
    run_arms,
    settings_of,
    within,
)
from .tables import Table, means, with_interval
from .unpromptable import COLUMNS, NO_CEILING, WORLD2

LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
RATES = LADDER[2:8]
"""What is tried; of `LADDER` the next one too, while the best is the lowest or highest tried."""
TUNING_SEEDS, BEST_RATES, SEEDS = (100, 101, 102), 2, tuple(range(8))
TUNED = "photo_and_content"
PAIRS, SHOWN = 256, 10
"""Pairs on which a told run is measured, and of how many images are kept."""
TUNING = Budget(calls=6_000, measurements=3, num_samples=60, diversity_prompts=0)
QUICK = Budget(calls=32, measurements=1, num_samples=4, diversity_prompts=0, probed=1)
OBJECTIVE = (
    *("method.form=anchored", "method.anchor={tolerance: 0.1}"),
    *("method.ceiling={best: 0.1, margin: 0.0}", "method.kl_beta=1.0"),
    "method.kl_noise_levels={kind: uniform, sigma_high: 0.8, sigma_low: 0.02, jump: 0.02}",
)
"""What world2_srpo has beside Direct-Align."""
UNMEASURED = ("evaluate.every=0", "evaluate.num_samples=4", "evaluate.diversity_prompts=0")
TOLD = ("evaluate.every=1", f"early_stopping.metric_for_best={TUNED}")
"""Under early stopping a measurement also has the answer of each image."""
NUMBERS = tuple(each for each in COLUMNS if not each.key.endswith("_kept") and each.key != TUNED)
SRPO = Arm("srpo", "SRPO", "world2_srpo", WORLD2)


def _published(name: str, title: str, recipe: str, *overrides: str) -> Arm:
    return Arm(name, title, recipe, (*WORLD2, *overrides))


def _with_objective(name: str, title: str, recipe: str) -> Arm:
    return Arm(f"{name}_objective", f"{title}, SRPO's objective", recipe, (*WORLD2, *OBJECTIVE))


def _part(name: str, title: str, *overrides: str) -> Arm:
    return SRPO.of(f"part_{name}", title, *overrides)


ARMS = (
    SRPO,
    _published("official", "SRPO, released form", "world2_official"),
    _published("direct_align", "Direct-Align", "world2_direct_align"),
    _with_objective("leapalign", "LeapAlign", "world_leapalign"),
    _with_objective("draft_lv", "DRaFT-LV", "world_draft_lv"),
    _published("grpo_relative", "GRPO, relative", "world_grpo_relative"),
    _with_objective("refl", "ReFL", "world_refl"),
    _with_objective("flowbp", "FlowBP", "world_flowbp"),
    _with_objective("alignprop", "AlignProp", "world_alignprop"),
    _with_objective("drtune", "DRTune", "world_drtune"),
    _published("diffusion_nft", "DiffusionNFT, relative", "world_diffusion_nft"),
    _published("awm", "AWM, relative", "world_awm"),
    _published("raft", "RAFT, relative", "world_raft"),
    _published("distillation", "prompt distillation", "world_prompt_distillation"),
    _published("refl", "ReFL", "world_refl"),
    _published("flowbp", "FlowBP", "world_flowbp"),
    _published("drtune", "DRTune", "world_drtune"),
    _published("alignprop", "AlignProp", "world_alignprop"),
    _published("leapalign", "LeapAlign", "world_leapalign"),
    _published("draft_lv", "DRaFT-LV", "world_draft_lv"),
)

KL_LOW = OBJECTIVE[-2:]
NO_KL = ("method.kl_beta=0", "method.kl_noise_levels=null")
KL_ALL = "method.kl_noise_levels={kind: uniform, sigma_high: 0.98, sigma_low: 0.02, jump: 0.02}"
FORM = "method.form={}"
PARTS = (
    _part("absolute", "absolute score, KL", FORM.format("absolute"), NO_CEILING),
    _part("relative", "relative, KL", FORM.format("relative"), NO_CEILING),
    _part("relative_alone", "relative, no KL", FORM.format("relative"), NO_CEILING, *NO_KL),
    _part("no_ceiling", "no ceiling", NO_CEILING),
    _part("kl_all", "KL at all levels", KL_ALL),
    Arm("part_official_kl", "released form, KL", "world2_official", (*WORLD2, *KL_LOW)),
)
"""SRPO with one thing or more taken away or replaced, at its noise levels; the last at its own."""
PART_RATES, PART_SEEDS = (3e-5, 1e-4, 3e-4), SEEDS[:5]


def measure(out: Path, quick: bool) -> list[Row]:
    """Tune and tell the arms one after the other.

    Rows of kind `tuning` and `images` (the first pairs, of one seed), and one per told run.
    """
    settings, pairs = settings_of(SRPO, 0), 4 if quick else PAIRS
    rows = piece(out, "references", settings, partial(_references, settings, pairs))
    return [
        *rows,
        *(row for arm in ARMS[: 2 if quick else None] for row in measure_arm(arm, out, quick)),
        *(row for arm in PARTS[: 0 if quick else None] for row in measure_part(arm, out)),
    ]


def _references(settings: RunConfig, count: int) -> Iterator[Row]:
    """The base model, plain and asked, and photographs; images of the plain one and of these."""
    model, judge = load_model(settings.model, torch.device("cpu")), load_judge(WORLDS["world2"])
    pairs = fixed_pairs(prompts_to_measure("world2:test"), count)
    found = {"base": pairs} | {arm: pairs.asked(phrase) for arm, phrase in PHRASES.items()}
    made = {
        arm: generate(model, each.prompts, each.seeds, settings.rollout, 64)
        for arm, each in found.items()
    }
    made["photographs"] = photographs(pairs)
    made["autoencoded"] = through_autoencoder(model, made["photographs"], 64)
    for arm, images in made.items():
        named = {"study": "rivals", "kind": "reference", "arm": arm, "title": REFERENCES[arm]}
        answers = judge(images, pairs.prompts)[TUNED].int().tolist()
        yield {**named, "seed": 0, **judged(judge, images, pairs), "answers": answers}
        if arm in ("base", "photographs"):
            yield {**named, "kind": "images", "seed": 0, "images": as_text(images[:SHOWN])}


def measure_part(arm: Arm, out: Path) -> list[Row]:
    """All rows of an arm of `PARTS`: three rates by one seed, five told seeds."""
    return _tuned_and_told(arm, out, PART_RATES, TUNING_SEEDS[:1], PART_SEEDS)


def measure_arm(arm: Arm, out: Path, quick: bool) -> list[Row]:
    """All rows of one arm."""
    if quick:
        return _tuned_and_told(arm, out, RATES[:1], TUNING_SEEDS[:1], SEEDS[:1], quick)
    return _tuned_and_told(arm, out, RATES, TUNING_SEEDS, SEEDS)


def _tuned_and_told(
    arm: Arm,
    out: Path,
    grid: Sequence[float],
    tuning_seeds: Sequence[int],
    seeds: Sequence[int],
    quick: bool = False,
) -> list[Row]:
    budget = QUICK if quick else TUNING
    small = ("data.batch_size=2", "rollout.num_inference_steps=2") if quick else ()
    tried = within(budget, arm.plus("evaluate.prompts=world2", *small), out)
    rates = {rate: with_rate(tried, rate) for rate in grid}
    first, *others = tuning_seeds
    tuning = Rows(run_arms("rivals", list(rates.values()), (first,), out))
    while (further := None if quick else _further(tuning)) is not None:
        rates[further] = with_rate(tried, further)
        tuning += run_arms("rivals", [rates[further]], (first,), out)
    best = sorted(rates, key=lambda rate: -_peak(tuning.where(learning_rate=rate))[TUNED])
    again = [rates[rate] for rate in best[:BEST_RATES]]
    tuning += run_arms("rivals", again, others, out) if others else []
    found = chosen(tuning)
    length = (f"train.num_steps={found['step']}", f"train.learning_rate={found['learning_rate']}")
    told = arm.plus(*small, *ALWAYS, *length, *UNMEASURED)
    rows = [row for seed in seeds for row in _told(told, seed, 4 if quick else PAIRS, out)]
    return [*({**row, "kind": "tuning", "method": arm.name} for row in tuning), *rows]


def _further(tuning: Rows) -> float | None:
    """The next rate beyond those tried, where the best one is at their edge."""
    tried = sorted(_rates(tuning))
    best = max(tried, key=lambda rate: _peak(tuning.where(learning_rate=rate))[TUNED])
    ends = {tried[0]: -1, tried[-1]: 1}
    place = LADDER.index(best) + ends.get(best, 0)
    beyond = LADDER[place] if 0 <= place < len(LADDER) else best
    return None if beyond in tried else beyond


def _told(arm: Arm, seed: int, pairs: int, out: Path) -> list[Row]:
    """Train an arm and measure its last weights; `answers` are those of the pairs."""
    counts = (f"evaluate.{name}={pairs}" for name in ("num_samples", "num_samples_during"))
    settings = settings_of(arm.plus(*counts, *TOLD), seed)

    def make() -> Iterator[Row]:
        folder = run_arm(arm, seed, out, keeps_weights=True)
        measurer = measurer_of(folder, settings=settings)
        measured = measurer.measure(pairs)
        answers = [int(answer) for answer in measured.pop("each")[TUNED]]
        yield rows_of("rivals", arm, seed, folder)[-1] | row_of(measured) | {"answers": answers}
        if seed == SEEDS[0]:
            named = {"study": "rivals", "kind": "images", "arm": arm.name, "title": arm.title}
            yield {**named, "seed": seed, "images": as_text(measurer.images(SHOWN))}
        drop_weights(folder)

    return piece(out, f"{arm.name}-seed{seed}", settings, make)


def as_text(images: Images) -> str:
    """Images (n, 3, H, W) in [0, 1] in one row, as base64 of a WebP of quality 90."""
    row = (torch.cat(list(images), dim=-1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(row.numpy()).save(buffer, "WEBP", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()


def _peak(rows: Rows) -> Row:
    """{"learning_rate", "step", TUNED: mean over seeds}: the best measurement of one rate."""
    steps = sorted({row["step"] for row in rows if row["step"] > 0})
    found = {step: Rows(row for row in rows if row["step"] == step) for step in steps}
    best = max(steps, key=lambda step: _mean(found[step]))
    return {**found[best][0], "n": len(found[best]), TUNED: _mean(found[best])}


def _mean(rows: Rows) -> float:
    return sum(row[TUNED] for row in rows) / len(rows)


def chosen(tuning: Rows) -> Row:
    """The rate and length with the best mean over all tuning seeds; of equal ones the smallest."""
    seeds, rates = set(tuning.seeds()), sorted({row["learning_rate"] for row in tuning})
    known = [tuning.where(learning_rate=rate) for rate in rates]
    return max(
        (_peak(each) for each in known if set(each.seeds()) == seeds), key=lambda r: r[TUNED]
    )


# --- intervals over seeds and captions ------------------------------------------------------------


def resampled(rows: Rows, draws: int = 4000) -> np.ndarray:
    """(draws,) means of the answers, training seeds and captions drawn anew.

    The captions are drawn alike in every call, the seeds alike for one arm. Deviations between few
    seeds are widened to those of Student's t: by t / 1.96 · sqrt(n / (n − 1)) (Hesterberg 2015).
    """
    answers = np.array([row["answers"] for row in rows], dtype=float)
    caption_of, sizes = _captions(answers.shape[1])
    sums = np.stack([np.bincount(caption_of, row, len(sizes)) for row in answers])
    own = np.random.default_rng(list(rows[0]["arm"].encode()))
    n = len(sums)
    seeds = own.multinomial(n, np.full(n, 1 / n), draws)
    if n > 1:
        seeds = 1 + t_quantile(n - 1) / Z_95 * math.sqrt(n / (n - 1)) * (seeds - 1)
    captions = np.random.default_rng(0).multinomial(
        len(sizes), np.full(len(sizes), 1 / len(sizes)), draws
    )
    return np.einsum("ds,sc,dc->d", seeds, sums, captions) / (n * (captions @ sizes))


def _captions(pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """The caption of each test pair as a number, and the pairs of each caption."""
    prompts = fixed_pairs(prompts_to_measure("world2:test"), pairs).prompts
    _, caption_of, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    return caption_of, sizes


def interval(values: np.ndarray, mean: float, n: int) -> SeedInterval:
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return SeedInterval(value=mean, low=low, high=high, n=n)


def differences(told: Rows) -> dict[str, tuple[SeedInterval, float]]:
    """{arm: (photo and content minus SRPO's, p after Holm)}, two-sided by the bootstrap."""
    ours, found = told.where(arm=SRPO.name), {}
    for arm in told.arms:
        theirs = told.where(arm=arm)
        if arm != SRPO.name:
            drawn = (resampled(theirs) - resampled(ours)).round(12)  # equal answers differ by 0
            share = min((drawn >= 0).mean(), (drawn <= 0).mean())
            p = min(1.0, 2 * (share * len(drawn) + 1) / (len(drawn) + 1))
            value = float(np.mean([r["answers"] for r in theirs]))
            value -= float(np.mean([r["answers"] for r in ours]))
            found[arm] = (interval(drawn, value, len(theirs)), p)
    corrected = holm([p for _, p in found.values()])
    return {arm: (each, p) for (arm, (each, _)), p in zip(found.items(), corrected, strict=True)}


# --- tables and figures ---------------------------------------------------------------------------


def tables(rows: Rows) -> dict[str, Table]:
    methods, parts = _split(rows.runs)
    heads = ("learning rate", "updates", "photo and content", "minus SRPO", "p")
    columns = ["method", *heads, *(each.title for each in NUMBERS)]
    references = []
    for row in rows.where(kind="reference"):
        both = interval(resampled(Rows([row])), float(np.mean(row["answers"])), 1)
        fixed = ["", "", with_interval(both, 3), "", ""]
        references.append([row["title"], *fixed, *means(NUMBERS, [row])])
    tuning = rows.where(kind="tuning")
    grid = sorted(_rates(tuning))
    searched = [
        _searched(tuning.where(method=arm), title, grid) for arm, title in methods.arms.items()
    ]
    found = {
        "told": Table(columns, [*_told_lines(methods), *references]),
        "tuning": Table(["method", *(f"{rate:.0e}" for rate in grid), "chosen"], searched),
    }
    return found | ({"parts": Table(columns, _told_lines(parts))} if len(parts.arms) > 1 else {})


def _split(told: Rows) -> tuple[Rows, Rows]:
    """Rows of the methods, and of SRPO and its parts."""
    names = {arm.name for arm in PARTS}
    methods = Rows(row for row in told if row["arm"] not in names)
    return methods, Rows(row for row in told if row["arm"] in {*names, SRPO.name})


def _told_lines(told: Rows) -> list[list[str]]:
    compared, lines = differences(told), []
    for arm, title in told.arms.items():
        run = told.where(arm=arm)
        both = interval(resampled(run), float(np.mean([row["answers"] for row in run])), len(run))
        versus = with_interval(compared[arm][0], 3) if arm in compared else ""
        p = f"{compared[arm][1]:.4f}" if arm in compared else ""
        fixed = [f"{run[0]['learning_rate']:.0e}", str(run[0]["step"])]
        lines.append([title, *fixed, with_interval(both, 3), versus, p, *means(NUMBERS, run)])
    return lines


def _searched(tuning: Rows, title: str, grid: Sequence[float]) -> list[str]:
    """The best mean of each rate, its update and number of seeds; the rate that was chosen."""
    best, base = chosen(tuning), _mean(tuning.where(step=0))
    known = {each: _peak(tuning.where(learning_rate=each)) for each in _rates(tuning)}
    texts = {each: f"{row[TUNED]:.2f} at {row['step']} ({row['n']})" for each, row in known.items()}
    note = "" if best[TUNED] > base else ", not above the base"
    return [title, *(texts.get(rate, "") for rate in grid), f"{best['learning_rate']:.0e}{note}"]


def _rates(rows: Rows) -> set[float]:
    return {row["learning_rate"] for row in rows}


def draw(rows: Rows, folder: Path) -> list[Path]:
    tuning, panels = rows.where(kind="tuning"), []
    methods, _ = _split(rows.runs)
    for arm, title in methods.arms.items():
        lines = []
        for rate in sorted(_rates(own := tuning.where(method=arm))):
            run = own.where(learning_rate=rate)
            steps = sorted({row["step"] for row in run})
            at = [Rows(row for row in run if row["step"] == step) for step in steps]
            cost = [each[0]["call_equivalents"] for each in at]
            lines.append(Line(f"{rate:.0e}", cost, [_mean(each) for each in at]))
        panels.append(Panel(title, "NFE equivalents", "", lines, percent=True, span_y=(0, 1)))
    title = "Photo and content of every method under each learning rate, validation captions"
    note = "Mean over one to three training seeds"
    figures = [curves(folder / "rivals_tuning.png", title, panels, note)]
    shown = [
        (row["title"], Image.open(io.BytesIO(base64.b64decode(row["images"]))))
        for row in rows.where(kind="images")
        if row["arm"] in (*REFERENCES, *methods.arms)
    ]
    title = "Equal captions and noise, each method at its best setting"
    figures.append(strips(folder / "rivals_images.png", title, shown))
    note = "Marks: test captions, 95 % intervals. Lines: every learning rate, validation captions"
    for name, key, x in (
        ("frontier", "color_distance", "colour distance"),
        ("detail", "sharpness", "sharpness over that of photographs"),
    ):
        title = f"Photo and content against {x}"
        axes, points = (x, "photo with its content"), _points(rows, key)
        file = folder / f"rivals_{name}.png"
        figures.append(plane(file, title, *axes, points, note, log_x=name == "detail"))
    return figures


def _points(rows: Rows, key: str) -> list[Point]:
    """The references and every method: photo and content over a number of the images, their
    sharpness relative to that of photographs."""
    if key == "sharpness":
        (best,) = rows.where(kind="reference", arm="photographs")
        rows = Rows(row | {key: row[key] / best[key]} if key in row else row for row in rows)
    points = []
    for row in rows.where(kind="reference"):
        x, value = over([row], key), float(np.mean(row["answers"]))
        assert x is not None
        short = row["title"].removeprefix("base model, ").removeprefix("photographs ")
        points.append(Point(short, x, interval(resampled(Rows([row])), value, 1)))
    methods, _ = _split(rows.runs)
    for arm, title in methods.arms.items():
        run, tuning = methods.where(arm=arm), rows.where(kind="tuning", method=arm)
        value = float(np.mean([row["answers"] for row in run]))
        x, y = over(run, key), interval(resampled(run), value, len(run))
        assert x is not None
        trails = [
            [(row[key], row[TUNED]) for row in tuning.run(f"{arm}-lr{rate:.0e}", TUNING_SEEDS[0])]
            for rate in sorted(_rates(tuning))
        ]
        points.append(Point(title, x, y, trails))
    return points
