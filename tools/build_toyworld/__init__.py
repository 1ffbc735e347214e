"""Train every embedded asset from its seed; each training resumes, a finished part is kept."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# (diffusers annotates its constructors and outputs more narrowly than they are)
from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from directalign.types import DirectAlignError

from .autoencoder import train_autoencoder
from .denoisers import SD_SCHEDULE, LatentPool, latent_pool, train_flux, train_sd, train_sd_v
from .judges import train_judges
from .reward import train_reward
from .spec import SPECS, Spec
from .tokenizers import clip_tokenizer, t5_tokenizer


def build_world(
    folder: Path,
    spec: Spec = SPECS["world"],
    only: list[str] | None = None,
    device: str = "cpu",
    target: Path | None = None,
) -> None:
    """Train what is not trained yet in `folder` and write the 16-bit assets to `target`, by default
    the world's own.

    `only` names some of `shipped(spec)`; the denoisers need the autoencoder, sd_v needs sd. Two to
    three hours on two cores. Raises: DirectAlignError for an unknown part.
    """
    parts = shipped(spec)
    for part in only or []:
        if part not in parts:
            known = ", ".join(parts)
            raise DirectAlignError(f"no part {part!r} in the embedded world: choose from {known}")
    folder.mkdir(parents=True, exist_ok=True)
    for part in only or parts:
        _make(part, folder, spec, device)
        for name in parts[part]:
            _ship(folder / name, (target or spec.world.assets) / name)


def _make(part: str, folder: Path, spec: Spec, device: str) -> None:
    """Train one part, unless it is there."""
    if part == "autoencoder":
        if not (folder / part / "config.json").exists():
            train_autoencoder(folder, spec, device).save_pretrained(folder / part)
        return
    if part in spec.rewards:
        if not (folder / part / "config.json").exists():
            train_reward(folder, spec, part, device)
        return
    vae = AutoencoderKL.from_pretrained(folder / "autoencoder")
    if part == "judges":
        if not (folder / "judges/content.safetensors").exists():
            train_judges(folder, vae, spec, device)
        return
    pool = latent_pool(vae, folder, spec, device)
    if part == "flux":
        modules = train_flux(pool, folder, spec, device)
        for name in ("transformer", "text_encoder", "text_encoder_2"):
            modules[name].save_pretrained(folder / "flux" / name)
        # At 64 tokens or fewer, detail needs steps at low noise: no shift.
        FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "flux/scheduler")
        clip_tokenizer(spec).save_pretrained(folder / "clip_tokenizer")
        t5_tokenizer(spec).save_pretrained(folder / "t5_tokenizer")
        return
    shift = vae.config["shift_factor"] * vae.config["scaling_factor"]
    unshifted = LatentPool(pool.x0 + shift, pool.captions)
    modules, prediction = train_sd(unshifted, folder, spec, device), "epsilon"
    if part == "sd_v":
        modules = train_sd_v(unshifted, modules, folder, spec, device)
        prediction = "v_prediction"
    else:
        modules["text_encoder"].save_pretrained(folder / "sd/text_encoder")
    modules["unet"].save_pretrained(folder / part / "unet")
    fixed = {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}
    scheduler = DDIMScheduler(**SD_SCHEDULE, prediction_type=prediction, **fixed)
    scheduler.save_pretrained(folder / part / "scheduler")


def shipped(spec: Spec) -> dict[str, list[str]]:
    """{part: the folders that are shipped}, in the order of training."""
    pipelines = {
        "flux": [
            *(f"flux/{part}" for part in ("transformer", "text_encoder", "text_encoder_2")),
            *("flux/scheduler", "clip_tokenizer", "t5_tokenizer"),
        ],
        "sd": ["sd/unet", "sd/text_encoder", "sd/scheduler"],
        "sd_v": ["sd_v/unet", "sd_v/scheduler"],
    }
    parts = {name: [name] for name in ("autoencoder", "judges", *spec.rewards)}
    return parts | {name: each for name, each in pipelines.items() if name in spec.world.pipelines}


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
