"""A tiny checkpoint of each reward in its published layout, as a recipe section."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPModel

from directalign import config
from directalign.rewards.mps import CrossModel, MpsModel
from directalign.types import DirectAlignError
from recorded_rewards import FIXTURES, write_aesthetic, write_image_reward
from tiny_rewards import write_altclip, write_clip, write_open_clip, write_siglip, write_vlm

PROMPTS = ["a red star", "a blue ring on an olive background"]


@contextmanager
def refused(pattern: str) -> Iterator[pytest.ExceptionInfo[DirectAlignError]]:
    """Expect an error of one line that matches `pattern`."""
    with pytest.raises(DirectAlignError, match=pattern) as raised:
        yield raised
    assert "\n" not in str(raised.value)


def scores_of(reward: Any, images: torch.Tensor, prompts: Sequence[str] = PROMPTS) -> torch.Tensor:
    """Scores (b,) of images (b, 3, h, w) under as many prompts."""
    return reward.score(reward.encode(images), prompts[: len(images)])


def _clip(folder: Path) -> Any:
    return config.ClipConfig(path=str(write_clip(folder)))


def _open_clip(folder: Path) -> Any:
    clip = write_clip(folder / "clip")
    file = write_open_clip(folder / "weights", clip)
    return config.ClipConfig(path=str(file), processor=str(clip))


def _altclip(folder: Path) -> Any:
    return config.AltClipConfig(path=str(write_altclip(folder)))


def _siglip(folder: Path) -> Any:
    return config.SiglipConfig(path=str(write_siglip(folder)))


def _image_reward(folder: Path) -> Any:
    file, tokenizer = write_image_reward(folder)
    return config.ImageRewardConfig(path=str(file), processor=str(tokenizer))


def _aesthetic(head: str, folder: Path) -> Any:
    file, backbone = write_aesthetic(folder, head)
    return config.AestheticConfig(path=str(file), backbone=str(backbone))


def _mps(folder: Path) -> Any:
    """The tiny CLIP with a random cross model, and two buffers as in the published file."""
    clip, file = write_clip(folder / "clip"), folder / "mps.safetensors"
    torch.manual_seed(1)
    cross = CrossModel(dim=8, layers=2, dim_head=4, heads=2, ff_mult=4)
    model = MpsModel(CLIPModel.from_pretrained(clip), cross)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    weights["model.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    weights["cross_model.layers.0.1.fn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(weights, file)
    return config.MpsConfig(path=str(file), processor=str(clip))


def _vlm(kind: str, folder: Path) -> Any:
    return config.QwenVLConfig(path=str(write_vlm(folder, kind)), dtype="float32")


def _hpsv3(folder: Path) -> Any:
    file = shutil.copy(FIXTURES / "hpsv3" / "HPSv3.safetensors", folder)
    reader = shutil.copytree(FIXTURES / "hpsv3" / "processor", folder / "processor")
    return config.Hpsv3Config(path=str(file), processor=str(reader), dtype="float32")


def _hpsv3_plus_plus(folder: Path) -> Any:
    shutil.copytree(FIXTURES / "hpsv3_plus_plus", folder, dirs_exist_ok=True)
    file, reader = str(folder / "hpsv3++.pth"), str(folder / "processor")
    return config.Hpsv3Config(path=file, processor=reader, dtype="float32", iteration=0.5)


CASES: dict[str, Callable[[Path], Any]] = {
    "clip": _clip,
    "open_clip": _open_clip,
    "altclip": _altclip,
    "siglip": _siglip,
    "image_reward": _image_reward,
    "linear": partial(_aesthetic, "linear"),
    "improved": partial(_aesthetic, "improved"),
    "v2_5": partial(_aesthetic, "v2_5"),
    "mps": _mps,
    "qwen2_vl": partial(_vlm, "qwen2_vl"),
    "qwen2_5_vl": partial(_vlm, "qwen2_5_vl"),
    "qwen3_vl": partial(_vlm, "qwen3_vl"),
    "hpsv3": _hpsv3,
    "hpsv3++": _hpsv3_plus_plus,
}
