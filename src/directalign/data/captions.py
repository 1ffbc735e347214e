"""Captions for the images of a folder that have none, by a captioning network of transformers.

Each caption is a `.txt` beside its image, as a user would write it: it can be corrected, and a
second call makes none.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from ..errors import DirectAlignError
from ..io import hub
from ..io.atomic import write_text
from ..io.pretrained import contents, from_pretrained, load_network, model_type
from .image_dataset import in_folder
from .image_io import Unreadable, read_pixels

logger = logging.getLogger(__name__)

NONE = "none"
PUBLISHED = {"blip": "Salesforce/blip-image-captioning-large"}
"""Hub ids by short name."""
KINDS = {"blip": transformers.BlipForConditionalGeneration, "git": transformers.GitForCausalLM}
"""Networks that caption an image without being asked a question, by `model_type`."""
FILES = (
    *("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    *("*config.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt"),
)
BATCH = 8
MAX_TOKENS = 40


def write_captions(folder: Path, model: str, key: str, device: torch.device | str = "cpu") -> int:
    """Write a `.txt` beside every readable image of `folder` that has no caption file.

    Args:
        model: "blip" (BLIP large, 1.9 GB), or a folder or hub id of a BLIP or GIT.
        key: option for error messages.

    Returns the number of captions written. The network is loaded only if one is missing.

    Raises:
        DirectAlignError: as `in_folder`; no such model, one that does not caption, damaged files,
            or a blank caption.
    """
    entries = in_folder(folder).entries
    missing = [(folder / each.name, each.caption_file) for each in entries if each.caption_file]
    if not missing:
        return 0
    network, processor = _load(model, key, device)
    batches = (missing[start : start + BATCH] for start in range(0, len(missing), BATCH))
    written = sum(_caption(batch, network, processor, key) for batch in batches)
    logger.info(f"{folder}: {written} captions written by {model}, a .txt beside each image")
    return written


def _load(model: str, key: str, device: torch.device | str) -> tuple[Any, Any]:
    """The network on `device` and its processor."""
    path = PUBLISHED.get(model, model)
    folder = hub.download(path, FILES, key) if hub.is_hub_id(path) else Path(path).expanduser()
    kind = KINDS.get(model_type(folder)) if folder.is_dir() else None
    if kind is None:
        found = f"is {contents(folder)}" if folder.is_dir() else "no such folder"
        raise DirectAlignError(
            f"{key} {model}: {found}; give blip, or a folder or hub id of a captioning model "
            f"({', '.join(KINDS)})"
        )
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    network = load_network(kind, folder, dtype).to(device)
    return network, from_pretrained(transformers.AutoProcessor, folder)


@torch.no_grad()
def _caption(files: Sequence[tuple[Path, Path]], network: Any, processor: Any, key: str) -> int:
    """Caption a batch of (image, caption file) and count it; unreadable images are left out."""
    pictures = list[tuple[Path, Image.Image]]()
    for image, caption in files:
        with suppress(Unreadable):
            pixels = np.rint(read_pixels(image) * 255).astype(np.uint8)
            pictures.append((caption, Image.fromarray(pixels)))
    if not pictures:
        return 0
    images = [image for _, image in pictures]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    pixels = pixels.to(network.device, network.dtype)
    tokens = network.generate(pixel_values=pixels, max_new_tokens=MAX_TOKENS, do_sample=False)
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    for (file, _), text in zip(pictures, texts, strict=True):
        if not text.strip():
            raise DirectAlignError(
                f"{key}: {file}: the model gives a blank caption; write this file yourself"
            )
        write_text(file, f"{text.strip()}\n")
    return len(pictures)
