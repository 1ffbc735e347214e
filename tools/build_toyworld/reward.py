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
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from .judges import pool
from .reward_card import measure, read, retouch, see
from .session import fit
from .spec import Spec, Taste
from .tokenizers import MAX_TOKENS, clip_tokenizer

STYLE_WORD_SHARE = 0.25
LOGIT_SCALE = 20.0
SIDE = 64
PHOTO, CG = 0, 1
"""Styles whose phrases raise and lower a taste with rho."""


class Training(nn.Module):
    """The reward, and auxiliary classification heads on its vision tower (not saved)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, taste: Taste, spec: Spec) -> None:
        super().__init__()
        torch.manual_seed(taste.seed)
        self.taste, self.tokenizer, self.spec = taste, tokenizer, spec
        self.scenes = spec.world.scenes
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


def train_reward(folder: Path, spec: Spec, name: str, device: str = "cpu") -> CLIPModel:
    """Train the reward `name` of a world; write `folder/name` for transformers, in float16."""
    tokenizer, taste, budget = clip_tokenizer(spec), spec.rewards[name], spec.reward
    training = Training(tokenizer, taste, spec).to(device)
    images, scenes = pool(spec, spec.pools["reward"], None, seed=taste.seed + 1)

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(images), (budget.batch,), generator=generator)
        shown = images[chosen].float() / 255
        return _loss(training, shown, scenes.take(chosen), generator)

    fit(name, training, loss_of, budget, folder)
    clip = training.clip.cpu()
    clip.half().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    preprocessing = json.dumps(_PREPROCESSING, indent=2)
    (folder / name / "preprocessor_config.json").write_text(preprocessing)
    clip.float()
    for fact, value in measure(clip, tokenizer, spec).items():
        print(f"{name}: {fact} {value:.3f}")
    return clip


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
    pooled, image_features = see(training.clip, shown)
    twice = scenes.take(torch.arange(b).repeat(2))
    texts, words = draw_captions(training.scenes, twice, generator)
    scale = training.clip.logit_scale.exp()
    logits = scale * image_features @ read(training.clip, training.tokenizer, texts).T
    fits = _fits(training.scenes, twice, words).to(device)
    contrastive, heads = F.cross_entropy(logits, fits / fits.sum(1, keepdim=True)), []
    for name, head in training.heads.items():
        heads.append(F.cross_entropy(head(pooled), getattr(twice, name).to(device)))
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
        styled = dice.random() < STYLE_WORD_SHARE
        word = dice.choice(drawn.STYLE_WORDS[drawn.STYLES[style]])
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
