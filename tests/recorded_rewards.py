"""The tiny random checkpoints whose originals' answers are recorded in tests/fixtures, written as
their makers publish them."""

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
    """recorded.json and recorded.safetensors of fixtures/`name`."""
    folder = FIXTURES / name
    facts = json.loads((folder / "recorded.json").read_text())
    return facts, load_file(folder / "recorded.safetensors")


def image_reward_weights() -> dict[str, torch.Tensor]:
    """Every tensor of the original's state dict."""
    recorded_as, _ = recorded("image_reward")
    return drawn(recorded_as["shapes"], recorded_as["seed"])


def write_image_reward(folder: Path) -> tuple[Path, Path]:
    """ImageReward.pt with its med_config.json, and a folder with a tokenizer as
    google-bert/bert-base-uncased has it."""
    recorded_as, _ = recorded("image_reward")
    weights, reader = folder / "ImageReward.pt", folder / "bert"
    torch.save(image_reward_weights(), weights)
    (folder / "med_config.json").write_text(json.dumps(recorded_as["med_config"]))
    reader.mkdir()
    (reader / "vocab.txt").write_text("\n".join(recorded_as["vocabulary"]) + "\n")
    tokenizer: PreTrainedTokenizerFast = BertTokenizer(str(reader / "vocab.txt"))
    tokenizer.save_pretrained(reader)
    return weights, reader


def aesthetic_head(name: str) -> dict[str, torch.Tensor]:
    """Every tensor of a head: linear, improved, v2_5."""
    recorded_as, _ = recorded("aesthetic")
    return drawn(recorded_as["shapes"][name]["head"], recorded_as["seed"] + 2)


def write_aesthetic(folder: Path, name: str) -> tuple[Path, Path]:
    """A head's .pth, and the folder of the backbone under it."""
    recorded_as, _ = recorded("aesthetic")
    head, backbone = folder / f"{name}.pth", folder / f"{name}_backbone"
    torch.save(aesthetic_head(name), head)
    siglip = name == "v2_5"
    kind, config = (SiglipModel, SiglipConfig) if siglip else (CLIPModel, CLIPConfig)
    model: Any = kind(config(**recorded_as["siglip" if siglip else "clip"]))
    weights = drawn(recorded_as["shapes"][name]["backbone"], recorded_as["seed"])
    found = model.load_state_dict(weights, strict=False)
    assert not found.missing_keys and not found.unexpected_keys, found
    model.save_pretrained(backbone)
    side = recorded_as["clip"]["vision_config"]["image_size"]
    square = {"height": side, "width": side}
    sizes = {"size": square} if siglip else {"size": {"shortest_edge": side}, "crop_size": square}
    settings = sizes | {"resample": 3} | (SIGLIP_NORM if siglip else CLIP_NORM)
    (backbone / "preprocessor_config.json").write_text(json.dumps(settings))
    return head, backbone
