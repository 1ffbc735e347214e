"""A black-box reward: every image is rounded to 8 bits and saved as JPEG, then scored.

    directalign train world_black_box

runs this file and calls `score` for one number per image. The score here is the toy world's CLIP,
but it could come from a program, a service or a person: a policy gradient needs only the numbers.
Control phrases are part of the prompts, so a relative reward works unchanged.
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
    """Loaded at first use: `directalign check` also runs this file and must stay fast."""
    return ClipReward.load("world:reward")


def through_jpeg(image: Tensor) -> Tensor:
    """An image (3, H, W) in [0, 1] after saving and reading it as JPEG."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=QUALITY)
    opened = Image.open(file, formats=["JPEG"])
    return torch.from_numpy(np.array(opened)).permute(2, 0, 1).float() / 255


@torch.no_grad()
def score(images: Tensor, prompts: list[str]) -> list[float]:
    """Cosine of each image file and its prompt, larger is better."""
    reward = clip()
    files = torch.stack([through_jpeg(image) for image in images])
    return reward.score(reward.encode(files), prompts).tolist()
