"""The main job, shown: SRPO beside plain Direct-Align on the embedded FLUX, and what three times the updates do.

Four training runs and one page. `srpo` and `direct_align` have the same budget; `srpo_long` and `official_long` go on
three times as long, with the anchored reward and with the released ramps. All of it on a CPU in minutes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Run
from ..config_loading import load_run
from ..report import write_page
from ..train import run as train

MEASURED = ("photo_rate", "content", "color_drift", "reward")
LONGER = 3


def demo(out: Path, recipes: Path = Path("recipes")) -> Path:
    """Train the four runs into `out`, write `out/summary.json` and the page; returns the page. Finished runs are kept."""
    for name, settings in _runs(recipes).items():
        folder = out / name
        if not (folder / "summary.json").exists():
            train(settings, folder, resume=(folder / "run.yaml").exists())
    summary = summarise({name: _read(out / name) for name in _runs(recipes)})
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return write_page(out)


def _runs(recipes: Path) -> dict[str, Run]:
    srpo = load_run(recipes / "world_srpo.yaml", [])
    longer = [f"train.num_steps={LONGER * srpo.train.num_steps}", f"evaluate.every={srpo.train.num_steps}"]
    return {
        "srpo": srpo,
        "direct_align": load_run(recipes / "world_direct_align.yaml", []),
        "srpo_long": load_run(recipes / "world_srpo.yaml", [*longer, f'name="{srpo.name}, {LONGER}x the updates"']),
        "official_long": load_run(recipes / "world_official.yaml", longer),
    }


def _read(folder: Path) -> dict[str, Any]:
    """A run's summary with its measurements in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary | {"measured": [record for record in records if record["event"] == "evaluate"]}


def summarise(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`base` and every run's end as {photo_rate, content, color_drift, reward, align_seconds}, and the comparison of
    colour drift at matched photo rate."""
    first = runs["srpo"]
    summary: dict[str, Any] = {"base": _end(first["before"], 0.0)}
    summary |= {name: _end(run["after"], run["align_seconds"]) for name, run in runs.items()}
    summary["matched"] = matched(runs["srpo"]["measured"], runs["direct_align"]["measured"])
    return summary | {key: first[key] for key in ("commit", "versions", "machine", "seed")}


def _end(measured: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {name: measured[name] for name in MEASURED} | {"align_seconds": seconds}


def matched(srpo: Sequence[dict[str, Any]], direct_align: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Colour drift of both at one photo rate: the highest that both reach, read off the measured curves (linear between
    measurements, first crossing)."""
    rate = min(max(record["photo_rate"]["value"] for record in curve) for curve in (srpo, direct_align))
    ours, theirs = drift_at(srpo, rate), drift_at(direct_align, rate)
    return {"photo_rate": rate, "srpo": ours, "direct_align": theirs, "ratio": ours / theirs}


def drift_at(curve: Sequence[dict[str, Any]], rate: float) -> float:
    """Colour drift where the curve first reaches a photo rate."""
    before = curve[0]
    for after in curve:
        low, high = before["photo_rate"]["value"], after["photo_rate"]["value"]
        if high >= rate:
            share = 1.0 if high == low else (rate - low) / (high - low)
            return before["color_drift"] + share * (after["color_drift"] - before["color_drift"])
        before = after
    raise ValueError(f"photo rate {rate} is never reached")
