"""HPSv3 (arXiv 2508.03789): a Qwen2-VL-7B and a head that predicts a preference score at one token.

score = scale · mu, unbounded (its authors' means by model: SD 2 −0.2, SD 3 medium 5.3, SDXL 8.2,
FLUX.1-dev 10.4, Kolors 10.6). `path` is HPSv3.safetensors (hub: MizzenAI/HPSv3/HPSv3.safetensors);
`processor` is the folder or hub id with the tokenizer, template, image settings and config.json it
was made from: Qwen/Qwen2-VL-7B-Instruct (its weights are not read). As in training, an image is
resized to about 200,704 pixels (256 tokens), and positions are plain (0, 1, 2, ...), not
multimodal. Tested equal to the published code on random weights; the published weights were not
available, so tensor names of both transformers layouts are accepted (model.layers and visual;
model.language_model and model.visual). Not supported: the standard deviation sigma, and HPSv3++.

`hpsv3_prompt.txt` is the training prompt (package hpsv3, MIT licence, copyright 2024 HPSv3 Team).
The text after the reward token in the original ("END") is omitted: a causal model does not attend
to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
)

from .. import config
from ..io import hub
from ..io.image_settings import VlmPixels
from ..types import DirectAlignError, Images, PerSample
from . import qwen_vl
from . import weights as files
from .common import BaseReward, Device, recompute
from .qwen_vl import last_hidden_state

PIXELS = 256 * 28 * 28
MADE_FROM = "Qwen/Qwen2-VL-7B-Instruct"


class Hpsv3Reward(BaseReward):
    """A frozen HPSv3 (`interfaces.Reward`); features are 256 image tokens, scores unbounded."""

    name = "hpsv3"
    weight_file = (
        "name the file of weights: HPSv3.safetensors, or MizzenAI/HPSv3/HPSv3.safetensors "
        "on the hub"
    )

    def __init__(
        self,
        model: PreTrainedModel,
        head: nn.Sequential,
        chat: qwen_vl.Chat,
        pixels: VlmPixels,
        scale: float = 1.0,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.head = head.eval().requires_grad_(False)
        self.chat, self.pixels, self.scale = chat, pixels, scale

    @classmethod
    def _load(cls, settings: config.Hpsv3Config, device: Device, key: str) -> Hpsv3Reward:
        file = files.locate(settings.path, f"{key}.path")
        reader = _reader_folder(settings, key, online=True)
        assert reader is not None
        chat, pixels = _reader(reader, key)
        weights = files.read_weights(file, f"{key}.path")
        parts = described(files.shapes_of(weights), reader, file, key)
        qwen_vl.check_fits(parts["model"].config, pixels, chat, f"{key}.processor")
        own = {inner(name): tensor for name, tensor in weights.items()}
        model, head = files.filled(parts, own, getattr(torch, settings.dtype)).values()
        recompute(model, settings.gradient_checkpointing)
        return cls(model.to(device), head.to(device), chat, pixels, settings.scale)

    @classmethod
    def meta(cls, settings: config.Hpsv3Config, key: str, configs: Any) -> Hpsv3Reward:
        file = configs.file(settings.path, f"{key}.path")
        name = settings.processor or (MADE_FROM if file is None else str(file.parent))
        folder = configs.folder(name)
        _, found = qwen_vl.meta_config(name, f"{key}.processor", configs)
        if file is not None and folder is not None:
            parts = described(files.read_shapes(file, f"{key}.path"), folder, file, key)
        else:
            parts = parts_of(Qwen2VLConfig.from_dict(found))
        model, head = parts.values()
        model = model.to(getattr(torch, settings.dtype))
        recompute(model, settings.gradient_checkpointing)
        pixels = VlmPixels.of(configs.image_settings(folder), found, f"{key}.processor")
        pixels = replace(pixels, min_pixels=PIXELS, max_pixels=PIXELS)
        return cls(
            model, head, qwen_vl.Chat(configs.tokenizer(), "", end=REWARD), pixels, settings.scale
        )

    @classmethod
    def _check(cls, settings: config.Hpsv3Config, key: str, online: bool) -> None:
        file = files.check_published(settings.path, f"{key}.path", online)
        reader = _reader_folder(settings, key, online)
        if reader is None:
            return
        chat, pixels = _reader(reader, key)
        if file is not None:
            parts = described(files.read_shapes(file, f"{key}.path"), reader, file, key)
            qwen_vl.check_fits(parts["model"].config, pixels, chat, f"{key}.processor")

    def encode(self, images: Images) -> qwen_vl.ImageTokens:
        """Images (b, 3, h, w) in [0, 1], any size, through the vision tower."""
        return qwen_vl.encode_images(self.model, self.pixels, images)

    def score(self, features: qwen_vl.ImageTokens, prompts: Sequence[str]) -> PerSample:
        """scale · mu of each image under its prompt."""
        questions = [QUESTION.replace("{prompt}", prompt) for prompt in prompts]
        chats = self.chat.for_images(questions, features)
        plain = torch.arange(chats.ids.shape[1], device=chats.ids.device)
        positions = plain.expand(3, *chats.ids.shape)
        hidden = last_hidden_state(self.model, features, chats, positions)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return self.scale * self.head(hidden.to(wide))[:, 0]


def _reader_folder(settings: config.Hpsv3Config, key: str, online: bool) -> Path | None:
    """The folder of config, tokenizer, template and image settings: `processor`, else the file's.

    None if it is on the hub and not `online`.
    """
    file = files.check_published(settings.path, f"{key}.path")
    if settings.processor is None and (file is None or not (file.parent / "config.json").exists()):
        where = hub.on_the_hub(settings.path)[0] if file is None else file.parent
        raise DirectAlignError(
            f"{key}.processor: missing, and {where} has no settings of a Qwen2-VL: set processor: "
            f"{MADE_FROM}, whose weights are not read"
        )
    return files.reader_folder(settings, file, key, online, qwen_vl.SETTINGS)


def _reader(folder: Path, key: str) -> tuple[qwen_vl.Chat, VlmPixels]:
    """The chat up to the reward token, and preprocessing to a fixed number of pixels.

    The reward token is added to the vocabulary, as in training.
    """
    tokenizer, template = qwen_vl.read_chat(folder, f"{key}.processor")
    if REWARD not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
    pixels = VlmPixels.read(folder, f"{key}.processor")
    pixels = replace(pixels, min_pixels=PIXELS, max_pixels=PIXELS)
    return qwen_vl.Chat(tokenizer, template, end=REWARD), pixels


EMBEDDING = "model.language_model.embed_tokens.weight"
UNUSED = ("lm_head.",)
"""The vocabulary head, which the file contains and the score does not need."""


def inner(name: str) -> str:
    """The name in `parts_of` of a published tensor, of either layout."""
    own = name.removeprefix("model.")
    if own.startswith(("rm_head.", *UNUSED)):
        return own
    known = own.startswith(("visual.", "language_model."))
    return f"model.{own}" if known else f"model.language_model.{own}"


def described(shapes: files.Shapes, reader: Path, file: Path, key: str) -> Any:
    """The parts of a file's model on the meta device: of the processor's config, with as many
    tokens as the file embeds.

    Raises DirectAlignError for a missing, unknown or misshapen tensor.
    """
    own = {inner(name): shape for name, shape in shapes.items()}
    found: Qwen2VLConfig = files.read_config(
        Qwen2VLForConditionalGeneration, reader, f"{key}.processor"
    )
    text = found.get_text_config()
    text.vocab_size = int(own.get(EMBEDDING, [text.vocab_size])[0])
    with torch.device("meta"):
        parts = parts_of(found)
    wanted = files.shapes_of(parts.state_dict())
    files.check_tensors(wanted, own, file, f"{key}.path", "HPSv3", UNUSED)
    return parts


def parts_of(found: Qwen2VLConfig) -> Any:
    """The model, and the head from a hidden state to mu and sigma; Identity takes the place of
    training's dropout."""
    width = found.get_text_config().hidden_size
    layers = [nn.Linear(width, 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU()]
    head = nn.Sequential(*layers, nn.Linear(16, 2))
    return nn.ModuleDict({"model": Qwen2VLModel(found), "rm_head": head})


REWARD = "<|Reward|>"
"""The token at which the head reads the hidden state."""
QUESTION = Path(__file__).with_name("hpsv3_prompt.txt").read_text(encoding="utf-8")
"""The training prompt, verbatim, trailing spaces included."""
