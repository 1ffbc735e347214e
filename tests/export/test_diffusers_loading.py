"""Exports in diffusers: LoRAs have the run's factors and images, pipelines its weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from directalign.export import Format, export_run
from directalign.export.weights import merge
from directalign.models.lora_files import LowRank
from directalign.types import DirectAlignError
from finished_runs import finished_recipe, image, write_finished
from low_rank_updates import random_updates, updates_of_shape
from tiny import write_sdxl

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


def with_lora(pipe: Any, folder: Path, **weight_name: str) -> tuple[dict[str, Any], np.ndarray]:
    """LoRA factors in the denoiser and an image; the LoRA is unloaded again."""
    pipe.load_lora_weights(folder, **weight_name)
    denoiser = pipe.transformer if isinstance(pipe, FluxPipeline) else pipe.unet
    factors = {n: each.detach().clone() for n, each in denoiser.named_parameters() if "lora_" in n}
    found = image(pipe)
    pipe.unload_lora_weights()
    return factors, found


def assert_same_lora(pipe: Any, run: Path, folders: list[Path]) -> None:
    """Each folder's only LoRA has the factors and the image of the run's LoRA."""
    plain, (factors, expected) = image(pipe), with_lora(pipe, run, weight_name="lora.safetensors")
    assert np.abs(expected - plain).max() > 0.01
    for folder in folders:
        found, drawn = with_lora(pipe, folder)
        assert found.keys() == factors.keys(), folder
        assert all(torch.equal(found[name], factors[name]) for name in factors), folder
        assert np.array_equal(drawn, expected), folder


def test_flux(flux_run, tiny_flux, tmp_path):
    forms: tuple[Format, ...] = ("diffusers", "comfyui", "kohya")
    folders = [export_run(flux_run, form, tmp_path / form) for form in forms]
    assert_same_lora(FluxPipeline.from_pretrained(tiny_flux), flux_run, folders)


@pytest.mark.parametrize(
    ("model", "stem", "layers"),
    [
        ("sd", "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", 1),
        ("sdxl", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 2),
        ("sdxl", "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q", 1),
        ("sdxl", "lora_unet_input_blocks_5_1_transformer_blocks_0_attn1_to_q", 3),
    ],
)
def test_unets(model, stem, layers, tiny_sd, tmp_path):
    base, kind = tiny_sd, StableDiffusionPipeline
    if model == "sdxl":
        base = write_sdxl(tmp_path / "base", unet={"layers_per_block": layers})
        kind = StableDiffusionXLPipeline
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    updates = random_updates(unet, UNET_TARGETS)
    assert {name.split(".")[0] for name in updates} == {"down_blocks", "mid_block", "up_blocks"}
    run = write_finished(tmp_path / "run", finished_recipe(model, base), updates, "unet")
    folders = [export_run(run, "comfyui", tmp_path / "a"), export_run(run, "kohya", tmp_path / "b")]
    assert_same_lora(kind.from_pretrained(base), run, folders)
    for folder in folders:
        assert f"{stem}.alpha" in load_file(folder / "red_lora_2.safetensors")


def test_metadata_and_dtype(flux_run, tmp_path):
    folder = export_run(flux_run, "kohya", tmp_path / "kohya")
    with safe_open(folder / "red_lora_2.safetensors", "pt") as file:
        found = file.metadata()
    expected = {
        "modelspec.architecture": "flux-1/lora",
        "modelspec.title": "Red, LoRA 2",
        "ss_base_model_version": "flux1",
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": "2",
        "ss_seed": "7",
        "directalign.commit": "0123456789abcdef",
    }
    assert found | expected == found and len(found["directalign.recipe_sha256"]) == 64
    assert not any("/" in value.replace("flux-1/lora", "") for value in found.values())
    ours = load_file(flux_run / "lora.safetensors")
    half = export_run(flux_run, "diffusers", tmp_path / "half", dtype="bfloat16")
    rounded = load_file(half / "pytorch_lora_weights.safetensors")
    assert rounded.keys() == ours.keys()
    assert all(torch.equal(rounded[key], ours[key].bfloat16()) for key in ours)


# --- pipelines ------------------------------------------------------------------------------------


def test_all_weights_in_bfloat16_and_in_shards(tiny_flux, tmp_path):
    network = FluxTransformer2DModel.from_pretrained(tiny_flux, subfolder="transformer")
    with torch.no_grad():
        for each in network.parameters():
            each.add_(0.1)
    run = write_finished(tmp_path / "run", finished_recipe("flux", tiny_flux, "full"))
    network.save_pretrained(run / "transformer")
    out = export_run(run, "folder", tmp_path / "out", max_shard_size="20KB")
    index_file = out / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    assert len(set(json.loads(index_file.read_text())["weight_map"].values())) > 1
    pipe = FluxPipeline.from_pretrained(out, torch_dtype=torch.bfloat16)
    trained, found = network.state_dict(), pipe.transformer.state_dict()
    assert all(torch.equal(each, trained[name].bfloat16()) for name, each in found.items())
    stored = [each for file in out.rglob("*.safetensors") for each in load_file(file).values()]
    assert {each.dtype for each in stored if each.is_floating_point()} == {torch.bfloat16}
    tokenizer = Path("tokenizer_2") / "tokenizer.json"
    assert (out / tokenizer).read_bytes() == (tiny_flux / tokenizer).read_bytes()
    assert (out / "directalign.json").is_file()


def test_a_merged_lora_gives_the_images_of_the_lora(flux_run, tiny_flux, tmp_path):
    out = export_run(flux_run, "folder", tmp_path / "out", dtype="float32", merge=True)
    pipe = FluxPipeline.from_pretrained(tiny_flux)
    plain = image(pipe)
    pipe.load_lora_weights(flux_run, weight_name="lora.safetensors")
    merged, with_lora = image(FluxPipeline.from_pretrained(out)), image(pipe)
    assert np.abs(merged - with_lora).max() < 1e-5 < 0.01 < np.abs(merged - plain).max()


def test_missing_parts_of_the_base_stay_missing(tiny_sd, tmp_path):
    """A base model from the Hub is downloaded without the safety checker's weights."""
    base = tmp_path / "base"
    base.mkdir()
    for part in tiny_sd.iterdir():
        (base / part.name).symlink_to(part)
    index = json.loads((tiny_sd / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (base / "model_index.json").unlink()
    (base / "model_index.json").write_text(json.dumps(index))
    folder = write_finished(tmp_path / "run", finished_recipe("sd", base, "full"))
    UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet").save_pretrained(folder / "unet")
    out = export_run(folder, "folder", tmp_path / "out", dtype="float32")
    pipe = StableDiffusionPipeline.from_pretrained(out)
    assert pipe.safety_checker is None and pipe.config["requires_safety_checker"] is False


def test_merging_rounds_once_and_handles_convolutions():
    network = nn.ModuleDict({"line": nn.Linear(6, 4), "conv": nn.Conv2d(3, 5, 1)}).bfloat16()
    before = {name: layer.weight.detach().clone().float() for name, layer in network.items()}
    updates = updates_of_shape({"line": (4, 6), "conv": (5, 3)})
    changes = {name: each.up @ each.down for name, each in updates.items()}
    conv = updates["conv"]
    updates["conv"] = LowRank(conv.down[..., None, None], conv.up[..., None, None])
    merge(network, updates, torch.bfloat16)
    for name, layer in network.items():
        expected = before[name] + changes[name].reshape(before[name].shape)
        assert torch.equal(layer.weight, expected.bfloat16())


def test_a_layer_of_another_shape_is_named():
    network, updates = nn.ModuleDict({"line": nn.Linear(5, 4)}), updates_of_shape({"line": (4, 6)})
    with pytest.raises(DirectAlignError, match="line: the base model has no such layer"):
        merge(network, updates, torch.float32)
