"""Train every embedded asset from its seed; each training resumes, a finished part is kept."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# (diffusers annotates its constructors and outputs more narrowly than they are)
from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, CLIPTextModel, T5EncoderModel

from directalign.toyworld.worlds import WORLDS
from directalign.types import DirectAlignError

from . import few_step, latent_reward, vlm_reward
from .autoencoder import train_autoencoder
from .denoisers import SD_SCHEDULE, latent_pool, train_flux, train_sd, train_sd_v
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

    `only` names some of `shipped(spec)`; judges, denoisers and the latent reward need the
    autoencoder, the latter also the first reward, sd_v needs sd, flux_turbo needs flux; in the
    second world everything needs its drawings, and rewards the last flux, reward_vlm also the first
    reward. Two to three hours on two cores, about ten for the second world. Raises:
    DirectAlignError for an unknown part.
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
    if part == "drawings":
        sheet = folder / part / "sheet.png"
        if spec.sheet is not None and not sheet.exists():
            sheet.parent.mkdir(exist_ok=True)
            spec.sheet(folder / "npm").save(sheet, optimize=True)
        return
    if part == "autoencoder":
        if not (folder / part / "config.json").exists():
            train_autoencoder(folder, spec, device).save_pretrained(folder / part)
        return
    if part in spec.rewards and not spec.robust:
        if not (folder / part / "config.json").exists():
            train_reward(folder, spec, part, device)
        return
    if part == few_step.NAME:
        if not (folder / part / "model_index.json").exists():
            base, kinds = folder / "flux", {"transformer": FluxTransformer2DModel}
            kinds |= {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
            found = {name: kind.from_pretrained(base / name) for name, kind in kinds.items()}
            few_step.train_few_step(nn.ModuleDict(found), folder, spec)
            _write_index("flux", folder / part)
        return
    vae = AutoencoderKL.from_pretrained(folder / "autoencoder")
    if part in spec.rewards:
        if not (folder / part / "config.json").exists():
            base = _make_flux(vae, folder, spec, device)
            train_reward(folder, spec, part, device, (base, vae))
        return
    if part == latent_reward.NAME:
        if not (folder / part / "config.json").exists():
            taught_by = CLIPModel.from_pretrained(folder / next(iter(spec.rewards)))
            latent_reward.train_latent_reward(folder, spec, vae, taught_by)
        return
    if part == vlm_reward.NAME:
        if not (folder / part / "config.json").exists():
            vlm_reward.train_vlm(folder, spec, vae)
        return
    if part == "judges":
        if not all((folder / f"judges/{name}.safetensors").exists() for name in spec.judges):
            train_judges(folder, vae, spec, device)
        return
    if part == "flux":
        _make_flux(vae, folder, spec, device)
    else:
        _make_sd(part, vae, folder, spec, device)


def _make_flux(vae: AutoencoderKL, folder: Path, spec: Spec, device: str) -> nn.ModuleDict:
    """Every training of the FLUX, from the last that has begun: its state holds all weights. Those
    that the world has as pipelines are written."""
    modules, clip, t5 = None, clip_tokenizer(spec), t5_tokenizer(spec)
    clip.save_pretrained(folder / "clip_tokenizer")
    t5.save_pretrained(folder / "t5_tokenizer")
    begun = [n for n, name in enumerate(spec.flux) if (folder / f"{name}.state.pt").exists()]
    for name in list(spec.flux)[max(begun, default=0) :]:
        pool = latent_pool(vae, folder, spec, name, device)
        modules = train_flux(pool, folder, spec, name, modules, device)
        if name in spec.world.pipelines:
            for each in modules:
                modules[each].save_pretrained(folder / name / each)
            # At 64 tokens or fewer, detail needs steps at low noise: no shift.
            scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
            scheduler.save_pretrained(folder / name / "scheduler")
            _write_index("flux", folder / name)
    assert modules is not None
    return modules


def _make_sd(part: str, vae: AutoencoderKL, folder: Path, spec: Spec, device: str) -> None:
    """Stable Diffusion by epsilon (sd), and continued from it by v-prediction (sd_v)."""
    shift = vae.config["shift_factor"] * vae.config["scaling_factor"]
    pools = {name: latent_pool(vae, folder, spec, name, device) for name in spec.sd}
    if spec.sd_distilled:
        _make_flux(vae, folder, spec, device)
    modules, prediction = train_sd(pools, shift, folder, spec, device), "epsilon"
    if part == "sd_v":
        modules = train_sd_v(pools["flux"], shift, modules, folder, spec, device)
        prediction = "v_prediction"
    else:
        modules["text_encoder"].save_pretrained(folder / "sd/text_encoder")
    modules["unet"].save_pretrained(folder / part / "unet")
    fixed = {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}
    fixed |= {"timestep_spacing": spec.sd_spacing}
    scheduler = DDIMScheduler(**SD_SCHEDULE, prediction_type=prediction, **fixed)
    scheduler.save_pretrained(folder / part / "scheduler")
    _write_index(part, folder / part)


def _write_index(pipeline: str, folder: Path) -> None:
    """The files that name a pipeline's parts: those of the first world, the same in every world."""
    for path in (WORLDS["world"].assets / pipeline).glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())


def shipped(spec: Spec) -> dict[str, list[str]]:
    """{part: the folders that are shipped}, in the order of training."""
    drawings = ["drawings"] if spec.sheet is not None else []
    latent = [latent_reward.NAME] if spec.latent_reward is not None else []
    vlm = [vlm_reward.NAME] if spec.vlm_reward is not None else []
    every = *drawings, "autoencoder", "judges", *spec.rewards, *latent, *vlm
    parts = {name: [name] for name in every}
    for name, pipeline in spec.world.pipelines.items():
        known = {each for made in parts.values() for each in made}
        own = [each for each in pipeline.values() if each not in known]
        parts.setdefault("flux" if name in spec.flux else name, []).extend([name, *own])
    return parts


def _ship(made: Path, target: Path) -> None:
    """Copy a folder, weights narrowed to 16 bit."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(each for each in made.iterdir() if each.is_file()):
        if path.suffix == ".safetensors":
            weights = load_file(path)
            narrow = {k: v.half() if v.dtype == torch.float32 else v for k, v in weights.items()}
            save_file(narrow, target / path.name, metadata={"format": "pt"})
        elif path.suffix == ".json":
            indent = None if path.name == "tokenizer.json" else 1  # not a line per token
            text = json.dumps(json.loads(path.read_text()), indent=indent) + "\n"
            (target / path.name).write_text(text)
        else:
            (target / path.name).write_bytes(path.read_bytes())
