"""Exported LoRAs in diffusers: each format gives the factors and images of the run's LoRA."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import load_file

from directalign.export import Format, export_run
from finished_runs import finished_recipe, image, write_finished
from low_rank_updates import random_updates
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
