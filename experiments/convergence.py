"""What it costs to reach the same photo rate; one injection against K backpropagated steps.

The paper gives GPU hours on FLUX.1-dev (arXiv 2509.06942, table 1: SRPO 5.3, ReFL and Direct-Align
16, DRaFT-LV 24, DanceGRPO 480) at unequal rewards. Here methods are compared at equal photo rates;
the runs of a finished `table1` beside this study's folder are used.

The second half trains nothing: the same absolute reward is differentiated at the same weights by
Direct-Align and through the last K steps of the rollout (DRaFT-K, arXiv 2309.17400; K = all is
AlignProp), alternately in one process, so that ratios of times hold on a busy machine.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from directalign import config
from directalign.config.load import load_run
from directalign.diffusion.sampling import sampling_step, start_rollout
from directalign.interfaces import Method
from directalign.methods.draft import DRaFT
from directalign.methods.objective import build_objective
from directalign.methods.srpo import SRPO
from directalign.models import load_model, trainable
from directalign.rewards import load_reward
from directalign.toyworld.scenes import train_captions
from directalign.training.step import NFECounter
from directalign.types import Batch

from . import plots, table1
from .rows import Row, Rows, SeedInterval, at_level, mean_interval, ratio_interval
from .runner import (
    ARMS,
    MARK,
    OURS,
    allowance,
    flat,
    piece,
    run_arms,
    small_batches,
    unflat,
    within,
)
from .tables import DASH, Table, number, with_interval

QUICK_ARMS = ("srpo", "flow_grpo")
OFFICIAL = "srpo_official"
LEVELS = (0.4, 0.6, 0.75)
"""Photo rates at which costs are compared."""
PAPER = {"direct_align": "3", "refl": "3", "draft_lv": "4.5", "flow_grpo": "75–90"}
"""GPU hours over SRPO's 5.3."""
MODELS = {"flux": ("FLUX", "world_direct_align"), "sd": ("SD", "world_sd_direct_align")}
INJECTION = 0
"""`grad_steps` of Direct-Align: its gradient goes through no step of sampling."""
SHOWN_STEPS = (INJECTION, 1, 4)
"""K in the table, beside the whole rollout."""


FULL, QUICK = (("flux", "sd"), (8, 25), 4, 8), (("flux",), (2,), 2, 2)
"""Models, steps of the rollouts, batches, batch size."""


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of the runs, of kind `depth` (model, rollout, K) and `state` (a state of a rollout).

    depth: `seconds` of an update without its optimiser step, `ratio` to Direct-Align's,
    `grad_norm` of all weights, its `spread` (standard deviation over mean), `agreement` (mean
    cosine between the gradients of two batches). state: `norm` of the reward's gradient at the
    state `depth` NFE before the image, `growth` over that at the image. Quick: two methods.
    """
    home, budget = home_of(out, quick), table1.QUICK if quick else table1.FULL
    arms = small_batches([arm for arm in ARMS if not quick or arm.name in QUICK_ARMS], quick)
    paid = [within(allowance(arm, budget, often=True), arm, home) for arm in arms]
    seeds = table1.QUICK_SEEDS if quick else table1.SEEDS
    rows = run_arms("convergence", paid, seeds, home)
    models, lengths, batches, batch_size = QUICK if quick else FULL
    for model, length in product(models, lengths):
        sizes = [f"rollout.num_inference_steps={length}", f"data.batch_size={batch_size}"]
        run = load_run(MODELS[model][1], sizes)
        make = partial(gradient_rows, model, run, batches)
        rows += piece(out, f"depth-{model}-{length}", run, make)
    return rows


def home_of(out: Path, quick: bool) -> Path:
    """Folder of the runs: that of a finished `table1` of the same size beside `out`, else `out`."""
    beside = out.parent / "study_table1"
    if not (beside / MARK).is_file() or not (beside / "results.jsonl").is_file():
        return out
    wanted = {"study": "table1", "size": "quick" if quick else "full"}
    return beside if json.loads((beside / MARK).read_text(encoding="utf-8")) == wanted else out


# --- one injection against K steps ----------------------------------------------------------------


class Bench:
    """A model and a reward, and every way to differentiate one through the other.

    `run` is a recipe of plain Direct-Align with one branch; the chains take its words.
    """

    def __init__(self, run: config.RunConfig) -> None:
        settings = run.method
        assert isinstance(settings, config.SRPOConfig)
        assert settings.form == "absolute" and settings.branches == "denoise", settings
        self.run, self.model = run, load_model(run.model, "cpu", run.seed)
        self.weights = list(trainable(self.model).values())
        self.calls = NFECounter(self.model.denoiser)
        reward = load_reward(run.reward, "cpu")
        self.objective = build_objective(reward, settings)
        injection = SRPO(self.model, reward, settings, run.rollout)
        self.methods: dict[int, Method] = {INJECTION: injection}
        length = run.rollout.num_inference_steps
        below = [2**power for power in range(length.bit_length()) if 2**power < length]
        shared = settings.model_dump(include={"control_phrases", "image_mapping"})
        for grad_steps in (*below, length):
            chain = config.DRaFTConfig(grad_steps=grad_steps, **shared)
            self.methods[grad_steps] = DRaFT(self.model, reward, chain, run.rollout)

    def batch(self, step: int) -> Batch:
        """The prompts of one update; `step` seeds its noise too."""
        prompts, size = train_captions(), self.run.data.batch_size
        chosen = (prompts[(step * size + place) % len(prompts)] for place in range(size))
        return Batch(step, tuple(chosen), None, self.run.seed)

    def gradient(self, grad_steps: int, batch: Batch) -> tuple[float, Float[Tensor, " weights"]]:
        """Seconds of the losses and their backward passes, and the whole gradient."""
        self.model.denoiser.zero_grad(set_to_none=True)
        began = time.perf_counter()
        for loss in self.methods[grad_steps].losses(batch):
            loss.value.backward()
        seconds = time.perf_counter() - began
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        return seconds, nn.utils.parameters_to_vector(gradients)

    def at_states(self, batch: Batch) -> tuple[Float[Tensor, " levels"], Float[Tensor, " levels"]]:
        """Levels of a rollout's states, mean norm of the reward's gradient there; [-1]: image."""
        begun = start_rollout(self.model, self.run.rollout, batch)
        states = [begun.noise.requires_grad_()]
        for sigma_from, sigma_to in pairwise(begun.sigmas):
            states.append(sampling_step(self.model, begun.cond, states[-1], sigma_from, sigma_to))
        reward = self.objective(self.model.decode(states[-1]), batch).reward.sum()
        gradients = torch.autograd.grad(reward, states)
        norms = torch.stack([each.flatten(1).norm(dim=1).mean() for each in gradients])
        return begun.sigmas, norms.double()


def gradient_rows(model: str, run: config.RunConfig, batches: int) -> list[Row]:
    """Rows of one model and rollout; all methods in turn on each batch, after one for warm-up."""
    bench, length = Bench(run), run.rollout.num_inference_steps
    named = {"study": "convergence", "seed": run.seed, "model": model}
    named |= {"num_inference_steps": length, "batches": batches}
    seconds, norms, directions, calls = {}, {}, {}, {}
    for count in range(batches + 1):
        for steps in bench.methods:
            bench.calls.take()
            took, gradient = bench.gradient(steps, bench.batch(count))
            calls[steps], norm = bench.calls.take(), float(gradient.norm())
            if count > 0:
                seconds.setdefault(steps, []).append(took)
                norms.setdefault(steps, []).append(norm)
                directions[steps] = directions.get(steps, 0) + gradient / norm
    rows = []
    for steps in bench.methods:
        way = "Direct-Align" if steps == INJECTION else f"{steps} of {length} steps"
        row = {**named, "arm": f"{model}-{length}-{steps}", "title": f"{MODELS[model][0]}, {way}"}
        row |= {"kind": "depth", "grad_steps": steps, "seconds": sum(seconds[steps]) / batches}
        row |= flat("ratio", ratio_interval(seconds[steps], seconds[INJECTION]))
        row |= flat("grad_norm", mean_interval(norms[steps]))
        row["spread"] = statistics.stdev(norms[steps]) / statistics.mean(norms[steps])
        row["agreement"] = agreement(directions[steps], batches)
        row["forward_calls"], row["backward_calls"] = calls[steps]
        rows.append(row)
    found = [bench.at_states(bench.batch(count)) for count in range(1, batches + 1)]
    by_state = torch.stack([each for _, each in found], 1).tolist()
    title = f"{MODELS[model][0]}, the states of {length} steps"
    for place, (sigma, each) in enumerate(zip(found[0][0].tolist(), by_state, strict=True)):
        label = {"arm": f"{model}-{length}-state", "title": title, "kind": "state"}
        growth = flat("growth", ratio_interval(each, by_state[-1]))
        numbers = {"sigma": sigma, **flat("norm", mean_interval(each)), **growth}
        rows.append({**named, **label, "depth": length - place, **numbers})
    return rows


def agreement(total: Float[Tensor, " weights"], count: int) -> float:
    """Mean cosine between two of n > 1 unit vectors from their sum: (|sum|² − n) / (n·(n − 1))."""
    return float((total.double().square().sum() - count) / (count * (count - 1)))


# --- cost of a level ------------------------------------------------------------------------------


def cost(rows: Rows, arm: str, seed: int, key: str, level: float) -> float | None:
    """What a run paid until its photo rate first reached `level`; None if it never did."""
    found = at_level(rows.run(arm, seed), "photo_rate", level)
    return None if found is None else float(found[key])


def ratio(
    rows: Rows, arm: str, over: str, key: str, level: float
) -> tuple[SeedInterval | None, str]:
    """(cost of an arm over that of another at a level, the same as text).

    Over the seeds on which both reach it; where an arm never does, the text gives the least
    multiple that it spent.
    """
    pairs, beyond, seeds = [], [], 0
    for seed in sorted(set(rows.seeds(over)) & set(rows.seeds(arm))):
        other, mine = cost(rows, over, seed, key, level), cost(rows, arm, seed, key, level)
        if not other:
            continue
        seeds += 1
        if mine is None:
            beyond.append(rows.run(arm, seed)[-1][key] / other)
        elif mine > 0:
            pairs.append((mine, other))
    if seeds == 0:
        return None, DASH
    if not pairs:
        least = min(beyond, default=0.0)
        return None, f"> {number(least, 0 if least >= 10 else 1)}, not reached"
    found = ratio_interval(*zip(*pairs, strict=True))
    some = "" if len(pairs) == seeds else f", {len(pairs)} of {seeds} seeds"
    return found, with_interval(found, 1) + some


def tables(rows: Rows) -> dict[str, Table]:
    runs, percents = rows.runs, [f"{100 * level:g} %" for level in LEVELS]
    keys = {"call_equivalents": "NFE equivalents", "seconds": "seconds"}
    columns = [f"{name} to {percent}" for name in keys.values() for percent in percents]
    lines = []
    for arm, title in runs.arms.items():
        lines.append([title, *(cost_cell(runs, arm, *each) for each in product(keys, LEVELS))])
    return {
        "cost": Table(["method", *columns], lines),
        "over_official": ratio_table(runs, OFFICIAL, percents),
        "over_anchored": ratio_table(runs, OURS, percents),
        "gradient_depth": depth_table(rows.where(kind="depth")),
    }


def cost_cell(runs: Rows, arm: str, key: str, level: float) -> str:
    """Mean cost over the seeds that reach the level, with their number where some do not."""
    found = [cost(runs, arm, seed, key, level) for seed in runs.seeds(arm)]
    known = [each for each in found if each is not None]
    if not known:
        return "not reached"
    text = with_interval(mean_interval(known), 0)
    return text if len(known) == len(found) else f"{text}, {len(known)} of {len(found)} seeds"


def ratio_table(runs: Rows, other: str, percents: Sequence[str]) -> Table:
    """NFE equivalents of every arm over those of `other`, beside the paper's GPU hours."""
    lines = []
    for arm, title in runs.arms.items():
        if arm != other:
            found = (ratio(runs, arm, other, "call_equivalents", level)[1] for level in LEVELS)
            lines.append([title, *found, PAPER.get(arm, DASH)])
    columns = [f"to {percent}" for percent in percents]
    return Table(["method", *columns, "paper (GPU hours)"], lines)


def depth_table(rows: Rows) -> Table:
    """Direct-Align, K in `SHOWN_STEPS` and the whole rollout."""
    lines = []
    for row in rows:
        injection, length = row["grad_steps"] == INJECTION, row["num_inference_steps"]
        if row["grad_steps"] not in (*SHOWN_STEPS, length):
            continue
        title = f"{row['title']} ({length}-step rollout)" if injection else row["title"]
        times = number(1, 2) if injection else with_interval(unflat(row, "ratio"), 2)
        norm = with_interval(unflat(row, "grad_norm"), 3)
        numbers = [number(row[key], 2) for key in ("spread", "agreement")]
        lines.append([title, number(row["seconds"], 2), times, norm, *numbers])
    columns = ["model, gradient through", "seconds", "times Direct-Align's"]
    return Table([*columns, "norm of the gradient", "spread", "agreement"], lines)


# --- figures --------------------------------------------------------------------------------------


def draw(rows: Rows, folder: Path) -> list[Path]:
    runs, panels = rows.runs, []
    costs = {"call_equivalents": "NFE equivalents", "seconds": "seconds", "step": "updates"}
    judged = {"photo_rate": ("Photo rate", True), "score_pos": ("Reward", False)}
    for (name, (title, percent)), (key, x) in product(judged.items(), costs.items()):
        paid = Rows(row for row in runs if row[key] > 0)
        lines = plots.lines_along(paid, key, name, banded=True)
        span = {"span_y": (0, 1) if percent else None, "named": key == "step"}
        panels.append(plots.Panel(title, x, "", lines, percent, log_x=True, **span))
    note = "Means over seeds, 95 % intervals at the end; reward: score under the positive phrases"
    file, title = folder / "convergence_curves.png", "Photo rate and reward, by what they cost"
    files = [plots.curves(file, title, panels, note, titles=runs.arms)]
    kinds = [("call_equivalents", "NFE", level) for level in LEVELS]
    columns = []
    for key, name, level in (*kinds, ("seconds", "seconds", LEVELS[1])):
        values = {arm: ratio(runs, arm, OURS, key, level)[0] for arm in runs.arms if arm != OURS}
        columns.append(plots.DotColumn(f"{name} to {100 * level:g} %", values, log=True, at=1))
    note = "Geometric means over the seeds that reach the photo rate, 95 % intervals; dashed: SRPO"
    file = folder / "convergence_cost.png"
    title = "Cost of a photo rate over that of SRPO, anchored"
    files.append(plots.dots_with_intervals(file, title, columns, note, runs.arms))
    return [*files, _draw_depth(rows, folder / "convergence_depth.png")]


def _draw_depth(rows: Rows, file: Path) -> Path:
    chains = [row for row in rows.where(kind="depth") if row["grad_steps"] != INJECTION]
    states = rows.where(kind="state")
    groups = {(row["model"], row["num_inference_steps"]): None for row in chains}
    titles = {f"{model}-{n}": f"{MODELS[model][0]}, {n} steps" for model, n in groups}

    def by(found: Sequence[Row], x: str, y: str) -> list[plots.Line]:
        lines = []
        for model, n in groups:
            each = Rows(found).where(model=model, num_inference_steps=n)
            each.sort(key=lambda row: row[x])
            low, high = ([row[f"{y}_{end}"] for row in each] for end in ("low", "high"))
            banded = all(end is not None and end > 0 for end in low)  # the axis is logarithmic
            means = [row[y] for row in each]
            band = (low, high) if banded else ((), ())
            lines.append(plots.Line(f"{model}-{n}", [row[x] for row in each], means, *band))
        return lines

    steps: str = "steps with gradient, K"
    both: dict[str, Any] = {"log_x": True, "log_y": True, "named": False}
    ratios, norms = by(chains, "grad_steps", "ratio"), by(chains, "grad_steps", "grad_norm")
    growth, depth = by(states, "depth", "growth"), "NFE before the image"
    panels = [
        plots.Panel("Time of an update", steps, "times Direct-Align's", ratios, **both),
        plots.Panel("Gradient of the weights", steps, "norm", norms, **both),
        plots.Panel("Gradient at the state", depth, "times that at the image", growth, log_y=True),
    ]
    note = "The same reward at the same weights, before training; 95 % intervals over batches"
    title = "One injection against back-propagation through K steps of sampling"
    return plots.curves(file, title, panels, note, titles=titles)
