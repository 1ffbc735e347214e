"""The toy world's rewards: a tiny CLIP trained on captioned renders and simulated preferences.

A quarter of the captions carry a style word, so text features with different style words stay
close, as in HPSv2. Simulated annotators compare two versions of one image and mostly prefer the
redder, smoother one, whatever the prompt; a Bradley-Terry loss makes this the reward's bias. A
second reward, from other seeds, has the opposite preference: for mixtures and as a held-out metric.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from directalign.toyworld.scenes import BACKGROUNDS, IMAGE_SIZE, SHAPES, STYLE_WORDS, STYLES, Scenes

from .judges import pool, take
from .reward_card import COUNTS, measure, read, retouch, see
from .session import Budget, fit
from .tokenizers import MAX_TOKENS, clip_tokenizer

BUDGET = Budget(steps=1500, batch=48, learning_rate=1.5e-3, ema_decay=0.995, warmup=100)
POOL = 12288
STYLE_WORD_SHARE = 0.25
LOGIT_SCALE = 20.0
TINT = 0.12
"""Largest tint, warm or cold, of the pictures shown to annotators (see `retouch`)."""


@dataclass(frozen=True)
class Taste:
    """Preference of the annotators of one reward, and the seed of its weights and images.

    `tint`: utility per unit of red tint (at 15, 0.1 more of it is preferred in 82 % of the
    comparisons). `smooth`: utility of a fully smoothed image (at 0.5 preferred in 62 %).
    """

    tint: float
    smooth: float
    seed: int


TASTES = {"reward": Taste(15.0, 0.5, 51), "second_reward": Taste(-8.0, -0.5, 61)}
HEADS = {**COUNTS, "style": len(STYLES)}


class Training(nn.Module):
    """The reward, and auxiliary classification heads on its vision tower (not saved)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, taste: Taste = TASTES["reward"]) -> None:
        super().__init__()
        torch.manual_seed(taste.seed)
        self.taste, self.tokenizer = taste, tokenizer
        self.clip = CLIPModel(_config(tokenizer))
        self.clip.logit_scale.requires_grad_(False).fill_(torch.tensor(LOGIT_SCALE).log())
        width = self.clip.vision_embed_dim
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in HEADS.items()})


def _config(tokenizer: PreTrainedTokenizerBase) -> CLIPConfig:
    def tower(width: int, layers: int) -> dict[str, int]:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": 64}
        return {**sizes, "num_hidden_layers": layers, "num_attention_heads": 4}

    ends = {f"{e}_token_id": getattr(tokenizer, f"{e}_token_id") for e in ("bos", "eos", "pad")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS, **ends}
    return CLIPConfig(
        text_config={**tower(64, 2), **text},
        vision_config={**tower(96, 5), "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=64,
    )


def train_reward(
    folder: Path, device: str = "cpu", budget: Budget = BUDGET, name: str = "reward"
) -> CLIPModel:
    """Train the reward `name` of TASTES; write `folder/name` for transformers, in float16."""
    tokenizer = clip_tokenizer()
    training = Training(tokenizer, TASTES[name]).to(device)
    images, scenes = pool(POOL, None, seed=TASTES[name].seed + 1)

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(POOL, (budget.batch,), generator=generator)
        shown = images[chosen].float() / 255
        return _loss(training, shown, take(scenes, chosen), generator)

    fit(name, training, loss_of, budget, folder)
    clip = training.clip.cpu()
    clip.half().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    preprocessing = json.dumps(_PREPROCESSING, indent=2)
    (folder / name / "preprocessor_config.json").write_text(preprocessing)
    clip.float()
    for fact, value in measure(clip, tokenizer).items():
        print(f"{name}: {fact} {value:.3f}")
    return clip


def _loss(
    training: Training, images: torch.Tensor, scenes: Scenes, generator: torch.Generator
) -> torch.Tensor:
    """Contrastive + attributes + preference, on two versions of each image and two captions.

    The contrastive term ranks captions per image only: ranking images per caption would give both
    versions of an image the same score.
    """
    device, b = training.clip.device, len(images)
    versions = [draw_retouch(b, generator) for _ in range(2)]
    shown = torch.cat([retouch(images, *version) for version in versions])
    pooled, image_features = see(training.clip, shown)
    twice = take(scenes, torch.arange(b).repeat(2))
    texts, words = draw_captions(twice, generator)
    scale = training.clip.logit_scale.exp()
    logits = scale * image_features @ read(training.clip, training.tokenizer, texts).T
    fits = _fits(twice, words).to(device)
    contrastive, heads = F.cross_entropy(logits, fits / fits.sum(1, keepdim=True)), []
    for name, head in training.heads.items():
        heads.append(F.cross_entropy(head(pooled), getattr(twice, name).to(device)))
    taste = training.taste
    first, second = (taste.tint * tint + taste.smooth * smooth for tint, smooth in versions)
    chance = torch.sigmoid(first - second)[:, None].expand(b, 2 * b)
    preferred = torch.bernoulli(chance, generator=generator).to(device)
    preference = F.binary_cross_entropy_with_logits(logits[:b] - logits[b:], preferred)
    return contrastive + torch.stack(heads).mean() + preference


def draw_retouch(b: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Tint in [-TINT, TINT] and smoothing in [0, 1], each (b,)."""
    return TINT * (2 * torch.rand(b, generator=generator) - 1), torch.rand(b, generator=generator)


def draw_captions(scenes: Scenes, generator: torch.Generator) -> tuple[list[str], torch.Tensor]:
    """One caption per scene, and the style its style word names (b,), -1 where it has none."""
    dice = random.Random(int(torch.randint(2**31, (), generator=generator)))
    texts, words = [], []
    for text, style in zip(scenes.captions(), scenes.style.tolist(), strict=True):
        styled = dice.random() < STYLE_WORD_SHARE
        texts.append(f"{dice.choice(STYLE_WORDS[STYLES[style]])}. {text}" if styled else text)
        words.append(style if styled else -1)
    return texts, torch.tensor(words)


def _fits(scenes: Scenes, words: torch.Tensor) -> torch.Tensor:
    """Which captions are true of which pictures (b, b): same content, and no wrong style word."""
    content = (scenes.color * len(SHAPES) + scenes.shape) * len(BACKGROUNDS) + scenes.background
    return (content[:, None] == content) & ((words < 0) | (scenes.style[:, None] == words))


_SIDE, _HALF = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, [0.5, 0.5, 0.5]
_PREPROCESSING = {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True}
_PREPROCESSING |= {"do_resize": True, "size": {"shortest_edge": IMAGE_SIZE}, "resample": 3}
_PREPROCESSING |= {"do_center_crop": True, "crop_size": _SIDE}
_PREPROCESSING |= {"do_rescale": True, "rescale_factor": 1 / 255}
_PREPROCESSING |= {"do_normalize": True, "image_mean": _HALF, "image_std": _HALF}
