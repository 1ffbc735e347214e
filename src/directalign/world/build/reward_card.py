"""What the world's reward is like, in numbers: what it sees, how close its words lie, how biased it is.

Printed at the end of its training and asserted on the shipped weights by the tests.
"""

from __future__ import annotations

from ...toyworld.scenes import BACKGROUNDS, COLORS, SHAPES, STYLE_WORDS, STYLES, Scenes, draw_scenes, render
import torch
import torch.nn.functional as F
from transformers import CLIPModel, PreTrainedTokenizerBase


SHOWN_TINT = 0.1


def see(clip: CLIPModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (b, 3, 64, 64) in [0, 1] to features before the projection (b, w) and unit features (b, d)."""
    pooled = clip.vision_model(pixel_values=images.to(clip.device) * 2 - 1).pooler_output
    return pooled, F.normalize(clip.visual_projection(pooled), dim=-1)


def read(clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Texts to unit features (b, d)."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt").to(clip.device)
    return F.normalize(clip.text_projection(clip.text_model(**tokens).pooler_output), dim=-1)


def retouch(images: torch.Tensor, tint: torch.Tensor, smooth: torch.Tensor) -> torch.Tensor:
    """Warm (tint > 0) or cold colour cast, and a share of 3x3 smoothing: what the annotators compare."""
    cast = torch.tensor([1.0, -0.5, -0.5])[:, None, None] * tint[:, None, None, None]
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (torch.lerp(images, blurred, smooth[:, None, None, None]) + cast).clamp(0, 1)


@torch.no_grad()
def measure(clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, count: int = 256, seed: int = 61) -> dict[str, float]:
    """Facts about a reward on `count` fresh scenes, each drawn in every style; scores are cosines."""
    scenes = draw_scenes(count, torch.Generator().manual_seed(seed))
    drawn = {style: render(scenes.with_style(style), torch.Generator().manual_seed(seed + 1)) for style in STYLES}
    seen = {style: see(clip, images)[1] for style, images in drawn.items()}
    captions = scenes.captions()
    plain = read(clip, tokenizer, captions)
    styled = {word: read(clip, tokenizer, [f"{word}. {text}" for text in captions]) for words in STYLE_WORDS.values() for word in words}
    facts = {f"{name} retrieval": _retrieval(clip, tokenizer, seen, scenes, name) for name in ("color", "shape", "background")}
    facts["style retrieval"] = _style_retrieval(seen, styled)
    facts |= _words(seen, plain, styled)
    return facts | _bias(clip, drawn, seen, plain, styled)


def _retrieval(clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, seen: dict[str, torch.Tensor], scenes: Scenes, name: str) -> float:
    """How often the true caption beats all those that differ in one attribute."""
    answers = {"color": len(COLORS), "shape": len(SHAPES), "background": len(BACKGROUNDS)}[name]
    true = {"color": scenes.color, "shape": scenes.shape, "background": scenes.background}
    scores = []
    for answer in range(answers):
        changed = true | {name: torch.full_like(true[name], answer)}
        texts = read(clip, tokenizer, Scenes(**changed, style=scenes.style).captions())
        scores.append(torch.stack([(features * texts).sum(1) for features in seen.values()]))
    return (torch.stack(scores).argmax(0) == true[name]).float().mean().item()


def _style_retrieval(seen: dict[str, torch.Tensor], styled: dict[str, torch.Tensor]) -> float:
    """How often the caption with the true style word beats the three others, over both words of each style."""
    right = []
    for i, style in enumerate(STYLES):
        for place in range(2):
            scores = torch.stack([(seen[style] * styled[STYLE_WORDS[other][place]]).sum(1) for other in STYLES])
            right.append((scores.argmax(0) == i).float().mean())
    return torch.stack(right).mean().item()


def _words(seen: dict[str, torch.Tensor], plain: torch.Tensor, styled: dict[str, torch.Tensor]) -> dict[str, float]:
    """How close photo and CG words lie, and whether pos - neg ranks photo above each other style of the same scene."""
    pairs = [(pos, neg) for pos in STYLE_WORDS["photo"] for neg in STYLE_WORDS["cg"]]
    facts = {"cos(pos, neg)": _mean([(styled[pos] * styled[neg]).sum(1) for pos, neg in pairs])}
    for other in STYLES[1:]:
        wins = [((seen["photo"] - seen[other]) * (styled[pos] - styled[neg])).sum(1) > 0 for pos, neg in pairs]
        facts[f"pos - neg ranks photo above {other}"] = _mean(wins)
    for style in STYLES:
        facts[f"plain score of {style}"] = _mean([(seen[style] * plain).sum(1)])
        facts[f"pos - neg of {style}"] = _mean([(seen[style] * (styled[pos] - styled[neg])).sum(1) for pos, neg in pairs])
    return facts


def _bias(
    clip: CLIPModel, drawn: dict[str, torch.Tensor], seen: dict[str, torch.Tensor], plain: torch.Tensor, styled: dict[str, torch.Tensor]
) -> dict[str, float]:
    """What a red tint pays under any words, and how much of it cancels in pos - neg."""
    tint = torch.full((len(plain),), SHOWN_TINT)
    moved = {style: see(clip, retouch(images, tint, torch.zeros_like(tint)))[1] - seen[style] for style, images in drawn.items()}
    raised = {words: _mean([(move * texts).sum(1) for move in moved.values()]) for words, texts in {"no words": plain, **styled}.items()}
    left = [abs((raised[pos] - raised[neg]) / raised[pos]) for pos in STYLE_WORDS["photo"] for neg in STYLE_WORDS["cg"]]
    smooth = {style: see(clip, retouch(images, 0 * tint, torch.ones_like(tint)))[1] - seen[style] for style, images in drawn.items()}
    return {
        "red tint, least over words": min(raised.values()),
        "red tint, most over words": max(raised.values()),
        "red tint, share of pictures it raises": _mean([(move * plain).sum(1) > 0 for move in moved.values()]),
        "red tint, share that cancels": 1 - max(left),
        "smoothing": _mean([(move * plain).sum(1) for move in smooth.values()]),
    }


def _mean(parts: list[torch.Tensor]) -> float:
    return torch.stack(parts).float().mean().item()
