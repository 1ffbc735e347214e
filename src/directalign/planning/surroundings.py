"""What is wrong around a recipe: the model's folder and sizes, prompts and images, the disk. Nothing is loaded or downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .. import config
from ..data.buckets import check_buckets, fill_buckets
from ..data.hf_datasets import is_address, parse
from ..data.image_dataset import ImageSet, scan_images
from ..data.prompts import read_prompts
from ..memory.architecture import Architecture
from ..memory.geometry import Geometry, image_size
from ..models.weight_files import read_json
from ..training.data import accumulation
from ..types import DirectAlignError


def check_model(run: config.RunConfig, model: Architecture, geometry: Geometry) -> None:
    """Every size that the recipe names fits the model, and its guidance is one that the model takes."""
    sizes = {
        "rollout.height, rollout.width": [image_size(run, geometry)],
        "rollout.sizes": run.rollout.sizes,
        "data.buckets": run.data.buckets,
    }
    for key, named in sizes.items():
        for height, width in named or ():
            if height % geometry.multiple or width % geometry.multiple:
                near = " and ".join(
                    str(max(round(side / geometry.multiple), 1) * geometry.multiple)
                    for side in (height, width)
                )
                raise DirectAlignError(
                    f"{key}: {height}x{width} does not fit; both are multiples of {geometry.multiple} for this model: {near} are near"
                )
            if geometry.largest is not None and max(height, width) > geometry.largest:
                raise DirectAlignError(
                    f"{key}: {height}x{width} is too large; this model's position embeddings end at {geometry.largest} a side: ask for less"
                )
    embeds = run.model.architecture == "flux" and bool(
        model.parts["transformer"].config.get("guidance_embeds")
    )
    scales = {
        "rollout.cfg_scale": run.rollout.cfg_scale,
        "method.cfg_scale": getattr(run.method, "cfg_scale", 1.0),
    }
    for key, scale in scales.items() if _is_distilled(model) else ():
        if scale != 1.0:
            raise DirectAlignError(
                f"{key}: {scale:g}, and this model is step-distilled and takes no guidance: set it to 1, or give a base model in model.path"
            )
    _check_guidance("rollout", run.rollout.embedded_guidance, embeds)
    if isinstance(run.method, config.SRPOConfig):
        _check_guidance("method", run.method.embedded_guidance, embeds)


def _is_distilled(model: Architecture) -> bool:
    """A FLUX.2 klein says so in its model_index.json."""
    return model.folder is not None and bool(
        read_json(model.folder / "model_index.json").get("is_distilled", False)
    )


def _check_guidance(section: str, guidance: float | None, embeds: bool) -> None:
    key = f"{section}.embedded_guidance"
    if embeds and guidance is None:
        raise DirectAlignError(
            f"{key}: missing; this model takes its guidance as an input, 3.5 is usual"
        )
    if not embeds and guidance is not None:
        raise DirectAlignError(
            f"{key}: {guidance}, and this model has no input for it; leave it out (set it to null over a preset), or use cfg_scale"
        )


def check_data(
    run: config.RunConfig, ranks: int, online: bool
) -> tuple[list[tuple[str, str]], list[str]]:
    """Read the prompt list and decode the image set: what was found, and a warning for images that will be skipped.

    Data sets on the hub are read when `online`. Raises DirectAlignError for a bucket with fewer images than an update takes.
    """
    findings, warnings = [], []
    per_update = accumulation(run, ranks) * ranks * run.data.batch_size
    if run.data.prompts is not None:
        findings.append(
            (
                "prompts",
                _later(run.data.prompts)
                if _is_far(run.data.prompts, online)
                else _prompts(run.data.prompts),
            )
        )
    if run.data.images is not None and _is_far(run.data.images, online):
        findings.append(("images", _later(run.data.images)))
    elif run.data.images is not None:
        images = scan_images(run.data.images, run.data.strict)
        findings.append(
            ("images", f"{len(images):,} from {run.data.images}, {len(images.skipped)} skipped")
        )
        warnings.extend(_skipped(images))
        if run.data.buckets is not None:
            check_buckets(fill_buckets(images.sizes, run.data.buckets), per_update)
    findings.append(
        ("update", f"{per_update} prompts" + (f" on {ranks} ranks" if ranks > 1 else ""))
    )
    return findings, warnings


def _is_far(source: str, online: bool) -> bool:
    """Whether reading this would take a network, and none is to be used."""
    return not online and is_address(source) and parse(source).folder is None


def _later(source: str) -> str:
    return f"{source}, read when the run starts"


def _prompts(source: str) -> str:
    return f"{len(read_prompts(source)):,} from {source}"


def _skipped(images: ImageSet) -> Iterator[str]:
    if images.skipped:
        yield f"data.images: {len(images.skipped)} of {len(images) + len(images.skipped)} images are skipped: {'; '.join(images.skipped[:3])}"


def check_disk(run: config.RunConfig, out: Path, trained: int) -> str:
    """The output folder can be made, and its disk holds the checkpoints: weights, the optimiser's averages, the EMA, the best weights of each."""
    nearest = next(
        folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists()
    )
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise DirectAlignError(
            f"--out {out}: {nearest} is not a folder that you may write to; name another one"
        )
    per_number = 4 + 8 + (4 if run.train.ema_decay is not None else 0)
    best = 4 * trained * (run.train.keep_checkpoints + 2) if run.early_stopping is not None else 0
    needed = trained * per_number * (run.train.keep_checkpoints + 1) + 4 * trained + best
    free = shutil.disk_usage(nearest).free
    if needed > free:
        raise DirectAlignError(
            f"--out {out}: checkpoints need {readable(needed)}, and {readable(free)} are free; make room, or lower train.keep_checkpoints"
        )
    return f"checkpoints up to {readable(needed)}, {readable(free)} free"


def readable(size: int) -> str:
    """Bytes as people read them: 1.5 MB, 23.8 GB (powers of 1000)."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
