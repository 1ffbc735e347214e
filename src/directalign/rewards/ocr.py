"""Text rendering: how near the text that OCR reads in an image is to the text that a prompt quotes.

    score = max(1 − edits / N, 0)

edits: fewest insertions, deletions and replacements of characters (Levenshtein) from the text read
to the N characters between double quotes in the prompt, spaces and case left out (Flow-GRPO, arXiv
2505.05470, section 4.1). RapidOCR reads (PP-OCR through ONNX, on the CPU; its package brings the
weights). A black box, so policy gradients alone train on it. Control phrases do not matter, so a
relative reward cannot be formed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from .. import config
from ..io.tensors import to_pixels
from ..types import DirectAlignError, Images, PerSample
from .common import BaseReward, Device

QUOTED = re.compile('["“„]([^"“”„]+)["”“]')


def quoted(prompt: str) -> str:
    """The characters of a prompt between double quotes, without spaces, in small letters.

    Raises: DirectAlignError where there are none.
    """
    found = _plain("".join(QUOTED.findall(prompt)))
    if not found:
        raise DirectAlignError(
            f"reward.name: ocr: no text in double quotes in {prompt!r}; write the text that the "
            'image is to show as in: a sign that says "Open"'
        )
    return found


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


class OcrReward(BaseReward):
    """`scale` times the share of the quoted characters that are right (`interfaces.Reward`)."""

    name = "ocr"
    reads_prompt = False
    differentiable = False
    file_keys = ()

    def __init__(self, scale: float = 1.0) -> None:
        from rapidocr import RapidOCR

        self.scale = scale
        self.engine: Any = RapidOCR(params={"Global.log_level": "critical"})

    @classmethod
    def _load(cls, settings: config.OcrConfig, device: Device, key: str) -> OcrReward:
        """The reward of a recipe section; it runs on the CPU."""
        del device
        cls._check(settings, key, online=False)
        return cls(settings.scale)

    @classmethod
    def _check(cls, settings: config.OcrConfig, key: str, online: bool) -> None:
        """The packages are there."""
        del settings, online
        try:
            for package in ("onnxruntime", "rapidfuzz", "rapidocr"):
                import_module(package)
        except ImportError as error:
            raise DirectAlignError(
                f"{key}.name: ocr needs a package ({error}): pip install 'directalign[ocr]'"
            ) from None

    @classmethod
    def check_prompts(cls, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            quoted(prompt)

    def encode(self, images: Images) -> list[str]:
        """The text read in each image, lines from top to bottom."""
        return [self._read(image) for image in images]

    def _read(self, image: Any) -> str:
        found = self.engine(to_pixels(image))
        return _plain("".join(found.txts or ()))

    def score(self, features: Sequence[str], prompts: Sequence[str]) -> PerSample:
        """0 to `scale`, (b,) float32 on the CPU.

        Raises: DirectAlignError for a prompt without text in double quotes.
        """
        from rapidfuzz.distance import Levenshtein

        found = []
        for read, prompt in zip(features, prompts, strict=True):
            wanted = quoted(prompt)
            found.append(max(1 - Levenshtein.distance(read, wanted) / len(wanted), 0.0))
        return self.scale * torch.tensor(found)
