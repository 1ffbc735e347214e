"""The embedded base models: FLUX (velocity) and SD (epsilon, then v), each with its text encoders, on encoded scenes.

Half of the captions are plain, and behind those most pictures are CG: that is where the base model's look comes from.
Four in ten carry a style word, one in ten is empty (for classifier-free guidance).
"""

from __future__ import annotations

from ...toyworld.scenes import PLAIN_STYLE_SHARES, STYLE_WORDS, STYLES, draw_scenes, render
from .networks import clip_text_encoder, flux_transformer, sd_unet, t5_text_encoder
from .session import Budget, fit
from .tokenizers import MAX_TOKENS, clip_tokenizer, t5_tokenizer
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalSubscript=false
# (diffusers and transformers annotate their constructors and outputs more narrowly than they are)
















POOL = 24576
PLAIN, STYLED = 0.5, 0.4
FLUX_BUDGET = Budget(steps=5800, batch=64, learning_rate=1.5e-3)
SD_BUDGET = Budget(steps=3600, batch=48, learning_rate=1.2e-3)
SD_V_BUDGET = Budget(steps=800, batch=48, learning_rate=6e-4)
SD_SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class LatentPool:
    """Encoded scenes: `x0` (n, 16, 8, 8) scaled latents, one caption each."""

    x0: Tensor
    captions: list[str]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        index = torch.randint(len(self.x0), (batch,), generator=generator)
        return self.x0[index], [self.captions[i] for i in index.tolist()]


@torch.no_grad()
def latent_pool(vae: AutoencoderKL, folder: Path, count: int = POOL, device: str = "cpu") -> LatentPool:
    """Render, caption and encode the training scenes; the latents are kept in `folder/latents.pt`."""
    file = folder / "latents.pt"
    if file.exists():
        kept = torch.load(file, weights_only=True)
        return LatentPool(kept["x0"], kept["captions"])
    generator = torch.Generator().manual_seed(31)
    vae = vae.to(device).eval()
    latents, captions = [], []
    for _ in range(count // 256):
        kind = torch.rand(256, generator=generator)
        plain = draw_scenes(256, generator, PLAIN_STYLE_SHARES)
        styled = draw_scenes(256, generator)
        is_styled = (kind >= PLAIN) & (kind < PLAIN + STYLED)
        scenes = type(plain)(*(torch.where(is_styled, getattr(styled, f), getattr(plain, f)) for f in ("color", "shape", "background", "style")))
        images = render(scenes, generator).to(device)
        latents.append(vae.encode(images * 2 - 1).latent_dist.mean.cpu())
        word = torch.randint(2, (256,), generator=generator).tolist()
        for i, text in enumerate(scenes.captions()):
            style = STYLE_WORDS[STYLES[int(scenes.style[i])]][word[i]]
            captions.append("" if kind[i] >= PLAIN + STYLED else f"{style}. {text}" if is_styled[i] else text)
    x0 = (torch.cat(latents) - vae.config["shift_factor"]) * vae.config["scaling_factor"]
    torch.save({"x0": x0, "captions": captions}, file)
    return LatentPool(x0, captions)


def _tokens(tokenizer: PreTrainedTokenizerBase, captions: list[str], device: str) -> Tensor:
    return tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids.to(device)


def train_flux(pool: LatentPool, folder: Path, budget: Budget = FLUX_BUDGET, device: str = "cpu") -> nn.ModuleDict:
    """Flow matching; the embedded guidance is drawn from [1, 4] and carries no meaning, so any value may be shown."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    modules = nn.ModuleDict({"transformer": flux_transformer(), "text_encoder": clip_text_encoder(clip), "text_encoder_2": t5_text_encoder(t5)}).to(device)
    image_ids = torch.zeros(4, 4, 3)
    image_ids[..., 1], image_ids[..., 2] = torch.arange(4)[:, None], torch.arange(4)[None, :]
    image_ids, text_ids = image_ids.view(16, 3).to(device), torch.zeros(MAX_TOKENS, 3, device=device)

    def pack(x: Tensor) -> Tensor:
        return x.view(len(x), -1, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(len(x), 16, -1)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        x0, captions = pool.draw(budget.batch, generator)
        sigma = torch.sigmoid(1.2 * torch.randn(budget.batch, generator=generator) + 0.3).to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        x0, weight = x0.to(device), sigma[:, None, None, None]
        guidance = (1 + 3 * torch.rand(budget.batch, generator=generator)).to(device)
        pred = modules["transformer"](
            hidden_states=pack((1 - weight) * x0 + weight * noise),
            timestep=sigma,
            guidance=guidance,
            pooled_projections=modules["text_encoder"](_tokens(clip, captions, device)).pooler_output,
            encoder_hidden_states=modules["text_encoder_2"](_tokens(t5, captions, device))[0],
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return (pred - pack(noise - x0)).square().mean()

    fit("flux", modules, loss_of, budget, folder)
    return modules.cpu()


def train_sd(pool: LatentPool, folder: Path, budget: Budget = SD_BUDGET, device: str = "cpu") -> nn.ModuleDict:
    """Epsilon prediction on the scaled-linear DDPM schedule, text encoder trained along."""
    clip = clip_tokenizer()
    modules = nn.ModuleDict({"unet": sd_unet(), "text_encoder": clip_text_encoder(clip)}).to(device)
    fit("sd", modules, _ddpm_loss(pool, modules, clip, "epsilon", budget, device), budget, folder)
    return modules.cpu()


def train_sd_v(pool: LatentPool, epsilon: nn.ModuleDict, folder: Path, budget: Budget = SD_V_BUDGET, device: str = "cpu") -> nn.ModuleDict:
    """v-prediction, continued from the epsilon network; the text encoder stays as it is, so both share it."""
    clip = clip_tokenizer()
    modules = nn.ModuleDict({"unet": sd_unet(), "text_encoder": clip_text_encoder(clip)}).to(device)
    modules.load_state_dict(epsilon.state_dict())
    modules["text_encoder"].requires_grad_(False)
    fit("sd_v", modules, _ddpm_loss(pool, modules, clip, "v_prediction", budget, device), budget, folder)
    return modules.cpu()


def _ddpm_loss(pool: LatentPool, modules: nn.ModuleDict, clip, prediction: str, budget: Budget, device: str) -> Callable[[int, torch.Generator], Tensor]:
    scheduler = DDPMScheduler(**SD_SCHEDULE, prediction_type=prediction)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        x0, captions = pool.draw(budget.batch, generator)
        timestep = torch.randint(1000, (budget.batch,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        x_t = scheduler.add_noise(x0, noise, timestep)
        target = noise if prediction == "epsilon" else scheduler.get_velocity(x0, noise, timestep)
        text = modules["text_encoder"](_tokens(clip, captions, device))[0]
        pred = modules["unet"](x_t.to(device), timestep.to(device), encoder_hidden_states=text).sample
        return (pred - target.to(device)).square().mean()

    return loss_of
