"""The toy worlds' autoencoders: diffusers `AutoencoderKL`, 8x smaller (16 channels) or 4x (8).

diffusers' default initialisation hardly learns at this size on a CPU; Kaiming with damped residuals
and a small initial variance does (docs/log.md). Three quarters of the steps train on 32-pixel
crops, at a quarter of the cost.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalSubscript=false
# (diffusers and transformers annotate their constructors and outputs more narrowly than they are)
from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from .session import fit
from .spec import Spec


def new_autoencoder(spec: Spec) -> AutoencoderKL:
    """The untrained autoencoder, initialised for training on a CPU."""
    torch.manual_seed(11)
    sizes = {"block_out_channels": spec.vae_blocks, "layers_per_block": 1, "sample_size": 64}
    sizes |= {"latent_channels": spec.latent_channels, "norm_num_groups": spec.vae_groups}
    levels = len(spec.vae_blocks)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels}
    blocks["up_block_types"] = ("UpDecoderBlock2D",) * levels
    omitted = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
    vae = AutoencoderKL(**blocks, **sizes, **dict.fromkeys(omitted, False))
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                module.weight.data.mul_(0.3)
    with torch.no_grad():
        out = vae.encoder.conv_out
        out.weight[spec.latent_channels :].zero_()
        out.bias[spec.latent_channels :].fill_(-6.0)
        vae.decoder.conv_out.weight.mul_(0.3)
    return vae


def image_pool(spec: Spec) -> torch.Tensor:
    """Rendered images of all styles as uint8 (n, 3, 64, 64): what the autoencoder is trained on."""
    generator, drawn = torch.Generator().manual_seed(12), spec.world.scenes
    count = spec.pools["autoencoder"]
    part = min(count, 256)
    parts = [
        drawn.render(drawn.draw_scenes(part, generator, spec.vae_shares), generator)
        for _ in range(count // part)
    ]
    return (torch.cat(parts) * 255).round().to(torch.uint8)


def train_autoencoder(folder: Path, spec: Spec, device: str = "cpu") -> AutoencoderKL:
    """Train the autoencoder and set `scaling_factor` and `shift_factor` from its own latents."""
    vae, images, budget = new_autoencoder(spec).to(device), image_pool(spec), spec.autoencoder
    stride = 2 ** (len(spec.vae_blocks) - 1)

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        cropped = step < budget.steps * 3 // 4
        count = budget.batch * (2 if cropped else 1)
        chosen = torch.randint(len(images), (count,), generator=generator)
        x = images[chosen].to(device).float() / 127.5 - 1
        if cropped:
            places = torch.randint(32 // stride + 1, (2,), generator=generator)
            top, left = (stride * places).tolist()
            x = x[:, :, top : top + 32, left : left + 32]
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        recon = vae.decode(posterior.mean + posterior.std * noise).sample
        loss = reconstruction_loss(recon, x) + spec.kl_weight * posterior.kl().mean()
        return loss + texture_loss(recon - x) if spec.keeps_texture else loss

    fit("autoencoder", vae, loss_of, budget, folder)
    with torch.no_grad():
        batches = (batch.to(device).float() / 127.5 - 1 for batch in images[:1024].split(64))
        means = torch.cat([vae.encode(batch).latent_dist.mean for batch in batches])
    shift = means.mean().item()
    scale = round(1 / means.sub(shift).std().item(), 4)
    vae.register_to_config(scaling_factor=scale, shift_factor=round(shift, 4))
    return vae.cpu()


def reconstruction_loss(recon: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """L1 on pixels and on their differences across and down: the second term keeps edges crisp."""
    error = recon - x
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * edges + 2.0 * F.mse_loss(recon, x)


def texture_loss(error: torch.Tensor) -> torch.Tensor:
    """L1 and L2 on what is finer than 3 pixels of an error: keeps the weave of a cloth."""
    coarse = F.avg_pool2d(F.pad(error, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    fine = error - coarse
    return fine.abs().mean() + 10.0 * fine.square().mean()
