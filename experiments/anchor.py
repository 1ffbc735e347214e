"""The anchored relative reward against the ramps, and where it fails.

The anchor drops the inversion branch and the ramps and holds the bare prompt's score where the base
model had it. Rivals run from five seeds; tolerance, learning rate, phrases, models and methods are
varied from two, up to ten times the recommended length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from directalign.config.load import load_run
from directalign.rewards import load_reward
from directalign.rewards.clip import ClipReward

from .control_phrases import OTHERS, PHOTO, Phrases, facts_of, renders_for, text_cosine
from .plots import DotColumn, curves, dots_with_intervals, panels_over_updates
from .rows import Row, Rows, SeedInterval, after, at_photo_rate, mean_of, over
from .runner import QUICK_SIZE, Arm, num_steps_of, piece, run_arms, settings_of, sized
from .tables import DASH, MEASURED, VERSUS, Table, means, number, versus, with_interval

MAIN_SEEDS, SEEDS = (0, 1, 2, 3, 4), (0, 1)
ANCHORED, RIVALS = "anchored", ("official", "half_cost", "relative")
SIDES = {"positive": PHOTO, "negative": OTHERS, "order": "average"}
WORDS = f"method.control_phrases={json.dumps(SIDES)}"
TOLERANCE = "method.anchor={tolerance: 0.02, reference_updates: 5}"
WIDE = ((". ".join(PHOTO),), ("CG render. Glossy plastic",))
GAPS = (
    Phrases("narrow_gap", "anchored, narrow word gap", "photo", ("Photo",), ("Render",)),
    Phrases("recipe_gap", "anchored, the recipe's words", "photo", PHOTO, OTHERS),
    Phrases("wide_gap", "anchored, wide word gap", "photo", *WIDE),
)
"""One reward is embedded, so the gap between the two texts is changed by the phrases."""
KEPT, FAILED = 0.95, 0.9
"""Content that counts as kept, as a share of the base model's; content below which a run failed."""
LENGTHS = (1, 2, 3, 10)
FAILURE = (
    f"case | seeds | lengths run | best photo rate with content ≥ {KEPT:g} of base | "
    f"seeds below {FAILED:g} content | first at update"
)
WORD_GAPS = (
    "words | cosine of the two texts | pos − neg of true photographs | pos − neg of true CG | "
    "share of a red cast that cancels"
)


@dataclass(frozen=True)
class Case:
    """An arm, how many times its recipe's length it runs, and from which seeds."""

    arm: Arm
    group: str
    reach: int = 2
    seeds: tuple[int, ...] = SEEDS


def _anchored(
    name: str, title: str, group: str, *overrides: str, recipe: str = "world_srpo"
) -> Case:
    return Case(Arm(name, f"anchored, {title}", recipe, overrides), group)


def _in_method(name: str, title: str) -> list[Case]:
    """Another method under the relative and under the anchored reward."""
    forms = {"relative": (), "anchored": (TOLERANCE,)}
    cases = []
    for form, more in forms.items():
        overrides = (WORDS, f"method.form={form}", *more)
        arm = Arm(f"{name}_{form}", f"{title}, {form}", f"world_{name}", overrides)
        cases.append(Case(arm, "methods"))
    return cases


_RELATIVE, _MAIN = ("method.form=relative",), ("main", 2, MAIN_SEEDS)
CASES = (
    Case(Arm(ANCHORED, "anchored, as in the recipe", "world_srpo"), "main", 10, MAIN_SEEDS),
    Case(Arm("official", "official, two branches", "world_official"), *_MAIN),
    Case(Arm("half_cost", "half cost, one branch", "world_half_cost"), *_MAIN),
    Case(Arm("relative", "relative, k = 0, one branch", "world_srpo", _RELATIVE), *_MAIN),
    _anchored("tolerance_0.05", "tolerance 0.05", "tolerance", "method.anchor.tolerance=0.05"),
    _anchored("tolerance_0.1", "tolerance 0.1", "tolerance", "method.anchor.tolerance=0.1"),
    _anchored("rate_3e-4", "learning rate 3e-4", "learning rate", "train.learning_rate=3e-4"),
    *(Case(gap.arm, "words") for gap in GAPS if gap.name != "recipe_gap"),
    _anchored("lora", "LoRA", "models", recipe="world_srpo_lora"),
    _anchored("sd", "SD (epsilon)", "models", recipe="world_sd"),
    _anchored("sd_v", "SD (v)", "models", recipe="world_sd_v"),
    *_in_method("refl", "ReFL"),
    *_in_method("draft_lv", "DRaFT-LV"),
)
QUICK_NAMES = (ANCHORED, "relative")


def cases(quick: bool) -> list[Case]:
    """All cases, or two of them at one seed."""
    if not quick:
        return list(CASES)
    return [Case(each.arm, each.group, 1, (0,)) for each in CASES if each.arm.name in QUICK_NAMES]


def lengthened(case: Case, quick: bool) -> Arm:
    """The arm over its whole reach, measured at every length, or half length for up to two."""
    if quick:
        return sized([case.arm], quick)[0]
    length = num_steps_of(case.arm.recipe)
    every = length if case.reach > 2 else length // 2
    longer = case.arm.plus(f"train.num_steps={case.reach * length}", f"evaluate.every={every}")
    return sized([longer], quick)[0]


def measure(out: Path, quick: bool) -> list[Row]:
    """Train every case (rows have `group`, and `length` in units of the recipe's), measure gaps.

    Quick: two cases, one seed, two updates.
    """
    rows: list[Row] = []
    for case in cases(quick):
        unit = num_steps_of(case.arm.recipe, QUICK_SIZE if quick else ())
        arm = lengthened(case, quick)
        for row in run_arms("anchor", [arm], case.seeds, out):
            rows.append({**row, "group": case.group, "length": row["step"] / unit})
    settings = settings_of(cases(quick)[0].arm, 0)
    return rows + piece(out, "gaps", settings, _gaps)


def _gaps() -> list[Row]:
    """One row per choice of phrases: cosine of its texts, and pos − neg of true images."""
    reward = load_reward(load_run("world_srpo").reward)
    assert isinstance(reward, ClipReward)
    renders, rows = renders_for(reward), []
    for gap in GAPS:
        named = {"study": "anchor", "kind": "gap", "arm": gap.name, "title": gap.title, "seed": 0}
        cosine = text_cosine(gap, reward)
        rows.append({**named, "cosine": cosine, **facts_of(gap, reward, renders)})
    return rows


def best_kept(run: Rows) -> float:
    """The highest photo rate of a run at which it had `KEPT` of the base model's content."""
    begun = run.base["content"]
    return max(row["photo_rate"] for row in run if row["content"] >= KEPT * begun)


def best_of(runs: Rows, arm: str) -> SeedInterval:
    """`best_kept` over the seeds of an arm."""
    return mean_of("photo_rate", [best_kept(run) for run in runs.runs_of(arm)])


def failures(runs: Rows, arm: str) -> list[int]:
    """The first measured update with content below `FAILED`, of the seeds that failed."""
    found = []
    for run in runs.runs_of(arm):
        below = [row["step"] for row in run if row["content"] < FAILED]
        found += [step for step in below if step > 0][:1]
    return found


def tables(rows: Rows) -> dict[str, Table]:
    runs = rows.runs
    titles, main = runs.arms, list(runs.where(group="main").arms)
    against, failure, lengths = [], [], []
    for rival in (arm for arm in RIVALS if arm in titles):
        ends = [runs.where(arm=arm) for arm in (ANCHORED, rival)]
        steps = [{row["step"] for row in end if row["length"] in LENGTHS} for end in ends]
        common = sorted(set.intersection(*steps))
        conditions = {f"after {step} updates": after(step) for step in common}
        level = runs.highest_common([ANCHORED, rival])
        if level > runs.runs_of(ANCHORED)[0].base["photo_rate"]:
            conditions[f"at photo rate {level:.2f}"] = at_photo_rate(level)
        lines = versus(runs, ANCHORED, rival, conditions)
        against += [[titles[rival], *each] for each in lines]
    for arm, title in titles.items():
        failed, seeds = failures(runs, arm), runs.seeds(arm)
        reach = max(row["length"] for row in runs.where(arm=arm))
        cells = [str(len(seeds)), f"{number(reach, 0)}×", with_interval(best_of(runs, arm), 2)]
        cells += [f"{len(failed)} of {len(seeds)}", number(min(failed), 0) if failed else DASH]
        failure.append([title, *cells])
    for length in LENGTHS:
        for arm in main:
            there = runs.where(arm=arm, length=length)
            if there:
                start = [f"{length}×", titles[arm], number(there[0]["step"], 0)]
                lengths.append([*start, *means(MEASURED, there)])
    keys = ("cosine", "gap_photo", "gap_cg", "cancelled")
    gaps = [[g["title"], *(number(g[key], 3) for key in keys)] for g in rows.where(kind="gap")]
    quality = [column.title for column in MEASURED]
    return {
        "against_rivals": Table(["rival", *VERSUS], against),
        "failure": Table(FAILURE.split(" | "), failure),
        "length": Table(["length", "case", "updates", *quality], lengths),
        "word_gaps": Table(WORD_GAPS.split(" | "), gaps),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    runs = rows.runs
    main = list(runs.where(group="main").arms)
    panels, note = panels_over_updates(runs, main), "Means over seeds, with 95 % intervals."
    title = "The anchored reward and its rivals, beyond the recommended length"
    first = curves(folder / "anchor_curves.png", title, panels, note, columns=2)
    ends = {arm: runs.last(arm) for arm in runs.arms}
    content = {arm: over(last, "content") for arm, last in ends.items()}
    drift = {arm: over(last, "color_drift") for arm, last in ends.items()}
    columns = [
        DotColumn("best photo rate", {arm: best_of(runs, arm) for arm in ends}, percent=True),
        DotColumn("content at the end", content, percent=True, at=FAILED),
        DotColumn("colour drift at the end", drift),
    ]
    note = f"Best: photo rate with at least {KEPT:g} of the base model's content; dashed: failure."
    file, title = folder / "anchor_cases.png", "Every case: its best, and where it ends"
    return [first, dots_with_intervals(file, title, columns, note)]
