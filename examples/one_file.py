"""The whole method in one file: SRPO with the anchored reward on the toy FLUX, with diffusers and
our mathematics alone.

    directalign world export world        # once
    python examples/one_file.py world     # thirty updates, then before.png and after.png

It computes what `directalign train world_srpo` computes, without checkpoints, evaluation and
records; tests/examples compare the two update by update.
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
from directalign.methods.objective_math import anchored_reward

POSITIVE, NEGATIVE = ["Realistic photo", "Natural lighting"], ["CG render", "Oil painting", "Anime"]
SIZE, TOKENS, STEPS = 64, 16, 8  # pixels, text tokens, sampling steps
Text = tuple[Tensor, Tensor, Tensor]


class World:
    """The pipeline and the reward, each reduced to the calls that the method makes."""

    def __init__(self, folder: str) -> None:
        self.pipe = FluxPipeline.from_pretrained(f"{folder}/flux")
        reward = CLIPModel.from_pretrained(f"{folder}/reward", dtype=torch.float32)
        self.clip = reward.requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(f"{folder}/reward")
        self.pipe.vae.to(memory_format=torch.channels_last)  # the fastest layout for convolutions
        self.pipe.transformer.requires_grad_(True)

    def predict(self, x_t: Tensor, sigma: Tensor, text: Text, guidance: float) -> Tensor:
        b, c, h, w = x_t.shape
        packed = x_t.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        ids = torch.zeros(h // 2, w // 2, 3)
        ids[..., 1], ids[..., 2] = torch.arange(h // 2)[:, None], torch.arange(w // 2)[None]
        pred = self.pipe.transformer(
            hidden_states=packed.reshape(b, -1, 4 * c),
            timestep=sigma.float(),
            guidance=torch.full((b,), guidance),
            encoder_hidden_states=text[0],
            pooled_projections=text[1],
            txt_ids=text[2],
            img_ids=ids.view(-1, 3),
        ).sample
        return pred.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x_t.shape)

    @torch.no_grad()
    def rollout(self, noise: Tensor, text: Text) -> Tensor:
        x = noise
        for high, low in pairwise(flow_sigmas(STEPS)):
            pred = self.predict(x, high.expand(len(x)), text, 1.0)
            x = x + (low - high) * pred
        return x

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        decoded = vae.decode(x0 / vae.config.scaling_factor + vae.config.shift_factor).sample
        return (decoded / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Text:
        return self.pipe.encode_prompt(list(prompts), None, max_sequence_length=TOKENS)

    def encode(self, images: Tensor) -> Tensor:
        """Unit features (b, d); the toy world's CLIP takes 64 pixels, with mean and std of 1/2."""
        pooled = self.clip.vision_model((images - 0.5) / 0.5).pooler_output
        return normalize(self.clip.visual_projection(pooled))

    def score(self, features: Tensor, prompts: Sequence[str], phrases: list[str]) -> Tensor:
        """Mean cosine (b,) of images and prompts, each phrase put before the prompts."""
        settings = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
        each = []
        for phrase in phrases:
            texts = [f"{phrase}{prompt}" for prompt in prompts]
            tokens = self.tokenizer(texts, return_tensors="pt", **settings)
            pooled = self.clip.text_model(**tokens).pooler_output
            each.append((features * normalize(self.clip.text_projection(pooled))).sum(-1))
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
    sampler, first_scores = noise_levels.GridSampler(), []
    forms = [f"{phrase}. " for phrase in POSITIVE], [f"{phrase}. " for phrase in NEGATIVE], [""]
    for step, prompts in enumerate(batches):
        text, b = world.text(prompts), len(prompts)
        generators = (
            rng.generator_for(seed, stream, step, 0, 0, 0)
            for stream in (rng.NOISE, rng.NOISE_LEVEL)
        )
        noise = rng.draw_noise((b, 16, SIZE // 8, SIZE // 8), next(generators))
        x0 = world.rollout(noise, text)

        levels = sampler.denoise(sampler.draw(b, next(generators)))
        noised = recovery.inject("flow", x0, noise, levels.sigma_from)
        pred = world.predict(noised.x_t, levels.sigma_from, text, 3.5)
        recovered = recovery.recover("flow", "velocity", noised, pred, levels.sigma_to)
        features = world.encode(world.decode(recovered.x0))
        pos, neg, plain = (world.score(features, prompts, phrases) for phrases in forms)
        if step < 5:
            first_scores.append(plain.detach())
        reference = float(torch.cat(first_scores).double().mean())
        reward = anchored_reward(pos, neg, plain, reference, tolerance)
        optimizer.zero_grad()
        (-reward).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.1)
        optimizer.step()
        print(f"update {step + 1}: reward {reward.mean():.4f}")


if __name__ == "__main__":
    world = World(sys.argv[1] if len(sys.argv) > 1 else "world")
    things = ("star on a navy", "ring on a gray")
    colors = ("red", "green", "blue", "yellow")
    prompts = [f"a {color} {thing} background" for color in colors for thing in things]
    noise = torch.randn(8, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    for name in ("before", "after"):
        images = world.decode(world.rollout(noise, world.text(prompts))).detach()
        pixels = images.permute(2, 0, 3, 1).reshape(SIZE, -1, 3)
        Image.fromarray((pixels * 255).byte().numpy()).save(f"{name}.png")
        if name == "before":
            align(world, [prompts] * 30)
