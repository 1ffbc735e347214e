"""The demo: SRPO beside plain Direct-Align on the embedded FLUX, and three times the updates.

Four training runs and one page. `srpo` and `direct_align` have the same budget; `srpo_long` and
`official_long` go on three times as long, with the anchored reward and with the released ramps. All
of it on a CPU in minutes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import RunConfig
from .config.load import dump_run, load_run
from .report import write_page
from .report.read import RunFiles, read_run
from .report.runs_page import matched
from .training import run as train
from .types import DirectAlignError

MEASURED = ("photo_rate", "content", "color_drift", "reward")
LONGER = 3
TITLE = "SRPO beside plain Direct-Align, and three times the updates"


def demo(out: Path, overrides: Sequence[str] = ()) -> Path:
    """Train the four runs into `out`, write `out/summary.json` and the page; returns the page.
    Finished runs are kept."""
    for name, settings in _runs(overrides).items():
        _train(settings, out / name)
    summary = summarise({name: read_run(out / name) for name in _runs(overrides)})
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return write_page(out)


def _train(settings: RunConfig, folder: Path) -> None:
    """Train, or resume, the run in `folder`. Raises: DirectAlignError where a finished run of other
    settings lies there."""
    if not (folder / "summary.json").exists():
        train(settings, folder, resume=(folder / "run.yaml").exists())
    elif dump_run(load_run(folder / "run.yaml")) != dump_run(settings):
        raise DirectAlignError(
            f"{folder} holds a finished run of other settings than the recipe has now: remove "
            f"{folder}, or choose another --out"
        )


def _runs(overrides: Sequence[str]) -> dict[str, RunConfig]:
    srpo = load_run("world_srpo", overrides)
    longer = [
        *overrides,
        f"train.num_steps={LONGER * srpo.train.num_steps}",
        f"evaluate.every={srpo.train.num_steps}",
    ]
    return {
        "srpo": srpo,
        "direct_align": load_run("world_direct_align", overrides),
        "srpo_long": load_run(
            "world_srpo", [*longer, f'name="{srpo.name}, {LONGER}x the updates"']
        ),
        "official_long": load_run("world_official", longer),
    }


def summarise(runs: dict[str, RunFiles]) -> dict[str, Any]:
    """`base` and every run's end as {photo_rate, content, color_drift, reward, align_seconds}, and
    the colour drift of SRPO and of plain Direct-Align at the highest photo rate that both reach
    (None if Direct-Align never rose)."""
    first = runs["srpo"].summary
    ends = {
        name: _end(run.summary["after"], run.summary["align_seconds"]) for name, run in runs.items()
    }
    facts = {key: first[key] for key in ("seed", "commit", "machine", "versions")}
    return {
        "title": TITLE,
        "base": _end(first["before"], 0.0),
        **ends,
        "matched": _matched(runs["srpo"], runs["direct_align"]),
        **facts,
    }


def _end(measured: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {name: measured[name] for name in MEASURED} | {"align_seconds": seconds}


def _matched(srpo: RunFiles, direct_align: RunFiles) -> dict[str, float] | None:
    found = matched([srpo, direct_align])
    if found is None:
        return None
    (_, ours, *_), (_, theirs, *_) = found.rows
    return {
        "photo_rate": found.photo_rate,
        "srpo": ours,
        "direct_align": theirs,
        "ratio": ours / theirs,
    }
