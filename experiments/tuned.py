"""Every method at its own best rate and length, tuned alike (after arXiv 2509.06942, table 1).

In the second toy world, with one budget, six learning rates, and three seeds for each of them on
validation captions; the choice is the measurement, of any rate and any length, with the highest
mean of photo and content. Then other training seeds, test captions: 240 images each, intervals from
a bootstrap over training seeds and prompts, comparisons with SRPO corrected by Holm's method.

Expected beforehand: methods on the absolute score stay at the base model; at an equal form of the
reward ReFL and LeapAlign come near SRPO; policy gradients need a larger budget than this one. Yes
to "SRPO is better here than X": the corrected p value of the difference is below .05.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from directalign.evaluation.eval_prompts import fixed_pairs, measured_prompts
from directalign.evaluation.generate import generate, load_run_model
from directalign.evaluation.image_metrics import diversity, diversity_pairs
from directalign.evaluation.run_weights import find_weights
from directalign.stats import holm, percentile_interval, resample_counts
from directalign.toyworld.judges import load_judge
from directalign.toyworld.worlds import WORLDS

from .asking import judged
from .learning_rates import with_rate
from .plots import Line, Panel, curves
from .rows import Row, Rows, mean_of
from .runner import Arm, Budget, piece, run_arm, run_arms, settings_of, small_batches, within
from .tables import Column, Table, number, with_interval

RATES = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
TUNED_ON, TOLD_ON = (100, 101, 102), tuple(range(8))
"""Training seeds."""
FULL = Budget(calls=4_160, measurements=4, num_samples=60, diversity_prompts=0)
QUICK = Budget(calls=32, measurements=1, num_samples=4, diversity_prompts=0, probed=1)
TOLD = 240
"""Images of the test captions, of each training seed; eight prompts' for diversity."""
KEY = "photo_and_content"
WORLD2 = (
    "model.path=world2:flux",
    "reward.path=world2:reward_tint",
    "data.prompts=world2",
    "evaluate.judge=world2",
    "evaluate.prompts=world2:validation",
    "train.sample_prompts=[a fox on a navy background]",
    "rollout.num_inference_steps=10",
)
NEGATIVE = "method.control_phrases.negative=[CG render, Glossy plastic, Soft pastel]"
ANCHORED = (
    *(NEGATIVE, "method.form=anchored", "method.anchor={tolerance: 0.1}"),
    "method.ceiling={best: 0.1, margin: 0.0}",
)
RELATIVE = (NEGATIVE, "method.form=relative")
ARMS = [
    Arm("srpo", "SRPO, anchored", "world2_srpo", WORLD2),
    Arm("official", "SRPO, released form", "world2_official", WORLD2),
    Arm("direct_align", "Direct-Align, absolute", "world2_direct_align", WORLD2),
    Arm("refl", "ReFL, absolute", "world_refl", WORLD2),
    Arm("refl_anchored", "ReFL, anchored", "world_refl", (*WORLD2, *ANCHORED)),
    Arm("leapalign_anchored", "LeapAlign, anchored", "world_leapalign", (*WORLD2, *ANCHORED)),
    Arm("grpo_relative", "GRPO, relative", "world_grpo_relative", (*WORLD2, NEGATIVE)),
    Arm(
        *("nft_relative", "DiffusionNFT, relative", "world_diffusion_nft"),
        (*WORLD2, NEGATIVE, "data.batch_size=2"),
    ),
    Arm("distillation", "prompt distillation", "world_prompt_distillation", (*WORLD2, NEGATIVE)),
]
OURS = "srpo"
COLUMNS = (
    Column("photo_rate", "photo rate"),
    Column("content", "content"),
    Column("style_reject", "rejected"),
    Column("color_distance", "colour distance"),
    Column("sharpness", "sharpness", 4),
    Column("diversity", "diversity"),
    Column("call_equivalents", "NFE equivalents", 0),
)


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of the tuning, with a `method`, and of kind `told`, one per method and seed."""
    budget, seeds = (QUICK, TUNED_ON[:1]) if quick else (FULL, TUNED_ON)
    methods = small_batches(ARMS[:2] if quick else ARMS, quick)
    priced = [within(budget, arm, out) for arm in methods]
    rated = {arm.name: [with_rate(arm, rate) for rate in RATES[-2:]] for arm in priced}
    if not quick:
        rated = {arm.name: [with_rate(arm, rate) for rate in RATES] for arm in priced}
    rows: list[Row] = []
    for method, arms in rated.items():
        rows += [row | {"method": method} for row in run_arms("tuned", arms, seeds, out)]
    for arm in priced:
        best = at_best(arm, Rows(rows))
        for seed in TOLD_ON[:1] if quick else TOLD_ON:
            rows += told(best, arm.title, seed, out, 8 if quick else TOLD)
    return rows


def choice(rows: Rows, method: str) -> tuple[float, int, float]:
    """(learning rate, updates, mean over seeds of photo and content) that a method is told at."""
    found: dict[tuple[float, int], list[float]] = {}
    for row in rows.runs.where(method=method):
        if row["step"] > 0:
            found.setdefault((row["learning_rate"], row["step"]), []).append(row[KEY])
    means = {place: sum(values) / len(values) for place, values in found.items()}
    rate, step = max(means, key=lambda place: means[place])
    return rate, step, means[rate, step]


def at_best(arm: Arm, rows: Rows) -> Arm:
    """The arm at its chosen rate and length, measured only when it has ended."""
    rate, step, _ = choice(rows, arm.name)
    length = (f"train.learning_rate={rate}", f"train.num_steps={step}", f"train.save_every={step}")
    ended = ("evaluate.every=0", "evaluate.num_samples=4", "evaluate.prompts=world2:test")
    return arm.plus(*length, *ended)


def told(arm: Arm, title: str, seed: int, out: Path, count: int) -> list[Row]:
    """The row of one trained model: means over images, and photo and content of every prompt."""
    folder, settings = run_arm(arm, seed, out), settings_of(arm, seed)
    spent = [row["call_equivalents"] for row in run_arms("tuned", [arm], [seed], out)][-1]

    def make() -> list[Row]:
        model = load_run_model(settings, find_weights(settings, folder))
        judge, pairs = load_judge(WORLDS["world2"]), fixed_pairs(measured_prompts(settings), count)
        made = partial(generate, model, rollout=settings.rollout, batch_size=48)
        images, several = made(pairs.prompts, pairs.seeds), diversity_pairs(pairs.prompts, 8)
        right = judge(images, pairs.prompts)[KEY]
        each = {prompt: [] for prompt in sorted(set(pairs.prompts))}
        for prompt, value in zip(pairs.prompts, right.tolist(), strict=True):
            each[prompt].append(value)
        by_prompt = [sum(values) / len(values) for values in each.values()]
        numbers = judged(judge, images, pairs)
        numbers["diversity"] = diversity(made(several.prompts, several.seeds))
        return [{**numbers, "by_prompt": by_prompt, "call_equivalents": spent}]

    about = {"study": "tuned", "kind": "told", "arm": arm.name, "title": title, "seed": seed}
    found = piece(out, f"told-{arm.name}-seed{seed}", settings, make)
    return [about | row for row in found]


# --- statistics -----------------------------------------------------------------------------------


def resampled(rows: Rows, arm: str) -> np.ndarray:
    """Photo and content of an arm, its mean and then those of resamples of seeds and of prompts.

    Resamples are the same for every arm, so that differences are paired.
    """
    values = np.array([row["by_prompt"] for row in rows.where(kind="told", arm=arm)])
    seeds, prompts = (resample_counts(n) / n for n in values.shape)
    # the same resamples in another order, so that seeds and prompts are drawn independently
    drawn = np.einsum("rs,sp,rp->r", seeds, values, np.roll(prompts, 1, axis=0))
    return np.concatenate([[values.mean()], drawn])


def against_ours(rows: Rows) -> dict[str, tuple[Row, float]]:
    """{arm: (SRPO minus it with its interval, p value corrected over the table)}."""
    told_rows = rows.where(kind="told")
    others = [arm for arm in told_rows.arms if arm != OURS]
    found, ps = {}, []
    for arm in others:
        gap = resampled(rows, OURS) - resampled(rows, arm)
        interval = percentile_interval(float(gap[0]), gap[1:], len(gap) - 1)
        assert interval is not None
        found[arm] = interval.as_dict()
        one_sided = min((gap[1:] <= 0).mean(), (gap[1:] >= 0).mean())
        ps.append(min(1.0, 2 * max(float(one_sided), 1 / len(gap))))
    return {arm: (found[arm], p) for arm, p in zip(others, holm(ps), strict=True)}


def tables(rows: Rows) -> dict[str, Table]:
    told_rows, gaps = rows.where(kind="told"), against_ours(rows)
    lines, chosen = [], []
    for arm, title in told_rows.arms.items():
        means = resampled(rows, arm)
        found = percentile_interval(float(means[0]), means[1:], len(means) - 1)
        assert found is not None
        numbers = [column.cell(told_rows.where(arm=arm)) for column in COLUMNS]
        gap, p = gaps.get(arm, (None, None))
        compared = [with_interval(gap, 3) if gap else "", number(p, 3) if p is not None else ""]
        lines.append([title, with_interval(found.as_dict(), 3), *compared, *numbers])
        rate, step, value = choice(rows, arm)
        base = mean_of(KEY, [row[KEY] for row in rows.runs.where(method=arm, step=0)])["value"]
        is_edge = "yes" if rate in (RATES[0], RATES[-1]) else ""
        chosen.append([title, f"{rate:.0e}", str(step), number(value, 3), number(base, 3), is_edge])
    columns = ["method", "photo and content", "SRPO minus it", "p", *(c.title for c in COLUMNS)]
    tuning = ["method", "learning rate", "updates", "photo and content", "base model", "edge"]
    return {"told": Table(columns, lines), "chosen": Table(tuning, chosen)}


def draw(rows: Rows, folder: Path) -> list[Path]:
    """The tuning: every method under every rate."""
    panels = []
    for method in dict.fromkeys(row["method"] for row in rows.runs if "method" in row):
        lines = []
        for rate in sorted({row["learning_rate"] for row in rows.runs.where(method=method)}):
            runs = rows.runs.where(method=method, learning_rate=rate)
            steps = sorted({row["step"] for row in runs})
            values = [[row[KEY] for row in runs if row["step"] == step] for step in steps]
            spent = [[r["call_equivalents"] for r in runs if r["step"] == s] for s in steps]
            x, y = ([sum(each) / len(each) for each in found] for found in (spent, values))
            lines.append(Line(f"{rate:.0e}", x, y))
        title = next(arm.title for arm in ARMS if arm.name == method)
        panel = Panel(title, "NFE equivalents", "photo and content", lines)
        panels.append(replace(panel, span_y=(0, 1)))
    title = "Photo and content of every method under each learning rate"
    note = "Means over three seeds, validation captions"
    return [curves(folder / "tuned_rates.png", title, panels, note)]
