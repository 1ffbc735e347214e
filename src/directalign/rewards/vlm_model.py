"""The networks under the VLM rewards: Qwen2-VL, Qwen2.5-VL and Qwen3-VL of transformers, their files, and their two passes.

`see` runs the vision tower on images, once; `read` runs the language model on a chat with what was seen in it, up to the hidden state
of each chat's last token. Several chats about one image share one `see`. Frozen; the gradient runs through both passes to the pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from .. import hub
from ..types import DirectAlignError, Images
from . import folders
from .published import locate
from .vlm_chat import Asked, Chat, rotary_positions
from .vlm_pixels import VlmPixels

KINDS: dict[str, type[PreTrainedModel]] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
SETTINGS = (*folders.SETTINGS, "chat_template*", "added_tokens.json")
"""What is fetched of a repository beside its weights."""
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Seen:
    """Equally large images as the language model takes them: `tokens` (b, n, d), and for Qwen3-VL more of them for its first layers.

    `rows` x `columns` = n is the grid of tokens.
    """

    tokens: Float[Tensor, "b n d"]
    deeper: tuple[Float[Tensor, "b n d"], ...]
    rows: int
    columns: int


def see(backbone: Any, pixels: VlmPixels, images: Images) -> Seen:
    """The vision tower of a model without its head, on images (b, 3, h, w) in [0, 1], any size."""
    rows, columns = pixels.grid(images.shape[-2], images.shape[-1])
    grid = torch.tensor([[1, rows, columns]] * len(images), device=images.device)
    tokens, deeper = _merged(backbone.visual(pixels(images).to(backbone.dtype), grid_thw=grid))
    each = (len(images), -1, tokens.shape[-1])
    return Seen(tokens.reshape(each), tuple(more.reshape(each) for more in deeper), rows // pixels.merge, columns // pixels.merge)


def _merged(told: Any) -> tuple[Tensor, Sequence[Tensor]]:
    """The towers' answers: a tensor, or with its deeper ones a pair, before transformers 5; a record since."""
    if isinstance(told, Tensor):
        return told, ()
    return told if isinstance(told, tuple) else (told.pooler_output, getattr(told, "deepstack_features", ()))


def read(backbone: Any, seen: Seen, asked: Asked, positions: Tensor | None = None) -> Float[Tensor, "b d"]:
    """Hidden state behind the last token of each chat; `positions` (3, b, length) as the model was trained with, None for multimodal ones."""
    of_image = asked.of_image
    embedded = backbone.get_input_embeddings()(asked.ids)
    embedded = embedded.masked_scatter(of_image[..., None], seen.tokens.to(embedded.dtype))
    deeper = {"visual_pos_masks": of_image, "deepstack_visual_embeds": [more.flatten(0, 1) for more in seen.deeper]} if seen.deeper else {}
    hidden = backbone.language_model(
        inputs_embeds=embedded,
        attention_mask=asked.attended,
        position_ids=rotary_positions(asked, seen.rows, seen.columns) if positions is None else positions,
        use_cache=False,
        **deeper,
    ).last_hidden_state
    return hidden[range(len(hidden)), [length - 1 for length in asked.lengths]]


def frozen(model: nn.Module, device: torch.device | str) -> nn.Module:
    """In evaluation mode, without gradients of its own, on `device`."""
    return model.eval().requires_grad_(False).to(device)


def settings_folder(path: str, key: str, online: bool) -> Path | None:
    """The folder of a model's settings: here, or fetched without weights when `online`; None for one that stays on the hub."""
    if not hub.is_hub_id(path):
        return locate(path, key, ())
    return hub.download(path, SETTINGS, key) if online else None


def kind_of(folder: Path, key: str) -> type[PreTrainedModel]:
    """The class of a folder's model. Raises DirectAlignError for no folder, no config.json, or one of another kind."""
    file = folder / "config.json"
    if not file.exists():
        what = "config.json is missing; it must be a complete transformers folder of a Qwen VL" if folder.is_dir() else "no such folder; give one of a Qwen VL"
        raise DirectAlignError(f"{key}: {folder}: {what}")
    try:
        told = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise DirectAlignError(f"{key}: {file}: not readable as JSON ({error}); copy it again from the original checkpoint") from error
    if told not in KINDS:
        raise DirectAlignError(f"{key}: {folder}: holds a model of type {told}, known are {', '.join(KINDS)}; give the folder of a Qwen VL")
    return KINDS[told]


def check_weights(folder: Path, key: str) -> type[PreTrainedModel]:
    """The class of a folder's model whose files of weights are all there and whole."""
    kind = kind_of(folder, key)
    folders.check_folder(folder, key, kind)
    if (folder / INDEX).exists():
        named = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        lacking = sorted(name for name in named if not (folder / name).exists())
        if lacking:
            raise DirectAlignError(f"{key}: {folder}: {lacking[0]} and {len(lacking) - 1} more of {len(named)} files of weights are missing; fetch them again")
    return kind


def check_fits(model_config: Any, pixels: VlmPixels, chat: Chat, key: str) -> None:
    """Refuse image settings or a vocabulary that belong to another model."""
    vision = model_config.vision_config
    wanted = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if (pixels.patch, pixels.merge, pixels.frames) != wanted:
        found = f"patches of {pixels.patch}, merged by {pixels.merge}, of {pixels.frames} frames"
        raise DirectAlignError(f"{key}: its image settings make {found}, and the model reads {wanted[0]}, {wanted[1]}, {wanted[2]}; name its own processor")
    known = model_config.get_text_config().vocab_size
    if len(chat.tokenizer) > known or chat.image_id != model_config.image_token_id:
        raise DirectAlignError(f"{key}: its tokenizer has {len(chat.tokenizer)} tokens and the model knows {known}, or other ones; name its own processor")
