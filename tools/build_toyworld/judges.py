"""The two judges, trained on renders of all styles, degraded as generated images are.

Half of the pool goes through the autoencoder with a little noise on the latents; every image of a
batch is then randomly blurred, recoloured and made noisy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn

from directalign.toyworld.judges import Classifier
from directalign.toyworld.scenes import CONTENT, STYLES, Scenes, draw_scenes, render

from .session import Budget, fit

BUDGET = Budget(steps=700, batch=96, learning_rate=3e-3, ema_decay=0.99, warmup=50)
POOL = 8192
LATENT_NOISE = 0.3
"""Largest noise on the latents of reconstructed images, in units of their standard deviation."""


def train_judges(
    folder: Path, autoencoder: AutoencoderKL | None, device: str = "cpu", budget: Budget = BUDGET
) -> None:
    """Train both judges and write `folder/judges/{style,content}.safetensors` in float16."""
    images, scenes = pool(POOL, autoencoder, seed=41, device=device)
    for name, heads in {"style": {"style": len(STYLES)}, "content": CONTENT}.items():
        torch.manual_seed(43)
        judge = Classifier(heads).to(device)

        def loss_of(step: int, generator: torch.Generator, judge: Any = judge) -> torch.Tensor:
            chosen = torch.randint(len(images), (budget.batch,), generator=generator)
            logits = judge(degrade(images[chosen].float() / 255, generator).to(device))
            truth = {head: getattr(scenes, head)[chosen].to(device) for head in logits}
            losses = [F.cross_entropy(logits[head], truth[head]) for head in logits]
            return torch.stack(losses).mean()

        fit(f"judge_{name}", judge, loss_of, budget, folder)
        judge.cpu()
        (folder / "judges").mkdir(exist_ok=True)
        weights = {key: each.half().contiguous() for key, each in judge.state_dict().items()}
        save_file(weights, folder / "judges" / f"{name}.safetensors")


def pool(
    count: int, autoencoder: AutoencoderKL | None, seed: int, device: str = "cpu"
) -> tuple[torch.Tensor, Scenes]:
    """Renders as uint8 (n, 3, 64, 64) with their scenes; every second one reconstructed."""
    generator = torch.Generator().manual_seed(seed)
    scenes, images = draw_scenes(count, generator), []
    if autoencoder is not None:
        nn.Module.to(autoencoder, device)
    for start in range(0, count, 128):
        part = render(take(scenes, torch.arange(start, min(start + 128, count))), generator)
        if autoencoder is not None:
            part[::2] = reconstruct(part[::2], autoencoder, LATENT_NOISE, generator)
        images.append((part * 255).round().to(torch.uint8))
    return torch.cat(images), scenes


def take(scenes: Scenes, chosen: torch.Tensor) -> Scenes:
    """Some scenes of a batch, by index."""
    parts = (scenes.color, scenes.shape, scenes.background, scenes.style)
    return Scenes(*(part[chosen] for part in parts))


@torch.no_grad()
def reconstruct(
    images: torch.Tensor, autoencoder: Any, latent_noise: float, generator: torch.Generator
) -> torch.Tensor:
    """Encode, add up to `latent_noise` standard deviations of noise, decode; images in [0, 1]."""
    device = next(autoencoder.parameters()).device
    x0 = autoencoder.encode(images.to(device) * 2 - 1).latent_dist.mean
    strength = latent_noise * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = strength * torch.randn(x0.shape, generator=generator)
    return (autoencoder.decode(x0 + x0.std() * noise.to(device)).sample / 2 + 0.5).clamp(0, 1).cpu()


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random loss of detail, ±50 % saturation, brightness, colour cast and noise, per image."""

    def uniform(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(images), channels, 1, 1, generator=generator)

    size = int(torch.randint(28, 64, (), generator=generator))
    coarse = F.interpolate(images, size, mode="bilinear", antialias=True)
    coarse = F.interpolate(coarse, images.shape[-1], mode="bicubic")
    images = torch.lerp(images, coarse, uniform(-0.6, 1.0).clamp(min=0))
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * uniform(0.5, 1.5)
    images = images * uniform(0.85, 1.15) + uniform(-0.08, 0.08)
    images = images + uniform(-0.10, 0.10, channels=3) * uniform(-0.5, 1.0).clamp(min=0)
    strength = uniform(-0.03, 0.05).clamp(min=0)
    return (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)
