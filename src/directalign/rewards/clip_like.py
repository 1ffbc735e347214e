"""Any transformers CLIPModel as a reward: the cosine of image and prompt (CLIP, PickScore, HPSv2.1, the world's own).

score = scale · cos(image, prompt). Weights are frozen; the gradient runs through the preprocessing to the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from .. import config, hub
from ..types import DirectAlignError, Images, PerSample
from ..world.assets import resolve
from .control_tokens import SoftWords
from .preprocessing import Preprocessing
from .projection import blind, check_project, directions_for

CACHED_PHRASES = 65_536
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
SETTINGS = ("*config.json", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json")
"""What is fetched of a repository on the hub, which may hold the weights in other formats too."""
TABLE = "text_model.embeddings.token_embedding.weight"
Features = Float[Tensor, "b d"]


class ClipReward:
    """A frozen CLIP (`interfaces.Reward`); features are unit vectors, scores lie in [-scale, scale]."""

    name = "clip"
    reads_prompt = True
    differentiable = True

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, preprocessing: Preprocessing, scale: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocessing, self.scale = tokenizer, preprocessing, scale
        self._phrases: dict[str, Tensor] = {}
        self.directions: Tensor | None = None
        text = model.text_model
        self.soft_words = SoftWords("clip", text.embeddings.token_embedding, TABLE, tokenizer, text.config.max_position_embeddings)

    @classmethod
    def load(
        cls, path: str, scale: float = 1.0, device: torch.device | str = "cpu", gradient_checkpointing: bool = False, processor: str | None = None
    ) -> ClipReward:
        """From a folder, or a repository on the hub, with config, safetensors, tokenizer and image settings, or `world:reward`; float32.

        `processor` is another folder or repository, for the tokenizer and image settings of weights that come without.
        """
        folder = _folder(path, "reward.path", (*SETTINGS, *WEIGHTS))
        key, reader = ("reward.path", folder) if processor is None else ("reward.processor", _folder(processor, "reward.processor", SETTINGS))
        check_folder(folder)
        preprocessing, tokenizer = check_reader(reader, key)
        model = _model(folder)
        torch.nn.Module.to(model, device)
        if gradient_checkpointing:
            _recompute(model)
        return cls(model, tokenizer, preprocessing, scale)

    def encode(self, images: Images) -> Features:
        """Images (b, 3, h, w) in [0, 1], any size, to unit features (b, d)."""
        pixels = self.preprocessing(images.to(self.model.dtype))
        return blind(self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output), self.directions)

    def score(self, features: Features, prompts: Sequence[str]) -> PerSample:
        """scale · cos, one prompt per image; phrases longer than the text tower reads are cut at its end."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        return self.scale * (features * self._read(prompts)).sum(-1)

    def _read(self, prompts: Sequence[str]) -> Tensor:
        new = [phrase for phrase in dict.fromkeys(prompts) if phrase not in self._phrases]
        if new:
            self._phrases.update(zip(new, self._encode_text(new), strict=True))
        read = torch.stack([self._phrases[prompt] for prompt in prompts])
        for phrase in list(self._phrases)[: max(0, len(self._phrases) - CACHED_PHRASES)]:
            del self._phrases[phrase]
        return read

    @torch.no_grad()
    def _encode_text(self, phrases: list[str]) -> Tensor:
        return self.encode_text(phrases)

    def encode_text(self, phrases: Sequence[str]) -> Features:
        """Unit features (b, d) of phrases, not cached, with the gradient to learned control tokens."""
        with self.soft_words.placed(phrases) as texts:
            length = self.model.text_model.config.max_position_embeddings
            tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt").to(self.model.device)
            pooled = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)


def load(settings: config.Clip, device: torch.device | str = "cpu", key: str = "reward") -> ClipReward:
    """The reward of a recipe's section; `key` is where it stands, for errors."""
    reward = ClipReward.load(settings.path, settings.scale, device, settings.gradient_checkpointing, settings.processor)
    reward.directions = directions_for(reward.model, reward.model.config.projection_dim, settings.project, key)
    return reward


def check(settings: config.Clip, key: str = "reward", online: bool = False) -> None:
    """What is wrong with a folder is known from its files; a repository's settings are fetched when `online`."""
    check_project(settings.project, key)
    for part, path in ((f"{key}.path", settings.path), (f"{key}.processor", settings.processor)):
        if online and path is not None and hub.is_hub_id(path):
            hub.download(path, SETTINGS, part)
    if hub.is_hub_id(settings.path):
        return
    if not resolve(settings.path).is_dir():
        raise DirectAlignError(f"{key}.path: {settings.path}: no such folder; give a CLIPModel folder, a hub id (owner/name), or world:reward")
    check_folder(resolve(settings.path))
    if settings.processor is None:
        check_reader(resolve(settings.path), f"{key}.path")
    elif not hub.is_hub_id(settings.processor):
        check_reader(resolve(settings.processor), f"{key}.processor")


def _folder(path: str, key: str, patterns: tuple[str, ...]) -> Path:
    return hub.download(path, patterns, key) if hub.is_hub_id(path) else resolve(path)


def check_folder(folder: Path) -> None:
    """Refuse, by file name, what transformers would report in pages: missing files and truncated weights."""
    if not folder.is_dir():
        raise DirectAlignError(f"reward.path {folder}: no such folder; give a transformers CLIPModel folder, or world:reward")
    if not (folder / "config.json").exists():
        raise DirectAlignError(f"reward.path {folder}: config.json is missing; it must be a complete transformers CLIPModel folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise DirectAlignError(f"reward.path {folder}: model.safetensors is missing; save the model with safetensors")
    for file in weights:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise DirectAlignError(f"{file}: not a complete safetensors file ({error}); copy it again") from error


def _model(folder: Path) -> CLIPModel:
    try:
        loaded: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DirectAlignError(f"reward.path {folder}: not a transformers CLIPModel ({_first_line(error)})") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise DirectAlignError(f"reward.path {folder}: weights lack {missing[0]} and {len(missing) - 1} more; take the weights that belong to config.json")
    return model


def _recompute(model: CLIPModel) -> None:
    """Let each layer of the vision tower keep its input alone and run again in the backward pass; transformers does so in train mode only."""
    for layer in model.vision_model.encoder.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def check_reader(folder: Path, key: str) -> tuple[Preprocessing, PreTrainedTokenizerBase]:
    """Image settings and tokenizer of a folder, named by `key` in the recipe; a missing or unreadable file is an error."""
    if not folder.is_dir():
        raise DirectAlignError(f"{key} {folder}: no such folder; give one with tokenizer and image settings")
    return Preprocessing.read(folder), _tokenizer(folder, key)


def _tokenizer(folder: Path, key: str) -> PreTrainedTokenizerBase:
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise DirectAlignError(f"{key} {folder}: tokenizer.json (or vocab.json and merges.txt) is missing; copy it from the original checkpoint")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DirectAlignError(f"{key} {folder}: its tokenizer cannot be read ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
