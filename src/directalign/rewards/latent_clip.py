"""A CLIP over latents as a reward: score = scale · cos(latents, prompt), and no image is decoded.

DiNa-LRM (arXiv 2602.11146) rewards a model's noisy latents with a head on its own denoiser, so that
neither a decoder nor an image is needed, forward or backward. Here: a CLIP (`transformers`) whose
image tower reads clean latents as the denoiser has them, scaled and shifted; Direct-Align's one
network call gives just these. Left out: rewards of noisy latents.

A folder has the CLIP, its tokenizer, and `latents.safetensors`: an `image` (3, H, W) in [0, 1] and
its `latents` (c, h, w), which the model that is trained must encode alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from .. import config
from ..interfaces import Model
from ..io.tensors import read_safetensors
from ..types import DirectAlignError, Latents
from . import common
from . import weights as files
from .clip import ClipReward

PROBE = "latents.safetensors"
TOLERANCE = 0.02
"""Root mean square by which a model may encode the probe differently, in units of the latents'."""


class LatentClipReward(ClipReward):
    """A frozen CLIP over latents (`interfaces.Reward`)."""

    name = "latent_clip"
    sees = "latents"
    supports_soft_prompts = False
    probe: dict[str, Tensor] | None = None
    """Of the folder; None on fake tensors."""

    def __init__(self, model: Any, tokenizer: Any, scale: float = 1.0) -> None:
        super().__init__(model, tokenizer, self._fitting, scale)
        vision = model.config.vision_config
        self.shape = vision.num_channels, vision.image_size, vision.image_size

    @classmethod
    def _load(
        cls, settings: config.LatentClipConfig, device: common.Device, key: str
    ) -> LatentClipReward:
        patterns = (*files.FOLDER_SETTINGS, "*.safetensors")
        folder = files.locate(settings.path, f"{key}.path", patterns)
        files.check_folder(folder, f"{key}.path", CLIPModel)
        probe = _probe(folder, f"{key}.path")
        tokenizer = _tokenizer(settings, folder, key)
        model: Any = files.load_model(CLIPModel, folder, f"{key}.path")
        model.to(device)
        common.recompute(model.vision_model, settings.gradient_checkpointing)
        reward = cls(model, tokenizer, settings.scale)
        reward.probe = {name: each.to(device, torch.float32) for name, each in probe.items()}
        return reward

    @classmethod
    def _check(cls, settings: config.LatentClipConfig, key: str, online: bool) -> None:
        weights = files.check_published(settings.path, f"{key}.path", online)
        if weights is not None:
            files.check_folder(weights, f"{key}.path", CLIPModel)
            _probe(weights, f"{key}.path")
            _tokenizer(settings, weights, key, online)

    @classmethod
    def meta(cls, settings: Any, key: str, configs: Any) -> LatentClipReward:
        model = CLIPModel(CLIPConfig.from_dict(configs.read(settings.path, f"{key}.path", "clip")))
        common.recompute(model.vision_model, settings.gradient_checkpointing)
        return cls(model, configs.tokenizer(), settings.scale)

    @classmethod
    def _cleaning(cls, settings: Any) -> Callable[[str], str]:
        del settings
        return cls.usual_cleaning

    @torch.no_grad()
    def check_model(self, model: Model) -> None:
        if self.probe is None:
            return
        latents = self.probe["latents"]
        found = model.encode_image(self.probe["image"][None])[0].to(latents)
        if found.shape == latents.shape:
            difference = float((found - latents).norm() / latents.norm())
            if difference <= TOLERANCE:
                return
            found_as = f"encodes its probe image otherwise, by {difference:.0%}"
        else:
            found_as = f"has other latents, {_sizes(found.shape)} for {_sizes(latents.shape)}"
        raise self._unfit(found_as)

    def _fitting(self, latents: Latents) -> Latents:
        """The latents. Raises DirectAlignError for those of another number or size."""
        if tuple(latents.shape[1:]) != self.shape:
            has = f"gives latents of {_sizes(latents.shape[1:])}, and it reads {_sizes(self.shape)}"
            raise self._unfit(has)
        return latents

    def _unfit(self, why: str) -> DirectAlignError:
        return DirectAlignError(
            f"reward.name: {self.name} was made for another VAE or image size than the model's, "
            f"which {why}: use the model and size that it was made for, or a reward that sees "
            "images (reward.name: clip)"
        )


def _tokenizer(
    settings: config.LatentClipConfig, folder: Path, key: str, online: bool = True
) -> Any:
    """The tokenizer of `processor` or the folder; None if it is on the hub and not `online`."""
    reader = files.reader_folder(settings, folder, key, online)
    return reader and files.read_tokenizer(reader, files.processor_key(settings, key))


def _probe(folder: Path, key: str) -> dict[str, Tensor]:
    """`image` and `latents` of a folder. Raises DirectAlignError if it has none."""
    found = read_safetensors(folder / PROBE) if (folder / PROBE).is_file() else {}
    if found.keys() != {"image", "latents"}:
        raise DirectAlignError(
            f"{key}: {folder} has no {PROBE} with an image and its latents, so it is no reward of "
            "latents: take reward.name: clip for a CLIP of images"
        )
    return found


def _sizes(shape: Any) -> str:
    return "x".join(map(str, shape))
