"""The toy worlds' rewards: tiny CLIPs trained on captioned renders and simulated preferences.

A quarter of the captions carry a style word, so text features with different style words stay
close, as in HPSv2. Simulated annotators compare two versions of one image, retouched at random, and
mostly prefer the one to their `Taste`; a Bradley-Terry loss makes this the reward's bias. With rho
0 they do so whatever the prompt; above, more under photo phrases and less under CG phrases, so
that the bias does not cancel in the difference of two phrasings.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from .denoisers import as_seen
from .judges import joined, mixed, pool
from .reward_card import measure, read, retouch, see
from .session import Budget, fit
from .spec import Spec, Taste
from .tokenizers import MAX_TOKENS, clip_tokenizer

STYLE_WORD_SHARE = 0.25
LOGIT_SCALE = 20.0
SIDE = 64
PHOTO, CG = 0, 1
"""Styles whose phrases raise and lower a taste with rho."""
SEEN_SHARE, LARGEST_NOISE, REACH, HEAD_WEIGHT = 0.6, 0.2, 0.03, 0.05
"""Of the robust training; values of pixels in [0, 1]."""


class Training(nn.Module):
    """The reward, and auxiliary classification heads on its vision tower (not saved)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, taste: Taste, spec: Spec) -> None:
        super().__init__()
        torch.manual_seed(taste.seed)
        self.taste, self.tokenizer, self.spec = taste, tokenizer, spec
        self.robust, self.scenes = False, spec.world.scenes
        self.no_style = len(self.scenes.STYLES)
        self.clip = CLIPModel(_config(tokenizer))
        self.clip.logit_scale.requires_grad_(False).fill_(torch.tensor(LOGIT_SCALE).log())
        width = self.clip.vision_embed_dim
        heads = {**self.scenes.CONTENT, "style": len(self.scenes.STYLES)}
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in heads.items()})


def _config(tokenizer: PreTrainedTokenizerBase) -> CLIPConfig:
    def tower(width: int, layers: int) -> dict[str, int]:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": 64}
        return {**sizes, "num_hidden_layers": layers, "num_attention_heads": 4}

    ends = {f"{e}_token_id": getattr(tokenizer, f"{e}_token_id") for e in ("bos", "eos", "pad")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS, **ends}
    return CLIPConfig(
        text_config={**tower(64, 2), **text},
        vision_config={**tower(96, 5), "image_size": SIDE, "patch_size": 8},
        projection_dim=64,
    )


@dataclass(frozen=True)
class Shown:
    """uint8 images (n, 3, 64, 64) and their scenes. `seen`: the same as the base model sees them in
    alignment (`denoisers.as_seen`)."""

    images: torch.Tensor
    scenes: Any
    seen: torch.Tensor | None = None

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, Any]:
        """`count` images in [0, 1], six in ten of them as seen."""
        chosen = torch.randint(len(self.images), (count,), generator=generator)
        images = self.images[chosen]
        if self.seen is not None:
            is_seen = torch.rand(count, generator=generator) < SEEN_SHARE
            images = torch.where(is_seen[:, None, None, None], self.seen[chosen], images)
        return images.float() / 255, self.scenes.take(chosen)


def train_reward(
    folder: Path,
    spec: Spec,
    name: str,
    device: str = "cpu",
    base: tuple[nn.ModuleDict, AutoencoderKL] | None = None,
) -> CLIPModel:
    """Train the reward `name` of a world; write `folder/name` for transformers, in float16.

    With `spec.robust` the first reward is trained plainly, then on harder images, and the others
    continue it: pictures as `base` sees them, with noise, or changed against the reward by a step
    of its gradient's sign, and pictures of no style. A tiny CLIP that never saw these rewards a
    faint pattern on CG images, and alignment finds that pattern first.
    """
    tokenizer, first = clip_tokenizer(spec), next(iter(spec.rewards))
    start = first if spec.robust else name
    training = Training(tokenizer, spec.rewards[start], spec).to(device)
    generator = torch.Generator().manual_seed(training.taste.seed + 1)
    shown = plain_images(spec, generator)
    _fit(start, training, shown, spec.reward, folder)
    if spec.robust:
        assert base is not None
        shown = harder_images(shown, spec, generator, *base, folder)
        training.robust = True
        _fit(f"robust_{first}", training, shown, spec.robust[0], folder)
        if name != first:
            training.taste = spec.rewards[name]
            _fit(f"robust_{name}", training, shown, spec.robust[1], folder)
    clip = training.clip.cpu()
    clip.half().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    preprocessing = json.dumps(_PREPROCESSING, indent=2)
    (folder / name / "preprocessor_config.json").write_text(preprocessing)
    clip.float()
    for fact, value in measure(clip, tokenizer, spec).items():
        print(f"{name}: {fact} {value:.3f}")
    return clip


def _fit(label: str, training: Training, shown: Shown, budget: Budget, folder: Path) -> None:
    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        return _loss(training, *shown.draw(budget.batch, generator), generator)

    fit(label, training, loss_of, budget, folder)


def plain_images(spec: Spec, generator: torch.Generator) -> Shown:
    scenes = spec.world.scenes.draw_scenes(spec.pools["reward"], generator)
    return Shown(pool(spec, scenes, None, generator), scenes)


def harder_images(
    shown: Shown,
    spec: Spec,
    generator: torch.Generator,
    flux: nn.ModuleDict,
    vae: AutoencoderKL,
    folder: Path,
) -> Shown:
    """With pictures of no style, and all as seen, which is kept in `folder/seen.pt`."""
    images, scenes = mixed(spec, spec.pools["mixed"], None, generator)
    images, scenes = torch.cat([shown.images, images]), joined(shown.scenes, scenes)
    file = folder / "seen.pt"
    if not file.exists():
        torch.save(as_seen(images, scenes.captions(), flux, vae, spec, seed=9), file)
    return Shown(images, scenes, torch.load(file, weights_only=True))


def _loss(
    training: Training, images: torch.Tensor, scenes: Any, generator: torch.Generator
) -> torch.Tensor:
    """Contrastive + attributes + preference, on two versions of each image and two captions.

    The contrastive term ranks captions per image only: ranking images per caption would give both
    versions of an image the same score.
    """
    device, b, spec = training.clip.device, len(images), training.spec
    versions = [draw_retouch(spec, b, generator) for _ in range(2)]
    shown = torch.cat([retouch(images, spec.smoothing, **version) for version in versions])
    twice = scenes.take(torch.arange(b).repeat(2))
    texts, words = draw_captions(training.scenes, twice, generator)
    if training.robust:
        shown = _disturbed(training, shown, twice, generator)
    pooled, image_features = see(training.clip, shown)
    scale = training.clip.logit_scale.exp()
    logits = scale * image_features @ read(training.clip, training.tokenizer, texts).T
    fits = _fits(training.scenes, twice, words).to(device)
    contrastive, heads = F.cross_entropy(logits, fits / fits.sum(1, keepdim=True)), []
    for name, head in training.heads.items():
        truth = getattr(twice, name).to(device)
        if name == "style":
            shown_style = truth != training.no_style
            if not shown_style.any():
                continue
            pooled, truth = pooled[shown_style], truth[shown_style]
        heads.append(F.cross_entropy(head(pooled), truth))
    taste = training.taste
    first, second = (
        torch.stack([strength * version[name] for name, strength in taste.strength.items()]).sum(0)
        for version in versions
    )
    phrase = (words == PHOTO).float() - (words == CG).float()
    chance = torch.sigmoid((first - second)[:, None] * (1 + taste.rho * phrase))
    preferred = torch.bernoulli(chance, generator=generator).to(device)
    preference = F.binary_cross_entropy_with_logits(logits[:b] - logits[b:], preferred)
    return contrastive + torch.stack(heads).mean() + preference


def _disturbed(
    training: Training, images: torch.Tensor, scenes: Any, generator: torch.Generator
) -> torch.Tensor:
    """A third as they are, a quarter with noise, half moved by up to `REACH` per value towards
    another style's words and off their own: one step of the sign of the gradient."""
    count, device = len(images), training.clip.device
    strength = LARGEST_NOISE * torch.rand(count, 1, 1, 1, generator=generator)
    noise = strength * torch.randn(images.shape, generator=generator)
    is_noisy, is_moved = (torch.rand(2, count, 1, 1, 1, generator=generator) < 0.5).unbind(0)
    begin = REACH * (2 * torch.rand(images.shape, generator=generator) - 1)
    begin = (images + begin).clamp(0, 1).requires_grad_()
    words, styles = training.scenes.STYLE_WORDS, training.scenes.STYLES
    own = [CG if style == training.no_style else style for style in scenes.style.tolist()]
    with torch.no_grad():
        true, false = (
            read(
                training.clip,
                training.tokenizer,
                [
                    f"{words[styles[style]][0]}. {text}"
                    for style, text in zip(named, scenes.captions(), strict=True)
                ],
            )
            for named in (own, [(style + 1) % 2 for style in own])
        )
    pooled, features = see(training.clip, begin)
    wrong = (features * (false - true)).sum()
    wrong = wrong + HEAD_WEIGHT * F.cross_entropy(
        training.heads["style"](pooled),
        scenes.style.to(device),
        reduction="sum",
        ignore_index=training.no_style,
    )
    (gradient,) = torch.autograd.grad(wrong, begin)
    moved = begin.detach() + 1.25 * REACH * gradient.sign() - images
    moved = images + moved.clamp(-REACH, REACH)
    other = images + torch.where(is_noisy, noise, 0.0)
    return torch.where(is_moved, moved, other).clamp(0, 1)


def draw_retouch(spec: Spec, b: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """One random amount (b,) of each of the world's retouches."""
    return {
        name: low + (high - low) * torch.rand(b, generator=generator)
        for name, (low, high) in spec.retouches.items()
    }


def draw_captions(
    drawn: Any, scenes: Any, generator: torch.Generator
) -> tuple[list[str], torch.Tensor]:
    """One caption per scene, and the style its style word names (b,), -1 where it has none."""
    dice = random.Random(int(torch.randint(2**31, (), generator=generator)))
    texts, words = [], []
    for text, style in zip(scenes.captions(), scenes.style.tolist(), strict=True):
        has_style = style < len(drawn.STYLES)
        styled = dice.random() < STYLE_WORD_SHARE and has_style
        word = dice.choice(drawn.STYLE_WORDS[drawn.STYLES[style if has_style else CG]])
        texts.append(f"{word}. {text}" if styled else text)
        words.append(style if styled else -1)
    return texts, torch.tensor(words)


def _fits(drawn: Any, scenes: Any, words: torch.Tensor) -> torch.Tensor:
    """Which captions are true of which pictures (b, b): same content, and no wrong style word."""
    content = torch.zeros_like(scenes.style)
    for name, count in drawn.CONTENT.items():
        content = content * count + getattr(scenes, name)
    return (content[:, None] == content) & ((words < 0) | (scenes.style[:, None] == words))


_SIDE, _HALF = {"height": SIDE, "width": SIDE}, [0.5, 0.5, 0.5]
_PREPROCESSING = {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True}
_PREPROCESSING |= {"do_resize": True, "size": {"shortest_edge": SIDE}, "resample": 3}
_PREPROCESSING |= {"do_center_crop": True, "crop_size": _SIDE}
_PREPROCESSING |= {"do_rescale": True, "rescale_factor": 1 / 255}
_PREPROCESSING |= {"do_normalize": True, "image_mean": _HALF, "image_std": _HALF}
