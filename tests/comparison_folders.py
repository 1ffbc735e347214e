"""Comparison folders as `directalign compare` leaves them, made of thin air: discs on navy, numbers
with planted effects."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from directalign.evaluation.results import summarise
from directalign.metrics import (
    JUDGED,
    PIXELS,
    Metric,
    feature_metrics,
    off_topic_score_metric,
    score_metric,
    sgp_metric,
)

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (40, 80, 240),
    "yellow": (240, 220, 40),
}
PROMPTS = [
    f"a {color} circle on {ground} background"
    for ground in ("a navy", "an olive", "a gray")
    for color in COLORS
]
MODELS = {"base": "Base model", "direct_align": "Plain Direct-Align", "srpo": "SRPO, anchored"}
PHRASES = (["Realistic photo"], ["CG render"])
ABOUT: dict[str, Metric] = {
    "photo_rate": JUDGED["photo_rate"],
    "content": JUDGED["content"],
    "score_world_reward": score_metric("world_reward", "clip world:reward", 1.0, trained=True),
    "score_light": score_metric("light", "pixels brightness", 1.0, trained=False),
    "sgp_world_reward": sgp_metric("world_reward", "clip world:reward", 1.0, *PHRASES),
    **PIXELS,
    **feature_metrics("world_reward"),
    "off_topic_score_world_reward": off_topic_score_metric("world_reward"),
}
EFFECTS: dict[str, dict[str, float]] = {
    "base": {},
    "direct_align": {
        "photo_rate": 0.3,
        "content": -0.05,
        "score_world_reward": 0.08,
        "sgp_world_reward": 0.02,
        "red_cast": 0.08,
        "off_topic_score_world_reward": 0.05,
    },
    "srpo": {
        "photo_rate": 0.6,
        "content": -0.02,
        "score_world_reward": 0.05,
        "sgp_world_reward": 0.06,
        "off_topic_score_world_reward": 0.01,
    },
}
"""What is planted on top of the base model, by model and number."""
BASES = {
    "photo_rate": 0.2,
    "content": 0.95,
    "score_world_reward": 0.7,
    "score_light": 0.4,
    "sgp_world_reward": 0.01,
    "off_topic_score_world_reward": 0.6,
}


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
    pairs = [
        (prompt, "animation" if place % 3 else None)
        for place, prompt in enumerate(prompts)
        for _ in range(seeds_per_prompt)
    ]
    pairs += [(f"Anime. {prompt}", "control_prompts") for prompt in list(prompts)[:control_prompts]]
    lines = [
        _line(key, index, prompt, group, place)
        for place, key in enumerate(models)
        for index, (prompt, group) in enumerate(pairs)
    ]
    for line in lines:
        file = folder / line["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        _picture(line, size).save(file)
    (folder / "results.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    (folder / "summary.json").write_text(
        json.dumps(summarise(list(models), lines, ABOUT), indent=2), encoding="utf-8"
    )
    (folder / "comparison.json").write_text(
        json.dumps(_comparison(models, prompts, seeds_per_prompt, control_prompts), indent=2),
        encoding="utf-8",
    )
    return folder


def _line(key: str, index: int, prompt: str, group: str | None, place: int) -> dict[str, Any]:
    shared, own = random.Random(f"pair {index}"), random.Random(f"{key} {index}")
    effects = EFFECTS.get(key, {"photo_rate": 0.1 * place})
    names = [
        name for name in ABOUT if name.startswith("control_prompts") == (group == "control_prompts")
    ]
    numbers = {
        name: _number(name, effects.get(name, 0.0), shared, own)
        for name in names
        if place or not name.startswith("base_")
    }
    return {
        "model": key,
        "index": index,
        "prompt": prompt,
        "seed": 10_000 + index,
        "file": f"images/{key}/{index:05d}.png",
        "group": group,
        "numbers": numbers,
    }


def _number(name: str, effect: float, shared: random.Random, own: random.Random) -> float:
    level = BASES.get(name, 0.1) + effect
    if name in ("photo_rate", "content"):
        return float(0.5 * shared.random() + 0.5 * own.random() < level)
    return level + 0.03 * shared.gauss(0, 1) + 0.02 * own.gauss(0, 1)


def _picture(line: Mapping[str, Any], size: int) -> Image.Image:
    place = list(EFFECTS).index(line["model"]) if line["model"] in EFFECTS else 1
    color = next(
        (value for name, value in COLORS.items() if name in line["prompt"]), (128, 128, 128)
    )
    image = Image.new("RGB", (size, size), (30, 40, 120))
    shift = line["index"] % 5
    ImageDraw.Draw(image).ellipse(
        (10 + shift, 10, size - 14 + shift, size - 14),
        fill=tuple(round(c * (1 - 0.25 * place)) for c in color),
    )
    return image


def _comparison(
    models: Mapping[str, str], prompts: Sequence[str], seeds_per_prompt: int, control_prompts: int
) -> dict[str, Any]:
    first = next(iter(models))
    return {
        "format": 1,
        "models": [
            _model(key, label, key == first, 8 if place < 2 else 4)
            for place, (key, label) in enumerate(models.items())
        ],
        "prompts": {
            "source": "prompts.txt",
            "count": len(prompts),
            "images": len(prompts) * seeds_per_prompt,
            "control_prompts": control_prompts,
        },
        "seed_of_pairs": 10_000,
        "control_phrases": {"positive": PHRASES[0], "negative": PHRASES[1]},
        "differing": ["rollout.num_inference_steps"],
        "commit": "0123456789abcdef",
        "machine": {"cores": 2, "gpu": None},
        "versions": {"torch": "2.9.0", "python": "3.11"},
        "command": "directalign compare runs/direct_align runs/srpo --base --out comparison",
    }


def _model(key: str, label: str, base: bool, num_inference_steps: int) -> dict[str, Any]:
    settings = {
        "name": label,
        "method.name": "srpo",
        "rollout.num_inference_steps": num_inference_steps,
        "train.learning_rate": 1e-4,
    }
    trained_on = [] if base else ["score_world_reward", "sgp_world_reward"]
    return {
        "key": key,
        "label": label,
        "source": f"runs/{key}",
        "kind": "base" if base else "run",
        "trained_on": trained_on,
        "settings": settings,
    }
