"""How little it costs to bring the toy world's FLUX to a photo rate of .75, by lever of cost.

Levers: updates per rollout (`rollout.reuse`), steps of the rollouts that are trained on
(`rollout.training_steps`; every model is measured as sampled in 8 steps), the learning rate, one
branch, and several together, against the released setting: two branches, a 25-step rollout for
every update, and the learning rate that study `learning_rates` chose.

Added after these: four steps with and without a few-step LoRA (`rollout.lora`); skipped blocks
(`rollout.cache`) under thresholds that skip some in rollouts of eight steps; `MADE` images of the
base model in place of rollouts, whose cost is part of every row of the arm. Images always get fresh
noise, and rollouts keep theirs, but for the arm of fresh noise. NFE count a call with skipped
blocks as a whole one: see the time.

Expected beforehand: at equal photo rate, with content at or above .95 and colour drift no worse, at
least 12 times fewer NFE equivalents and 8 times less time than the released setting. Settings were
chosen with seed 100; the seeds here are others.

At 1e-4 one branch with 2 steps arrived with more colour drift than the released setting on the
first five seeds. So a lower rate was chosen, on seeds 100 to 102: of 5e-5, 6e-5, 7e-5 and 1e-4 the
one with the fewest NFE whose mean drift at the level is at most .002 (a tenth of the base model's)
above that of the released setting. "No worse" is, on eight seeds, a whole interval below that .002
for drift, and one above -.01 for content. By the same rule and on the same seeds images of the base
model made once were chosen to have 2 steps, and to be 64: with 16 content was lower. For one branch
on such images rates of 7e-5, 1e-4 and 1.4e-4 were tried there: the drift of all is below the
released setting's; 1e-4 was chosen, since at 1.4e-4 content is lost within three updates of the
level and at 7e-5 one seed of three does not reach it in 12.

Rival methods were added after these settings, each at its best learning rate of seed 100: the one
that reaches the level with content at or above .95 for the fewest NFE (rows of kind `search`; more
rates of DRaFT-LV and the policy gradients are in study `learning_rates`; no rate of DRaFT-LV keeps
the content, so it has the one that reaches .75). On the same rows DiffusionNFT and AWM are compared
with the policy gradient, all on the relative reward: .75 is, to .05, the highest level that all
three reach on seed 100 with that content.

Time is that of the process, on one thread, in updates that the arms take in turn, so that it does
not depend on what else the machine does; the updates of a run are paid at this price.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, islice, product
from pathlib import Path
from random import Random

from PIL import Image

from directalign.config import RunConfig
from directalign.data.prompts import read_prompts
from directalign.evaluation.generate import generate
from directalign.io.tensors import to_pixels
from directalign.methods import load_method
from directalign.models import load_model
from directalign.rewards import load_reward
from directalign.training.checkpoint import seed_step
from directalign.training.data import open_data, updates_per_rollout
from directalign.training.distributed import TorchProcessGroup, process_group
from directalign.training.optim import adamw, trained_parameters
from directalign.training.step import NFECounter, TrainStep

from . import plots
from .learning_rates import with_rate
from .rows import Row, Rows, at_photo_rate, cost_ratio, difference
from .runner import FULL_SIZE, Arm, piece, run_arms, settings_of, sized
from .tables import Column, Table, means, signed, with_interval

AT_LEVEL = at_photo_rate(0.75)
SEEDS, RIVAL_SEEDS, PAIRS, ROUNDS = range(8), range(5), 128, 4
"""Training seeds, and those of rivals; pairs of a measurement; rounds of updates after a first."""
COSTS = {"call_equivalents": "NFE equivalents", "cpu_seconds": "seconds"}
COLUMNS = (
    Column("step", "updates", 1),
    Column("call_equivalents", COSTS["call_equivalents"], 0),
    Column("cpu_seconds", COSTS["cpu_seconds"], 1),
    Column("content", "content"),
    Column("color_drift", "colour drift"),
)
PHOTO = Column("photo_rate", "photo rate")
KEPT_COLUMNS = (PHOTO, *COLUMNS)
RELEASED, RELEASED_FAST, HALF_COST, CONTENT = "released", "released_fast", "half_cost", 0.95


def arm_of(name: str, title: str, recipe: str, every: int, steps: int, *overrides: str) -> Arm:
    """A recipe with levers, measured every so many of its updates."""
    counts = (f"evaluate.num_samples={PAIRS}", f"evaluate.num_samples_during={PAIRS}")
    size = (f"evaluate.every={every}", f"train.num_steps={steps}", *counts)
    return Arm(name, title, recipe, (*overrides, *size))


FAST, SLOWER = "train.learning_rate=3e-4", "train.learning_rate=7e-5"
SHORT, FOUR = "rollout.training_steps=2", "rollout.training_steps=4"
LONG = "rollout.training_steps=25"
FEW_STEP, CACHE = "rollout.lora=world:flux_turbo", "rollout.cache="
ARMS = [
    arm_of(RELEASED, "as released", "world_official", 16, 32, LONG, "train.learning_rate=3e-5"),
    arm_of(HALF_COST, "one branch, 2 steps", "world_half_cost", 4, 12, SHORT),
    arm_of("half_cost_slower", "one branch, 7e-5", "world_half_cost", 4, 16, SHORT, SLOWER),
]
LEVERS = [
    arm_of(RELEASED_FAST, "released, 1e-4", "world_official", 4, 12, LONG),
    arm_of("cheapest", "2 steps, 3e-4", "world_srpo", 2, 8, SHORT, FAST),
    arm_of("default", "anchored (default)", "world_srpo", 8, 24),
    *(
        arm_of(f"reuse_{k}", f"anchored, reuse {k}", "world_srpo", 8, 24, f"rollout.reuse={k}")
        for k in (2, 4, 8, 16)
    ),
    arm_of("half_reuse_4", "one branch, reuse 4", "world_half_cost", 4, 12, "rollout.reuse=4"),
    arm_of("steps_2", "anchored, 2 steps", "world_srpo", 8, 24, SHORT),
    arm_of("rate", "anchored, 3e-4", "world_srpo", 4, 12, FAST),
    arm_of("fresh", "anchored, fresh noise", "world_srpo", 8, 24, "method.noise.source=fresh"),
    arm_of("steps_4", "anchored, 4 steps", "world_srpo", 8, 24, FOUR),
    arm_of("lora_4", "4 steps, LoRA", "world_srpo", 8, 24, FOUR, FEW_STEP),
    *(
        arm_of(f"cache_{share}", f"anchored, cache {share}", "world_srpo", 8, 24, f"{CACHE}{share}")
        for share in (0.3, 0.5)
    ),
]
MADE = 64
OFF_POLICY = {
    "off_policy": ("base images (8)", "world_srpo", 4, 8),
    "off_policy_2": ("base images (2)", "world_srpo", 4, 2),
    "half_off_policy": ("one branch, images", "world_half_cost", 2, 2),
}
"""Arms on `MADE` images that the base model makes once: title, recipe, updates between two
measurements, steps of the images."""
FEW_SEEDS = 3
"""Training seeds of the levers."""
DRAWN = {
    *(RELEASED, HALF_COST, "half_cost_slower", "off_policy_2", "half_off_policy"),
    *(RELEASED_FAST, "cheapest", "default", "reuse_16", "steps_2"),
}
"""Arms of the figure of photo rate over cost."""
GRPO, NFT, RATES = "grpo_relative", "diffusion_nft", (5e-5, 1e-4, 2e-4, 4e-4)
RIVALS = [
    arm_of("draft_lv", "DRaFT-LV", "world_draft_lv", 6, 24, "train.learning_rate=3e-4"),
    arm_of("flow_grpo", "Flow-GRPO", "world_flow_grpo", 16, 96, "train.learning_rate=1e-4"),
    arm_of(GRPO, "GRPO, relative", "world_grpo_relative", 16, 64, "train.learning_rate=2e-4"),
    arm_of(NFT, "DiffusionNFT", "world_diffusion_nft", 3, 12, "train.learning_rate=2e-4"),
    arm_of("awm", "AWM", "world_awm", 3, 12, "train.learning_rate=2e-4"),
]
SEARCHED = {"flow_grpo": RATES[2:3], GRPO: RATES[2:3], NFT: RATES, "awm": RATES}
"""Learning rates; study `learning_rates` has three more for the first two and for DRaFT-LV."""
SEARCH_SEED = 100
SEARCH_SIZE = {
    "flow_grpo": ("evaluate.every=20", "train.num_steps=60"),
    GRPO: ("evaluate.every=20", "train.num_steps=60"),
    NFT: ("evaluate.every=4", "train.num_steps=12"),
    "awm": ("evaluate.every=4", "train.num_steps=12"),
}


def searched() -> list[Arm]:
    """Rival methods under each of their rates, measured on as many pairs as most studies."""
    rates = [(arm, rate) for arm in RIVALS for rate in SEARCHED.get(arm.name, ())]
    return [with_rate(arm, rate).plus(*SEARCH_SIZE[arm.name], *FULL_SIZE) for arm, rate in rates]


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of kind `price` and `search`, and of the runs, which have `cpu_seconds`; quick: two arms
    and one rate, one seed."""
    arms = sized(ARMS[: 2 if quick else None], quick)
    tried = sized(searched()[-1 if quick else 0 :], quick)
    levers, rivals = ([], []) if quick else (sized(LEVERS, quick), sized(RIVALS, quick))
    made = sized([off_policy(name, out) for name in list(OFF_POLICY)[2 if quick else 0 :]], quick)
    every, once = [*arms, *made, *levers, *rivals], {arm.name: images_of(arm, out) for arm in made}
    make = partial(prices, every, 1 if quick else ROUNDS)
    paid = piece(out, "prices", settings_of(arms[0], 0), make)
    seconds = {row["arm"]: row["update_seconds"] for row in paid}
    found = {work_of(arm): seconds[arm.name] for arm in every if arm.name in seconds}
    of_one = {arm.name: found[work_of(arm)] for arm in every}
    search = run_arms("frontier", tried, (SEARCH_SEED,), out)
    rows = run_arms("frontier", arms, SEEDS[:1] if quick else SEEDS, out)
    rows += run_arms("frontier", made[-2:], SEEDS[:1] if quick else SEEDS, out)
    rows += run_arms("frontier", [*made[:-2], *levers], SEEDS[:FEW_SEEDS], out)
    rows += run_arms("frontier", rivals, RIVAL_SEEDS, out)
    rows = [row | {"cpu_seconds": row["step"] * of_one[row["arm"]]} for row in rows]
    rows = [
        row | {key: row[key] + once[row["arm"]][key] for key in COSTS}
        if row["arm"] in once
        else row
        for row in rows
    ]
    return [*rows, *({**row, "kind": "search"} for row in search), *paid]


def off_policy(name: str, out: Path) -> Arm:
    """SRPO on the images of `images_of`."""
    title, recipe, every, _ = OFF_POLICY[name]
    images = f"data.images={out / name}"  # not data.prompts, which are measured
    return arm_of(name, title, recipe, every, 12, images)


def images_of(arm: Arm, out: Path) -> Row:
    """What the base model's images of the arm cost, by key of `COSTS`; made if they are not there:
    one of each of `MADE` captions of the training."""
    run = settings_of(arm, SEARCH_SEED)
    captions = Random(SEARCH_SEED).sample(read_prompts("world"), MADE)

    def make() -> list[Row]:
        model, folder = load_model(run.model, "cpu"), out / arm.name
        *_, steps = OFF_POLICY[arm.name]
        rollout = run.rollout.model_copy(update={"num_inference_steps": steps})
        began = time.process_time()
        images = generate(model, captions, range(MADE), rollout)
        seconds = time.process_time() - began
        folder.mkdir(exist_ok=True)
        for index, (caption, image) in enumerate(zip(captions, images, strict=True)):
            Image.fromarray(to_pixels(image)).save(folder / f"{index}.png")
            (folder / f"{index}.txt").write_text(caption, encoding="utf-8")
        return [{"call_equivalents": MADE * steps, "cpu_seconds": seconds}]

    return piece(out, arm.name, run, make)[0]


def work_of(arm: Arm) -> tuple[str, ...]:
    """What the cost of an update depends on: the recipe, its rollout and its data."""
    return arm.recipe, *(each for each in arm.overrides if each.startswith(("rollout.", "data.")))


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
    runs, costs, ratios, rivals = rows.runs, [], [], {arm.name for arm in RIVALS}
    for arm, title in runs.arms.items():
        found = [row for row in map(AT_LEVEL, runs.runs_of(arm)) if row]
        costs.append([title, f"{len(found)} of {len(runs.seeds(arm))}", *means(COLUMNS, found)])
        arrived = len(found) == len(runs.seeds(arm))  # a ratio of some seeds alone is none
        if arm not in (RELEASED, *rivals) and arrived:
            ratios.append([title, *_fewer(runs, arm, RELEASED)])
    titles, there = (
        [column.title for column in COLUMNS],
        [arm for arm in runs.arms if arm in rivals],
    )
    fewer = [*(f"times fewer {name}" for name in COSTS.values()), *titles[-2:], "seeds"]
    ours = [[runs.arms[arm], *_fewer(runs, HALF_COST, arm)] for arm in there]
    equal = [
        [runs.arms[arm], *_fewer(runs, arm, RELEASED_FAST)]
        for arm in (HALF_COST, *OFF_POLICY)
        if arm in runs.arms and RELEASED_FAST in runs.arms
    ]
    forward = [
        [f"{runs.arms[arm]}, against {runs.arms[other]}", *_fewer(runs, arm, other)]
        for arm, other in product((NFT, "awm"), ("flow_grpo", GRPO))
        if arm in there and other in there
    ]
    kept = [[runs.arms[arm], *means(KEPT_COLUMNS, _kept(runs.runs_of(arm)))] for arm in there]
    return {
        "cost": Table(["setting", "seeds", *titles], costs),
        "over_released": Table(["setting", *fewer], ratios),
        "at_equal_rate": Table(["setting", *fewer], equal),
        "over_rivals": Table(["against", *fewer], ours),
        "forward_process": Table(["method", *fewer], forward),
        "with_content": Table(["method", *(column.title for column in KEPT_COLUMNS)], kept),
        "search": _search_table(rows.where(kind="search")),
    }


def _fewer(runs: Rows, arm: str, other: str) -> list[str]:
    """Cost of the other over that of the arm, and its gain in quality, where both reach the level;
    on how many seeds they do."""
    pairs = runs.pairs(arm, other, AT_LEVEL)
    times = [cost_ratio([(theirs, mine) for mine, theirs in pairs], key) for key in COSTS]
    changes = [signed(difference(pairs, key)) for key in ("content", "color_drift")]
    return [*(with_interval(each, 1) for each in times), *changes, str(len(pairs))]


def _kept(runs: Sequence[Rows]) -> list[Row]:
    """The highest photo rate of each run with content at or above `CONTENT`."""
    kept = [[row for row in run if row["content"] >= CONTENT] for run in runs]
    return [max(each, key=lambda row: row["photo_rate"]) for each in kept]


def _search_table(rows: Rows) -> Table:
    lines = []
    for arm, title in rows.arms.items():
        run = rows.run(arm, SEARCH_SEED)
        found = AT_LEVEL(run)
        cells = means(COLUMNS[:2], [found] if found else [])
        (kept,) = _kept([run])
        lines.append([title, *cells, *means((PHOTO, *COLUMNS[:2]), [kept])])
    with_content = (f"{each}, with content" for each in ("photo rate", "updates", "NFE"))
    return Table(["method and rate", "updates", "NFE equivalents", *with_content], lines)


def draw(rows: Rows, folder: Path) -> list[Path]:
    runs, files, columns = rows.runs, [], []
    rivals = {arm.name for arm in RIVALS}
    groups = {"curves": DRAWN, "rivals": {RELEASED, HALF_COST, *rivals}}
    for name, arms in groups.items():
        paid, panels = Rows(r for r in runs if r["step"] > 0 and r["arm"] in arms), []
        for key, x in COSTS.items():
            lines = plots.lines_along(paid, key, "photo_rate")
            is_last = key == "cpu_seconds"
            panel = plots.Panel("Photo rate", x, "", lines, percent=True, log_x=True, named=is_last)
            panels.append(panel)
        file, title = folder / f"frontier_{name}.png", "Photo rate, by what it costs"
        files.append(plots.curves(file, title, panels, "Means over seeds", titles=runs.arms))
    for key, x in COSTS.items():
        pairs = {arm: runs.pairs(arm, RELEASED, AT_LEVEL) for arm in runs.arms if arm != RELEASED}
        values = {arm: cost_ratio(each, key) for arm, each in pairs.items()}
        columns.append(plots.DotColumn(x, values, log=True, at=1))
    file, title = folder / "frontier_cost.png", "Cost of a photo rate of .75 over that as released"
    note = "Geometric means over the seeds that reach it, 95 % intervals; dashed: as released"
    return [*files, plots.dots_with_intervals(file, title, columns, note, runs.arms)]
