"""The demo: SRPO, the released form and plain Direct-Align on the FLUX of a toy world.

All have the same budget, begin with one base model and are measured on the same pairs, so `srpo`
measures the reference rows for all. Takes a minute and a half on a CPU.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import RunConfig
from .config.load import load_run
from .io.atomic import write_text
from .report import write_page
from .report.read import RunFiles, read_run
from .report.runs_page import matched
from .training import train_once

MEASURED = ("photo_and_content", "photo_rate", "content", "color_drift", "reward")
SHORT = (
    *("data.batch_size=4", "rollout.training_steps=4", "train.num_steps=50", "train.ema_decay=0.9"),
    *("train.save_every=25", "train.sample_every=25", "evaluate.every=25"),
    *("evaluate.num_samples=128", "evaluate.num_samples_during=64"),
)
"""About a fifth of the recipes' time. The moving average of the weights steadies so few updates of
so few images."""
QUICK = (
    *("train.num_steps=2", "train.save_every=0", "train.sample_every=0", "data.batch_size=2"),
    *("train.sample_prompts=[a red star on a navy background]", "evaluate.num_samples=8"),
    *("evaluate.num_samples_during=4", "evaluate.every=0", "rollout.num_inference_steps=2"),
)
"""A size that tests the installation; its numbers say nothing."""
TITLE = "SRPO beside the released form and plain Direct-Align"


def demo(out: Path, overrides: Sequence[str] = SHORT, world: str = "world2") -> Path:
    """Train the three runs of a toy world into `out`; write `out/summary.json` and the page.

    Without `overrides` in the size of the recipes, all as long as SRPO's. Finished runs are kept.
    Returns the page.
    """
    runs = _runs(overrides, world)
    for name, settings in runs.items():
        train_once(settings, out / name)
    summary = summarise({name: read_run(out / name) for name in runs})
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return write_page(out)


def _runs(overrides: Sequence[str], world: str) -> dict[str, RunConfig]:
    srpo = load_run(f"{world}_srpo", overrides)
    length = f"train.num_steps={srpo.train.num_steps}", f"evaluate.every={srpo.evaluate.every}"
    others = [*overrides, *length, "evaluate.references=false"]
    return {
        "srpo": srpo,
        "direct_align": load_run(f"{world}_direct_align", others),
        "official": load_run(f"{world}_official", others),
    }


def summarise(runs: dict[str, RunFiles]) -> dict[str, Any]:
    """Ends of all runs and of the base model, and colour drift at an equal photo rate.

    `base` and each run: {photo_and_content, photo_rate, content, color_drift, reward,
    align_seconds}. `matched`:
    SRPO and plain Direct-Align at the highest photo rate that both reach; None if the latter's
    never rose.
    """
    first = runs["srpo"].summary
    ends = {"base": (first["before"], 0.0)}
    ends |= {
        name: (run.summary["after"], run.summary["align_seconds"]) for name, run in runs.items()
    }
    measured = {
        name: {key: end[key] for key in MEASURED} | {"align_seconds": seconds}
        for name, (end, seconds) in ends.items()
    }
    found, at_equal = matched([runs["srpo"], runs["direct_align"]]), None
    if found is not None:
        (_, ours, *_), (_, theirs, *_) = found.rows
        at_equal = {"photo_rate": found.photo_rate, "srpo": ours, "direct_align": theirs}
        at_equal["ratio"] = ours / theirs
    facts = {key: first[key] for key in ("seed", "commit", "machine", "versions")}
    return {"title": TITLE, **measured, "matched": at_equal, **facts}
