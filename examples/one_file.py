"""The whole method in one file: SRPO with the anchored reward on the embedded FLUX, from `directalign.diffusion` and diffusers alone.

    directalign world export world        # once
    python examples/one_file.py world     # some thirty updates, then before.png and after.png

It is the same computation as `directalign train world_srpo` without what surrounds it (checkpoints, judges,
records); tests/examples hold the two equal, update by update.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from directalign.diffusion import noise_levels, recovery, rng
from directalign.diffusion.path import flow_sigmas
from directalign.methods import objective_math

POSITIVE, NEGATIVE = ["Realistic photo", "Natural lighting"], ["CG render", "Oil painting", "Anime"]
NOISE, MOVE = 1, 3  # two streams of random numbers
SIZE, TOKENS, STEPS = 64, 16, 8  # pixels, text tokens, sampling steps


class World:
    """The pipeline and the reward, each reduced to the calls that the method makes."""

    def __init__(self, folder: str) -> None:
        self.pipe = FluxPipeline.from_pretrained(f"{folder}/flux")
        self.clip = CLIPModel.from_pretrained(
            f"{folder}/reward", dtype=torch.float32
        ).requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(f"{folder}/reward")
        self.pipe.vae.to(
            memory_format=torch.channels_last
        )  # the layout that convolutions are fastest in
        self.pipe.transformer.requires_grad_(True)

    def predict(
        self, x_t: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor, Tensor], guidance: float
    ) -> Tensor:
        b, c, h, w = x_t.shape
        packed = (
            x_t.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)
        )
        ids = torch.zeros(h // 2, w // 2, 3)
        ids[..., 1], ids[..., 2] = torch.arange(h // 2)[:, None], torch.arange(w // 2)[None]
        pred = self.pipe.transformer(
            hidden_states=packed,
            timestep=sigma.float(),
            guidance=torch.full((b,), guidance),
            encoder_hidden_states=text[0],
            pooled_projections=text[1],
            txt_ids=text[2],
            img_ids=ids.view(-1, 3),
        ).sample
        return pred.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x_t.shape)

    @torch.no_grad()
    def rollout(self, noise: Tensor, text: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x = noise
        for high, low in pairwise(flow_sigmas(STEPS).float()):
            pred = self.predict(x, high.expand(len(x)), text, 1.0)
            x = (1 - low) * (x - high * pred) + low * (
                x + (1 - high) * pred
            )  # what it takes for x0 and for noise, one level lower
        return x

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        return (
            vae.decode(x0 / vae.config.scaling_factor + vae.config.shift_factor).sample / 2 + 0.5
        ).clamp(0, 1)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        return self.pipe.encode_prompt(list(prompts), None, max_sequence_length=TOKENS)

    def see(self, images: Tensor) -> Tensor:
        """Unit features; the world's CLIP reads 64 pixels, with mean and std of 1/2."""
        return normalize(
            self.clip.visual_projection(self.clip.vision_model((images - 0.5) / 0.5).pooler_output)
        )

    def scores(self, seen: Tensor, prompts: Sequence[str], phrases: list[str]) -> Tensor:
        """Mean cosine of images and phrases put before their prompts."""
        each = []
        for phrase in phrases:
            tokens = self.tokenizer(
                [f"{phrase}{p}" for p in prompts],
                padding="max_length",
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            )
            read = normalize(
                self.clip.text_projection(self.clip.text_model(**tokens).pooler_output)
            )
            each.append((seen * read).sum(-1))
        return torch.stack(each).mean(0)


def align(
    world: World,
    batches: Iterable[Sequence[str]],
    seed: int = 0,
    learning_rate: float = 1e-4,
    tolerance: float = 0.02,
) -> None:
    """One update per batch of prompts."""
    weights = list(world.pipe.transformer.parameters())
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.999), weight_decay=1e-4)
    window, first_scores = noise_levels.GridSampler(), []
    for step, prompts in enumerate(batches):
        text, b = world.text(prompts), len(prompts)
        noise = rng.draw_noise(
            (b, 16, SIZE // 8, SIZE // 8), rng.generator_for(seed, NOISE, step, 0, 0, 0)
        )
        x0 = world.rollout(noise, text)

        move = window.denoise(window.draw(b, rng.generator_for(seed, MOVE, step, 0, 0, 0)))
        noised = recovery.inject("flow", x0, noise, move.sigma_from)
        pred = world.predict(noised.x_t, move.sigma_from, text, 3.5)
        seen = world.see(
            world.decode(recovery.recover("flow", "velocity", noised, pred, move.sigma_to).x0)
        )
        pos, neg, plain = (
            world.scores(seen, prompts, phrases)
            for phrases in ([f"{w}. " for w in POSITIVE], [f"{w}. " for w in NEGATIVE], [""])
        )
        if step < 5:
            first_scores.append(plain.detach())
        reward = objective_math.anchored_reward(
            pos, neg, plain, float(torch.cat(first_scores).double().mean()), tolerance
        )
        optimizer.zero_grad()
        (-reward).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.1)
        optimizer.step()
        print(f"update {step + 1}: reward {reward.mean():.4f}")


if __name__ == "__main__":
    world = World(sys.argv[1] if len(sys.argv) > 1 else "world")
    prompts = [
        f"a {color} {thing} background"
        for color in ("red", "green", "blue", "yellow")
        for thing in ("star on a navy", "ring on a gray")
    ]
    show = torch.randn(8, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    for name in ("before", "after"):
        pixels = (
            world.decode(world.rollout(show, world.text(prompts)))
            .detach()
            .permute(2, 0, 3, 1)
            .reshape(SIZE, -1, 3)
        )
        Image.fromarray((pixels * 255).byte().numpy()).save(f"{name}.png")
        if name == "before":
            align(world, [prompts] * 30)
