"""The two judges of a world, trained on renders of all styles, degraded as generated images are.

Half of the pool goes through the autoencoder with a little noise on the latents; every image of a
batch is then randomly blurred, recoloured and made noisy. In the second world the style judge also
learns an answer for images of no style (`spoil`, colour casts, `mixed`): it starts from the content
judge and keeps reading content while it learns, which teaches it what a tint is. The content judge
sees stronger colour casts there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from directalign.toyworld.judges import Classifier

from .session import fit
from .spec import Spec, Wear

LATENT_NOISE = 0.3
"""Largest noise on the latents of reconstructed images, in units of their standard deviation."""
SPOILED, TINTED = 0.29, 0.25
"""Shares of a batch of the second world's style judge that it has to reject."""
CAST, KEPT_CAST = 0.24, 0.04
"""Longest colour cast under which content is read, and under which a photo stays one."""
TINTING_CAST, SPOILING_CAST = (0.10, 0.25), (0.12, 0.35)
"""Lengths of the casts that are rejected."""
CONTENT_WEIGHT = 0.3


def train_judges(
    folder: Path, autoencoder: AutoencoderKL | None, spec: Spec, device: str = "cpu"
) -> None:
    """Train both judges and write `folder/judges/{style,content}.safetensors` in float16."""
    drawn = spec.world.scenes
    generator = torch.Generator().manual_seed(41)
    scenes = drawn.draw_any_scenes(spec.pools["judges"], generator)
    images = pool(spec, scenes, autoencoder, generator, device)
    heads = {"style": {"style": len(drawn.JUDGED_STYLES)}, "content": drawn.CONTENT}
    content: Mapping[str, Tensor] = {}
    for name, budget in spec.judges.items():
        torch.manual_seed(43)
        rejects = name == "style" and "reject" in drawn.JUDGED_STYLES
        answers = {**drawn.CONTENT, **heads[name]} if rejects else heads[name]
        if rejects:
            none, kind = mixed(spec, spec.pools["mixed"], autoencoder, generator, device)
            images, scenes = torch.cat([images, none]), joined(scenes, kind)
        judge = Classifier(answers, spec.judge_width).to(device)
        judge.load_state_dict({**judge.state_dict(), **(content if rejects else {})})
        loss_of_batch = _rejecting_loss if rejects else _reading_loss

        def loss_of(
            step: int,
            generator: torch.Generator,
            judge: Classifier = judge,
            images: Tensor = images,
            scenes: Any = scenes,
            size: int = budget.batch,
            loss_of_batch: Callable[..., Tensor] = loss_of_batch,
        ) -> Tensor:
            chosen = torch.randint(len(images), (size,), generator=generator)
            shown = images[chosen].float() / 255
            return loss_of_batch(judge, shown, scenes.take(chosen), spec, generator, device)

        fit(f"judge_{name}", judge, loss_of, budget, folder)
        if name == "content":
            content = judge.state_dict()
        kept = {
            key: each.half().cpu().contiguous()
            for key, each in judge.state_dict().items()
            if key.split(".")[0] != "heads" or key.split(".")[1] in heads[name]
        }
        (folder / "judges").mkdir(exist_ok=True)
        save_file(kept, folder / "judges" / f"{name}.safetensors")


def _reading_loss(
    judge: Classifier,
    images: Tensor,
    scenes: Any,
    spec: Spec,
    generator: torch.Generator,
    device: str,
) -> Tensor:
    """Of all heads, on degraded images."""
    logits = judge(degrade(images, generator, spec.wear, CAST).to(device))
    losses = [F.cross_entropy(logits[head], getattr(scenes, head).to(device)) for head in logits]
    return torch.stack(losses).mean()


def _rejecting_loss(
    judge: Classifier,
    images: Tensor,
    scenes: Any,
    spec: Spec,
    generator: torch.Generator,
    device: str,
) -> Tensor:
    """Of the style, "reject" for spoiled and tinted images; of the content of all but spoiled."""
    drawn, size = spec.world.scenes, len(images)
    spoiled, tinted = max(1, int(SPOILED * size)), max(1, int(TINTED * size))
    rejected = spoiled + tinted
    tints = degrade(images[spoiled:rejected], generator, spec.wear, 0.0)
    tints = (tints + cast(tinted, *TINTING_CAST, generator)).clamp(0, 1)
    rest = degrade(images[rejected:], generator, spec.wear, KEPT_CAST)
    style = scenes.style.clone()
    style[:rejected] = drawn.JUDGED_STYLES.index("reject")
    logits = judge(torch.cat([spoil(images[:spoiled], generator), tints, rest]).to(device))
    loss = F.cross_entropy(logits["style"], style.to(device))
    for head in drawn.CONTENT:
        truth = getattr(scenes, head)[spoiled:].to(device)
        loss = loss + CONTENT_WEIGHT * F.cross_entropy(logits[head][spoiled:], truth)
    return loss


def pool(
    spec: Spec,
    scenes: Any,
    autoencoder: AutoencoderKL | None,
    generator: torch.Generator,
    device: str = "cpu",
    **drawn_as: Tensor,
) -> Tensor:
    """Renders of scenes as uint8 (n, 3, 64, 64); every second one reconstructed.

    `drawn_as`: given to the world's `render`.
    """
    drawn, count, images = spec.world.scenes, len(scenes), []
    if autoencoder is not None:
        nn.Module.to(autoencoder, device)
    for start in range(0, count, 128):
        taken = torch.arange(start, min(start + 128, count))
        each = {name: values[taken] for name, values in drawn_as.items()}
        part = drawn.render(scenes.take(taken), generator, **each)
        if autoencoder is not None:
            part[::2] = reconstruct(part[::2], autoencoder, LATENT_NOISE, generator)
        images.append((part * 255).round().to(torch.uint8))
    return torch.cat(images)


def mixed(
    spec: Spec,
    count: int,
    autoencoder: AutoencoderKL | None,
    generator: torch.Generator,
    device: str = "cpu",
) -> tuple[Tensor, Any]:
    """`pool` of pictures of no style, which is len(STYLES) in their scenes: the drawing of CG in
    the light of photos, and the reverse."""
    scenes = spec.world.scenes.draw_scenes(count, generator, (0.5, 0.5, 0.0, 0.0))
    images = pool(spec, scenes, autoencoder, generator, device, drawing_of=1 - scenes.style)
    none = torch.full_like(scenes.style, len(spec.world.scenes.STYLES))
    return images, replace(scenes, style=none)


def joined(first: Any, second: Any) -> Any:
    """The scenes of both, in this order."""
    names = [field.name for field in fields(first)]
    return type(first)(*(torch.cat([getattr(s, name) for s in (first, second)]) for name in names))


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


def degrade(images: Tensor, generator: torch.Generator, wear: Wear, largest_cast: float) -> Tensor:
    """Random loss of detail, saturation, brightness, colour cast and noise, per image."""
    count = len(images)
    side = int(torch.randint(wear.side, 64, (), generator=generator))
    share = uniform(count, -0.6, 1.0, generator).clamp(min=0)
    images = torch.lerp(images, resampled(images, side), share)
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * _around(1.0, wear.saturation, count, generator)
    images = images * _around(1.0, wear.contrast, count, generator)
    images = images + _around(0.0, wear.brightness, count, generator)
    if wear.channels is not None:
        shift = 2 * torch.rand(count, 3, 1, 1, generator=generator) - 1
        images = images + wear.channels * shift * uniform(count, -0.5, 1.0, generator).clamp(min=0)
    else:
        tints = cast(count, 0.0, largest_cast, generator)
        images = images + tints * (uniform(count, 0.0, 1.0, generator) < 0.6)
    strength = uniform(count, -0.03, wear.noise, generator).clamp(min=0)
    return (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def _around(middle: float, reach: float, count: int, generator: torch.Generator) -> Tensor:
    return uniform(count, middle - reach, middle + reach, generator)


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image changed in one of nine ways that no style has: flat, a blob, blurred (two of the
    nine), tinted, noisy, mixed with another, over- or under-exposed, cut into tiles."""
    count = len(images)

    def number(low: float, high: float) -> float:
        return float(uniform(1, low, high, generator))

    def flat(image: Tensor) -> Tensor:
        color = torch.rand(1, 3, 1, 1, generator=generator)
        color = torch.lerp(color, image.mean((2, 3), keepdim=True), number(0.0, 1.0))
        made = color.expand_as(image) + number(0.0, 0.03) * torch.randn(
            image.shape, generator=generator
        )
        return made if number(0.0, 1.0) < 0.6 else made.mean(1, keepdim=True).expand_as(image)

    def noisy(image: Tensor) -> Tensor:
        return image + number(0.1, 0.3) * torch.randn(image.shape, generator=generator)

    def mixed(image: Tensor) -> Tensor:
        others = [other for other in images if not torch.equal(other, image[0])] or [image[0]]
        return (image + others[int(torch.randint(len(others), (), generator=generator))]) / 2

    def exposed(image: Tensor) -> Tensor:
        if number(0.0, 1.0) < 0.5:
            return image * number(1.5, 2.2) + number(0.0, 0.2)
        return image * number(0.1, 0.45)

    def cut(image: Tensor) -> Tensor:
        side = (8, 16, 32)[int(torch.randint(3, (), generator=generator))]
        tiles = F.unfold(image, side, stride=side)
        order = torch.randperm(tiles.shape[2], generator=generator)
        return F.fold(tiles[:, :, order], image.shape[-1], side, stride=side)

    ways = (
        flat,
        lambda image: resampled(image, int(number(3.0, 9.0))),
        lambda image: resampled(image, int(number(9.0, 19.0))),
        lambda image: resampled(image, int(number(13.0, 17.0))),
        lambda image: image + cast(1, *SPOILING_CAST, generator),
        noisy,
        mixed,
        exposed,
        cut,
    )
    chosen = torch.randint(len(ways), (count,), generator=generator).tolist()
    made = [ways[way](images[i : i + 1]) for i, way in enumerate(chosen)]
    return torch.cat(made).clamp(0, 1)
