"""How little it costs to bring the toy world's FLUX to a photo rate of .75, by lever of cost.

Levers: updates per rollout (`rollout.reuse`), steps of the rollouts that are trained on
(`rollout.training_steps`; every model is measured as sampled in 8 steps), the learning rate, one
branch, and several together, against the released setting: two branches, a 25-step rollout for
every update, and the learning rate that study `learning_rates` chose.

Expected beforehand: at equal photo rate, with content at or above .95 and colour drift no worse, at
least 12 times fewer NFE equivalents and 8 times less time than the released setting. Settings were
chosen with seed 100; the seeds here are others.

Time is that of the process, on one thread, in updates that the arms take in turn, so that it does
not depend on what else the machine does; the updates of a run are paid at this price.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path

from directalign.config import RunConfig
from directalign.methods import load_method
from directalign.models import load_model
from directalign.rewards import load_reward
from directalign.training.checkpoint import seed_step
from directalign.training.data import open_data, updates_per_rollout
from directalign.training.distributed import TorchProcessGroup, process_group
from directalign.training.optim import adamw, trained_parameters
from directalign.training.step import NFECounter, TrainStep

from . import plots
from .rows import Row, Rows, at_photo_rate, cost_ratio, difference
from .runner import Arm, piece, run_arms, settings_of, sized
from .tables import Column, Table, means, signed, with_interval

AT_LEVEL = at_photo_rate(0.75)
SEEDS, PAIRS, ROUNDS = (0, 1, 2, 3, 4), 128, 4
"""Training seeds; pairs of a measurement; rounds of updates after one for warm-up."""
COSTS = {"call_equivalents": "NFE equivalents", "cpu_seconds": "seconds"}
COLUMNS = (
    Column("step", "updates", 1),
    Column("call_equivalents", COSTS["call_equivalents"], 0),
    Column("cpu_seconds", COSTS["cpu_seconds"], 1),
    Column("content", "content"),
    Column("color_drift", "colour drift"),
)
RELEASED = "released"


def arm_of(name: str, title: str, recipe: str, every: int, steps: int, *overrides: str) -> Arm:
    """A recipe with levers, measured every so many of its updates."""
    counts = (f"evaluate.num_samples={PAIRS}", f"evaluate.num_samples_during={PAIRS}")
    size = (f"evaluate.every={every}", f"train.num_steps={steps}", *counts)
    return Arm(name, title, recipe, (*overrides, *size))


FAST, SHORT = "train.learning_rate=3e-4", "rollout.training_steps=2"
LONG = "rollout.training_steps=25"
ARMS = [
    arm_of(RELEASED, "as released", "world_official", 16, 32, LONG, "train.learning_rate=3e-5"),
    arm_of("half_cost", "one branch, 2 steps", "world_half_cost", 4, 12, SHORT),
]
LEVERS = [
    arm_of("released_fast", "released, 1e-4", "world_official", 4, 12, LONG),
    arm_of("cheapest", "anchored, 2 steps, 3e-4", "world_srpo", 2, 8, SHORT, FAST),
    arm_of("default", "anchored (default)", "world_srpo", 8, 24),
    arm_of("reuse_4", "anchored, reuse 4", "world_srpo", 8, 24, "rollout.reuse=4"),
    arm_of("steps_2", "anchored, 2 steps", "world_srpo", 8, 24, SHORT),
    arm_of("rate", "anchored, 3e-4", "world_srpo", 4, 12, FAST),
]
FEW_SEEDS = 3
"""Training seeds of the levers."""
RIVALS = [
    arm_of("draft_lv", "DRaFT-LV", "world_draft_lv", 8, 48),
    arm_of("flow_grpo", "Flow-GRPO", "world_flow_grpo", 16, 80),
    arm_of("grpo_relative", "GRPO, relative", "world_grpo_relative", 16, 80),
    arm_of("diffusion_nft", "DiffusionNFT, relative", "world_diffusion_nft", 2, 12),
    arm_of("awm", "AWM, relative", "world_awm", 2, 12),
]
SEARCH_SEED, RATES = 100, (5e-5, 1e-4, 2e-4, 4e-4)
FORWARD_SEARCH = ("evaluate.every=4", "train.num_steps=16")
POLICY_SEARCH = ("evaluate.every=10", "train.num_steps=60")
SEARCH_PAIRS = ("evaluate.num_samples=64", "evaluate.num_samples_during=64")


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of kind `price` and of the runs, which have `cpu_seconds`; quick: two arms, one seed."""
    arms, levers = sized(ARMS, quick), [] if quick else sized(LEVERS, quick)
    make = partial(prices, [*arms, *levers], 1 if quick else ROUNDS)
    paid = piece(out, "prices", settings_of(arms[0], 0), make)
    seconds = {row["arm"]: row["update_seconds"] for row in paid}
    found = {work_of(arm): seconds[arm.name] for arm in arms + levers if arm.name in seconds}
    of_one = {arm.name: found[work_of(arm)] for arm in arms + levers}
    rows = run_arms("frontier", arms, SEEDS[:1] if quick else SEEDS, out)
    rows += run_arms("frontier", levers, SEEDS[:FEW_SEEDS], out)
    return [*(row | {"cpu_seconds": row["step"] * of_one[row["arm"]]} for row in rows), *paid]


def work_of(arm: Arm) -> tuple[str, ...]:
    """What the cost of an update depends on: the recipe and its rollout."""
    return arm.recipe, *(each for each in arm.overrides if each.startswith("rollout."))


def prices(arms: Sequence[Arm], rounds: int) -> list[Row]:
    """`update_seconds` of every kind of update: mean over those of a rollout, and over rounds."""
    arms = list({work_of(arm): arm for arm in reversed(arms)}.values())[::-1]
    with process_group() as ranks:
        turns = {arm: _turn(settings_of(arm, 0), ranks) for arm in arms}
        spent = [{arm: turn() for arm, turn in turns.items()} for _ in range(rounds + 1)][1:]
    rows = []
    for arm in arms:
        named = {"study": "frontier", "kind": "price", "seed": 0, "arm": arm.name}
        seconds = sum(each[arm] for each in spent) / rounds
        rows.append({**named, "title": arm.title, "update_seconds": seconds})
    return rows


def _turn(run: RunConfig, ranks: TorchProcessGroup) -> Callable[[], float]:
    """A call trains on the next rollout and returns the seconds of one of its updates."""
    model = load_model(run.model, ranks.device, run.seed)
    method = load_method(run, model, load_reward(run.reward, ranks.device))
    weights, feed = trained_parameters(model.denoiser), open_data(run, model, ranks)
    optimizer, norm = adamw(weights, run.train, run.seed), run.train.max_grad_norm
    nfe = NFECounter(model.denoiser)
    update = TrainStep(method, list(weights.values()), optimizer, norm, ranks, nfe)
    length, steps = updates_per_rollout(run), count()

    def turn() -> float:
        began = time.process_time()
        for step in islice(steps, length):
            seed_step(run.seed, step)
            update(step, feed.batches(step))
        return (time.process_time() - began) / length

    return turn


# --- tables and figures ---------------------------------------------------------------------------


def tables(rows: Rows) -> dict[str, Table]:
    runs, costs, ratios = rows.runs, [], []
    for arm, title in runs.arms.items():
        found = [row for row in map(AT_LEVEL, runs.runs_of(arm)) if row]
        costs.append([title, f"{len(found)} of {len(runs.seeds(arm))}", *means(COLUMNS, found)])
        pairs = runs.pairs(arm, RELEASED, AT_LEVEL)
        times = [cost_ratio([(other, mine) for mine, other in pairs], key) for key in COSTS]
        changes = [signed(difference(pairs, key)) for key in ("content", "color_drift")]
        cells = [*(with_interval(each, 1) for each in times), *changes, str(len(pairs))]
        arrived = len(found) == len(runs.seeds(arm))  # a ratio of some seeds alone is none
        ratios += [[title, *cells]] if arm != RELEASED and arrived else []
    titles = [column.title for column in COLUMNS]
    fewer = [f"times fewer {name}" for name in COSTS.values()]
    return {
        "cost": Table(["setting", "seeds", *titles], costs),
        "over_released": Table(["setting", *fewer, *titles[-2:], "seeds"], ratios),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    runs, panels, columns = rows.runs, [], []
    paid = Rows(row for row in runs if row["step"] > 0)
    for key, x in COSTS.items():
        lines = plots.lines_along(paid, key, "photo_rate")
        is_last = key == "cpu_seconds"
        panel = plots.Panel("Photo rate", x, "", lines, percent=True, log_x=True, named=is_last)
        panels.append(panel)
        pairs = {arm: runs.pairs(arm, RELEASED, AT_LEVEL) for arm in runs.arms if arm != RELEASED}
        values = {arm: cost_ratio(each, key) for arm, each in pairs.items()}
        columns.append(plots.DotColumn(x, values, log=True, at=1))
    note = "Means over seeds"
    file, title = folder / "frontier_curves.png", "Photo rate, by what it costs"
    files = [plots.curves(file, title, panels, note, titles=runs.arms)]
    file, title = folder / "frontier_cost.png", "Cost of a photo rate of .75 over that as released"
    note = "Geometric means over the seeds that reach it, 95 % intervals; dashed: as released"
    return [*files, plots.dots_with_intervals(file, title, columns, note, runs.arms)]
