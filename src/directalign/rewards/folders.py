"""A reward's files: transformers folders, here or on the hub, with safetensors, tokenizer and image settings, checked before they are loaded.

Whatever is missing, cut short or of another architecture is one line that names the recipe's key, the file and the remedy; nothing is
unpickled. Weights in their makers' own files are read by `published`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .. import config, hub
from ..types import DirectAlignError
from .preprocessing import Preprocessing
from .published import check_published, is_weight_file, locate, on_the_hub

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
SETTINGS = ("*config.json", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "spiece.model")
"""What is fetched of a repository on the hub, which may hold the weights in other formats too."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
Model = TypeVar("Model", bound=PreTrainedModel)


def fetch(settings: config.Clip | config.Siglip | config.Mps, key: str) -> tuple[Path, Path]:
    """The folder or file of weights and the folder of tokenizer and image settings: `processor`, else where the weights lie."""
    weights = locate(settings.path, f"{key}.path", (*SETTINGS, *WEIGHTS))
    if hub.is_hub_file(settings.path):
        hub.download(on_the_hub(settings.path)[0], SETTINGS, f"{key}.path")  # what lies beside the file
    if settings.processor is not None:
        return weights, locate(settings.processor, f"{key}.processor", SETTINGS)
    return weights, weights.parent if weights.is_file() else weights


def check(settings: config.Clip | config.Siglip | config.Mps, key: str, online: bool, kind: type[PreTrainedModel]) -> Path | None:
    """Everything of these files but the weights' own layout; the file or folder of weights that is on this machine, None for the hub's.

    `online` looks at what a repository holds and fetches its settings, for which `key` is blamed.
    """
    check_published(settings.path, f"{key}.path", online)
    for part, path in (("path", settings.path), ("processor", settings.processor)):
        if online and path is not None and hub.is_hub_id(path) and not is_weight_file(path):
            hub.download(path, SETTINGS, f"{key}.{part}")
    on_hub = hub.is_hub_file(settings.path) or (hub.is_hub_id(settings.path) and not is_weight_file(settings.path))
    weights = None if on_hub else locate(settings.path, f"{key}.path", ())
    if weights is not None and weights.is_dir():
        check_folder(weights, f"{key}.path", kind)
    reader = settings.processor or (None if weights is None else str(weights if weights.is_dir() else weights.parent))
    if reader is not None and not hub.is_hub_id(reader):
        read_processor(locate(reader, f"{key}.processor", ()), blamed(settings, key), weights is not None and weights.is_file())
    return weights


def read_processor(folder: Path, key: str, beside: bool = False) -> tuple[Preprocessing, PreTrainedTokenizerBase]:
    """Image settings and tokenizer of a folder; `beside` a bare file of weights, where they are often missing, the remedy is another folder."""
    if not folder.is_dir():
        raise DirectAlignError(f"{key}: {folder}: no such folder; give one with tokenizer and image settings")
    lacks_vocabulary = not any((folder / name).exists() for name in VOCABULARIES)
    lacks_images = not any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json"))
    if beside and (lacks_vocabulary or lacks_images):
        lacking = "tokenizer.json" if lacks_vocabulary else "preprocessor_config.json"
        raise DirectAlignError(f"{key}: missing, and {folder} beside the weights has no {lacking}: name a folder or hub id with tokenizer and image settings")
    preprocessing = Preprocessing.read(folder)
    return preprocessing, read_tokenizer(folder, key)


def processor_of(settings: config.Clip | config.Siglip | config.Mps, weights: Path, reader: Path, key: str) -> tuple[Preprocessing, PreTrainedTokenizerBase]:
    """As `read_processor`, of what `fetch` gave."""
    return read_processor(reader, blamed(settings, key), weights.is_file() and settings.processor is None)


def check_folder(folder: Path, key: str, kind: type[PreTrainedModel]) -> None:
    """Refuse, by file name, what transformers would report in pages: missing files, another architecture, truncated weights."""
    if not folder.is_dir():
        raise DirectAlignError(f"{key}: {folder}: no such folder; give a transformers {kind.__name__} folder or a hub id")
    if not (folder / "config.json").exists():
        raise DirectAlignError(f"{key}: {folder}: config.json is missing; it must be a complete transformers {kind.__name__} folder")
    told, settings_class = _model_type(folder / "config.json", key), kind.config_class
    assert settings_class is not None, kind
    if told != settings_class.model_type:
        raise DirectAlignError(f"{key}: {folder}: holds a model of type {told}; give the folder of a transformers {kind.__name__}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise DirectAlignError(f"{key}: {folder}: model.safetensors is missing; save the model with safetensors")
    for file in weights:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise DirectAlignError(f"{key}: {file}: not a complete safetensors file ({error}); copy it again") from error


def load_model(kind: type[Model], folder: Path, key: str, dtype: torch.dtype = torch.float32) -> Model:
    """A model of a checked folder, in `dtype`, on the CPU."""
    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        loaded: Any = kind.from_pretrained(folder, **options)
    except UNREADABLE as error:
        raise DirectAlignError(f"{key}: {folder}: not a transformers {kind.__name__} ({first_line(error)})") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise DirectAlignError(f"{key}: {folder}: weights lack {missing[0]} and {len(missing) - 1} more; take the weights that belong to config.json")
    return model


def check_fits(model_config: Any, preprocessing: Preprocessing, tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Refuse image settings or a vocabulary that the model has no positions or embeddings for."""
    side = model_config.vision_config.image_size
    if preprocessing.crop != (side, side):
        raise DirectAlignError(
            f"{key}: its images are {preprocessing.crop[0]} x {preprocessing.crop[1]} and the model reads {side} x {side}; name its own processor"
        )
    known = model_config.text_config.vocab_size
    if len(tokenizer) > known:
        raise DirectAlignError(f"{key}: its tokenizer has {len(tokenizer)} tokens and the model knows {known}; name its own processor")


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return str(error).strip().split("\n")[0]


def blamed(settings: config.Clip | config.Siglip | config.Mps, key: str) -> str:
    """The recipe's key that says where tokenizer and image settings come from."""
    return f"{key}.path" if settings.processor is None and not is_weight_file(settings.path) else f"{key}.processor"


def _model_type(file: Path, key: str) -> str | None:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise DirectAlignError(f"{key}: {file}: not readable as JSON ({error}); copy it again from the original checkpoint") from error


def read_tokenizer(folder: Path, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises DirectAlignError: missing or unreadable."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise DirectAlignError(f"{key}: {folder}: tokenizer.json (or vocab.json and merges.txt) is missing; copy it from the original checkpoint")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise DirectAlignError(f"{key}: {folder}: its tokenizer cannot be read ({first_line(error)})") from error
