"""The first toy world's latent reward: a CLIP whose image tower reads the autoencoder's latents.

Its text tower is that of the pixel reward, and its image features follow the pixel reward's, of
retouched renders from their latents, half of them with noise, as a denoiser's recovered latents
have errors. So it has the same preferences, the bias included.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# (diffusers annotates outputs more narrowly than they are)
from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from directalign.rewards.latent_clip import PROBE

from .judges import pool
from .reward import draw_retouch
from .reward_card import retouch, see
from .session import fit
from .spec import Spec
from .tokenizers import clip_tokenizer

NAME = "reward_latent"
LARGEST_NOISE = 0.5
"""Of the noise on latents, whose own standard deviation is 1."""
PROBE_SIDE = 32


def train_latent_reward(
    folder: Path, spec: Spec, vae: AutoencoderKL, taught_by: CLIPModel
) -> CLIPModel:
    """Distill the pixel reward `taught_by` into a tower over latents; write `folder/NAME`."""
    assert spec.latent_reward is not None
    budget, student = spec.latent_reward, new_student(taught_by, spec)
    latents, features = _pool(folder, spec, vae.eval(), taught_by.eval())

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(latents), (budget.batch,), generator=generator)
        strength, is_noisy = torch.rand(2, budget.batch, 1, 1, 1, generator=generator).unbind(0)
        noise = torch.randn(latents[chosen].shape, generator=generator)
        noise = LARGEST_NOISE * strength * (is_noisy < 0.5) * noise
        found = embed(student, latents[chosen] + noise)
        return (found - features[chosen]).square().sum(1).mean()

    fit(NAME, student, loss_of, budget, folder)
    student.half().save_pretrained(folder / NAME)
    clip_tokenizer(spec).save_pretrained(folder / NAME)
    image = _renders(spec, 1, torch.Generator().manual_seed(7))[..., :PROBE_SIDE, :PROBE_SIDE]
    probe = {"image": image[0].half().contiguous()}
    probe["latents"] = _encoded(vae, probe["image"][None].float())[0].half()
    save_file(probe, folder / NAME / PROBE)
    return student.float()


def new_student(teacher: CLIPModel, spec: Spec) -> CLIPModel:
    """The teacher with a new patch embedding, of one latent a patch; the text tower is frozen."""
    found = teacher.config.to_dict()
    sizes = {"num_channels": spec.latent_channels, "image_size": spec.latent_side, "patch_size": 1}
    found["vision_config"] |= sizes
    torch.manual_seed(81)
    student = CLIPModel(CLIPConfig.from_dict(found))
    weights = teacher.state_dict()
    kept = {name: each for name, each in weights.items() if "patch_embedding" not in name}
    student.load_state_dict(kept, strict=False)
    student.requires_grad_(False)
    for module in (student.vision_model, student.visual_projection):
        module.requires_grad_(True)
    return student


def embed(student: CLIPModel, latents: torch.Tensor) -> torch.Tensor:
    """Latents (b, c, h, w) as the denoiser has them to unit features (b, d)."""
    pooled = student.vision_model(pixel_values=latents).pooler_output
    return F.normalize(student.visual_projection(pooled), dim=-1)


@torch.no_grad()
def _pool(
    folder: Path, spec: Spec, vae: AutoencoderKL, teacher: CLIPModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (n, c, h, w) and the teacher's features (n, d) of images, kept in `folder`."""
    file = folder / f"{NAME}.pt"
    if not file.exists():
        generator = torch.Generator().manual_seed(82)
        latents, features = list[torch.Tensor](), list[torch.Tensor]()
        for part in _renders(spec, spec.pools["latent_reward"], generator).split(64):
            shown = retouch(part, spec.smoothing, **draw_retouch(spec, len(part), generator))
            latents.append(_encoded(vae, shown))
            features.append(see(teacher, shown)[1])
        torch.save({"latents": torch.cat(latents), "features": torch.cat(features)}, file)
    found = torch.load(file, weights_only=True)
    return found["latents"], found["features"]


def _renders(spec: Spec, count: int, generator: torch.Generator) -> torch.Tensor:
    """Images (n, 3, H, W) in [0, 1]."""
    scenes = spec.world.scenes.draw_scenes(count, generator)
    return pool(spec, scenes, None, generator).float() / 255


@torch.no_grad()
def _encoded(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Latents as the denoiser has them."""
    mean = vae.encode(images * 2 - 1).latent_dist.mean
    return (mean - vae.config["shift_factor"]) * vae.config["scaling_factor"]
