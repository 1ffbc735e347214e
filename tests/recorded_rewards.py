"""The tiny random checkpoints whose originals' answers are recorded in tests/fixtures, written as
their makers publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.bert.tokenization_bert import BertTokenizer

from published_layouts import drawn

FIXTURES = Path(__file__).parent / "fixtures"
CLIP_NORM = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SIGLIP_NORM = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def recorded(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What was told and what was kept of fixtures/`name`."""
    folder = FIXTURES / name
    return json.loads((folder / "recorded.json").read_text()), load_file(
        folder / "recorded.safetensors"
    )


def image_reward_weights() -> dict[str, torch.Tensor]:
    """Every tensor of the original's state dict."""
    told, _ = recorded("image_reward")
    return drawn(told["shapes"], told["seed"])


def write_image_reward(folder: Path) -> tuple[Path, Path]:
    """ImageReward.pt with its med_config.json, and a folder with a tokenizer as
    google-bert/bert-base-uncased has it."""
    told, _ = recorded("image_reward")
    weights, reader = folder / "ImageReward.pt", folder / "bert"
    torch.save(image_reward_weights(), weights)
    (folder / "med_config.json").write_text(json.dumps(told["med_config"]))
    reader.mkdir()
    (reader / "vocab.txt").write_text("\n".join(told["vocabulary"]) + "\n")
    tokenizer: PreTrainedTokenizerFast = BertTokenizer(str(reader / "vocab.txt"))
    tokenizer.save_pretrained(reader)
    return weights, reader


def aesthetic_head(name: str) -> dict[str, torch.Tensor]:
    """Every tensor of a head: linear, improved, v2_5."""
    told, _ = recorded("aesthetic")
    return drawn(told["shapes"][name]["head"], told["seed"] + 2)


def write_aesthetic(folder: Path, name: str) -> tuple[Path, Path]:
    """A head's .pth, and the folder of the backbone under it."""
    told, _ = recorded("aesthetic")
    head, backbone = folder / f"{name}.pth", folder / f"{name}_backbone"
    torch.save(aesthetic_head(name), head)
    siglip = name == "v2_5"
    model: Any = (
        SiglipModel(SiglipConfig(**told["siglip"]))
        if siglip
        else CLIPModel(CLIPConfig(**told["clip"]))
    )
    found = model.load_state_dict(
        drawn(told["shapes"][name]["backbone"], told["seed"]), strict=False
    )
    assert not found.missing_keys and not found.unexpected_keys, found
    model.save_pretrained(backbone)
    side = told["clip"]["vision_config"]["image_size"]
    square = {"height": side, "width": side}
    sizes = {"size": square} if siglip else {"size": {"shortest_edge": side}, "crop_size": square}
    (backbone / "preprocessor_config.json").write_text(
        json.dumps(sizes | {"resample": 3} | (SIGLIP_NORM if siglip else CLIP_NORM))
    )
    return head, backbone
