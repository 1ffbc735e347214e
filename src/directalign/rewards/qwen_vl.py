"""A vision-language model as a reward: the probability that it answers yes to a question about image and prompt.

score = scale · P(yes), where P(yes) = softmax over the logits of `yes` and `no` at the first answer token; in [0, scale].
Qwen2-VL, Qwen2.5-VL and Qwen3-VL (transformers folders or hub ids), frozen, with the gradient through preprocessing,
vision tower and language model to the pixels. Where the model is certain the gradient vanishes, P'(z) = P (1 − P): at
P = .999 it is a thousandth of the logit's. `answer: log_odds` gives score = scale · (logit of yes − logit of no): unbounded,
mostly within −10 to 10, with the same ranking of images. Not supported: text beyond the first token, and reasoning before
the answer.

`encode_images` runs the vision tower once per image; `last_hidden_state` runs the language model on a chat around those
image tokens. A chat's user turn is one image and one text, in the model's own template. Image tokens get positions (time, row,
column) that start where the text before them ends; the text after continues behind the image's longer side (multimodal
rotary positions). Shorter chats are padded on the right.

Preprocessing resizes to multiples of patch·merge pixels within the folder's bounds on the number of pixels
(`preprocessor_config.json`). Like Pillow, it resizes columns, then rows, and clamps after each to [0, 1]; here half an
8-bit level wider, which rounding would undo, so that pure white keeps its gradient.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from .. import config
from ..io import hub
from ..types import DirectAlignError, Images, PerSample
from .common import BaseReward, recompute
from .weights import FOLDER_SETTINGS, FOLDER_WEIGHTS, check_folder, first_line, load_model, locate


class VlmReward(BaseReward):
    """A frozen Qwen VL (`interfaces.Reward`); features are the image's tokens, scores lie in [0, scale], or are log-odds."""

    name = "vlm"
    finetune_parts = ("lora",)

    def __init__(
        self,
        model: PreTrainedModel,
        chat: Chat,
        pixels: VlmPixels,
        settings: config.QwenVLConfig,
        answers: tuple[int, int],
    ) -> None:
        self.model, self.chat, self.pixels, self.settings, self.answers = (
            model,
            chat,
            pixels,
            settings,
            answers,
        )

    @classmethod
    def from_config(
        cls, settings: config.QwenVLConfig, device: torch.device | str = "cpu", key: str = "reward"
    ) -> VlmReward:
        """The reward of a recipe section, weights in `settings.dtype`; errors name `key`."""
        folder = locate(settings.path, f"{key}.path", (*SETTINGS, *FOLDER_WEIGHTS))
        kind = check_weights(folder, f"{key}.path")
        chat, pixels, answers = _reader(
            settings,
            folder
            if settings.processor is None
            else locate(settings.processor, f"{key}.processor", SETTINGS),
            key,
        )
        model = load_model(kind, folder, f"{key}.path", getattr(torch, settings.dtype))
        check_fits(model.config, pixels, chat, _blamed(settings, key))
        freeze(model, device)
        if settings.gradient_checkpointing:
            recompute(model.model)
        return cls(model, chat, pixels, settings, answers)

    @classmethod
    def meta(cls, settings: config.QwenVLConfig, key: str, configs: Any) -> VlmReward:
        """The reward without weights, for memory estimates; see `BaseReward.meta`."""
        folder = configs.folder(settings.path)
        kind, found = meta_config(settings.path, f"{key}.path", configs)
        model = kind(kind.config_class.from_dict(found)).to(getattr(torch, settings.dtype))
        if settings.gradient_checkpointing:
            recompute(model.model)
        if settings.processor is not None:
            folder = configs.folder(settings.processor, "preprocessor_config.json")
        pixels = VlmPixels.of(configs.image_settings(folder), found, f"{key}.path")
        pixels = pixels.bounded(settings.max_pixels)
        return cls(model, Chat(configs.tokenizer(), ""), pixels, settings, (0, 1))

    @classmethod
    def check(
        cls, settings: config.QwenVLConfig, key: str = "reward", online: bool = False
    ) -> None:
        """Check model type, image settings, template and answer tokens; local weights must be present and complete."""
        folder = settings_folder(settings.path, f"{key}.path", online)
        if folder is not None:
            (model_class_of if hub.is_hub_id(settings.path) else check_weights)(
                folder, f"{key}.path"
            )
        reader = (
            folder
            if settings.processor is None
            else settings_folder(settings.processor, f"{key}.processor", online)
        )
        if reader is not None:
            _reader(settings, reader, key)

    def encode(self, images: Images) -> ImageTokens:
        """Images (b, 3, h, w) in [0, 1], any size, through the vision tower."""
        return encode_images(self.model.model, self.pixels, images)

    def score(self, features: ImageTokens, prompts: Sequence[str]) -> PerSample:
        """scale · P(yes), or scale · log-odds, of the question about each image and its prompt, (b,)."""
        assert len(prompts) == len(features.tokens), (
            f"{len(prompts)} prompts for {len(features.tokens)} images"
        )
        log_odds = self._log_odds(
            features, [self.settings.question.replace("{prompt}", prompt) for prompt in prompts]
        )
        return self.settings.scale * (
            log_odds if self.settings.answer == "log_odds" else log_odds.sigmoid()
        )

    def _log_odds(self, features: ImageTokens, questions: list[str]) -> PerSample:
        """Logit of yes minus logit of no: of the vocabulary's rows only these two are computed, in float32 or better."""
        chats = self.chat.tokenize(questions, features.tokens.shape[1], features.tokens.device)
        hidden = last_hidden_state(self.model.model, features, chats)
        yes, no = self.model.lm_head.weight[list(self.answers)].to(
            torch.promote_types(hidden.dtype, torch.float32)
        )
        return hidden.to(yes.dtype) @ yes - hidden.to(no.dtype) @ no


def one_token(tokenizer: PreTrainedTokenizerBase, answer: str, key: str) -> int:
    """The token id of an answer. Raises DirectAlignError if it is not exactly one token."""
    ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if len(ids) != 1:
        raise DirectAlignError(
            f"{key}: {answer!r} is {len(ids)} tokens of this model, and an answer is one: give another word, or other capitals"
        )
    return ids[0]


def _reader(
    settings: config.QwenVLConfig, folder: Path, key: str
) -> tuple[Chat, VlmPixels, tuple[int, int]]:
    """Chat, preprocessing and the two answers' tokens of a folder."""
    blamed = _blamed(settings, key)
    pixels = VlmPixels.read(folder, blamed).bounded(settings.max_pixels)
    tokenizer, template = read_chat(folder, blamed)
    answers = (
        one_token(tokenizer, settings.yes, f"{key}.yes"),
        one_token(tokenizer, settings.no, f"{key}.no"),
    )
    if answers[0] == answers[1]:
        raise DirectAlignError(
            f"{key}.no: {settings.no!r} is the same token as {key}.yes: give another answer"
        )
    return Chat(tokenizer, template), pixels, answers


def _blamed(settings: config.QwenVLConfig, key: str) -> str:
    return f"{key}.path" if settings.processor is None else f"{key}.processor"


KINDS: dict[str, type[PreTrainedModel]] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
SETTINGS = (*FOLDER_SETTINGS, "chat_template*", "added_tokens.json")
"""What is fetched of a repository beside its weights."""
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ImageTokens:
    """Image tokens (b, n, d) of equally large images for the language model; `deeper` are Qwen3-VL's tokens for its first layers.

    `rows` x `columns` = n is the grid of tokens.
    """

    tokens: Float[Tensor, "b n d"]
    deeper: tuple[Float[Tensor, "b n d"], ...]
    rows: int
    columns: int


def encode_images(backbone: Any, pixels: VlmPixels, images: Images) -> ImageTokens:
    """The vision tower of a model without its head, on images (b, 3, h, w) in [0, 1], any size."""
    rows, columns = pixels.grid(images.shape[-2], images.shape[-1])
    grid = torch.tensor([[1, rows, columns]] * len(images), device=images.device)
    tokens, deeper = _merged(backbone.visual(pixels(images).to(backbone.dtype), grid_thw=grid))
    each = (len(images), -1, tokens.shape[-1])
    return ImageTokens(
        tokens.reshape(each),
        tuple(more.reshape(each) for more in deeper),
        rows // pixels.merge,
        columns // pixels.merge,
    )


def _merged(found: Any) -> tuple[Tensor, Sequence[Tensor]]:
    """Output of a vision tower: a tensor or a pair before transformers 5, an output object since."""
    if isinstance(found, Tensor):
        return found, ()
    return (
        found
        if isinstance(found, tuple)
        else (found.pooler_output, getattr(found, "deepstack_features", ()))
    )


def last_hidden_state(
    backbone: Any, image: ImageTokens, chats: ChatBatch, positions: Tensor | None = None
) -> Float[Tensor, "b d"]:
    """Hidden state (b, d) of the last token of each chat; `positions` (3, b, length), None for multimodal rotary positions."""
    of_image = chats.of_image
    embedded = backbone.get_input_embeddings()(chats.ids)
    embedded = embedded.masked_scatter(of_image[..., None], image.tokens.to(embedded.dtype))
    deeper = (
        {
            "visual_pos_masks": of_image,
            "deepstack_visual_embeds": [more.flatten(0, 1) for more in image.deeper],
        }
        if image.deeper
        else {}
    )
    hidden = backbone.language_model(
        inputs_embeds=embedded,
        attention_mask=chats.attended,
        position_ids=rotary_positions(chats, image.rows, image.columns)
        if positions is None
        else positions,
        use_cache=False,
        **deeper,
    ).last_hidden_state
    return hidden[range(len(hidden)), [length - 1 for length in chats.lengths]]


def freeze(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Set evaluation mode and no parameter gradients, and move to `device`."""
    return model.eval().requires_grad_(False).to(device)


def settings_folder(path: str, key: str, online: bool) -> Path | None:
    """The folder of a model's settings: local, or fetched without weights if `online`; None if it is on the hub."""
    if not hub.is_hub_id(path):
        return locate(path, key, ())
    return hub.download(path, SETTINGS, key) if online else None


def model_class_of(folder: Path, key: str) -> type[PreTrainedModel]:
    """The class of a folder's model. Raises DirectAlignError for no folder, no config.json, or one of another kind."""
    file = folder / "config.json"
    if not file.exists():
        what = (
            "config.json is missing; it must be a complete transformers folder of a Qwen VL"
            if folder.is_dir()
            else "no such folder; give one of a Qwen VL"
        )
        raise DirectAlignError(f"{key}: {folder}: {what}")
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise DirectAlignError(
            f"{key}: {file}: not readable as JSON ({error}); copy it again from the original checkpoint"
        ) from error
    if found not in KINDS:
        raise DirectAlignError(
            f"{key}: {folder}: holds a model of type {found}, known are {', '.join(KINDS)}; give the folder of a Qwen VL"
        )
    return KINDS[found]


def meta_config(path: str, key: str, configs: Any) -> tuple[Any, dict[str, Any]]:
    """Class and config.json of a model by its folder or hub id, without weights; `configs` as in `BaseReward.meta`."""
    folder = configs.folder(path)
    if folder is not None:
        kind = model_class_of(folder, key)
        return kind, json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = configs.published(path, key, "vlm")
    return next(kind for kind in KINDS.values() if kind.__name__ == found["_class_name"]), found


def check_weights(folder: Path, key: str) -> type[PreTrainedModel]:
    """The class of a folder's model, after checking that all weight files are complete."""
    kind = model_class_of(folder, key)
    check_folder(folder, key, kind)
    if (folder / INDEX).exists():
        named = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        lacking = sorted(name for name in named if not (folder / name).exists())
        if lacking:
            raise DirectAlignError(
                f"{key}: {folder}: {lacking[0]} and {len(lacking) - 1} more of {len(named)} files of weights are missing; fetch them again"
            )
    return kind


def check_fits(model_config: Any, pixels: VlmPixels, chat: Chat, key: str) -> None:
    """Refuse image settings or a vocabulary that belong to another model."""
    vision = model_config.vision_config
    wanted = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if (pixels.patch, pixels.merge, pixels.frames) != wanted:
        found = f"patches of {pixels.patch}, merged by {pixels.merge}, of {pixels.frames} frames"
        raise DirectAlignError(
            f"{key}: its image settings make {found}, and the model reads {wanted[0]}, {wanted[1]}, {wanted[2]}; name its own processor"
        )
    known = model_config.get_text_config().vocab_size
    if len(chat.tokenizer) > known or chat.image_id != model_config.image_token_id:
        raise DirectAlignError(
            f"{key}: its tokenizer has {len(chat.tokenizer)} tokens and the model knows {known}, or other ones; name its own processor"
        )


VOCABULARIES = ("tokenizer.json", "vocab.json")
IMAGE = "<|image_pad|>"
"""The token that stands for an image, or for one token of it, in all models of this kind."""


@dataclass(frozen=True)
class ChatBatch:
    """Token ids (b, length) of chats with equally large images; position of the first image token, and length, of each."""

    ids: Int[Tensor, "b length"]
    starts: tuple[int, ...]
    image_tokens: int
    lengths: tuple[int, ...]

    @property
    def attended(self) -> Int[Tensor, "b length"]:
        """1 for tokens, 0 for padding."""
        return (self._places < self._column(self.lengths)).long()

    @property
    def of_image(self) -> Bool[Tensor, "b length"]:
        """True at image tokens."""
        starts = self._column(self.starts)
        return (self._places >= starts) & (self._places < starts + self.image_tokens)

    @property
    def _places(self) -> Tensor:
        return torch.arange(self.ids.shape[1], device=self.ids.device)

    def _column(self, numbers: tuple[int, ...]) -> Tensor:
        return torch.tensor(numbers, device=self.ids.device)[:, None]


class Chat:
    """Tokenizer and template; a rendered chat ends behind the last `end`, or where the answer begins if None."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str, end: str | None = None
    ) -> None:
        self.tokenizer, self.template, self.end = tokenizer, template, end
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))  # pyright: ignore[reportArgumentType]

    def tokenize(
        self, texts: Sequence[str], image_tokens: int, device: torch.device | str = "cpu"
    ) -> ChatBatch:
        """One chat per text, each with an image of `image_tokens` tokens. Raises DirectAlignError for a text that contains the image token."""
        rows = [self._ids(text) for text in texts]
        starts = tuple(row.index(self.image_id) for row in rows)
        filled = [
            row[:start] + [self.image_id] * image_tokens + row[start + 1 :]
            for row, start in zip(rows, starts, strict=True)
        ]
        lengths = tuple(len(row) for row in filled)
        pad = self.tokenizer.pad_token_id or 0
        padded = [row + [pad] * (max(lengths) - len(row)) for row in filled]
        return ChatBatch(torch.tensor(padded, device=device), starts, image_tokens, lengths)

    def render(self, text: str) -> str:
        """The chat as text, with one token for the image."""
        chat: Any = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        ]
        rendered: Any = self.tokenizer.apply_chat_template(
            chat, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        return (
            rendered if self.end is None else rendered[: rendered.rindex(self.end) + len(self.end)]
        )

    def _ids(self, text: str) -> list[int]:
        ids = list(self.tokenizer(self.render(text))["input_ids"])
        if ids.count(self.image_id) != 1:
            raise DirectAlignError(
                f"the prompt {text!r} holds {IMAGE}, which stands for the image: take it out"
            )
        return ids


def read_chat(folder: Path, key: str) -> tuple[PreTrainedTokenizerBase, str]:
    """Tokenizer and chat template of a folder. Raises DirectAlignError: either is missing or unreadable, or has no place for an image."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise DirectAlignError(
            f"{key}: {folder}: tokenizer.json (or vocab.json and merges.txt) is missing; copy it from the original checkpoint"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise DirectAlignError(
            f"{key}: {folder}: its tokenizer cannot be read ({first_line(error)})"
        ) from error
    template = _template(folder, tokenizer, key)
    if IMAGE not in tokenizer.get_vocab():
        raise DirectAlignError(
            f"{key}: {folder}: its tokenizer has no {IMAGE}; take the tokenizer of a Qwen VL"
        )
    try:
        shown = Chat(tokenizer, template).render("").count(IMAGE)
    except TemplateError as error:
        raise DirectAlignError(
            f"{key}: {folder}: its chat template cannot be used ({first_line(error)}); copy it from the original checkpoint"
        ) from error
    if shown != 1:
        raise DirectAlignError(
            f"{key}: {folder}: its chat template shows no image; take the chat_template.json of a Qwen VL"
        )
    return tokenizer, template


def _template(folder: Path, tokenizer: PreTrainedTokenizerBase, key: str) -> str:
    """The processor's template if there is one, else the tokenizer's."""
    file = folder / "chat_template.json"
    try:
        template = (
            json.loads(file.read_text(encoding="utf-8"))["chat_template"]
            if file.exists()
            else tokenizer.chat_template
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DirectAlignError(
            f"{key}: {file}: holds no chat template ({first_line(error)}); copy it from the original checkpoint"
        ) from error
    if not isinstance(template, str):
        raise DirectAlignError(
            f"{key}: {folder}: chat_template.json (or .jinja) is missing; copy it from the original checkpoint"
        )
    return template


def rotary_positions(chats: ChatBatch, rows: int, columns: int) -> Int[Tensor, "3 b length"]:
    """Time, row and column of every token, for images of `rows` x `columns` tokens; those of padding are not used."""
    return torch.stack(
        [_positions(chats.ids.shape[1], start, rows, columns) for start in chats.starts], dim=1
    ).to(chats.ids.device)


def _positions(length: int, start: int, rows: int, columns: int) -> Tensor:
    image = (
        torch.stack(
            torch.meshgrid(
                torch.zeros(1).long(), torch.arange(rows), torch.arange(columns), indexing="ij"
            )
        ).reshape(3, -1)
        + start
    )
    behind = torch.arange(length - start - rows * columns) + start + max(rows, columns)
    return torch.cat([torch.arange(start).expand(3, -1), image, behind.expand(3, -1)], dim=1)


Patches = Float[Tensor, "n p"]
HALF_LEVEL = 0.5 / 255
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILES = ("preprocessor_config.json", "processor_config.json")
BICUBIC = 3
MOST_OBLONG = 200


@dataclass(frozen=True)
class VlmPixels:
    """How images in [0, 1] reach the vision tower: `patch` pixels along a side, `merge` patches along a token's side, `frames` per patch."""

    patch: int = 14
    merge: int = 2
    frames: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def read(cls, folder: Path, key: str) -> VlmPixels:
        """From the folder's settings; defaults are those of Qwen2-VL. Raises DirectAlignError for none, or none of this kind."""
        file = next((folder / name for name in FILES if (folder / name).exists()), None)
        if file is None:
            raise DirectAlignError(
                f"{key}: {folder}: preprocessor_config.json is missing; copy it from the original checkpoint"
            )
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return cls._of(found.get("image_processor", found))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DirectAlignError(
                f"{key}: {file}: no image settings of a Qwen VL ({error}); copy the file from the original checkpoint"
            ) from error

    @classmethod
    def _of(cls, found: dict[str, Any]) -> VlmPixels:
        if found.get("resample", BICUBIC) != BICUBIC:
            raise ValueError(f"resample {found['resample']}, known is {BICUBIC}, bicubic")
        size = found.get("size") or {}
        least = (
            found.get("min_pixels")
            or size.get("shortest_edge")
            or size.get("min_pixels")
            or cls.min_pixels
        )
        most = (
            found.get("max_pixels")
            or size.get("longest_edge")
            or size.get("max_pixels")
            or cls.max_pixels
        )
        sides = (
            int(found.get("patch_size", cls.patch)),
            int(found.get("merge_size", cls.merge)),
            int(found.get("temporal_patch_size", cls.frames)),
        )
        return cls(
            *sides,
            int(least),
            int(most),
            tuple(found.get("image_mean") or CLIP_MEAN),
            tuple(found.get("image_std") or CLIP_STD),
        )

    @classmethod
    def of(cls, folder: Path | None, model: dict[str, Any], key: str) -> VlmPixels:
        """As `read`; without a folder, from a model's config.json, within its published bounds (`images`)."""
        if folder is not None:
            return cls.read(folder, key)
        vision = model["vision_config"]
        sides = (
            vision["patch_size"],
            vision.get("spatial_merge_size", 2),
            vision.get("temporal_patch_size", 2),
        )
        return cls(*sides, **model.get("images", {}))

    def bounded(self, max_pixels: int | None) -> VlmPixels:
        """With at most `max_pixels` per image, if given; the lower bound is reduced to match."""
        return (
            self
            if max_pixels is None
            else replace(self, min_pixels=min(self.min_pixels, max_pixels), max_pixels=max_pixels)
        )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing. Raises DirectAlignError for an image more oblong than 200 to 1, which no Qwen VL takes."""
        if max(height, width) > MOST_OBLONG * min(height, width):
            raise DirectAlignError(
                f"an image of {height} x {width} is more oblong than {MOST_OBLONG} to 1; generate a squarer one"
            )
        cell = self.patch * self.merge
        rows, columns = (
            max(cell, round(height / cell) * cell),
            max(cell, round(width / cell) * cell),
        )
        if rows * columns > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            return max(cell, math.floor(height / shrink / cell) * cell), max(
                cell, math.floor(width / shrink / cell) * cell
            )
        if rows * columns < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            return math.ceil(height * grow / cell) * cell, math.ceil(width * grow / cell) * cell
        return rows, columns

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image."""
        rows, columns = self.size(height, width)
        return rows // self.patch, columns // self.patch

    def __call__(self, images: Images) -> Patches:
        """Images (b, 3, h, w) in [0, 1] to patches (b · rows · columns, 3 · frames · patch²), one image after the other, as the tower takes them."""
        height, width = self.size(images.shape[-2], images.shape[-1])
        images = _resized(_resized(images, images.shape[-2], width), height, width)
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return self._cut((images - mean) / std)

    def _cut(self, images: Tensor) -> Tensor:
        """Patches in token order: the merge² patches of one token are adjacent. A still image fills all frames."""
        cell = self.patch * self.merge
        rows, columns = images.shape[-2] // cell, images.shape[-1] // cell
        parts = images.reshape(
            -1, 3, rows, self.merge, self.patch, columns, self.merge, self.patch
        ).permute(0, 2, 5, 3, 6, 1, 4, 7)
        frames = parts[..., None, :, :].expand(
            *parts.shape[:6], self.frames, self.patch, self.patch
        )
        return frames.reshape(-1, 3 * self.frames * self.patch**2)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if tuple(images.shape[-2:]) == (height, width):
        return images
    resized = F.interpolate(
        images, (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.clamp(-HALF_LEVEL, 1 + HALF_LEVEL)
