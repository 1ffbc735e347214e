"""Train and measure what a study compares. Finished work is kept, interrupted work is resumed.

OUT/study.json          which study, in which size
OUT/runs/ARM-seedS/     a training run without its checkpoints
OUT/pieces/NAME.jsonl   rows of a measurement that trains nothing; NAME.yaml holds its settings
OUT/prices.json         measured cost of one update
OUT/results.jsonl       all rows; beside it README.md with the tables, and the figures
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from directalign.config import RunConfig
from directalign.config.load import dump_run, load_run
from directalign.evaluation.eval_prompts import fixed_pairs, prompts_to_measure
from directalign.evaluation.generate import load_run_model, run_of
from directalign.evaluation.image_metrics import statistics
from directalign.evaluation.in_training import Measurer, photographs
from directalign.evaluation.run_weights import find_weights
from directalign.io.atomic import write_text
from directalign.methods import load_method
from directalign.methods.ceiling import unmeasured
from directalign.models import load_model
from directalign.rewards import load_reward
from directalign.toyworld.judges import load_judge
from directalign.toyworld.worlds import WORLDS
from directalign.training import checkpoint, train_once
from directalign.training.data import open_data
from directalign.training.distributed import process_group
from directalign.training.run_folder import commit, machine, versions
from directalign.training.run_log import read
from directalign.training.step import NFECounter
from directalign.types import DirectAlignError

from .plots import title_of
from .rows import Number, Row, Rows, read_rows, write_rows
from .tables import Table

STUDIES = {
    "learning_rates": "The learning rate of every method, chosen by one rule",
    "asking": "What asking reaches, and training towards it without a reward",
    "unpromptable": "A base model that does not do what words ask: references, methods, rewards",
    "rivals": "Methods on the second world, each at its own best rate and length",
    "second_world": "Windows, phrases, long runs, forms and Stable Diffusion in the second world",
    "table1": "All methods at equal compute, equal reward and equal photo rate",
    "convergence": "What it costs to reach the same photo rate",
    "frontier": "How little it costs to reach one photo rate, by lever of cost",
    "timesteps": "Training at high noise, low noise or everywhere",
    "control_phrases": "Control phrases: which cancel the bias, and which styles they suppress",
    "suggested_phrases": "Control phrases and ramps as `directalign reward phrases` suggests them",
    "soft_prompts": "Learned control tokens against control phrases",
    "taste": "From votes to a model: a simulated voter with a hidden taste, two rounds",
    "inversion": "Two branches, one branch and the half-cost variant",
    "anchor": "The anchored reward against the ramps, and where it fails",
    "recovery": "Error of the recovered image by noise level and jump",
    "defences": "Projected and mixed rewards against reward hacking",
    "ddpm": "The comparison on Stable Diffusion, and the closed form on other schedules",
    "reward_finetuning": "A reward finetuned to respond to control phrases",
    "coverage": "The comparison: win rates, and coverage of its intervals",
    "early_stopping": "Runs that stop before they ruin the model",
    "few_step": "A few-step model, aligned at its own steps and as the undistilled one",
    "stability": "The aligned model under other samplers, guidance, seeds and img2img chains",
}
MARK = "study.json"


@runtime_checkable
class Study(Protocol):
    """A module of this package. Its docstring says what the paper claims and what is measured.

    `measure` returns the rows and trains or measures what is not there yet; `quick` is a size of
    minutes that tests the code. `tables` ({name: table}) and `draw` (files in `folder`, named after
    the study) need nothing but rows.
    """

    def measure(self, out: Path, quick: bool) -> list[Row]: ...

    def tables(self, rows: Rows) -> dict[str, Table]: ...

    def draw(self, rows: Rows, folder: Path) -> list[Path]: ...


def load_study(name: str) -> Study:
    """The module of a study. Raises: DirectAlignError for an unknown name."""
    if name not in STUDIES:
        raise DirectAlignError(f"no study is called {name}; there are {', '.join(STUDIES)}")
    return importlib.import_module(f"{__package__}.{name}")  # pyright: ignore[reportReturnType]


def run_study(name: str, out: Path, quick: bool) -> Path:
    """Measure or resume; write rows, figures and `out/README.md`, which is returned.

    Raises: DirectAlignError for an unknown name, or a folder of another study or size.
    """
    study = load_study(name)
    claim(out, name, quick)
    rows = Rows(study.measure(out, quick))
    write_rows(rows, out / "results.jsonl")
    figures = study.draw(rows, out)
    warning = "> Quick size: a test of the code. Its numbers say nothing about a method."
    parts = [f"# {STUDIES[name]}", *([warning] if quick else [])]
    for title, table in study.tables(rows).items():
        parts += [f"## {title}", table.markdown()]
    parts += [f"![{figure.stem}]({figure.name})" for figure in figures]
    page = out / "README.md"
    write_text(page, "\n\n".join([*parts, facts(rows)]) + "\n")
    return page


def claim(out: Path, name: str, quick: bool) -> None:
    """Take `out` for a study in one size.

    Raises: DirectAlignError where another study or size, or anything else, lies there.
    """
    mark, size = out / MARK, "quick" if quick else "full"
    mine = {"study": name, "size": size}
    if mark.is_file():
        found = json.loads(mark.read_text(encoding="utf-8"))
        if found != mine:
            held = f"{out} holds the {found['size']} size of study {found['study']}"
            raise DirectAlignError(f"{held}, not the {size} size of {name}: choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DirectAlignError(f"{out} holds something that is no study: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(mark, json.dumps(mine) + "\n")


def facts(rows: Rows) -> str:
    """Seeds, commits, machines and versions of the rows, each once, as a Markdown list."""

    def distinct(key: str) -> list[Any]:
        return list({json.dumps(row[key]): row[key] for row in rows if row.get(key)}.values())

    machines, libraries = [], []
    for each in distinct("machine"):
        cpu = f"{each['cores']} CPU cores ({each['processor']}), {each['threads']} thread(s)"
        machines.append(each["gpu"] or cpu)
    for each in distinct("versions"):
        libraries.append(", ".join(" ".join(pair) for pair in each.items()))
    lines = {"Seeds": ", ".join(map(str, rows.seeds())), "Commit": ", ".join(distinct("commit"))}
    lines |= {"Machine": "; ".join(machines), "Versions": "; ".join(libraries)}
    return "\n".join(f"- {name}: {value}" for name, value in lines.items() if value)


# --- training runs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """What a study compares: a recipe (file stem) with `section.key=value` overrides.

    `name` becomes part of folder names, `title` is printed.
    """

    name: str
    title: str
    recipe: str
    overrides: tuple[str, ...] = ()

    def plus(self, *overrides: str) -> Arm:
        """The arm with more overrides, which overrule its own."""
        return replace(self, overrides=(*self.overrides, *overrides))

    def of(self, name: str, title: str, *overrides: str) -> Arm:
        """`plus` under another name."""
        return replace(self.plus(*overrides), name=name, title=title)


def settings_of(arm: Arm, seed: int) -> RunConfig:
    """The run of an arm from a seed; it keeps one checkpoint at a time, and measures no references,
    which are the same for all arms (study `asking`)."""
    overrides = [
        "train.keep_checkpoints=1",
        "evaluate.references=false",
        *arm.overrides,
        f"seed={seed}",
    ]
    return load_run(arm.recipe, overrides)


def num_steps_of(recipe: str, overrides: Sequence[str] = ()) -> int:
    """Updates that a recipe takes."""
    return load_run(recipe, list(overrides)).train.num_steps


def folder_of(arm: Arm, seed: int, out: Path) -> Path:
    """Folder of the run of an arm from a seed."""
    return out / "runs" / f"{arm.name}-seed{seed}"


def run_arms(study: str, arms: Sequence[Arm], seeds: Sequence[int], out: Path) -> list[Row]:
    """Train all arms from the first seed, then from the next; rows come arm by arm."""
    for seed in seeds:
        for arm in arms:
            last = rows_of(study, arm, seed, run_arm(arm, seed, out))[-1]
            names = [name for name in ("photo_rate", "content", "color_drift") if name in last]
            numbers = ", ".join(f"{name} {last[name]:.3f}" for name in names)
            print(f"{study}: {arm.name}, seed {seed}, update {last['step']}: {numbers}", flush=True)
    found = [(arm, seed) for arm in arms for seed in seeds]
    return [row for each in found for row in rows_of(study, *each, folder_of(*each, out))]


def run_arm(arm: Arm, seed: int, out: Path, keeps_weights: bool = False) -> Path:
    """Train one arm from one seed, or resume it; returns its folder, which keeps no checkpoints
    unless `keeps_weights`.

    Raises: DirectAlignError where a finished run of other settings lies there.
    """
    folder = folder_of(arm, seed, out)
    train_once(settings_of(arm, seed), folder)
    if not keeps_weights:
        drop_weights(folder)
    return folder


def drop_weights(folder: Path) -> None:
    """Remove a run's checkpoints."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def rows_of(study: str, arm: Arm, seed: int, folder: Path) -> list[Row]:
    """One row per measurement of a finished run; an interval becomes NAME, NAME_low, NAME_high."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    named = {"study": study, "arm": arm.name, "title": arm.title, "seed": seed}
    rate = {"learning_rate": load_run(folder / "run.yaml").train.learning_rate}
    where = {key: summary[key] for key in ("commit", "machine", "versions")}
    return [{**named, **spent, **rate, **each, **where} for spent, each in _measured(folder)]


def _measured(folder: Path) -> Iterator[tuple[Row, Row]]:
    """(cost so far, numbers) of every measurement of a run."""
    seconds, forward, backward = 0.0, 0, 0
    for record in read(folder):
        if record["event"] == "step":
            seconds += record["seconds"]
            forward += record["nfe"]["forward"]
            backward += record["nfe"]["backward"]
        elif record["event"] == "evaluate":
            numbers = row_of({**record, **record.get("during", {})})
            calls = {"forward_calls": forward, "backward_calls": backward}
            calls["call_equivalents"] = nfe_equivalents(forward, backward)
            yield {"step": record["step"], "seconds": seconds, **calls}, numbers


def row_of(measured: Mapping[str, Any]) -> Row:
    """The numbers of one measurement."""
    numbers: Row = {}
    for name, value in measured.items():
        if name not in ("event", "step", "seconds", "during", "each"):
            numbers |= flat(name, value) if isinstance(value, Mapping) else {name: value}
    return numbers


def flat(name: str, interval: Mapping[str, Any]) -> Row:
    """An interval as three numbers of a row."""
    low, high = interval["low"], interval["high"]
    return {name: interval["value"], f"{name}_low": low, f"{name}_high": high}


def unflat(row: Row, name: str) -> Row:
    """The interval that `flat` put into a row."""
    return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}


def nfe_equivalents(forward: int, backward: int) -> int:
    """Cost in forward passes of a sample: a backward pass counts two more."""
    return forward + 2 * backward


# --- sizes ----------------------------------------------------------------------------------------

PAIRS, QUICK_PAIRS = 64, 4
SAMPLE_PROMPTS = "train.sample_prompts=[a red star on a navy background]"
ALWAYS = ("train.save_every=0", "train.sample_every=0", SAMPLE_PROMPTS)
_COUNTS = ("evaluate.num_samples=%d", "evaluate.num_samples_during=%d")
FULL_SIZE = (*ALWAYS, *(count % PAIRS for count in _COUNTS))
QUICK_SIZE = (*ALWAYS, *(count % QUICK_PAIRS for count in _COUNTS), "evaluate.every=0")
QUICK_SIZE += ("train.num_steps=2", "data.batch_size=2", "rollout.num_inference_steps=2")
QUICK_SIZE += ("rollout.training_steps=null", "evaluate.diversity_prompts=1")


def sized(arms: Sequence[Arm], quick: bool) -> list[Arm]:
    """Arms in full size, or in quick size (two updates), which overrules an arm's own settings."""
    return [
        arm.plus(*QUICK_SIZE) if quick else replace(arm, overrides=(*FULL_SIZE, *arm.overrides))
        for arm in arms
    ]


# --- measurements without training ----------------------------------------------------------------


def piece(
    out: Path, name: str, settings: RunConfig, measure: Callable[[], Iterable[Row]]
) -> list[Row]:
    """Rows of one measurement, made if they are not there; commit, machine and versions are added.

    Raises: DirectAlignError where rows of other settings lie.
    """
    rows, under = out / "pieces" / f"{name}.jsonl", out / "pieces" / f"{name}.yaml"
    if not rows.exists():
        provenance = {"commit": commit(), "machine": machine(), "versions": versions()}
        write_rows([{**row, **provenance} for row in measure()], rows)
        write_text(under, dump_run(settings))
    if not under.exists() or under.read_text(encoding="utf-8") != dump_run(settings):
        raise DirectAlignError(
            f"{rows} was measured under other settings than the recipe has now: "
            f"remove {rows}, or choose another --out"
        )
    return read_rows(rows)


def measurer_of(folder: Path, base: bool = False, settings: RunConfig | None = None) -> Measurer:
    """The measurements of a finished run, with its trained weights or its base model, as the run
    or other `settings` say."""
    run, trained = run_of(folder)
    if trained is None:
        raise DirectAlignError(f"{folder}: holds no run (no run.yaml)")
    model = load_run_model(run, None if base else find_weights(run, trained))
    run = settings or run
    device = next(model.denoiser.parameters()).device
    judge = load_judge(WORLDS[run.evaluate.judge]) if run.evaluate.judge != "none" else None
    return Measurer(run, model, load_reward(run.reward, device), judge)


def with_drift(rows: list[Row], num_samples: int) -> list[Row]:
    """Rows with `saturation_drift`, `sharpness_drift`: relative to photographs, minus 1."""
    photo = _photo_statistics(num_samples)
    names = ("saturation", "sharpness")
    return [row | {f"{name}_drift": row[name] / photo[name] - 1 for name in names} for row in rows]


@functools.cache
def _photo_statistics(num_samples: int) -> dict[str, float]:
    images = photographs(fixed_pairs(prompts_to_measure("world"), num_samples))
    return {name: float(each.double().mean()) for name, each in statistics(images).items()}


# --- all methods under equal budgets --------------------------------------------------------------

RATES = {"srpo": 3e-4, "srpo_official": 3e-5, "direct_align": 3e-5, "refl": 1e-4, "draft_k": 3e-5}
RATES |= {"draft_lv": 1e-4, "alignprop": 3e-4, "drtune": 3e-5, "leapalign": 3e-5, "flowbp": 3e-5}
RATES |= {"flow_grpo": 1e-4, "grpo_relative": 1e-4}
"""Learning rate of each method, as `learning_rates.chosen` finds it in the recorded study."""
_FILES = {name: f"world_{name}" for name in RATES} | {"srpo_official": "world_official"}
ARMS = [
    Arm(name, title_of(name), _FILES[name], (f"train.learning_rate={rate}",))
    for name, rate in RATES.items()
]
OURS = "srpo"
POLICY_GRADIENTS, LONGER = ("flow_grpo", "grpo_relative"), 3
"""Policy gradients may spend `LONGER` times as much, to reach a level for comparison."""


@dataclass(frozen=True)
class Budget:
    """What an arm may spend, in NFE equivalents, in how many measurements on `num_samples` pairs.

    `probed` is the number of updates on which the cost of one is measured.
    """

    calls: Number
    measurements: int
    num_samples: int
    diversity_prompts: int
    probed: int = 16

    def times(self, factor: int) -> Budget:
        """A budget `factor` times as large, measured at the same distances."""
        calls, measurements = factor * self.calls, factor * self.measurements
        return replace(self, calls=calls, measurements=measurements)


def small_batches(arms: Sequence[Arm], quick: bool) -> list[Arm]:
    """The arms, in quick size with small batches; their length comes from a budget."""
    return [arm.plus("data.batch_size=2", SAMPLE_PROMPTS) if quick else arm for arm in arms]


def allowance(arm: Arm, budget: Budget, often: bool = False) -> Budget:
    """What an arm may spend of a budget; `often` measures SRPO (early) twice as often."""
    if arm.name in POLICY_GRADIENTS:
        return budget.times(LONGER)
    if often and arm.name == OURS:
        return replace(budget, measurements=2 * budget.measurements)
    return budget


def within(budget: Budget, arm: Arm, out: Path) -> Arm:
    """The arm with the updates that the budget pays for; prices are kept in `out/prices.json`."""
    cost = price(settings_of(arm, 0), budget.probed, out / "prices.json")
    updates = math.ceil(budget.calls / cost)
    every, count = max(1, math.ceil(updates / budget.measurements)), budget.num_samples
    return arm.plus(
        *(f"train.num_steps={updates}", f"train.save_every={every}", "train.sample_every=0"),
        *(f"evaluate.every={every}", f"evaluate.diversity_prompts={budget.diversity_prompts}"),
        *(each % count for each in _COUNTS),
    )


def price(settings: RunConfig, probed: int, kept: Path) -> float:
    """NFE equivalents of one update, mean over the first `probed`; read from `kept` if known."""
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    key = hashlib.sha256(f"{probed} {dump_run(settings)}".encode()).hexdigest()[:16]
    if key not in known:
        known[key] = measured_price(settings, probed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(known, indent=1) + "\n")
    return known[key]


def measured_price(settings: RunConfig, probed: int) -> float:
    """`price`, measured, as some methods draw how far back they differentiate."""
    with process_group() as ranks:
        checkpoint.seed_all(settings.seed)
        model = load_model(settings.model, ranks.device, settings.seed)
        method = load_method(settings, model, load_reward(settings.reward, ranks.device))
        for each in unmeasured(method):
            each.base_means = (0.0, 0.0)  # any number costs the same
        feed, counter = open_data(settings, model, ranks), NFECounter(model.denoiser)
        for step in range(probed):
            checkpoint.seed_step(settings.seed, step)
            for batch in feed.batches(step):
                for loss in method.losses(batch):
                    loss.value.backward()
    return nfe_equivalents(*counter.take()) / probed
