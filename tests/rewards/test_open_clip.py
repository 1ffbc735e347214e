"""open_clip's files: the original's features to 1e-5, and what shapes do not determine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from directalign import config
from directalign.rewards import check_reward, load_reward, open_clip
from directalign.rewards.clip import ClipReward
from directalign.rewards.open_clip import clip_config
from directalign.types import DirectAlignError
from tiny_open_clip import open_clip_weights, write_open_clip

FIXTURES = Path(__file__).parents[1] / "fixtures" / "open_clip"
PUBLISHED = json.loads((FIXTURES / "published.json").read_text())
PROMPTS = ["a red star", "a blue ring on an olive background"]


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["plain", "quick", "wide_heads", "custom_text"])
@torch.no_grad()
def test_features_are_those_of_open_clip(name: str) -> None:
    model = open_clip.load(FIXTURES / name / "open_clip_model.safetensors", "reward").eval()
    told = load_file(FIXTURES / name / "answers.safetensors")
    image = model.visual_projection(model.vision_model(pixel_values=told["pixels"]).pooler_output)
    text = model.text_projection(model.text_model(input_ids=told["tokens"]).pooler_output)
    assert (image - told["image_features"]).abs().max() < 1e-5
    assert (text - told["text_features"]).abs().max() < 1e-5


def test_the_activation_and_the_heads_matter(tmp_path: Path) -> None:
    """So that equality above says something."""
    told = load_file(FIXTURES / "quick" / "answers.safetensors")
    settings = json.loads((FIXTURES / "quick" / "open_clip_config.json").read_text())
    (tmp_path / "w.safetensors").symlink_to(FIXTURES / "quick" / "open_clip_model.safetensors")
    for change in (
        {"quick_gelu": False},
        {"vision_cfg": settings["model_cfg"]["vision_cfg"] | {"head_width": 6}},
    ):
        (tmp_path / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": settings["model_cfg"] | change})
        )
        other = open_clip.load(tmp_path / "w.safetensors", "reward")
        with torch.no_grad():
            image = other.visual_projection(
                other.vision_model(pixel_values=told["pixels"]).pooler_output
            )
        assert (image - told["image_features"]).abs().max() > 1e-3


def shapes_of(sizes: dict) -> dict[str, tuple[int, ...]]:
    """Those that tell a model's size, as open_clip's files have them."""
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    blocks = {
        f"visual.transformer.resblocks.{layer}.mlp.c_fc.weight": (
            4 * vision["width"],
            vision["width"],
        )
        for layer in range(vision["layers"])
    }
    blocks |= {
        f"transformer.resblocks.{layer}.mlp.c_fc.weight": (4 * text["width"], text["width"])
        for layer in range(text["layers"])
    }
    positions = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    return blocks | {
        "visual.conv1.weight": (vision["width"], 3, vision["patch_size"], vision["patch_size"]),
        "visual.positional_embedding": (positions, vision["width"]),
        "token_embedding.weight": (text.get("vocab_size", 49408), text["width"]),
        "positional_embedding": (text.get("context_length", 77), text["width"]),
        "text_projection": (text["width"], sizes["embed_dim"]),
    }


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_size_is_told_by_its_shapes(name: str, tmp_path: Path) -> None:
    sizes = PUBLISHED[name]
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    found = clip_config(
        shapes_of(sizes),
        tmp_path / "w.pt",
        "reward",
        "quick_gelu" if sizes["quick_gelu"] else "gelu",
    )
    assert found.vision_config.num_attention_heads == vision["width"] // vision.get(
        "head_width", 64
    )
    assert found.text_config.num_attention_heads == text["heads"]
    assert (
        found.vision_config.image_size
        == vision["image_size"] // vision["patch_size"] * vision["patch_size"]
    )
    assert (found.vision_config.num_hidden_layers, found.text_config.num_hidden_layers) == (
        vision["layers"],
        text["layers"],
    )
    assert (
        found.vision_config.hidden_act
        == found.text_config.hidden_act
        == ("quick_gelu" if sizes["quick_gelu"] else "gelu")
    )


def test_hpsv2_needs_no_setting_and_vit_l_asks_for_its_activation(tmp_path: Path) -> None:
    described = clip_config(
        shapes_of(PUBLISHED["ViT-H-14"]), tmp_path / "HPS_v2.1_compressed.pt", "reward"
    )
    assert (described.vision_config.hidden_act, described.vision_config.num_attention_heads) == (
        "gelu",
        16,
    )
    with pytest.raises(
        DirectAlignError,
        match=r"reward\.activation: missing, and .*ViT-L\.pt does not contain it: set quick_gelu",
    ):
        clip_config(shapes_of(PUBLISHED["ViT-L-14"]), tmp_path / "ViT-L.pt", "reward")


def test_unknown_widths_and_vocabularies_ask_for_the_config(tmp_path: Path) -> None:
    sizes = PUBLISHED["ViT-B-32"]
    for change in (
        {"vision_cfg": sizes["vision_cfg"] | {"width": 800}},
        {"text_cfg": sizes["text_cfg"] | {"vocab_size": 250112}},
    ):
        with pytest.raises(
            DirectAlignError, match=r"put the checkpoint's open_clip_config\.json beside it"
        ):
            clip_config(shapes_of(sizes | change), tmp_path / "w.pt", "reward", "gelu")


@pytest.mark.parametrize("name", ["weights.pt", "open_clip_pytorch_model.bin"])
def test_a_reward_of_a_file_scores_as_its_transformers_folder(
    clip_folder: Path, tmp_path: Path, name: str
) -> None:
    file = write_open_clip(tmp_path, clip_folder, name)
    settings = config.ClipConfig(path=str(file), processor=str(clip_folder))
    check_reward(settings)
    reward, folder = load_reward(settings), ClipReward.load(str(clip_folder))
    assert torch.allclose(
        reward.score(reward.encode(images()), PROMPTS),
        folder.score(folder.encode(images()), PROMPTS),
        atol=1e-6,
    )


def test_half_precision_files_are_read_in_float32(clip_folder: Path, tmp_path: Path) -> None:
    file = write_open_clip(tmp_path, clip_folder)
    save_file(
        {name: tensor.half() for name, tensor in open_clip_weights(clip_folder).items()},
        tmp_path / "half.safetensors",
    )
    whole, half = (
        open_clip.load(file, "reward"),
        open_clip.load(tmp_path / "half.safetensors", "reward"),
    )
    assert half.dtype == torch.float32
    assert all(
        torch.allclose(tensor, whole.state_dict()[name], atol=1e-3)
        for name, tensor in half.state_dict().items()
    )
