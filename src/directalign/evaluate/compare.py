"""`directalign evaluate`: base and tuned on the same prompt-seed pairs, with paired differences and their intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import config
from ..config_loading import load_run
from ..interfaces import Judge
from ..rewards import load_reward
from ..types import DirectAlignError, PerSample
from ..world.judges import load_judge
from . import held_out, off_topic
from .held_out import load_held_out
from .intervals import paired_difference, win_rate
from .measure import MEANS, RATES, Measurer
from .sampling import trained_family

RECORD = "evaluation.jsonl"
SUMMARY = "evaluation.json"


def evaluate_run(run_folder: Path, num_pairs: int | None = None, out: Path | None = None) -> Path:
    """Measure a finished run against its base; returns the folder written to (`out`, or the run's own).

    Writes `evaluation.jsonl`, one line per pair {"prompt", "seed", "base": {...}, "tuned": {...}}, and `evaluation.json`
    {"base", "tuned": as `Measurer.measure`, "difference": {name: interval of tuned − base}, "wins": {name: share of pairs won}}.
    Off-topic prompts are pairs of their own: their numbers stand in the second file alone.
    """
    if not (run_folder / "run.yaml").is_file():
        raise DirectAlignError(f"{run_folder}: holds no run (no run.yaml); give the folder that directalign train wrote")
    run = load_run(run_folder / "run.yaml")
    run = run if num_pairs is None else run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"num_pairs": num_pairs})})
    measurer = _measurer(run, run_folder)
    count = len(measurer.pairs)
    base, tuned = measurer.base_images(measurer.pairs), measurer.images(count)
    each = {"base": measurer.per_image(base), "tuned": measurer.per_image(tuned)}
    summaries = {"base": measurer.summary(base, each["base"]), "tuned": measurer.summary(tuned, each["tuned"])}
    found = compared(each["base"], each["tuned"])
    if measurer.off_topic is not None:
        controls = {"base": measurer.leaked(measurer.off_topic.base_images), "tuned": measurer.leaked(measurer.off_topic.images())}
        summaries = {side: {**summary, **controls[side][1]} for side, summary in summaries.items()}
        leaked = compared(controls["base"][0], controls["tuned"][0])
        found = {name: {**found[name], **leaked[name]} for name in found}
    return _write(out or run_folder, measurer, each, {**summaries, **found})


def compared(base: Mapping[str, PerSample], tuned: Mapping[str, PerSample]) -> dict[str, Any]:
    """Paired differences, and win rates of whatever is higher for better."""
    others = [name for name in base if name.startswith((held_out.PREFIX, off_topic.PREFIX))]
    names = [*(name for name in (*RATES, *MEANS) if name in base), *others]
    won = [name for name in names if name in ("reward", *RATES) or held_out.is_plain(name)]
    return {
        "difference": {name: paired_difference(base[name], tuned[name]) for name in names},
        "wins": {name: win_rate(base[name], tuned[name]) for name in won},
    }


def judge_of(run: config.Run) -> Judge | None:
    """The judge that a recipe asks for."""
    return load_judge() if run.evaluate.judge == "world" else None


def _measurer(run: config.Run, trained: Path) -> Measurer:
    family = trained_family(run, trained)
    device = next(family.denoiser.parameters()).device
    return Measurer(run, family, load_reward(run.reward, device), judge_of(run), held_out=load_held_out(run.evaluate, device))


def _write(out: Path, measurer: Measurer, each: Mapping[str, Mapping[str, PerSample]], summary: dict[str, Any]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (prompt, seed) in enumerate(zip(measurer.pairs.prompts, measurer.pairs.seeds, strict=True)):
        sides = {side: {name: float(values[index]) for name, values in numbers.items()} for side, numbers in each.items()}
        lines.append(json.dumps({"prompt": prompt, "seed": seed, **sides}, ensure_ascii=False) + "\n")
    (out / RECORD).write_text("".join(lines), encoding="utf-8")
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return out
