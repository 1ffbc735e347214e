"""Whole comparisons whose truth is known: rendered images with planted rates of photos, and many
summaries of planted numbers."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import torch
from PIL import Image

from directalign.data.prompts import held_out_captions
from directalign.diffusion.rng import generator_for
from directalign.evaluation.compare import Request, compare
from directalign.evaluation.generate import save_png
from directalign.evaluation.results import summarise
from directalign.metrics import JUDGED, Metric
from directalign.toyworld.scenes import render, scenes_of

RATES = {"base": 0.2, "direct_align": 0.5, "refl": 0.45, "srpo": 0.8}
PROMPTS, SEEDS, COMPARISONS = 40, 2, 70


def truth(a: float, b: float) -> float:
    """How often the second wins where each is a photo by itself at its rate, a tie half a win."""
    return b * (1 - a) + 0.5 * (a * b + (1 - a) * (1 - b))


def test_summaries_cover_planted_rates_and_scores_of_four_models() -> None:
    """Every prompt has a leaning of its own, shared by its images and by all models; four models
    give six pairs a comparison."""
    generator, about = (
        torch.Generator().manual_seed(3),
        {
            "photo_rate": JUDGED["photo_rate"],
            "score": Metric("score", "Score", "held_out", True, "s"),
        },
    )
    covered = {"wins": 0, "rates": 0, "scores": 0}
    for _ in range(COMPARISONS):
        lines = [line for key, rate in RATES.items() for line in drawn_lines(key, rate, generator)]
        found = summarise(list(RATES), lines, about)
        for each in found["wins"]:
            a, b = RATES[each["a"]], RATES[each["b"]]
            if each["name"] == "photo_rate":
                covered["wins"] += each["low"] <= truth(a, b) <= each["high"]
        for each in found["differences"]:
            planted = RATES[each["b"]] - RATES[each["a"]]
            covered["rates" if each["name"] == "photo_rate" else "scores"] += (
                each["low"] <= planted <= each["high"]
            )
    of = COMPARISONS * len(list(combinations(RATES, 2)))
    assert {name: 0.93 < count / of < 0.97 for name, count in covered.items()} == dict.fromkeys(
        covered, True
    ), covered


def drawn_lines(key: str, rate: float, generator: torch.Generator) -> list[dict[str, object]]:
    """Photo or not at the planted rate; a score that is larger by the rate, with a leaning of each
    prompt for this model and noise of each image."""
    photo = torch.rand(PROMPTS * SEEDS, generator=generator) < rate
    leaning = torch.randn(PROMPTS, generator=generator, dtype=torch.float64).repeat_interleave(
        SEEDS
    )
    score = rate + leaning + torch.randn(PROMPTS * SEEDS, generator=generator, dtype=torch.float64)
    numbers = zip(photo.double().tolist(), score.tolist(), strict=True)
    return [
        {
            "model": key,
            "index": i,
            "prompt": f"{i // SEEDS}",
            "numbers": {"photo_rate": p, "score": s},
        }
        for i, (p, s) in enumerate(numbers)
    ]


def rendered(folder: Path, rate: float, seed: int) -> Path:
    """Images of held-out captions, two of each; a share `rate` of them are photos, the rest
    computer graphics."""
    folder.mkdir()
    captions = [caption for caption in held_out_captions()[:24] for _ in range(SEEDS)]
    photos = torch.rand(len(captions), generator=generator_for(seed)) < rate
    rows = []
    for place, (caption, photo) in enumerate(zip(captions, photos.tolist(), strict=True)):
        save_png(
            render(
                scenes_of([caption], "photo" if photo else "cg"), generator_for(1000 * seed + place)
            )[0],
            folder / f"{place}.png",
        )
        rows.append({"file": f"{place}.png", "prompt": caption, "seed": place})
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_comparison_of_rendered_images_tells_the_planted_truth(tmp_path: Path) -> None:
    folders = [
        f"{key}={rendered(tmp_path / key, rate, place + 1)}"
        for place, (key, rate) in enumerate(RATES.items())
    ]
    out = compare(Request(tuple(folders), tmp_path / "out", judge="world"))
    summary, keys = (
        json.loads((out / "summary.json").read_text()),
        ["base_2", "direct_align", "refl", "srpo"],
    )
    rates = dict(zip(keys, RATES.values(), strict=True))
    won = {(each["a"], each["b"]): each for each in summary["wins"] if each["name"] == "photo_rate"}
    assert list(won) == list(combinations(keys, 2))
    assert all(won[a, b]["low"] <= truth(rates[a], rates[b]) <= won[a, b]["high"] for a, b in won)
    assert won["base_2", "srpo"]["p_holm"] < 0.05 < 0.2 < won["direct_align", "refl"]["p"], (
        "a planted difference is found, a small one is not claimed"
    )
    content = summary["models"]["srpo"]["content"]
    assert content["value"] > 0.97 and content["n"] == 48
    with (
        Image.open(out / "images" / "srpo" / "00000.png") as copied,
        Image.open(tmp_path / "srpo" / "0.png") as original,
    ):
        assert copied.tobytes() == original.tobytes()
