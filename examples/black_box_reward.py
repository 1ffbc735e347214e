"""A reward that nobody can differentiate: every picture is rounded to 8 bits, squeezed through
JPEG, and judged from the file.

    directalign train world_black_box

reads this file and asks `score` for one number per image. Behind it stands the embedded world's
CLIP, but it might as well be a program, a service or a person: a policy gradient needs the numbers
alone. The control phrases arrive within the prompts, so a relative reward works without the
function knowing of it.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from directalign.rewards.clip import ClipReward

QUALITY = 75  # of the JPEG, 1 to 95


@cache
def clip() -> ClipReward:
    """Loaded when first asked for: a check of the recipe runs this file and should stay quick."""
    return ClipReward.load("world:reward")


def through_jpeg(image: Tensor) -> Tensor:
    """What is left of an image (3, H, W) in [0, 1] after it was a JPEG file."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=QUALITY)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255


@torch.no_grad()
def score(images: Tensor, prompts: list[str]) -> list[float]:
    """Cosine of each picture's file and its prompt, larger is better."""
    judge = clip()
    files = torch.stack([through_jpeg(image) for image in images])
    return judge.score(judge.encode(files), prompts).tolist()
