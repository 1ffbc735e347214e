"""open_clip's files: the original's features to 1e-5, and what shapes do not determine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from directalign import config
from directalign.rewards import check_reward, load_reward, open_clip
from directalign.rewards.open_clip import clip_config
from published_layouts import images_drawn
from recorded_rewards import FIXTURES
from rewards.cases import refused, scores_of
from tiny_rewards import write_open_clip

FOLDER = FIXTURES / "open_clip"
PUBLISHED: dict[str, Any] = json.loads((FOLDER / "published.json").read_text())


def differences(file: Path, name: str) -> tuple[float, float]:
    """Largest difference from the recorded image and text features of `name`."""
    model, kept = open_clip.load(file, "reward"), load_file(FOLDER / name / "answers.safetensors")
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=kept["pixels"]).pooler_output
        image = model.visual_projection(pooled) - kept["image_features"]
        text = model.text_projection(model.text_model(input_ids=kept["tokens"]).pooler_output)
    return image.abs().max().item(), (text - kept["text_features"]).abs().max().item()


@pytest.mark.parametrize("name", ["plain", "quick", "wide_heads", "custom_text"])
def test_features_are_those_of_open_clip(name):
    assert max(differences(FOLDER / name / "open_clip_model.safetensors", name)) < 1e-5


def test_another_activation_or_number_of_heads_gives_other_features(tmp_path):
    model = json.loads((FOLDER / "quick" / "open_clip_config.json").read_text())["model_cfg"]
    file = tmp_path / "w.safetensors"
    file.symlink_to(FOLDER / "quick" / "open_clip_model.safetensors")
    for change in ({"quick_gelu": False}, {"vision_cfg": model["vision_cfg"] | {"head_width": 6}}):
        settings = {"model_cfg": model | change}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
        assert differences(file, "quick")[0] > 1e-3


def shapes_of(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Those that determine a model's size, as open_clip's files have them."""
    vision, text, side = sizes["vision_cfg"], sizes["text_cfg"], sizes["vision_cfg"]["patch_size"]
    blocks = {
        f"{prefix}transformer.resblocks.{layer}.mlp.c_fc.weight": (4 * each["width"], each["width"])
        for prefix, each in (("visual.", vision), ("", text))
        for layer in range(each["layers"])
    }
    return blocks | {
        "visual.conv1.weight": (vision["width"], 3, side, side),
        "visual.positional_embedding": ((vision["image_size"] // side) ** 2 + 1, vision["width"]),
        "token_embedding.weight": (text.get("vocab_size", 49408), text["width"]),
        "positional_embedding": (text.get("context_length", 77), text["width"]),
        "text_projection": (text["width"], sizes["embed_dim"]),
    }


def test_the_shapes_determine_every_published_size():
    for sizes in PUBLISHED.values():
        vision, text = sizes["vision_cfg"], sizes["text_cfg"]
        activation = "quick_gelu" if sizes["quick_gelu"] else "gelu"
        found = clip_config(shapes_of(sizes), Path("w.pt"), "reward", activation)
        tower, patch = found.vision_config, vision["patch_size"]
        heads = vision["width"] // vision.get("head_width", 64)
        assert (tower.num_attention_heads, tower.num_hidden_layers) == (heads, vision["layers"])
        assert tower.image_size == vision["image_size"] // patch * patch
        assert found.text_config.num_attention_heads == text["heads"]
        assert found.text_config.num_hidden_layers == text["layers"]
        assert tower.hidden_act == found.text_config.hidden_act == activation


def test_hpsv2_needs_no_setting_and_others_require_what_shapes_lack():
    file = Path("HPS_v2.1_compressed.pt")
    found = clip_config(shapes_of(PUBLISHED["ViT-H-14"]), file, "reward").vision_config
    assert (found.hidden_act, found.num_attention_heads) == ("gelu", 16)
    with refused(r"reward\.activation: missing, and .*ViT-L\.pt does not contain it: set quick_"):
        clip_config(shapes_of(PUBLISHED["ViT-L-14"]), Path("ViT-L.pt"), "reward")
    sizes = PUBLISHED["ViT-B-32"]
    for change in (
        {"vision_cfg": sizes["vision_cfg"] | {"width": 800}},
        {"text_cfg": sizes["text_cfg"] | {"vocab_size": 250112}},
    ):
        with refused(r"put the checkpoint's open_clip_config\.json beside it"):
            clip_config(shapes_of(sizes | change), Path("w.pt"), "reward", "gelu")


def test_a_reward_of_a_file_scores_as_its_transformers_folder(clip_folder, tmp_path):
    file = write_open_clip(tmp_path, clip_folder, "open_clip_pytorch_model.bin")
    settings = config.ClipConfig(path=str(file), processor=str(clip_folder))
    check_reward(settings)
    folder, images = config.ClipConfig(path=str(clip_folder)), images_drawn(2, 48, 40, 0)
    scores = [scores_of(load_reward(each), images) for each in (settings, folder)]
    assert torch.allclose(*scores, atol=1e-6)
