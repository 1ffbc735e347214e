"""Measures of a toy world's reward: retrieval, cosines of its style words, bias.

Printed at the end of its training and asserted on the shipped weights by the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import CLIPModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from directalign.toyworld.worlds import World

from .spec import Spec

Features = dict[str, torch.Tensor]
SHOWN = {"tint": 0.1, "smooth": 1.0, "saturation": 0.5, "exposure": 0.3}
"""The amount of each retouch under which a bias is measured."""


def see(clip: CLIPModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (b, 3, 64, 64) in [0, 1] to features (b, w) and unit projected features (b, d)."""
    pooled = clip.vision_model(pixel_values=images.to(clip.device) * 2 - 1).pooler_output
    return pooled, F.normalize(clip.visual_projection(pooled), dim=-1)


def read(clip: CLIPModel, tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Texts to unit features (b, d)."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt").to(clip.device)
    return F.normalize(clip.text_projection(clip.text_model(**tokens).pooler_output), dim=-1)


def retouch(
    images: torch.Tensor, smoothing: int = 3, **amounts: torch.Tensor | float
) -> torch.Tensor:
    """Change images by amounts, each a number or (b,), in this order: `smooth`, a share of a box of
    `smoothing` pixels; `saturation` and `exposure`, 0 as it is; `tint`, warm (> 0) or cold."""
    given = {
        name: torch.as_tensor(amount, dtype=images.dtype).reshape(-1, 1, 1, 1)
        for name, amount in amounts.items()
    }
    if "smooth" in given:
        padded = F.pad(images, (smoothing // 2,) * 4, mode="replicate")
        images = torch.lerp(images, F.avg_pool2d(padded, smoothing, stride=1), given["smooth"])
    if "saturation" in given:
        gray = images.mean(1, keepdim=True)
        images = gray + (images - gray) * (1 + given["saturation"])
    if "exposure" in given:
        lifted = 0.3 * given["exposure"].clamp(min=0)
        images = images * (1 + given["exposure"]) + lifted
    if "tint" in given:
        images = images + torch.tensor([1.0, -0.5, -0.5])[:, None, None] * given["tint"]
    return images.clamp(0, 1)


@torch.no_grad()
def measure(
    clip: CLIPModel, tokenizer: Tokenizer, spec: Spec, count: int = 256, seed: int = 61
) -> dict[str, float]:
    """Facts about a reward on `count` fresh scenes in every style; scores are cosines."""
    world = spec.world
    scenes, drawn = world.scenes.draw_scenes(count, torch.Generator().manual_seed(seed)), {}
    for style in world.scenes.STYLES:
        generator = torch.Generator().manual_seed(seed + 1)
        drawn[style] = world.scenes.render(scenes.with_style(style), generator)
    seen = {style: see(clip, images)[1] for style, images in drawn.items()}
    captions, styled = scenes.captions(), {}
    plain, words = read(clip, tokenizer, captions), world.scenes.STYLE_WORDS
    for word in (word for pair in words.values() for word in pair):
        styled[word] = read(clip, tokenizer, [f"{word}. {text}" for text in captions])
    pairs = [(pos, neg) for pos in words["photo"] for neg in words["cg"]]
    facts = {
        f"{key} retrieval": _retrieval(clip, tokenizer, seen, scenes, key, world)
        for key in world.scenes.CONTENT
    }
    facts["style retrieval"] = _style_retrieval(seen, styled, words)
    facts |= _words(seen, styled, pairs)
    for name in spec.retouches:
        changed = {
            style: retouch(images, spec.smoothing, **{name: SHOWN[name]})
            for style, images in drawn.items()
        }
        moved = [see(clip, images)[1] - seen[style] for style, images in changed.items()]
        facts |= {f"{name}, {fact}": each for fact, each in _bias(moved, plain, styled, pairs)}
    return facts


def _retrieval(
    clip: CLIPModel, tokenizer: Tokenizer, seen: Features, scenes: Any, name: str, world: World
) -> float:
    """How often the true caption beats all those that differ in one attribute."""
    counts = world.scenes.CONTENT
    true, scores = {key: getattr(scenes, key) for key in counts}, []
    for answer in range(counts[name]):
        changed = true | {name: torch.full_like(true[name], answer)}
        texts = read(clip, tokenizer, type(scenes)(**changed, style=scenes.style).captions())
        scores.append(torch.stack([(features * texts).sum(1) for features in seen.values()]))
    return (torch.stack(scores).argmax(0) == true[name]).float().mean().item()


def _style_retrieval(seen: Features, styled: Features, words: Mapping[str, Sequence[str]]) -> float:
    """How often the caption with the true style word beats the three others."""
    right = []
    for i, style in enumerate(words):
        for place in range(2):
            texts = [styled[words[other][place]] for other in words]
            scores = torch.stack([(seen[style] * each).sum(1) for each in texts])
            right.append((scores.argmax(0) == i).float().mean())
    return torch.stack(right).mean().item()


def _words(seen: Features, styled: Features, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Cosines of photo and CG words, and whether pos - neg ranks photo above each other style."""
    facts = {"cos(pos, neg)": _mean([(styled[pos] * styled[neg]).sum(1) for pos, neg in pairs])}
    differences = [styled[pos] - styled[neg] for pos, neg in pairs]
    for other in list(seen)[1:]:
        gap = seen["photo"] - seen[other]
        wins = [(gap * each).sum(1) > 0 for each in differences]
        facts[f"pos - neg ranks photo above {other}"] = _mean(wins)
    return facts


def _bias(
    moved: list[torch.Tensor],
    plain: torch.Tensor,
    styled: Features,
    pairs: Sequence[tuple[str, str]],
) -> list[tuple[str, float]]:
    """What a move of image features pays under any words, and how much cancels in pos - neg."""
    raised = {
        words: _mean([(move * texts).sum(1) for move in moved])
        for words, texts in {"no words": plain, **styled}.items()
    }
    left = [abs((raised[pos] - raised[neg]) / raised[pos]) for pos, neg in pairs]
    least, most = min(raised.values()), max(raised.values())
    return [
        ("least over words", least),
        ("most over words", most),
        ("share that cancels", 1 - max(left)),
    ]


def _mean(parts: list[torch.Tensor]) -> float:
    return torch.stack(parts).float().mean().item()
