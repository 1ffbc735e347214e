"""Train every embedded asset from its seed; each training resumes, a finished part is kept."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# (diffusers annotates its constructors and outputs more narrowly than they are)
from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from directalign.toyworld import assets
from directalign.types import DirectAlignError

from .autoencoder import train_autoencoder
from .denoisers import SD_SCHEDULE, LatentPool, latent_pool, train_flux, train_sd, train_sd_v
from .judges import train_judges
from .reward import train_reward
from .tokenizers import clip_tokenizer, t5_tokenizer


def build_world(
    folder: Path, only: list[str] | None = None, device: str = "cpu", target: Path = assets.ASSETS
) -> None:
    """Train what is not trained yet in `folder` and write the 16-bit assets to `target`.

    `only` names some of `MAKERS`; the denoisers need the autoencoder, sd_v needs sd. About two
    hours on two cores. Raises: DirectAlignError for an unknown part.
    """
    for part in only or []:
        if part not in MAKERS:
            known = ", ".join(MAKERS)
            raise DirectAlignError(f"no part {part!r} in the embedded world: choose from {known}")
    folder.mkdir(parents=True, exist_ok=True)
    for part in only or MAKERS:
        make, shipped = MAKERS[part]
        make(folder, device)
        for name in shipped:
            _ship(folder / name, target / name)


def _autoencoder(folder: Path, device: str) -> None:
    if not (folder / "autoencoder/config.json").exists():
        train_autoencoder(folder, device=device).save_pretrained(folder / "autoencoder")


def _judges(folder: Path, device: str) -> None:
    if not (folder / "judges/content.safetensors").exists():
        train_judges(folder, AutoencoderKL.from_pretrained(folder / "autoencoder"), device)


def _reward(name: str, folder: Path, device: str) -> None:
    if not (folder / name / "config.json").exists():
        train_reward(folder, device, name=name)


def _pool(folder: Path, device: str) -> tuple[AutoencoderKL, LatentPool]:
    vae = AutoencoderKL.from_pretrained(folder / "autoencoder")
    return vae, latent_pool(vae, folder, device=device)


def _flux(folder: Path, device: str) -> None:
    modules = train_flux(_pool(folder, device)[1], folder, device=device)
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        modules[part].save_pretrained(folder / "flux" / part)
    # At 64 tokens or fewer, detail needs steps at low noise: no shift.
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "flux/scheduler")
    clip_tokenizer().save_pretrained(folder / "clip_tokenizer")
    t5_tokenizer().save_pretrained(folder / "t5_tokenizer")


def _sd_modules(folder: Path, device: str) -> tuple[LatentPool, nn.ModuleDict]:
    vae, pool = _pool(folder, device)
    shift = vae.config["shift_factor"] * vae.config["scaling_factor"]
    unshifted = LatentPool(pool.x0 + shift, pool.captions)
    return unshifted, train_sd(unshifted, folder, device=device)


def _sd(folder: Path, device: str) -> None:
    _, modules = _sd_modules(folder, device)
    modules["unet"].save_pretrained(folder / "sd/unet")
    modules["text_encoder"].save_pretrained(folder / "sd/text_encoder")
    _save_ddim("epsilon", folder / "sd/scheduler")


def _sd_v(folder: Path, device: str) -> None:
    modules = train_sd_v(*_sd_modules(folder, device), folder, device=device)
    modules["unet"].save_pretrained(folder / "sd_v/unet")
    _save_ddim("v_prediction", folder / "sd_v/scheduler")


def _save_ddim(prediction: str, folder: Path) -> None:
    fixed = {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}
    DDIMScheduler(**SD_SCHEDULE, prediction_type=prediction, **fixed).save_pretrained(folder)


_FLUX = [f"flux/{part}" for part in ("transformer", "text_encoder", "text_encoder_2", "scheduler")]
MAKERS: dict[str, tuple[Callable[[Path, str], None], list[str]]] = {
    "autoencoder": (_autoencoder, ["autoencoder"]),
    "judges": (_judges, ["judges"]),
    "reward": (partial(_reward, "reward"), ["reward"]),
    "second_reward": (partial(_reward, "second_reward"), ["second_reward"]),
    "flux": (_flux, [*_FLUX, "clip_tokenizer", "t5_tokenizer"]),
    "sd": (_sd, ["sd/unet", "sd/text_encoder", "sd/scheduler"]),
    "sd_v": (_sd_v, ["sd_v/unet", "sd_v/scheduler"]),
}
"""{part: (how it is made, the folders that are shipped)}."""


def _ship(made: Path, target: Path) -> None:
    """Copy a folder, weights narrowed to 16 bit."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(made.iterdir()):
        if path.suffix == ".safetensors":
            weights = load_file(path)
            narrow = {k: v.half() if v.dtype == torch.float32 else v for k, v in weights.items()}
            save_file(narrow, target / path.name, metadata={"format": "pt"})
        elif path.suffix == ".json":
            text = json.dumps(json.loads(path.read_text()), indent=1) + "\n"
            (target / path.name).write_text(text)
        else:
            (target / path.name).write_bytes(path.read_bytes())
