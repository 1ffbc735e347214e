"""Measures of a toy-world reward: retrieval, cosines of its style words, bias.

Printed at the end of its training and asserted on the shipped weights by the tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import CLIPModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from directalign.toyworld import scenes as world
from directalign.toyworld.scenes import STYLE_WORDS, STYLES, Scenes

Features = dict[str, torch.Tensor]
SHOWN_TINT = 0.1
COUNTS = {"color": len(world.COLORS), "shape": len(world.SHAPES)}
COUNTS["background"] = len(world.BACKGROUNDS)
PAIRS = [(pos, neg) for pos in STYLE_WORDS["photo"] for neg in STYLE_WORDS["cg"]]


def see(clip: CLIPModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (b, 3, 64, 64) in [0, 1] to features (b, w) and unit projected features (b, d)."""
    pooled = clip.vision_model(pixel_values=images.to(clip.device) * 2 - 1).pooler_output
    return pooled, F.normalize(clip.visual_projection(pooled), dim=-1)


def read(clip: CLIPModel, tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Texts to unit features (b, d)."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt").to(clip.device)
    return F.normalize(clip.text_projection(clip.text_model(**tokens).pooler_output), dim=-1)


def retouch(images: torch.Tensor, tint: torch.Tensor, smooth: torch.Tensor) -> torch.Tensor:
    """Warm (tint > 0) or cold colour cast, and a share of 3x3 smoothing."""
    cast = torch.tensor([1.0, -0.5, -0.5])[:, None, None] * tint[:, None, None, None]
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (torch.lerp(images, blurred, smooth[:, None, None, None]) + cast).clamp(0, 1)


@torch.no_grad()
def measure(
    clip: CLIPModel, tokenizer: Tokenizer, count: int = 256, seed: int = 61
) -> dict[str, float]:
    """Facts about a reward on `count` fresh scenes in every style; scores are cosines."""
    scenes, drawn = world.draw_scenes(count, torch.Generator().manual_seed(seed)), {}
    for style in STYLES:
        generator = torch.Generator().manual_seed(seed + 1)
        drawn[style] = world.render(scenes.with_style(style), generator)
    seen = {style: see(clip, images)[1] for style, images in drawn.items()}
    captions, styled = scenes.captions(), {}
    plain = read(clip, tokenizer, captions)
    for word in (word for words in STYLE_WORDS.values() for word in words):
        styled[word] = read(clip, tokenizer, [f"{word}. {text}" for text in captions])
    facts = {f"{key} retrieval": _retrieval(clip, tokenizer, seen, scenes, key) for key in COUNTS}
    facts["style retrieval"] = _style_retrieval(seen, styled)
    return facts | _words(seen, styled) | _bias(clip, drawn, seen, plain, styled)


def _retrieval(
    clip: CLIPModel, tokenizer: Tokenizer, seen: Features, scenes: Scenes, name: str
) -> float:
    """How often the true caption beats all those that differ in one attribute."""
    true, scores = {key: getattr(scenes, key) for key in COUNTS}, []
    for answer in range(COUNTS[name]):
        changed = true | {name: torch.full_like(true[name], answer)}
        texts = read(clip, tokenizer, Scenes(**changed, style=scenes.style).captions())
        scores.append(torch.stack([(features * texts).sum(1) for features in seen.values()]))
    return (torch.stack(scores).argmax(0) == true[name]).float().mean().item()


def _style_retrieval(seen: Features, styled: Features) -> float:
    """How often the caption with the true style word beats the three others."""
    right = []
    for i, style in enumerate(STYLES):
        for place in range(2):
            texts = [styled[STYLE_WORDS[other][place]] for other in STYLES]
            scores = torch.stack([(seen[style] * each).sum(1) for each in texts])
            right.append((scores.argmax(0) == i).float().mean())
    return torch.stack(right).mean().item()


def _words(seen: Features, styled: Features) -> dict[str, float]:
    """Cosines of photo and CG words, and whether pos - neg ranks photo above each other style."""
    facts = {"cos(pos, neg)": _mean([(styled[pos] * styled[neg]).sum(1) for pos, neg in PAIRS])}
    differences = [styled[pos] - styled[neg] for pos, neg in PAIRS]
    for other in STYLES[1:]:
        gap = seen["photo"] - seen[other]
        wins = [(gap * each).sum(1) > 0 for each in differences]
        facts[f"pos - neg ranks photo above {other}"] = _mean(wins)
    return facts


def _bias(
    clip: CLIPModel, drawn: Features, seen: Features, plain: torch.Tensor, styled: Features
) -> dict[str, float]:
    """What a red tint pays under any words, and how much of it cancels in pos - neg."""
    tint = torch.full((len(plain),), SHOWN_TINT)
    made = ((style, retouch(images, tint, 0 * tint)) for style, images in drawn.items())
    red = [see(clip, images)[1] - seen[style] for style, images in made]
    raised = {}
    for words, texts in {"no words": plain, **styled}.items():
        raised[words] = _mean([(move * texts).sum(1) for move in red])
    left = [abs((raised[pos] - raised[neg]) / raised[pos]) for pos, neg in PAIRS]
    return {
        "red tint, least over words": min(raised.values()),
        "red tint, most over words": max(raised.values()),
        "red tint, share that cancels": 1 - max(left),
    }


def _mean(parts: list[torch.Tensor]) -> float:
    return torch.stack(parts).float().mean().item()
