"""Project directions out of a reward's image features, so that its score ignores an exploit along
them.

    f -> (f − Dᵀ D f) / |f − Dᵀ D f|        D (m, d), rows orthonormal

The features are normalised after projecting. Otherwise a change of the image along D would still
change the length of the remainder, and with it every score. Text features are unchanged, so scores
keep their scale and range. Files are made by `directalign reward bias-directions`.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from ..io.atomic import new_file
from ..types import DirectAlignError
from .common import read_annotated

Features = Float[Tensor, "b d"]
Rows = Float[Tensor, "m d"]

REMEDY = "make it with directalign reward bias-directions"
TOLERANCE = 1e-4
"""Allowed deviation from orthonormal rows; a float32 file is within 1e-6."""
IMAGE_SIDE = ("vision_model.", "visual_projection.")
"""Prefixes of the image tower's weights in transformers' CLIP and SigLIP."""
SAMPLED = 64


@dataclass(frozen=True)
class Directions:
    """Orthonormal rows in the image feature space of the reward with this `fingerprint`.

    `made` records how they were computed.
    """

    rows: Rows
    fingerprint: str
    made: dict[str, str] = field(default_factory=dict)


def project_out(features: Features, directions: Rows | None) -> Features:
    """Unit features (b, d) without their component along the directions, gradient intact."""
    if directions is not None:
        rows = directions.to(features)
        features = features - (features @ rows.T) @ rows
    return F.normalize(features, dim=-1)


def directions_for(model: Any, project: str | None, key: str) -> Rows | None:
    """The rows of a recipe's `project_out` file on the model's device, None without a file.

    Raises DirectAlignError as `read_directions`, and for directions of another width or reward.
    """
    if project is None:
        return None
    found = read_directions(Path(project).expanduser(), f"{key}.project_out")
    projection = getattr(model, "visual_projection", None)
    width = projection.out_features if projection else model.config.vision_config.hidden_size
    if found.rows.shape[1] != width:
        raise DirectAlignError(
            f"{key}.project_out: {project}: directions of {found.rows.shape[1]} numbers, and this "
            f"reward's features have {width}; {REMEDY}"
        )
    if found.fingerprint != fingerprint(model):
        raise DirectAlignError(
            f"{key}.project_out: {project}: was made for a reward with another image tower; "
            f"{REMEDY} --reward for this one"
        )
    anchor = next(model.parameters())
    return found.rows.to(anchor.device, anchor.dtype)


def check_project(project: str | None, key: str) -> None:
    """Check a recipe's `project_out` file before the reward is loaded."""
    if project is not None:
        read_directions(Path(project).expanduser(), f"{key}.project_out")


def read_directions(file: Path, key: str) -> Directions:
    """The directions in a file, float32 on the CPU; errors name `key`.

    Raises DirectAlignError: no such file, not a complete safetensors file, no `directions` in it,
    or rows that are not orthonormal.
    """
    rows, facts = read_annotated(file, key, "directions", REMEDY)
    if rows is None or rows.ndim != 2 or "fingerprint" not in facts:
        raise DirectAlignError(
            f"{key}: {file}: holds no `directions` (m, d) with the fingerprint of their reward; "
            f"{REMEDY}"
        )
    if not is_orthonormal(rows):
        raise DirectAlignError(
            f"{key}: {file}: its directions are not orthonormal, so projecting would not remove "
            f"their span; {REMEDY}"
        )
    return Directions(rows.float(), facts.pop("fingerprint"), facts)


def write_directions(file: Path, directions: Directions) -> Path:
    """Write `directions` as float32 safetensors; returns `file`. Creates its folder."""
    assert is_orthonormal(directions.rows), directions.rows @ directions.rows.T
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {"directions": directions.rows.float().cpu().contiguous()}
    with new_file(file) as partial:
        about = {**directions.made, "fingerprint": directions.fingerprint}
        save_file(rows, partial, metadata=about)
    return file


def is_orthonormal(rows: Rows) -> bool:
    """Whether there are rows and they are orthonormal."""
    gram = rows.double() @ rows.double().T
    return len(rows) > 0 and bool((gram - torch.eye(len(rows)).to(gram)).abs().max() < TOLERANCE)


def fingerprint(model: nn.Module) -> str:
    """Hash of a reward's image tower, 16 hexadecimal digits: names, shapes and sampled weights.

    Equal for copies of one checkpoint; different after any training of the image tower.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if name.startswith(IMAGE_SIDE):
            values = weight.detach().flatten()
            some = values[:: max(1, len(values) // SAMPLED)][:SAMPLED].float().cpu()
            digest.update(f"{name}{tuple(weight.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
