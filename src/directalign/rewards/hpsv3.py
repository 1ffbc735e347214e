"""HPSv3 (arXiv 2508.03789): a Qwen2-VL-7B that reads image and prompt, and a head that predicts a preference score at one token.

score = scale · mu, unbounded (its authors' means by model: SD 2 −0.2, SD 3 medium 5.3, SDXL 8.2, FLUX.1-dev 10.4, Kolors
10.6). `path` is HPSv3.safetensors (hub: MizzenAI/HPSv3/HPSv3.safetensors); `processor` is the folder or hub id with the
tokenizer, template, image settings and config.json it was made from: Qwen/Qwen2-VL-7B-Instruct (its weights are not read).
As in training, an image is resized to about 200,704 pixels (256 tokens), and positions are plain (0, 1, 2, ...), not
multimodal. Tested equal to the published code on random weights; the published weights were not available, so tensor names
of both transformers layouts are accepted (model.layers and visual; model.language_model and model.visual). Not supported:
the standard deviation sigma, and HPSv3++.

`QUESTION` is the training prompt, verbatim, trailing spaces included (package hpsv3, MIT licence, copyright 2024 HPSv3 Team).
The text after the reward token in the original ("END") is omitted: a causal model does not attend to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
)
from transformers.utils import logging

from .. import config
from ..io import hub
from ..types import DirectAlignError, Images, PerSample
from .common import BaseReward, recompute
from .qwen_vl import (
    Chat,
    ChatBatch,
    ImageTokens,
    VlmPixels,
    check_fits,
    encode_images,
    freeze,
    last_hidden_state,
    meta_config,
    model_class_of,
    read_chat,
    settings_folder,
)
from .weights import (
    check_published,
    check_tensors,
    is_weight_file,
    locate,
    on_the_hub,
    read_shapes,
    read_weights,
    shapes_of,
)

PIXELS = 256 * 28 * 28
USUAL = "Qwen/Qwen2-VL-7B-Instruct"


class Hpsv3Reward(BaseReward):
    """A frozen HPSv3 (`interfaces.Reward`); features are the image's 256 tokens, scores have no bounds."""

    name = "hpsv3"

    def __init__(
        self,
        model: PreTrainedModel,
        head: nn.Sequential,
        chat: Chat,
        pixels: VlmPixels,
        scale: float = 1.0,
    ) -> None:
        self.model, self.head, self.chat, self.pixels, self.scale = model, head, chat, pixels, scale

    @classmethod
    def from_config(
        cls, settings: config.Hpsv3Config, device: torch.device | str = "cpu", key: str = "reward"
    ) -> Hpsv3Reward:
        """The reward of a recipe section, weights in `settings.dtype`; errors name `key`."""
        file = _file(settings, key, fetch=True)
        reader = _reader_folder(settings, key, online=True)
        assert file is not None and reader is not None
        chat, pixels = _reader(reader, key)
        weights = {
            inner(name): tensor for name, tensor in read_weights(file, f"{key}.path").items()
        }
        of = described(shapes_of(weights), reader, file, key)
        check_fits(of, pixels, chat, f"{key}.processor")
        model, head = filled(of, weights, getattr(torch, settings.dtype))
        freeze(model, device)
        freeze(head, device)
        if settings.gradient_checkpointing:
            recompute(model)
        return cls(model, head, chat, pixels, settings.scale)

    @classmethod
    def meta(cls, settings: config.Hpsv3Config, key: str, configs: Any) -> Hpsv3Reward:
        """The reward without weights, for memory estimates; see `BaseReward.meta`."""
        file = configs.file(settings.path, f"{key}.path")
        name = settings.processor or (USUAL if file is None else str(file.parent))
        folder = configs.folder(name)
        _, found = meta_config(name, f"{key}.processor", configs)
        of = Qwen2VLConfig.from_dict(found)
        if file is not None and folder is not None:
            shapes = read_shapes(file, f"{key}.path").items()
            of = described({inner(name): shape for name, shape in shapes}, folder, file, key)
        model, head = Qwen2VLModel(of).to(getattr(torch, settings.dtype)), head_of(of)
        if settings.gradient_checkpointing:
            recompute(model)
        pixels = VlmPixels.of(configs.image_settings(folder), found, f"{key}.processor")
        pixels = replace(pixels, min_pixels=PIXELS, max_pixels=PIXELS)
        return cls(model, head, Chat(configs.tokenizer(), "", end=REWARD), pixels, settings.scale)

    @classmethod
    def check(cls, settings: config.Hpsv3Config, key: str = "reward", online: bool = False) -> None:
        """What is wrong with the file's layout, by its header and the config of its processor, and with the processor's files."""
        check_published(settings.path, f"{key}.path", online)
        file, reader = _file(settings, key, fetch=False), _reader_folder(settings, key, online)
        if reader is None:
            return
        chat, pixels = _reader(reader, key)
        if file is not None:
            shapes = {
                inner(name): shape for name, shape in read_shapes(file, f"{key}.path").items()
            }
            check_fits(described(shapes, reader, file, key), pixels, chat, f"{key}.processor")

    def encode(self, images: Images) -> ImageTokens:
        """Images (b, 3, h, w) in [0, 1], any size, through the vision tower."""
        return encode_images(self.model, self.pixels, images)

    def score(self, features: ImageTokens, prompts: Sequence[str]) -> PerSample:
        """scale · mu of each image under its prompt."""
        assert len(prompts) == len(features.tokens), (
            f"{len(prompts)} prompts for {len(features.tokens)} images"
        )
        chats = self.chat.tokenize(
            [QUESTION.replace("{prompt}", prompt) for prompt in prompts],
            features.tokens.shape[1],
            features.tokens.device,
        )
        hidden = last_hidden_state(self.model, features, chats, _plain_positions(chats))
        return (
            self.scale
            * self.head(hidden.to(torch.promote_types(hidden.dtype, torch.float32)))[:, 0]
        )


def _plain_positions(chats: ChatBatch) -> Tensor:
    return torch.arange(chats.ids.shape[1], device=chats.ids.device).expand(3, *chats.ids.shape)


def _file(settings: config.Hpsv3Config, key: str, fetch: bool) -> Path | None:
    """The file of weights; None for the hub's where it is not to be fetched."""
    if not is_weight_file(settings.path):
        raise DirectAlignError(
            f"{key}.path: {settings.path}: name the file of weights: HPSv3.safetensors, or MizzenAI/HPSv3/HPSv3.safetensors on the hub"
        )
    return (
        None
        if hub.is_hub_file(settings.path) and not fetch
        else locate(settings.path, f"{key}.path", ())
    )


def _reader_folder(settings: config.Hpsv3Config, key: str, online: bool) -> Path | None:
    """Where config, tokenizer, template and image settings are: `processor`, else beside the file."""
    if settings.processor is not None:
        return settings_folder(settings.processor, f"{key}.processor", online)
    beside = (
        None if hub.is_hub_file(settings.path) else locate(settings.path, f"{key}.path", ()).parent
    )
    if beside is None or not (beside / "config.json").exists():
        where = on_the_hub(settings.path)[0] if beside is None else beside
        raise DirectAlignError(
            f"{key}.processor: missing, and {where} brings no settings of a Qwen2-VL: set processor: {USUAL}, whose weights are not read"
        )
    return beside


def _reader(folder: Path, key: str) -> tuple[Chat, VlmPixels]:
    """The chat up to the reward token, which is added to the vocabulary as in training, and preprocessing to a fixed number of pixels."""
    tokenizer, template = read_chat(folder, f"{key}.processor")
    if REWARD not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
    pixels = VlmPixels.read(folder, f"{key}.processor")
    return Chat(tokenizer, template, end=REWARD), replace(
        pixels, min_pixels=PIXELS, max_pixels=PIXELS
    )


EMBEDDING = "language_model.embed_tokens.weight"
UNUSED = ("lm_head.",)
"""The vocabulary's head, which the file holds and the score never asks."""
HEAD = "rm_head."


def inner(name: str) -> str:
    """The name in a Qwen2VLModel of a published tensor, of either layout."""
    own = name.removeprefix("model.")
    return (
        own
        if own.startswith(("visual.", "language_model.", HEAD, *UNUSED))
        else f"language_model.{own}"
    )


def described(
    shapes: Mapping[str, Sequence[int]], reader: Path, file: Path, key: str
) -> Qwen2VLConfig:
    """The config of a file's model: its processor's, with as many tokens as the file embeds; `shapes` by inner names.

    Raises DirectAlignError with what the file lacks, has too much of, or has in another shape.
    """
    if model_class_of(reader, f"{key}.processor") is not Qwen2VLForConditionalGeneration:
        raise DirectAlignError(
            f"{key}.processor: {reader}: holds no Qwen2-VL, under which HPSv3 was made; give Qwen/Qwen2-VL-7B-Instruct"
        )
    found: Qwen2VLConfig = Qwen2VLConfig.from_pretrained(reader)
    text = found.get_text_config()
    text.vocab_size = int(shapes.get(EMBEDDING, [text.vocab_size])[0])
    with torch.device("meta"):
        model, head = Qwen2VLModel(found), head_of(found)
    wanted = model.state_dict() | {
        HEAD + name: tensor for name, tensor in head.state_dict().items()
    }
    check_tensors(
        shapes_of(wanted),
        shapes,
        file,
        f"{key}.path",
        "HPSv3",
        UNUSED,
    )
    return found


def head_of(found: Qwen2VLConfig) -> nn.Sequential:
    """From a hidden state to mu and sigma; where training dropped out, nothing happens."""
    width = found.get_text_config().hidden_size
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.ReLU(),
        nn.Identity(),
        nn.Linear(1024, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )


def filled(
    found: Qwen2VLConfig, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Qwen2VLModel, nn.Sequential]:
    """Model in `dtype` and head in float32 with the weights of a checked file, by inner names."""
    logging.disable_progress_bar()
    below = {
        name: tensor for name, tensor in weights.items() if not name.startswith((HEAD, *UNUSED))
    }
    model: Any = Qwen2VLModel.from_pretrained(None, config=found, state_dict=below, dtype=dtype)
    head = head_of(found)
    head.load_state_dict(
        {
            name.removeprefix(HEAD): tensor
            for name, tensor in weights.items()
            if name.startswith(HEAD)
        }
    )
    return model, head


REWARD = "<|Reward|>"
"""The token behind which the head reads."""
QUESTION = (
    "\n"
    "You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall score to estimate the human "
    "preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being the best. \n"
    "\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal body structures or "
    "nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to interpret, with no blurring or "
    "indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, composition, atmosphere, depth of "
    "field, and the overall creative appeal. The scene should convey a sense of harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult material. If such content "
    "is present, the image quality and satisfaction score should be the lowest possible. \n"
    "\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align with the textual "
    "description. The subject should match the description in terms of number, appearance, and behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image logically fit the scenario "
    "described in the prompt. The environment should support and enhance the subject without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, accessories, expressions, actions) "
    "are faithfully represented in the image. Minor deviations may be acceptable, but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the image. The generated content "
    "should not introduce elements that conflict with or distort the original description.\n"
    "Textual prompt - {prompt}\n"
    "\n"
    "\n"
    "\n"
    "Please provide the overall ratings of this image: <|Reward|>"
)
