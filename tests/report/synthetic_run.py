"""Synthetic run folders: curves, noise levels, sample grids, settings."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from PIL import Image, ImageDraw

PROMPTS = [
    f"a {color} star on a navy background"
    for color in ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
]
COLORS = (
    (220, 40, 40),
    (40, 190, 60),
    (40, 80, 240),
    (240, 220, 40),
    (140, 40, 200),
    (250, 140, 20),
    (30, 200, 220),
    (250, 120, 180),
)


def write_run(
    folder: Path,
    name: str = "SRPO",
    num_steps: int = 20,
    final_photo: float = 0.9,
    drift: float = 0.05,
    collapse: float = 0.0,
) -> Path:
    """A complete run whose numbers move linearly; `collapse` is how much content is lost."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(_settings(name, num_steps)), encoding="utf-8")
    records = []
    for step in range(num_steps + 1):
        share = step / num_steps
        if step:
            records.append(_step(step, share))
        if step % 5 == 0:
            records.append(_measurement(step, share, final_photo, drift, collapse))
            write_grid(folder / "samples" / f"step-{step:06d}.png", share, drift)
    (folder / "samples" / "samples.json").write_text(
        json.dumps({"prompts": PROMPTS}), encoding="utf-8"
    )
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records), encoding="utf-8"
    )
    summary = {
        "align_seconds": 8.25,
        "commit": "0123abc",
        "versions": {"torch": "2.9", "python": "3.11"},
        "machine": {"cores": 2, "gpu": None},
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def write_demo(folder: Path) -> Path:
    """Four runs side by side and the summary over them."""
    write_run(folder / "srpo", "SRPO, anchored reward")
    write_run(folder / "direct_align", "Plain Direct-Align", final_photo=0.45, drift=0.3)
    write_run(folder / "srpo_long", "Anchored, three times longer", num_steps=60)
    write_run(
        folder / "official_long",
        "Official ramps, three times longer",
        num_steps=60,
        final_photo=0.96,
        drift=0.12,
        collapse=0.6,
    )
    rows = {
        "base": (0.2, 0.98, 0.02, None),
        "srpo": (0.9, 0.97, 0.05, 8.0),
        "direct_align": (0.45, 0.95, 0.3, 9.0),
    }
    summary = {
        key: {
            "photo_rate": rate(p),
            "content": rate(c),
            "color_drift": d,
            "reward": 0.5,
            "align_seconds": s,
        }
        for key, (p, c, d, s) in rows.items()
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def rate(value: float, n: int = 256) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.05), "high": min(1.0, value + 0.04), "n": n}


def write_grid(file: Path, share: float, drift: float, size: int = 64) -> None:
    """4 x 2 images: a disc on navy, moved to grey by `share` and to red by `drift`."""
    grid = Image.new("RGB", (4 * size, 2 * size))
    draw = ImageDraw.Draw(grid)
    for place, color in enumerate(COLORS):
        x, y = place % 4 * size, place // 4 * size
        draw.rectangle((x, y, x + size, y + size), fill=(30, 40, 120))
        muted = tuple(
            round(c + (128 - c) * 0.5 * share + (255 * drift * share if i == 0 else 0))
            for i, c in enumerate(color)
        )
        draw.ellipse((x + 14, y + 14, x + size - 14, y + size - 14), fill=muted)
    file.parent.mkdir(parents=True, exist_ok=True)
    grid.save(file)


def _settings(name: str, num_steps: int) -> dict[str, object]:
    words = {"positive": ["Realistic photo"], "negative": ["CG render"], "order": "average"}
    return {
        "name": name,
        "seed": 0,
        "model": {"architecture": "flux", "path": "world:flux", "tune": "lora"},
        "reward": {"name": "clip", "path": "world:reward"},
        "method": {"form": "anchored", "branches": "denoise", "control_phrases": words},
        "rollout": {"num_inference_steps": 4},
        "data": {"prompts": "world", "batch_size": 8},
        "train": {"num_steps": num_steps, "learning_rate": 1e-4},
    }


def _step(step: int, share: float) -> dict[str, object]:
    numbers = {
        "loss": 0.3 - 0.2 * share,
        "reward": -0.3 + 0.2 * share,
        "grad_norm": 0.05 + 0.01 * (step % 3),
        "seconds": 0.4,
    }
    return {
        "event": "step",
        "step": step,
        **numbers,
        "levels": {"denoise": [_level(0.52 + 0.05 * i) for i in range(8)]},
    }


def _level(sigma: float) -> dict[str, float]:
    return {
        "sigma": sigma,
        "n": 4,
        "gain": 0.4 * sigma - 0.1,
        "recovery_error": sigma**4 / 2,
        "reward": 0.4 - 0.2 * sigma,
    }


def _measurement(
    step: int, share: float, final_photo: float, drift: float, collapse: float
) -> dict[str, object]:
    rates = {
        "photo_rate": rate(0.2 + (final_photo - 0.2) * share),
        "content": rate(0.98 - collapse * max(0.0, share - 0.3)),
    }
    return {
        "event": "evaluate",
        "step": step,
        **rates,
        "color_drift": 0.02 + (drift - 0.02) * share,
        "reward": 0.5 + 0.1 * share,
        "seconds": 1.0,
    }


def stop_run(
    folder: Path, stop: int = 15, kept: int = 10, says: str = "colour drift spent its budget"
) -> Path:
    """Let a run stop after `stop` updates and export the weights of `kept`."""
    file = folder / "metrics.jsonl"
    records = [
        record
        for record in map(json.loads, file.read_text().splitlines())
        if record["step"] <= stop
    ]
    left = next(
        record for record in records if record["event"] == "evaluate" and record["step"] == kept
    )
    records += [
        {"event": "stop", "step": stop, "reason": "drift", "says": says, "kept": kept},
        {**left, "event": "kept"},
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    (folder / "run.yaml").write_text(
        yaml.safe_dump({**settings, "early_stopping": {"max_degradation": {"color_drift": 0.03}}}),
        encoding="utf-8",
    )
    for grid in (folder / "samples").glob("step-*.png"):
        if int(grid.stem.removeprefix("step-")) > stop:
            grid.unlink()
    return folder
