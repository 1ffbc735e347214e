"""The embedded base models: FLUX (velocity) and SD (epsilon, then v) with their text encoders.

Real architectures at toy size, trained on encoded scenes. Half of the captions are plain, and most
of their images are CG, the base model's style. Four in ten captions carry a style word, one
in ten is empty (for classifier-free guidance).
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false
# (diffusers and transformers annotate too narrowly)
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from directalign.toyworld.scenes import PLAIN_STYLE_SHARES, STYLE_WORDS, STYLES, draw_scenes, render

from .autoencoder import LATENT_CHANNELS
from .session import Budget, fit
from .tokenizers import MAX_TOKENS, clip_tokenizer, t5_tokenizer

POOL = 24576
PLAIN, STYLED = 0.5, 0.4
SCENE = ("color", "shape", "background", "style")
TEXT_WIDTH = 96
ENDS = ("bos", "eos", "pad")
FLUX_BUDGET = Budget(steps=5800, batch=64, learning_rate=1.5e-3)
SD_BUDGET = Budget(steps=3600, batch=48, learning_rate=1.2e-3)
SD_V_BUDGET = Budget(steps=800, batch=48, learning_rate=6e-4)
SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def flux_transformer() -> FluxTransformer2DModel:
    """FLUX at 2.4 M parameters: two double and four single blocks, 16 image tokens."""
    torch.manual_seed(21)
    layers = {"num_layers": 2, "num_single_layers": 4, "axes_dims_rope": (8, 12, 12)}
    heads = {"attention_head_dim": 32, "num_attention_heads": 4, "guidance_embeds": True}
    text = {"joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": TEXT_WIDTH}
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4 * LATENT_CHANNELS, **layers, **heads, **text
    )


def sd_unet() -> UNet2DConditionModel:
    """A Stable Diffusion UNet at 2.2 M parameters: 8x8 latents, two levels."""
    torch.manual_seed(22)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    blocks |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1}
    sizes = {"sample_size": 8, "block_out_channels": (64, 96), "norm_num_groups": 8}
    channels = {"in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS}
    attention = {"cross_attention_dim": TEXT_WIDTH, "attention_head_dim": 4}
    return UNet2DConditionModel(**blocks, **sizes, **channels, **attention)


def clip_text_encoder(tokenizer: Tokenizer) -> CLIPTextModel:
    """CLIP text encoder: pooled vector for FLUX, sequence for SD."""
    torch.manual_seed(23)
    sizes = {"hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH}
    sizes |= {"projection_dim": TEXT_WIDTH, "max_position_embeddings": MAX_TOKENS}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ENDS}
    return CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **sizes, **layers, **ends))


def t5_text_encoder(tokenizer: Tokenizer) -> T5EncoderModel:
    """T5 encoder: the token sequence that FLUX attends to."""
    torch.manual_seed(24)
    sizes = {"d_model": TEXT_WIDTH, "d_kv": 24, "d_ff": 2 * TEXT_WIDTH}
    layers = {"num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ENDS[1:]}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes, **layers, **ends))


@dataclass(frozen=True)
class LatentPool:
    """Encoded scenes: `x0` (n, 16, 8, 8) scaled latents, one caption each."""

    x0: Tensor
    captions: list[str]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        index = torch.randint(len(self.x0), (batch,), generator=generator)
        return self.x0[index], [self.captions[i] for i in index.tolist()]


@torch.no_grad()
def latent_pool(
    vae: AutoencoderKL, folder: Path, count: int = POOL, device: str = "cpu"
) -> LatentPool:
    """Render, caption and encode the training scenes; kept in `folder/latents.pt`."""
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
        fields = ((getattr(styled, name), getattr(plain, name)) for name in SCENE)
        scenes = type(plain)(*(torch.where(is_styled, *pair) for pair in fields))
        images = render(scenes, generator).to(device)
        latents.append(vae.encode(images * 2 - 1).latent_dist.mean.cpu())
        word = torch.randint(2, (256,), generator=generator).tolist()
        for i, text in enumerate(scenes.captions()):
            style = STYLE_WORDS[STYLES[int(scenes.style[i])]][word[i]]
            text = f"{style}. {text}" if is_styled[i] else text
            captions.append("" if kind[i] >= PLAIN + STYLED else text)
    x0 = (torch.cat(latents) - vae.config["shift_factor"]) * vae.config["scaling_factor"]
    torch.save({"x0": x0, "captions": captions}, file)
    return LatentPool(x0, captions)


def _tokens(tokenizer: Tokenizer, captions: list[str], device: str) -> Tensor:
    fixed = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True}
    return tokenizer(captions, return_tensors="pt", **fixed).input_ids.to(device)


def train_flux(
    pool: LatentPool, folder: Path, budget: Budget = FLUX_BUDGET, device: str = "cpu"
) -> nn.ModuleDict:
    """Flow matching; the embedded guidance is drawn from [1, 4] and carries no meaning."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    modules = nn.ModuleDict({"transformer": flux_transformer()})
    modules["text_encoder"], modules["text_encoder_2"] = (
        clip_text_encoder(clip),
        t5_text_encoder(t5),
    )
    modules.to(device)
    image_ids = torch.zeros(4, 4, 3)
    image_ids[..., 1], image_ids[..., 2] = torch.arange(4)[:, None], torch.arange(4)[None, :]
    ids = {"img_ids": image_ids.view(16, 3).to(device)}
    ids["txt_ids"] = torch.zeros(MAX_TOKENS, 3, device=device)

    def pack(x: Tensor) -> Tensor:
        return x.view(len(x), -1, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(len(x), 16, -1)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        x0, captions = pool.draw(budget.batch, generator)
        sigma = torch.sigmoid(1.2 * torch.randn(budget.batch, generator=generator) + 0.3).to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        x0, weight = x0.to(device), sigma[:, None, None, None]
        guidance = (1 + 3 * torch.rand(budget.batch, generator=generator)).to(device)
        pooled = modules["text_encoder"](_tokens(clip, captions, device))
        pred = modules["transformer"](
            hidden_states=pack((1 - weight) * x0 + weight * noise),
            timestep=sigma,
            guidance=guidance,
            pooled_projections=pooled.pooler_output,
            encoder_hidden_states=modules["text_encoder_2"](_tokens(t5, captions, device))[0],
            return_dict=False,
            **ids,
        )[0]
        return (pred - pack(noise - x0)).square().mean()

    fit("flux", modules, loss_of, budget, folder)
    return modules.cpu()


def train_sd(
    pool: LatentPool, folder: Path, budget: Budget = SD_BUDGET, device: str = "cpu"
) -> nn.ModuleDict:
    """Epsilon prediction on the scaled-linear DDPM schedule, text encoder trained along."""
    clip = clip_tokenizer()
    modules = nn.ModuleDict({"unet": sd_unet(), "text_encoder": clip_text_encoder(clip)}).to(device)
    fit("sd", modules, _ddpm_loss(pool, modules, clip, "epsilon", budget, device), budget, folder)
    return modules.cpu()


def train_sd_v(
    pool: LatentPool,
    epsilon: nn.ModuleDict,
    folder: Path,
    budget: Budget = SD_V_BUDGET,
    device: str = "cpu",
) -> nn.ModuleDict:
    """v-prediction, continued from the epsilon network with the same text encoder."""
    clip = clip_tokenizer()
    modules = nn.ModuleDict({"unet": sd_unet(), "text_encoder": clip_text_encoder(clip)}).to(device)
    modules.load_state_dict(epsilon.state_dict())
    modules["text_encoder"].requires_grad_(False)
    loss = _ddpm_loss(pool, modules, clip, "v_prediction", budget, device)
    fit("sd_v", modules, loss, budget, folder)
    return modules.cpu()


def _ddpm_loss(
    pool: LatentPool, modules: nn.ModuleDict, clip, prediction: str, budget: Budget, device: str
) -> Callable[[int, torch.Generator], Tensor]:
    scheduler = DDPMScheduler(**SD_SCHEDULE, prediction_type=prediction)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        x0, captions = pool.draw(budget.batch, generator)
        timestep = torch.randint(1000, (budget.batch,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        x_t = scheduler.add_noise(x0, noise, timestep)
        target = noise if prediction == "epsilon" else scheduler.get_velocity(x0, noise, timestep)
        text = modules["text_encoder"](_tokens(clip, captions, device))[0]
        given = (x_t.to(device), timestep.to(device))
        pred = modules["unet"](*given, encoder_hidden_states=text).sample
        return (pred - target.to(device)).square().mean()

    return loss_of
