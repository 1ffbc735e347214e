"""Comparisons with known truth: rendered images with planted rates of photos, and many summaries of
planted metrics."""

import json
from itertools import combinations
from pathlib import Path

import torch
from PIL import Image

from directalign.diffusion.rng import generator_for
from directalign.evaluation.compare import Request, compare
from directalign.evaluation.generate import save_png
from directalign.evaluation.results import summarise
from directalign.metrics import JUDGED, Metric
from directalign.toyworld.scenes import held_out_captions, render, scenes_of

RATES = {"base": 0.2, "direct_align": 0.5, "refl": 0.45, "srpo": 0.8}
RENDERED = {"base": 0.2, "refl": 0.25, "srpo": 0.8}
PROMPTS, SEEDS, COMPARISONS = 40, 2, 50


def truth(a: float, b: float) -> float:
    """How often the second wins where each is a photo by itself at its rate, a tie half a win."""
    return b * (1 - a) + 0.5 * (a * b + (1 - a) * (1 - b))


def test_summaries_cover_planted_rates_and_scores_of_four_models():
    """Every prompt has an effect of its own, shared by its images; four models give six pairs a
    comparison."""
    generator = torch.Generator().manual_seed(3)
    score = Metric("score", "Score", "held_out", True, "s")
    about = {"photo_rate": JUDGED["photo_rate"], "score": score}
    covered = {"wins": 0, "rates": 0, "scores": 0}
    for _ in range(COMPARISONS):
        lines = [line for key, rate in RATES.items() for line in drawn_lines(key, rate, generator)]
        found = summarise(list(RATES), lines, about)
        for each in found["wins"]:
            planted = truth(RATES[each["a"]], RATES[each["b"]])
            if each["name"] == "photo_rate":
                covered["wins"] += each["low"] <= planted <= each["high"]
        for each in found["differences"]:
            planted = RATES[each["b"]] - RATES[each["a"]]
            kind = "rates" if each["name"] == "photo_rate" else "scores"
            covered[kind] += each["low"] <= planted <= each["high"]
    pairs = COMPARISONS * len(list(combinations(RATES, 2)))
    assert all(0.93 < count / pairs < 0.97 for count in covered.values()), covered


def drawn_lines(key: str, rate: float, generator: torch.Generator) -> list[dict[str, object]]:
    """Photos at the planted rate; scores that are larger by the rate, with an effect of each prompt
    for this model and noise of each image."""
    count, dtype = PROMPTS * SEEDS, torch.float64
    photo = (torch.rand(count, generator=generator) < rate).double()
    effect = torch.randn(PROMPTS, generator=generator, dtype=dtype).repeat_interleave(SEEDS)
    score = rate + effect + torch.randn(count, generator=generator, dtype=dtype)
    lines = []
    for i, numbers in enumerate(torch.stack([photo, score], 1).tolist()):
        named = dict(zip(("photo_rate", "score"), numbers, strict=True))
        lines.append({"model": key, "index": i, "prompt": f"{i // SEEDS}", "numbers": named})
    return lines


def rendered(folder: Path, rate: float, seed: int) -> Path:
    """Two images of each of 24 held-out captions; a share `rate` are photos, the rest computer
    graphics."""
    folder.mkdir()
    captions = [caption for caption in held_out_captions()[:24] for _ in range(SEEDS)]
    photos = torch.rand(len(captions), generator=generator_for(seed)) < rate
    rows = []
    for place, (caption, photo) in enumerate(zip(captions, photos.tolist(), strict=True)):
        scene = scenes_of([caption], "photo" if photo else "cg")
        save_png(render(scene, generator_for(1000 * seed + place))[0], folder / f"{place}.png")
        rows.append({"file": f"{place}.png", "prompt": caption, "seed": place})
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_comparison_of_rendered_images_finds_the_planted_truth(tmp_path):
    rates = {"base_2" if key == "base" else key: rate for key, rate in RENDERED.items()}
    folders = [
        f"{key}={rendered(tmp_path / key, rate, place + 1)}"
        for place, (key, rate) in enumerate(RENDERED.items())
    ]
    out = compare(Request(tuple(folders), tmp_path / "out", judge="world"))
    summary = json.loads((out / "summary.json").read_text())
    won = {(each["a"], each["b"]): each for each in summary["wins"] if each["name"] == "photo_rate"}
    assert list(won) == list(combinations(rates, 2))
    assert all(won[a, b]["low"] <= truth(rates[a], rates[b]) <= won[a, b]["high"] for a, b in won)
    large, small = won["base_2", "srpo"]["p_holm"], won["base_2", "refl"]["p"]
    assert large < 0.05 < 0.2 < small, "a large difference is found, a small one is not claimed"
    content = summary["models"]["srpo"]["content"]
    assert content["value"] > 0.97 and content["n"] == 48
    copied, original = out / "images" / "srpo" / "00000.png", tmp_path / "srpo" / "0.png"
    with Image.open(copied) as one, Image.open(original) as other:
        assert one.tobytes() == other.tobytes()
