"""What a LoRA file says of itself in its safetensors header: `modelspec.*` (the Stability AI model specification), kohya's `ss_*`, and ours.

ComfyUI, A1111 and Forge show the first, and A1111 sorts LoRAs by `ss_base_model_version`. No path of this machine is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timezone

from .. import __version__, config
from .base import Base
from .finished import Finished
from .layouts import LoraFormat
from .low_rank import LowRank

ARCHITECTURES = {
    "flux": "flux-1",
    "flux2_klein": "flux-2-klein",
    "sd3": "stable-diffusion-3",
    "sdxl": "stable-diffusion-xl-v1-base",
    "qwen_image": "Qwen-Image",
    "z_image": "Z-Image",
}
SD_BY_WIDTH = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2-512"}
"""SD 1.x and 2.x differ in the width of the text they attend to."""
KOHYA_VERSIONS = {"flux": "flux1", "sd3": "sd3", "sdxl": "sdxl_base_v1-0"}
KOHYA_MODULES = {"flux": "networks.lora_flux", "sd3": "networks.lora_sd3"}


def recipe_hash(finished: Finished) -> str:
    """SHA-256 of the run's run.yaml."""
    return hashlib.sha256((finished.folder / "run.yaml").read_bytes()).hexdigest()


def metadata(finished: Finished, base: Base, form: LoraFormat, updates: Mapping[str, LowRank]) -> dict[str, str]:
    """Everything for the header; values are text."""
    architecture = architecture_of(finished.run.model.family, base, updates)
    extra = _kohya(finished.run, base, architecture) if form != "diffusers" else {}
    return {"format": "pt", **_modelspec(finished, base, form, architecture), **extra, **_own(finished, base)}


def architecture_of(family: str, base: Base, updates: Mapping[str, LowRank]) -> str:
    """The specification's name of an architecture."""
    if family == "sd":
        widths = {each.down.shape[1] for layer, each in updates.items() if layer.endswith("attn2.to_k")}
        return SD_BY_WIDTH.get(min(widths, default=0), "stable-diffusion")
    return "flux-1-dev" if base.hub_id == "black-forest-labs/FLUX.1-dev" else ARCHITECTURES.get(family, family)


def _modelspec(finished: Finished, base: Base, form: LoraFormat, architecture: str) -> dict[str, str]:
    run, written = finished.run, datetime.fromtimestamp(finished.weights.stat().st_mtime, timezone.utc)
    rollout = run.rollout
    told = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/lora",
        "implementation": "diffusers" if form == "diffusers" else "ComfyUI" if form == "comfyui" else "sd-scripts",
        "title": run.name,
        "resolution": f"{rollout.width}x{rollout.height}" if rollout.width and rollout.height else None,
        "description": f"LoRA for {base.name}, aligned to a reward model with directalign ({run.method.name})",
        "date": written.isoformat(timespec="seconds"),
        "license": base.licence and base.licence.title,
        "usage_hint": "no trigger words",
    }
    return {f"modelspec.{key}": value for key, value in told.items() if value}


def _kohya(run: config.Run, base: Base, architecture: str) -> dict[str, str]:
    """The keys of sd-scripts that readers look at, as far as they have a meaning here."""
    family, rank = run.model.family, str(run.model.lora.rank)
    versions = {"stable-diffusion-v1": "sd_v1", "stable-diffusion-v2-512": "sd_v2"} | {ARCHITECTURES[name]: version for name, version in KOHYA_VERSIONS.items()}
    version = KOHYA_VERSIONS.get(family) or versions.get(architecture)
    return {
        **({"ss_base_model_version": version} if version else {}),
        "ss_v2": str(architecture.startswith("stable-diffusion-v2")),
        "ss_network_module": KOHYA_MODULES.get(family, "networks.lora"),
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_output_name": run.name,
        "ss_sd_model_name": base.name,
        "ss_seed": str(run.seed),
        "ss_steps": str(run.train.num_steps),
        "ss_learning_rate": str(run.train.learning_rate),
        "ss_optimizer": run.train.optimizer,
        "ss_max_grad_norm": str(run.train.clip_norm),
    }


def _own(finished: Finished, base: Base) -> dict[str, str]:
    commit = finished.records.summary.get("commit")
    return {
        "directalign.version": __version__,
        "directalign.base_model": base.name,
        "directalign.recipe_sha256": recipe_hash(finished),
        "directalign.trigger_words": "none",
        **({"directalign.commit": str(commit)} if commit else {}),
    }
