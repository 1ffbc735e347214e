"""Synthetic run folders: curves, noise levels, sample grids, settings."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (40, 80, 240),
    "yellow": (240, 220, 40),
    "purple": (140, 40, 200),
    "orange": (250, 140, 20),
    "cyan": (30, 200, 220),
    "pink": (250, 120, 180),
}
PROMPTS = [f"a {color} star on a navy background" for color in COLORS]


def write_run(
    folder: Path,
    name: str = "SRPO",
    num_steps: int = 20,
    final_photo: float = 0.9,
    drift: float = 0.05,
    collapse: float = 0.0,
) -> Path:
    """A complete run whose metrics move linearly; `collapse` is how much content is lost."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(_settings(name, num_steps)), encoding="utf-8")
    records = []
    for step in range(num_steps + 1):
        share = step / num_steps
        if step:
            records.append(_step(step, share))
        if step % 5 == 0:
            records.append(_evaluation(step, share, final_photo, drift, collapse))
            write_grid(folder / "samples" / f"step-{step:06d}.png", share, drift)
    write_records(folder, records)
    summary = {"align_seconds": 8.25, "commit": "0123abc", "machine": {"cores": 2, "gpu": None}}
    summary["versions"] = {"torch": "2.9", "python": "3.11"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "samples" / "samples.json").write_text(json.dumps({"prompts": PROMPTS}))
    return folder


def write_records(folder: Path, records: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def write_demo(folder: Path) -> Path:
    """Four runs side by side and the summary over them; the first has reference rows."""
    add_references(write_run(folder / "srpo", "SRPO, anchored reward"))
    write_run(folder / "direct_align", "Plain Direct-Align", final_photo=0.45, drift=0.3)
    write_run(folder / "srpo_long", "Anchored, three times longer", num_steps=60)
    longer = {"final_photo": 0.96, "drift": 0.12, "collapse": 0.6}
    write_run(folder / "official_long", "Official ramps, three times longer", 60, **longer)
    rows = {
        "base": (rate(0.2), rate(0.98), 0.02, 0.5, None),
        "srpo": (rate(0.9), rate(0.97), 0.05, 0.5, 8.0),
        "direct_align": (rate(0.45), rate(0.95), 0.3, 0.5, 9.0),
    }
    names = ("photo_rate", "content", "color_drift", "reward", "align_seconds")
    summary = {key: dict(zip(names, row, strict=True)) for key, row in rows.items()}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def add_references(folder: Path, asked: float = 0.88, n: int = 256) -> Path:
    """Reference rows of a base model that is asked in two ways, and of photographs."""
    rows: list[dict[str, Any]] = []
    for place, phrase in enumerate(("Natural lighting", "Realistic photo")):
        about = {"kind": "asked", "label": f"asked: {phrase}.", "phrase": phrase}
        rows.append({**about, "photo_rate": rate(asked - 0.2 * (not place), n)})
    rows += [{"kind": "photographs", "label": "photographs", "photo_rate": rate(1.0, n)}]
    rows = [{**row, "content": rate(0.99, n), "color_drift": 0.001, "reward": 0.5} for row in rows]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    added = {"event": "references", "step": 0, "best": "Realistic photo", "rows": rows}
    write_records(folder, [*records, added])
    return folder


def rate(value: float, n: int = 256) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.05), "high": min(1.0, value + 0.04), "n": n}


def write_grid(file: Path, share: float, drift: float, size: int = 64) -> None:
    """4 x 2 images: a disc on navy, moved to grey by `share` and to red by `drift`."""
    grid = Image.new("RGB", (4 * size, 2 * size), (30, 40, 120))
    draw = ImageDraw.Draw(grid)
    for place, color in enumerate(COLORS.values()):
        x, y = place % 4 * size, place // 4 * size
        red, green, blue = (c + (128 - c) * 0.5 * share for c in color)
        fill = round(red + 255 * drift * share), round(green), round(blue)
        draw.ellipse((x + 14, y + 14, x + size - 14, y + size - 14), fill=fill)
    file.parent.mkdir(parents=True, exist_ok=True)
    grid.save(file)


def _settings(name: str, num_steps: int) -> dict[str, object]:
    phrases = {"positive": ["Realistic photo"], "negative": ["CG render"], "order": "average"}
    return {
        "name": name,
        "seed": 0,
        "model": {"architecture": "flux", "path": "world:flux", "tune": "lora"},
        "reward": {"name": "clip", "path": "world:reward"},
        "method": {"form": "anchored", "branches": "denoise", "control_phrases": phrases},
        "rollout": {"num_inference_steps": 4},
        "data": {"prompts": "world", "batch_size": 8},
        "train": {"num_steps": num_steps, "learning_rate": 1e-4},
    }


def _step(step: int, share: float) -> dict[str, object]:
    sigmas = [0.52 + 0.05 * i for i in range(8)]
    levels = [
        {
            "sigma": sigma,
            "n": 4,
            "gain": 0.4 * sigma - 0.1,
            "recovery_error": sigma**4 / 2,
            "reward": 0.4 - 0.2 * sigma,
        }
        for sigma in sigmas
    ]
    return {
        "event": "step",
        "step": step,
        "loss": 0.3 - 0.2 * share,
        "reward": -0.3 + 0.2 * share,
        "grad_norm": 0.05 + 0.01 * (step % 3),
        "seconds": 0.4,
        "levels": {"denoise": levels},
    }


def _evaluation(
    step: int, share: float, final_photo: float, drift: float, collapse: float
) -> dict[str, object]:
    return {
        "event": "evaluate",
        "step": step,
        "photo_rate": rate(0.2 + (final_photo - 0.2) * share),
        "content": rate(0.98 - collapse * max(0.0, share - 0.3)),
        "color_drift": 0.02 + (drift - 0.02) * share,
        "reward": 0.5 + 0.1 * share,
        "seconds": 1.0,
    }


def stop_run(
    folder: Path, stop: int = 15, kept: int = 10, says: str = "colour drift spent its budget"
) -> Path:
    """Let a run stop after `stop` updates and export the weights of `kept`."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    records = [record for record in records if record["step"] <= stop]
    evaluated = {each["step"]: each for each in records if each["event"] == "evaluate"}
    ending = {"event": "stop", "step": stop, "reason": "drift", "says": says, "kept": kept}
    write_records(folder, [*records, ending, {**evaluated[kept], "event": "kept"}])
    with (folder / "run.yaml").open("a") as stream:
        stream.write("early_stopping: {max_degradation: {color_drift: 0.03}}\n")
    for grid in (folder / "samples").glob("step-*.png"):
        if int(grid.stem.removeprefix("step-")) > stop:
            grid.unlink()
    return folder
