"""The two judges of a world, trained on renders of all styles, degraded as generated images are.

Half of the pool goes through the autoencoder with a little noise on the latents; every image of a
batch is then randomly blurred, recoloured and made noisy. In the second world the style judge also
learns an answer for images of no style (`spoil`), and the content judge sees stronger colour casts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from directalign.toyworld.judges import Classifier

from .session import fit
from .spec import Spec

POOL = 8192
LATENT_NOISE = 0.3
"""Largest noise on the latents of reconstructed images, in units of their standard deviation."""
SPOILED = 1 / 3
"""Share of spoiled images in a batch of the second world's style judge."""
CAST, KEPT_CAST, SPOILING_CAST = 0.24, 0.05, (0.12, 0.35)
"""Lengths of colour casts: under which content is read, a photo stays one, and is spoiled."""


def train_judges(
    folder: Path, autoencoder: AutoencoderKL | None, spec: Spec, device: str = "cpu"
) -> None:
    """Train both judges and write `folder/judges/{style,content}.safetensors` in float16."""
    drawn = spec.world.scenes
    images, scenes = pool(spec, POOL, autoencoder, seed=41, device=device)
    heads = {"style": {"style": len(drawn.JUDGED_STYLES)}, "content": drawn.CONTENT}
    for name, budget in spec.judges.items():
        torch.manual_seed(43)
        judge = Classifier(heads[name], spec.judge_width).to(device)
        rejects = name == "style" and "reject" in drawn.JUDGED_STYLES

        def loss_of(
            step: int,
            generator: torch.Generator,
            judge: Any = judge,
            size: int = budget.batch,
            rejects: bool = rejects,
        ) -> Tensor:
            chosen = torch.randint(len(images), (size,), generator=generator)
            shown = images[chosen].float() / 255
            truth = {head: getattr(scenes, head)[chosen] for head in judge.heads}
            if rejects:
                count = int(SPOILED * size)
                spoiled = spoil(shown[:count], generator)
                shown = torch.cat([spoiled, degrade(shown[count:], generator, KEPT_CAST)])
                truth["style"] = truth["style"].index_fill(
                    0, torch.arange(count), drawn.JUDGED_STYLES.index("reject")
                )
            else:
                shown = degrade(shown, generator, CAST)
            logits = judge(shown.to(device))
            losses = [F.cross_entropy(logits[head], truth[head].to(device)) for head in logits]
            return torch.stack(losses).mean()

        fit(f"judge_{name}", judge, loss_of, budget, folder)
        judge.cpu()
        (folder / "judges").mkdir(exist_ok=True)
        weights = {key: each.half().contiguous() for key, each in judge.state_dict().items()}
        save_file(weights, folder / "judges" / f"{name}.safetensors")


def pool(
    spec: Spec, count: int, autoencoder: AutoencoderKL | None, seed: int, device: str = "cpu"
) -> tuple[Tensor, Any]:
    """Renders as uint8 (n, 3, 64, 64) with their scenes; every second one reconstructed."""
    drawn, generator = spec.world.scenes, torch.Generator().manual_seed(seed)
    scenes, images = drawn.draw_scenes(count, generator), []
    if autoencoder is not None:
        nn.Module.to(autoencoder, device)
    for start in range(0, count, 128):
        part = drawn.render(scenes.take(torch.arange(start, min(start + 128, count))), generator)
        if autoencoder is not None:
            part[::2] = reconstruct(part[::2], autoencoder, LATENT_NOISE, generator)
        images.append((part * 255).round().to(torch.uint8))
    return torch.cat(images), scenes


@torch.no_grad()
def reconstruct(
    images: Tensor, autoencoder: Any, latent_noise: float, generator: torch.Generator
) -> Tensor:
    """Encode, add up to `latent_noise` standard deviations of noise, decode; images in [0, 1]."""
    device = next(autoencoder.parameters()).device
    x0 = autoencoder.encode(images.to(device) * 2 - 1).latent_dist.mean
    strength = latent_noise * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = strength * torch.randn(x0.shape, generator=generator)
    return (autoencoder.decode(x0 + x0.std() * noise.to(device)).sample / 2 + 0.5).clamp(0, 1).cpu()


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def cast(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Colour casts (n, 3, 1, 1) with sum zero, of lengths in [low, high]."""
    moved = torch.randn(count, 3, 1, 1, generator=generator)
    moved = F.normalize(moved - moved.mean(1, keepdim=True), dim=1)
    return moved * uniform(count, low, high, generator)


def resampled(images: Tensor, side: int) -> Tensor:
    """Reduced to `side` pixels and enlarged again."""
    coarse = F.interpolate(images, side, mode="bilinear", antialias=True)
    return F.interpolate(coarse, images.shape[-1], mode="bicubic")


def degrade(images: Tensor, generator: torch.Generator, largest_cast: float) -> Tensor:
    """Random loss of detail, saturation, brightness, colour cast and noise, per image."""
    count = len(images)
    side = int(torch.randint(30, 64, (), generator=generator))
    share = uniform(count, -0.6, 1.0, generator).clamp(min=0)
    images = torch.lerp(images, resampled(images, side), share)
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * uniform(count, 0.6, 1.4, generator)
    images = images * uniform(count, 0.85, 1.15, generator) + uniform(count, -0.07, 0.07, generator)
    is_cast = uniform(count, 0, 1, generator) < 0.6
    images = images + is_cast * cast(count, 0.0, largest_cast, generator)
    strength = uniform(count, -0.03, 0.05, generator).clamp(min=0)
    return (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image changed in one of eight ways that no style has: flat, a blob, blurred, tinted,
    noisy, mixed with another, over- or under-exposed, cut into tiles."""
    count = len(images)

    def number(low: float, high: float) -> float:
        return float(uniform(1, low, high, generator))

    def flat(image: Tensor) -> Tensor:
        color = torch.rand(1, 3, 1, 1, generator=generator)
        color = torch.lerp(color, image.mean((2, 3), keepdim=True), number(0, 1))
        made = color.expand_as(image) + number(0, 0.03) * torch.randn(
            image.shape, generator=generator
        )
        return made if number(0, 1) < 0.6 else made.mean(1, keepdim=True).expand_as(image)

    def noisy(image: Tensor) -> Tensor:
        return image + number(0.1, 0.3) * torch.randn(image.shape, generator=generator)

    def mixed(image: Tensor) -> Tensor:
        other = int(torch.randint(count, (), generator=generator))
        return (image + images[other : other + 1]) / 2

    def exposed(image: Tensor) -> Tensor:
        if number(0, 1) < 0.5:
            return image * number(1.5, 2.2) + number(0, 0.2)
        return image * number(0.1, 0.45)

    def cut(image: Tensor) -> Tensor:
        side = (8, 16, 32)[int(torch.randint(3, (), generator=generator))]
        tiles = F.unfold(image, side, stride=side)
        order = torch.randperm(tiles.shape[2], generator=generator)
        return F.fold(tiles[:, :, order], image.shape[-1], side, stride=side)

    ways = (
        flat,
        lambda image: resampled(image, int(number(3, 9))),
        lambda image: resampled(image, int(number(9, 19))),
        lambda image: image + cast(1, *SPOILING_CAST, generator),
        noisy,
        mixed,
        exposed,
        cut,
    )
    chosen = torch.randint(len(ways), (count,), generator=generator).tolist()
    made = [ways[way](images[i : i + 1]) for i, way in enumerate(chosen)]
    return torch.cat(made).clamp(0, 1)
