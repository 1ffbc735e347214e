"""`directalign sample`: images of given prompts and seeds from a run's weights or its base, as PNG and `images.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from .. import config
from ..config.load import load_run
from ..interfaces import Family
from ..io.hub import is_hub_id
from ..models.files import read_json
from ..models.loading import FAMILIES, load_family, load_trained
from ..models.source import open_source
from ..types import DirectAlignError
from .generate import generate
from .pairs import Pairs
from .reproduce import diffusers_call

RECORD = "images.jsonl"
FAMILY_OF = {family.pipeline: name for name, family in FAMILIES.items()}


def sample_images(
    source: Path, prompts: Sequence[str], seeds: Sequence[int], out: Path, rollout: Mapping[str, Any] | None = None, base: bool = False
) -> list[Path]:
    """Write one PNG per prompt-seed pair into `out`, and `images.jsonl` with the diffusers call that makes each again.

    Args:
        source: a run's folder, or a model (a diffusers folder, a hub id or world:flux, world:sd, world:sd_v), sampled as it is.
        prompts, seeds: equally long; pair i is image i.
        rollout: what of `config.Rollout` is to differ from the recipe's, or from a bare model's settings; each name with its value.
        base: sample the model as it was before training.
    Raises:
        DirectAlignError: nothing to sample from, an `out` that holds images already, numbers that do not match.
    """
    pairs = Pairs(tuple(prompts), tuple(seeds))
    _claim(out)
    run, trained = run_of(source)
    run = run.model_copy(update={"rollout": run.rollout.model_copy(update=dict(rollout or {}))})
    trained = None if base else trained
    family = trained_family(run, trained)
    images = generate(family, pairs.prompts, pairs.seeds, run.rollout, batch_size=1)
    return _write(out, pairs, images, [diffusers_call(family, run, p, s, trained) for p, s in zip(pairs.prompts, pairs.seeds, strict=True)])


def run_of(source: Path) -> tuple[config.Run, Path | None]:
    """The recipe behind a run's folder and that folder; or a bare recipe for a model, and None."""
    if (source / "run.yaml").is_file():
        return load_run(source / "run.yaml"), source
    _check_model(source)
    folder = open_source(config.Model(family="flux", path=str(source)), weights=False).folder  # which family it is, its index will say
    if not (folder / "model_index.json").is_file():
        raise DirectAlignError(f"{source}: neither a run (no run.yaml) nor a diffusers pipeline (no model_index.json); give one of the two")
    name = read_json(folder / "model_index.json").get("_class_name")
    if name not in FAMILY_OF:
        raise DirectAlignError(f"{folder}: holds a {name}, and {', '.join(FAMILY_OF)} are read")
    return _bare_recipe(str(source), folder, FAMILY_OF[name]), None


def _check_model(source: Path) -> None:
    """Refuses what would be looked for on the hub and is no repository: runs/typo beside other runs, a checkpoint in one file."""
    if is_hub_id(str(source)) and source.parent.is_dir():
        raise DirectAlignError(f"{source}: no such folder in {source.parent}; give a run's folder, a diffusers folder or a hub id")
    if source.suffix == ".safetensors":
        raise DirectAlignError(
            f"{source}: a single file brings no configs and tokenizers; give a run that was trained from it, or a diffusers folder or hub id"
        )


def _bare_recipe(path: str, folder: Path, family: str) -> config.Run:
    """Sampling settings for a model that no run is behind: 25 steps, no classifier-free guidance, embedded guidance 3.5 where the network takes it."""
    part = folder / FAMILIES[family].part / "config.json"
    guidance = 3.5 if read_json(part).get("guidance_embeds") else None
    given = {
        "name": path,
        "model": {"family": family, "path": path},
        "reward": {"name": "pixels", "statistic": "brightness"},
        "method": {"form": "absolute"},
        "rollout": {"embedded_guidance": guidance},
        "data": {"prompts": "none"},
        "train": {"num_steps": 1},
    }
    return config.Run.model_validate(given)


def trained_family(run: config.Run, trained: Path | None) -> Family:
    """The run's family on the best device, with the weights of `trained`, or the base model's for None."""
    family = load_family(run.model, "cuda" if torch.cuda.is_available() else "cpu")
    if trained is not None:
        load_trained(family, trained)
    return family


def save_png(image: Float[Tensor, "3 H W"], file: Path) -> None:
    """An image in [0, 1] as 8-bit PNG, rounded as diffusers rounds."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file)


def _claim(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"{out}: is a file; name a folder to write the images to")
    if (out / RECORD).exists():
        raise DirectAlignError(f"{out}: holds images already ({RECORD}); name another folder")


def _write(out: Path, pairs: Pairs, images: Float[Tensor, "n 3 H W"], calls: list[dict[str, object]]) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{index:04d}-seed{seed}.png" for index, seed in enumerate(pairs.seeds)]
    lines = []
    for file, prompt, seed, image, call in zip(files, pairs.prompts, pairs.seeds, images, calls, strict=True):
        save_png(image, file)
        lines.append(json.dumps({"file": file.name, "prompt": prompt, "seed": seed, "diffusers": call}, ensure_ascii=False) + "\n")
    (out / RECORD).write_text("".join(lines), encoding="utf-8")
    return files
