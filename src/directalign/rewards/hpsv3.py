"""HPSv3 (arXiv 2508.03789): a Qwen2-VL-7B that reads image and prompt, and a head that gives the mean of a preference score at a token.

score = scale · mu; without bounds (its authors' means by model: SD 2 −0.2, SD 3 medium 5.3, SDXL 8.2, FLUX.1-dev 10.4, Kolors 10.6).
Files: HPSv3.safetensors (MizzenAI/HPSv3/HPSv3.safetensors on the hub) for `path`, and for `processor` the folder or hub id whose
tokenizer, template, image settings and config.json it was made from: Qwen/Qwen2-VL-7B-Instruct (whose weights are not read).
As in the original, an image comes to about 200,704 pixels (256 tokens), and positions are plain, 0, 1, 2, ..., not multimodal: so it was
trained. Proved equal to the published code on random weights; the published ones were not at hand, so their tensors' names are taken in both
of transformers' layouts (model.layers and visual; model.language_model and model.visual). Left out: the spread sigma, and HPSv3++.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .. import config, hub
from ..types import DirectAlignError, Images, PerSample
from .hpsv3_layout import described, filled, inner
from .hpsv3_question import QUESTION, REWARD
from .published import check_published, is_weight_file, locate, on_the_hub, read_shapes, read_weights
from .recomputing import recompute
from .vlm_chat import Asked, Chat, read_chat
from .vlm_model import Seen, check_fits, frozen, read, see, settings_folder
from .vlm_pixels import VlmPixels

PIXELS = 256 * 28 * 28
USUAL = "Qwen/Qwen2-VL-7B-Instruct"


class Hpsv3Reward:
    """A frozen HPSv3 (`interfaces.Reward`); features are the image's 256 tokens, scores have no bounds."""

    name = "hpsv3"
    reads_prompt = True
    differentiable = True

    def __init__(self, model: PreTrainedModel, head: nn.Sequential, chat: Chat, pixels: VlmPixels, scale: float = 1.0) -> None:
        self.model, self.head, self.chat, self.pixels, self.scale = model, head, chat, pixels, scale

    def encode(self, images: Images) -> Seen:
        """Images (b, 3, h, w) in [0, 1], any size, through the vision tower."""
        return see(self.model, self.pixels, images)

    def score(self, features: Seen, prompts: Sequence[str]) -> PerSample:
        """scale · mu of each image under its prompt."""
        assert len(prompts) == len(features.tokens), f"{len(prompts)} prompts for {len(features.tokens)} images"
        asked = self.chat.ask([QUESTION.replace("{prompt}", prompt) for prompt in prompts], features.tokens.shape[1], features.tokens.device)
        hidden = read(self.model, features, asked, _plain_positions(asked))
        return self.scale * self.head(hidden.to(torch.promote_types(hidden.dtype, torch.float32)))[:, 0]


def _plain_positions(asked: Asked) -> Tensor:
    return torch.arange(asked.ids.shape[1], device=asked.ids.device).expand(3, *asked.ids.shape)


def load(settings: config.Hpsv3, device: torch.device | str = "cpu", key: str = "reward") -> Hpsv3Reward:
    """The reward of a recipe's section, its weights in `settings.dtype`; `key` is where it stands, for errors."""
    file = _file(settings, key, fetch=True)
    reader = _reader_folder(settings, key, online=True)
    assert file is not None and reader is not None
    chat, pixels = _reader(reader, key)
    weights = {inner(name): tensor for name, tensor in read_weights(file, f"{key}.path").items()}
    of = described({name: tuple(tensor.shape) for name, tensor in weights.items()}, reader, file, key)
    check_fits(of, pixels, chat, f"{key}.processor")
    model, head = filled(of, weights, getattr(torch, settings.dtype))
    frozen(model, device)
    frozen(head, device)
    if settings.gradient_checkpointing:
        recompute(model)
    return Hpsv3Reward(model, head, chat, pixels, settings.scale)


def check(settings: config.Hpsv3, key: str = "reward", online: bool = False) -> None:
    """What is wrong with the file's layout, by its header and the config of its processor, and with the processor's files."""
    check_published(settings.path, f"{key}.path", online)
    file, reader = _file(settings, key, fetch=False), _reader_folder(settings, key, online)
    if reader is None:
        return
    chat, pixels = _reader(reader, key)
    if file is not None:
        shapes = {inner(name): shape for name, shape in read_shapes(file, f"{key}.path").items()}
        check_fits(described(shapes, reader, file, key), pixels, chat, f"{key}.processor")


def _file(settings: config.Hpsv3, key: str, fetch: bool) -> Path | None:
    """The file of weights; None for the hub's where it is not to be fetched."""
    if not is_weight_file(settings.path):
        raise DirectAlignError(f"{key}.path: {settings.path}: name the file of weights: HPSv3.safetensors, or MizzenAI/HPSv3/HPSv3.safetensors on the hub")
    return None if hub.is_hub_file(settings.path) and not fetch else locate(settings.path, f"{key}.path", ())


def _reader_folder(settings: config.Hpsv3, key: str, online: bool) -> Path | None:
    """Where config, tokenizer, template and image settings are: `processor`, else beside the file."""
    if settings.processor is not None:
        return settings_folder(settings.processor, f"{key}.processor", online)
    beside = None if hub.is_hub_file(settings.path) else locate(settings.path, f"{key}.path", ()).parent
    if beside is None or not (beside / "config.json").exists():
        where = on_the_hub(settings.path)[0] if beside is None else beside
        raise DirectAlignError(f"{key}.processor: missing, and {where} brings no settings of a Qwen2-VL: set processor: {USUAL}, whose weights are not read")
    return beside


def _reader(folder: Path, key: str) -> tuple[Chat, VlmPixels]:
    """The chat up to the reward token, which is added to the vocabulary as in training, and preprocessing to a fixed number of pixels."""
    tokenizer, template = read_chat(folder, f"{key}.processor")
    if REWARD not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
    pixels = VlmPixels.read(folder, f"{key}.processor")
    return Chat(tokenizer, template, end=REWARD), replace(pixels, min_pixels=PIXELS, max_pixels=PIXELS)
