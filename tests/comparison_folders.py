"""Comparison folders as `directalign compare` writes them: discs on navy, metrics with planted
effects."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from directalign.evaluation.results import summarise
from directalign.metrics import JUDGED, PIXELS, Metric, reward_metrics

COLORS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (40, 80, 240)}
COLORS |= {"yellow": (240, 220, 40)}
PROMPTS = [
    f"a {color} circle on {ground} background"
    for ground in ("a navy", "an olive", "a gray")
    for color in COLORS
]
MODELS = {"base": "Base model", "direct_align": "Plain Direct-Align", "srpo": "SRPO, anchored"}
PHRASES = (["Realistic photo"], ["CG render"])
OF_REWARD = reward_metrics("world_reward", "clip world:reward", 1.0, PHRASES)
ABOUT: dict[str, Metric] = {
    "photo_rate": JUDGED["photo_rate"],
    "content": JUDGED["content"],
    "score_world_reward": replace(OF_REWARD["score_world_reward"], role="trained"),
    "score_light": reward_metrics("light", "pixels brightness", 1.0, PHRASES)["score_light"],
    "sgp_world_reward": OF_REWARD["sgp_world_reward"],
    **PIXELS,
    **{name: each for name, each in OF_REWARD.items() if not name.startswith("s")},
}
PLANTED = {
    "photo_rate": (0.2, 0.3, 0.6),
    "content": (0.95, -0.05, -0.02),
    "score_world_reward": (0.7, 0.08, 0.05),
    "score_light": (0.4, 0.0, 0.0),
    "sgp_world_reward": (0.01, 0.02, 0.06),
    "red_cast": (0.1, 0.08, 0.0),
    "off_topic_score_world_reward": (0.6, 0.05, 0.01),
}
"""Level of the base model, and what is added to it for the two trained models; else 0.1, 0, 0."""


def write_comparison(
    folder: Path,
    models: Mapping[str, str] = MODELS,
    seeds_per_prompt: int = 2,
    size: int = 64,
    prompts: Sequence[str] = PROMPTS,
    control_prompts: int = 4,
) -> Path:
    """A finished comparison of `models` (key to label; the first is its base) on every prompt; the
    last `control_prompts` images are of control prompts."""
    groups = ["animation" if place % 3 else None for place in range(len(prompts))]
    pairs = [each for each in zip(prompts, groups, strict=True) for _ in range(seeds_per_prompt)]
    pairs += [(f"Anime. {prompt}", "control_prompts") for prompt in prompts[:control_prompts]]
    lines = [
        _line(key, index, prompt, group, place)
        for place, key in enumerate(models)
        for index, (prompt, group) in enumerate(pairs)
    ]
    for line in lines:
        file = folder / line["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        _picture(line, size).save(file)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text, encoding="utf-8")
    counts = {"count": len(prompts), "images": len(prompts) * seeds_per_prompt}
    records = {
        "summary.json": summarise(list(models), lines, ABOUT),
        "comparison.json": _comparison(models, counts | {"control_prompts": control_prompts}),
    }
    for name, record in records.items():
        (folder / name).write_text(json.dumps(record, indent=2), encoding="utf-8")
    return folder


def _line(key: str, index: int, prompt: str, group: str | None, place: int) -> dict[str, Any]:
    shared, own = random.Random(f"pair {index}"), random.Random(f"{key} {index}")
    is_control = group == "control_prompts"
    numbers = {
        name: _number(name, key, place, shared, own)
        for name in ABOUT
        if name.startswith("off_topic_") == is_control and (place or not name.startswith("base_"))
    }
    file = f"images/{key}/{index:05d}.png"
    about = {"model": key, "index": index, "prompt": prompt, "seed": 10_000 + index}
    return {**about, "file": file, "group": group, "numbers": numbers}


def _number(name: str, key: str, place: int, shared: random.Random, own: random.Random) -> float:
    level, *effects = PLANTED.get(name, (0.1, 0.0, 0.0))
    known = list(MODELS)
    if key in known:
        level += (0.0, *effects)[known.index(key)]
    elif name == "photo_rate":
        level += 0.1 * place
    if name in ("photo_rate", "content"):
        return float(0.5 * shared.random() + 0.5 * own.random() < level)
    return level + 0.03 * shared.gauss(0, 1) + 0.02 * own.gauss(0, 1)


def _picture(line: Mapping[str, Any], size: int) -> Image.Image:
    known = list(MODELS)
    share = 1 - 0.25 * (known.index(line["model"]) if line["model"] in known else 1)
    named = (value for name, value in COLORS.items() if name in line["prompt"])
    color = tuple(round(c * share) for c in next(named, (128, 128, 128)))
    image, shift = Image.new("RGB", (size, size), (30, 40, 120)), line["index"] % 5
    ImageDraw.Draw(image).ellipse((10 + shift, 10, size - 14 + shift, size - 14), fill=color)
    return image


def _comparison(models: Mapping[str, str], counts: Mapping[str, int]) -> dict[str, Any]:
    rows = []
    for place, (key, label) in enumerate(models.items()):
        settings = {"name": label, "method.name": "srpo", "train.learning_rate": 1e-4}
        settings |= {"rollout.num_inference_steps": 8 if place < 2 else 4}
        trained_on = ["score_world_reward", "sgp_world_reward"] if place else []
        row = {"key": key, "label": label, "source": f"runs/{key}", "trained_on": trained_on}
        rows.append({**row, "kind": "run" if place else "base", "settings": settings})
    return {
        "format": 1,
        "models": rows,
        "prompts": {"source": "prompts.txt", **counts},
        "seed_of_pairs": 10_000,
        "control_phrases": {"positive": PHRASES[0], "negative": PHRASES[1]},
        "differing": ["rollout.num_inference_steps"],
        "commit": "0123456789abcdef",
        "machine": {"cores": 2, "gpu": None},
        "versions": {"torch": "2.9.0", "python": "3.11"},
        "command": "directalign compare runs/direct_align runs/srpo --base --out comparison",
    }
