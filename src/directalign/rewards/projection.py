"""A reward made blind to directions of its image features: what an exploit of every prompt moves along, it no longer sees.

    f -> (f − Dᵀ D f) / |f − Dᵀ D f|        D (m, d), rows orthonormal

The length is restored *after* projecting. Left out, a move of the image along D would still change the length of a unit feature's
remainder, and with it every score; so it is exactly the ray of what is left that is judged. The text side stays as it is: scores keep
their scale and their range. Files come from `directalign reward bias-directions`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..types import DirectAlignError

Features = Float[Tensor, "b d"]
Rows = Float[Tensor, "m d"]

REMEDY = "make it with directalign reward bias-directions"
TOLERANCE = 1e-4
"""How far rows of a file may be from orthonormal: a float32 file is within 1e-6."""
IMAGE_SIDE = ("vision_model.", "visual_projection.")
"""What the names of an image tower's weights begin with, in transformers' CLIP and SigLIP."""
SAMPLED = 64


@dataclass(frozen=True)
class Directions:
    """Orthonormal rows in the image features of one reward; `fingerprint` says of which, `made` holds how they came about, in words."""

    rows: Rows
    fingerprint: str
    made: dict[str, str] = field(default_factory=dict)


def blind(features: Features, directions: Rows | None) -> Features:
    """Unit features (b, d), without their part along the directions; gradient intact, and without such a part too. None leaves them whole."""
    if directions is not None:
        rows = directions.to(features)
        features = features - (features @ rows.T) @ rows
    return F.normalize(features, dim=-1)


def directions_for(model: nn.Module, width: int, project: str | None, key: str) -> Rows | None:
    """The rows of a recipe's `project` on the model's device, None where nothing is projected.

    Raises: DirectAlignError for what `read_directions` refuses, another width than the features' `width`, and another reward's directions.
    """
    if project is None:
        return None
    found = read_directions(Path(project).expanduser(), f"{key}.project")
    if found.rows.shape[1] != width:
        raise DirectAlignError(f"{key}.project: {project}: directions of {found.rows.shape[1]} numbers, and this reward's features have {width}; {REMEDY}")
    if found.fingerprint != fingerprint(model):
        raise DirectAlignError(f"{key}.project: {project}: was made for a reward with another image side; {REMEDY} --reward for this one")
    anchor = next(model.parameters())
    return found.rows.to(anchor.device, anchor.dtype)


def check_project(project: str | None, key: str) -> None:
    """What can be known to be wrong with a recipe's `project` before the reward is loaded."""
    if project is not None:
        read_directions(Path(project).expanduser(), f"{key}.project")


def read_directions(file: Path, key: str) -> Directions:
    """The directions in a file, float32 on the CPU; `key` is what errors blame.

    Raises: DirectAlignError: no such file, not a whole safetensors file, no `directions` in it, or rows that are not orthonormal.
    """
    if not file.is_file():
        raise DirectAlignError(f"{key}: {file}: no such file; {REMEDY}")
    try:
        with safe_open(file, framework="pt") as opened:
            facts = dict(opened.metadata() or {})
            rows = opened.get_tensor("directions").float() if "directions" in set(opened.keys()) else None
    except SafetensorError as error:
        raise DirectAlignError(f"{key}: {file}: not a complete safetensors file ({error}); copy it again, or {REMEDY}") from error
    if rows is None or rows.ndim != 2 or "fingerprint" not in facts:
        raise DirectAlignError(f"{key}: {file}: holds no `directions` (m, d) with the fingerprint of their reward; {REMEDY}")
    if not is_orthonormal(rows):
        raise DirectAlignError(f"{key}: {file}: its directions are not orthonormal, and projecting would not take out what they span; {REMEDY}")
    return Directions(rows, facts.pop("fingerprint"), facts)


def write_directions(file: Path, directions: Directions) -> Path:
    """Write `directions` as float32 safetensors; returns `file`. Its folder is made."""
    assert is_orthonormal(directions.rows), directions.rows @ directions.rows.T
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"directions": directions.rows.float().cpu().contiguous()}, file, metadata={**directions.made, "fingerprint": directions.fingerprint})
    return file


def is_orthonormal(rows: Rows) -> bool:
    """Whether the rows are unit vectors at right angles, of which there are one or more."""
    gram = rows.double() @ rows.double().T
    return len(rows) > 0 and bool((gram - torch.eye(len(rows), dtype=torch.float64, device=rows.device)).abs().max() < TOLERANCE)


def fingerprint(model: nn.Module) -> str:
    """What a reward's image side is, as 16 hexadecimal digits: the names, shapes and a spread of the values of its weights.

    The same for copies of one checkpoint wherever they lie; another after any training of the image side.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if name.startswith(IMAGE_SIDE):
            values = weight.detach().flatten()
            some = values[:: max(1, len(values) // SAMPLED)][:SAMPLED].float().cpu()
            digest.update(f"{name}{tuple(weight.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
