"""How every embedded asset is made, from seeds alone: `directalign world build` runs these trainings in order.

Each training keeps its state in the working folder, so a killed build continues; a finished part is not made again.
"""

from __future__ import annotations

from ...toyworld import assets
from ...types import DirectAlignError
from .autoencoder import train_autoencoder
from .denoisers import SD_SCHEDULE, LatentPool, latent_pool, train_flux, train_sd, train_sd_v
from .judges import train_judges
from .reward import train_reward
from .tokenizers import clip_tokenizer, t5_tokenizer
import json
from collections.abc import Callable
from pathlib import Path
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import nn


# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalSubscript=false
# (diffusers and transformers annotate their constructors and outputs more narrowly than they are)



















PARTS = ("autoencoder", "judges", "reward", "second_reward", "flux", "sd", "sd_v")
FLUX_SHIFT = 1.0
"""Shift of the embedded FLUX scheduler: at 64 tokens or fewer, detail needs steps at low noise."""


def build_world(folder: Path, only: list[str] | None = None, device: str = "cpu", target: Path = assets.ASSETS) -> None:
    """Train what is not trained yet in `folder` and write the 16-bit assets to `target`.

    `only` names some of `PARTS`; the denoisers need the autoencoder, sd_v needs sd. About two hours on two cores.
    """
    unknown = sorted(set(only or []) - set(PARTS))
    if unknown:
        raise DirectAlignError(f"no part {unknown[0]!r} in the embedded world: choose from {', '.join(PARTS)}")
    folder.mkdir(parents=True, exist_ok=True)
    for part in only or PARTS:
        MAKERS[part](folder, device)
        _ship(part, folder, target)


def _autoencoder(folder: Path, device: str) -> None:
    if not (folder / "autoencoder/config.json").exists():
        train_autoencoder(folder, device=device).save_pretrained(folder / "autoencoder")


def _judges(folder: Path, device: str) -> None:
    if not (folder / "judges/content.safetensors").exists():
        train_judges(folder, AutoencoderKL.from_pretrained(folder / "autoencoder"), device)


def _reward(folder: Path, device: str, name: str = "reward") -> None:
    if not (folder / name / "config.json").exists():
        train_reward(folder, device, name=name)


def _second_reward(folder: Path, device: str) -> None:
    _reward(folder, device, "second_reward")


def _pool(folder: Path, device: str) -> tuple[AutoencoderKL, LatentPool]:
    vae = AutoencoderKL.from_pretrained(folder / "autoencoder")
    return vae, latent_pool(vae, folder, device=device)


def _flux(folder: Path, device: str) -> None:
    _, pool = _pool(folder, device)
    modules = train_flux(pool, folder, device=device)
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        modules[part].save_pretrained(folder / "flux" / part)
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=FLUX_SHIFT).save_pretrained(folder / "flux/scheduler")
    clip_tokenizer().save_pretrained(folder / "clip_tokenizer")
    t5_tokenizer().save_pretrained(folder / "t5_tokenizer")


def _sd_modules(folder: Path, device: str) -> tuple[LatentPool, nn.ModuleDict]:
    vae, pool = _pool(folder, device)
    unshifted = LatentPool(pool.x0 + vae.config["shift_factor"] * vae.config["scaling_factor"], pool.captions)
    return unshifted, train_sd(unshifted, folder, device=device)


def _sd(folder: Path, device: str) -> None:
    _, modules = _sd_modules(folder, device)
    modules["unet"].save_pretrained(folder / "sd/unet")
    modules["text_encoder"].save_pretrained(folder / "sd/text_encoder")
    _ddim("epsilon").save_pretrained(folder / "sd/scheduler")


def _sd_v(folder: Path, device: str) -> None:
    pool, epsilon = _sd_modules(folder, device)
    train_sd_v(pool, epsilon, folder, device=device)["unet"].save_pretrained(folder / "sd_v/unet")
    _ddim("v_prediction").save_pretrained(folder / "sd_v/scheduler")


def _ddim(prediction: str) -> DDIMScheduler:
    return DDIMScheduler(**SD_SCHEDULE, prediction_type=prediction, clip_sample=False, set_alpha_to_one=True, steps_offset=1)


MAKERS: dict[str, Callable[[Path, str], None]] = {
    "autoencoder": _autoencoder,
    "judges": _judges,
    "reward": _reward,
    "second_reward": _second_reward,
    "flux": _flux,
    "sd": _sd,
    "sd_v": _sd_v,
}
SHIPPED = {
    "autoencoder": ("autoencoder",),
    "judges": ("judges",),
    "reward": ("reward",),
    "second_reward": ("second_reward",),
    "flux": ("flux/transformer", "flux/text_encoder", "flux/text_encoder_2", "flux/scheduler", "clip_tokenizer", "t5_tokenizer"),
    "sd": ("sd/unet", "sd/text_encoder", "sd/scheduler"),
    "sd_v": ("sd_v/unet", "sd_v/scheduler"),
}


def _ship(part: str, folder: Path, target: Path) -> None:
    """Copy a part's folders, weights narrowed to 16 bit."""
    for name in SHIPPED[part]:
        (target / name).mkdir(parents=True, exist_ok=True)
        for path in sorted((folder / name).iterdir()):
            if path.suffix == ".safetensors":
                narrow = {k: v.half() if v.dtype == torch.float32 else v for k, v in load_file(path).items()}
                save_file(narrow, target / name / path.name, metadata={"format": "pt"})
            elif path.suffix == ".json":
                (target / name / path.name).write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n")
            else:
                (target / name / path.name).write_bytes(path.read_bytes())
