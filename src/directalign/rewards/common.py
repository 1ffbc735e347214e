"""Shared by rewards: base class, differentiable CLIP preprocessing, prompt cache, recomputation.

`Preprocessing` resizes the short side, crops the centre and normalises, with settings from the
folder's `preprocessor_config.json`. It equals transformers' processor up to its rounding to 8 bits;
like the official trainers, it keeps values that bicubic resizing carries past [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import named
from ..interfaces import Model, Reward
from ..io import text
from ..io.image_settings import Pixels, normalised, read_settings
from ..io.tensors import check_weights, opened, resize
from ..types import DirectAlignError, Images, Latents, Sources

Device: TypeAlias = "torch.device | str"


@dataclass(frozen=True)
class TextReader:
    """A text tower reads `length` tokens of the text after `clean`; the rest is cut."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    clean: Callable[[str], str] = str

    def cut(self, prompts: Sequence[str]) -> int:
        """How many prompts lose their end."""
        texts = [self.clean(prompt) for prompt in prompts]
        rows: Any = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        return sum(len(row) > self.length for row in rows)


def cut_warnings(
    name: str, reader: TextReader | None, prompts: Sequence[str], phrases: Sequence[str] = ()
) -> list[str]:
    """A sentence if `reader` (of the reward or encoder `name`) cuts prompts, else nothing.

    They are counted under the longest of the control phrases that are put before them.
    """
    if reader is None:
        return []
    starts = ["", *(f"{phrase}. " for phrase in phrases if not phrase.endswith(".safetensors"))]
    rows: Any = reader.tokenizer([reader.clean(each) for each in starts], verbose=False)
    longest = max(zip(map(len, rows["input_ids"]), starts, strict=True))[1]
    texts = list(dict.fromkeys(prompts))
    count = reader.cut([longest + text for text in texts])
    under = f" after the control phrase {longest[:-2]!r}" if longest else ""
    sentence = (
        f"{name}: {count:,} of {len(texts):,} prompts are longer than its {reader.length} tokens"
        f"{under}; their ends are ignored"
    )
    return [sentence] if count else []


WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")


def is_weight_file(path: str) -> bool:
    """Whether `path` names a file of weights rather than a folder or a repository."""
    return Path(path).suffix in WEIGHT_FILES


class BaseReward:
    """The attributes that the rest of the package reads; subclasses override what differs.

    User-defined rewards need not inherit: `interfaces.Reward` lists what is required.
    """

    name: str
    settings: Any = None
    """The recipe section that it was loaded from; None if it was made by hand."""
    sees: str = "pixels"
    """"latents": `encode` gets the clean latents (b, c, h, w) as the denoiser has them."""
    reads_prompt: bool = True
    """False: control phrases change no score, so a relative reward cannot be formed."""
    reads_sources: bool = False
    """`encode` gets the images that were edited too: `encode(images, sources)`."""
    differentiable: bool = True
    """False: no gradient with respect to the image; only policy gradients can train on it."""
    image_embeddings: bool = False
    """`encode` returns one unit vector (b, d) per image in a space shared with text."""
    text_reader: Any = None
    """`TextReader` of its prompts; None if it reads none, or all of them."""
    soft_prompts: Any = None
    """`SoftPrompts` of the text tower; None where learned tokens are not supported."""
    supports_soft_prompts: bool = False
    """Whether instances have `soft_prompts`: control phrases may name a file of learned tokens."""
    file_keys: tuple[str, ...] = ("path", "processor")
    """Settings that name files, folders or hub ids which must exist before loading."""

    weight_file: str = ""
    """What to give if `path` names no file of weights; empty if it need not name one."""

    @classmethod
    def from_config(cls, settings: Any, device: Device = "cpu", key: str = "reward") -> Any:
        """Load the reward of a recipe section, frozen; errors start with the section's `key`."""
        cls._require_weight_file(settings, key)
        reward = cls._load(settings, device, key)
        reward.settings = settings
        return reward

    @classmethod
    def check(cls, settings: Any, key: str = "reward", online: bool = False) -> None:
        """Raise what `from_config` would, as far as it is known without reading weights.

        `online` allows requests: a hub repository's file list is read and its settings are fetched.
        """
        cls._require_weight_file(settings, key)
        cls._check(settings, key, online)

    def check_model(self, model: Model) -> None:
        """Raise DirectAlignError for a model whose latents a reward of latents was not made for."""

    @classmethod
    def check_prompts(cls, prompts: Sequence[str]) -> None:
        """Raise DirectAlignError for a prompt that the reward cannot score."""

    @classmethod
    def _load(cls, settings: Any, device: Device, key: str) -> Any:
        """What a subclass does in `from_config`; `_check` is the same for `check`."""
        raise NotImplementedError

    @classmethod
    def _check(cls, settings: Any, key: str, online: bool) -> None: ...

    @classmethod
    def _require_weight_file(cls, settings: Any, key: str) -> None:
        if cls.weight_file and not is_weight_file(settings.path):
            remedy = cls.weight_file.format(key=key)
            raise DirectAlignError(f"{key}.path: {settings.path}: {remedy}")

    @classmethod
    def read_text(cls, settings: Any, key: str, online: bool) -> TextReader | None:
        """How it reads prompts, without reading weights; None if that is not known.

        From the hub only if `online`.
        """
        del settings, key, online

    @classmethod
    def meta(cls, settings: Any, key: str, configs: Any) -> Any:
        """The reward on the meta device, for memory estimates; None if it is not estimated.

        Called under `torch.device("meta")`. `configs` (`preflight.meta_models.RewardConfigs`) finds
        configs and image settings on this machine or among the published ones.
        """
        del settings, key, configs

    @classmethod
    def files(cls, settings: Any) -> dict[str, str]:
        """Files, folders and hub ids that a recipe section needs, by the key that names them."""
        named = {key: getattr(settings, key, None) for key in cls.file_keys}
        return {key: path for key, path in named.items() if path is not None}


def reward_input(reward: Reward, model: Model, x0: Latents) -> Images | Latents:
    """What the reward sees of clean latents: these, or decoded images. Gradient intact."""
    return x0 if reward.sees == "latents" else model.decode(x0)


def image_features(reward: Reward, images: Images | Latents, sources: Sources | None) -> Any:
    """`reward.encode` of images, with `sources` if it reads them; gradient intact.

    Raises DirectAlignError for a reward that reads source images where there are none.
    """
    if not getattr(reward, "reads_sources", False):
        return reward.encode(images)
    if sources is None:
        raise DirectAlignError(
            f"reward.name {reward.name} compares images with those they were made from, and there "
            "are none: train on data.edits, or use another reward"
        )
    return cast(Any, reward).encode(images, sources.to(images.device))


def score_all(
    reward: Reward, features: Any, texts: Sequence[Sequence[str]]
) -> Float[Tensor, "k b"]:
    """Scores (k, b) of b images under k lists of b prompts, gradient intact.

    One call of a reward that has a method `score_all`, as black boxes do, else k calls of `score`.
    """
    at_once = getattr(reward, "score_all", None)
    if at_once is not None:
        return at_once(features, texts)
    return torch.stack([reward.score(features, each) for each in texts])


def read_json(file: Path, key: str = "") -> dict[str, Any]:
    """The object in a checkpoint's JSON file. Raises DirectAlignError if it holds none."""
    with named(key) if key else nullcontext():
        return text.read_json(file, "copy it again from the original checkpoint")


def read_annotated(
    file: Path, key: str, name: str, remedy: str
) -> tuple[Tensor | None, dict[str, str]]:
    """The tensor `name` (None without one) and the metadata of a safetensors file made by this
    package.

    Raises DirectAlignError: no such file, not a complete safetensors file, or values that are no
    finite real numbers.
    """
    with named(key):
        with opened(file, remedy) as content:
            tensor = content.get_tensor(name) if name in set(content.keys()) else None
            facts = dict(content.metadata() or {})
        if tensor is not None:
            check_weights({name: tensor}, file, counters=())
        return tensor, facts


_RESAMPLING = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocessing:
    """Image settings of a CLIP: `size` is the short side, or (height, width).

    `rounded_centre`: an odd border is halved as in torchvision (rounded to even), not downwards as
    in transformers.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "bicubic"
    rounded_centre: bool = False

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """From a folder. Raises DirectAlignError: missing, unreadable, or without a fixed crop."""
        file, settings = read_settings(folder)
        try:
            size = settings["size"]
            if isinstance(size, dict):
                size = size.get("shortest_edge") or (size["height"], size["width"])
            size = size if isinstance(size, tuple) else int(size)
            if "crop_size" not in settings and isinstance(size, int):
                raise KeyError("crop_size")  # the short side leaves oblong images oblong
            crop = settings.get("crop_size", size)
            if isinstance(crop, dict):
                crop = crop["height"], crop["width"]
            return cls(
                size=size,
                crop=(crop, crop) if isinstance(crop, int) else crop,
                mean=tuple(settings["image_mean"]),
                std=tuple(settings["image_std"]),
                mode=_RESAMPLING[settings.get("resample", 3)],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DirectAlignError(
                f"{file}: cannot read {error} of the image settings; copy the file from the "
                "original checkpoint"
            ) from error

    @classmethod
    def of(cls, folder: Path | None, side: int) -> Preprocessing:
        """As `read`; without a folder, CLIP's resizing to `side` pixels."""
        if folder is not None:
            return cls.read(folder)
        return cls(side, (side, side), (0.5,) * 3, (0.25,) * 3)

    def __call__(self, images: Images) -> Pixels:
        """Images (b, 3, h, w) in [0, 1] to normalised vision tower inputs (b, 3, rows, columns)."""
        size = self._resized(images.shape[-2], images.shape[-1])
        if size != tuple(images.shape[-2:]):
            images = resize(images, size, self.mode)
        (height, width), (crop_height, crop_width) = size, self.crop
        top, left = self._half(height - crop_height), self._half(width - crop_width)
        return normalised(
            images[..., top : top + crop_height, left : left + crop_width], self.mean, self.std
        )

    def _half(self, border: int) -> int:
        return round(border / 2) if self.rounded_centre else border // 2

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.size, tuple):
            return self.size
        longer = int(self.size * max(height, width) / min(height, width))
        return (self.size, longer) if height <= width else (longer, self.size)


CACHE_LIMIT = 65_536
TEXT_BATCH = 8
"""Prompts that a text tower encodes at once."""


class PromptCache:
    """Results of `encode` by prompt; the oldest are dropped above `limit`.

    `encode` maps a list of prompts to as many results, a list or the rows of a tensor. With
    `batch_size` every call gets that many prompts, padded with the last one: the features of a
    prompt are then the same to the bit whichever prompts it is first encoded with, as after a
    resume. `encode` must pad to one length.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], Any],
        limit: int = CACHE_LIMIT,
        batch_size: int | None = None,
    ) -> None:
        self.encode, self.limit, self.batch_size = encode, limit, batch_size
        self.cached: dict[str, Any] = {}

    def read(self, prompts: Sequence[str]) -> list[Any]:
        """One result per prompt, in order; prompts not yet cached are encoded."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cached]
        size = self.batch_size or len(new)
        for part in (new[start : start + size] for start in range(0, len(new), size or 1)):
            results = self.encode([*part, *part[-1:] * (size - len(part))])
            self.cached.update(zip(part, results[: len(part)], strict=True))
        read = [self.cached[prompt] for prompt in prompts]
        for prompt in list(self.cached)[: max(0, len(self.cached) - self.limit)]:
            del self.cached[prompt]
        return read


def recompute(model: nn.Module, active: bool) -> None:
    """If `active`, recompute activations of all transformer layers in the backward pass.

    transformers does so in train mode only, and rewards are in eval mode.
    """
    for layer in model.modules() if active else ():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
            )
