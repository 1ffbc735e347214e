"""Exported LoRAs, loaded by diffusers' pipelines: every layout gives the weights and the images of the run's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import load_file

from directalign.export import Format, export_run
from finished_runs import finished_recipe, write_finished
from low_rank_updates import random_updates
from tiny_sdxl import write_sdxl

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


def image(pipe: Any) -> np.ndarray:
    arguments = {
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(0),
        "height": 32,
        "width": 32,
    }
    length = {"max_sequence_length": 12} if isinstance(pipe, FluxPipeline) else {}
    return pipe("a red star", **arguments, **length).images[0]


def image_with(pipe: Any, folder: Path) -> np.ndarray:
    """Under the only LoRA in the folder, which is gone afterwards."""
    pipe.load_lora_weights(folder)
    try:
        return image(pipe)
    finally:
        pipe.unload_lora_weights()


def loaded_factors(denoiser: Any) -> dict[str, torch.Tensor]:
    return {
        name: each.detach().clone() for name, each in denoiser.named_parameters() if "lora_" in name
    }


def quiet(pipe: DiffusionPipeline) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_flux(flux_run: Path, tiny_flux: Path, tmp_path: Path) -> None:
    pipe = quiet(FluxPipeline.from_pretrained(tiny_flux))
    plain = image(pipe)
    pipe.load_lora_weights(flux_run, weight_name="lora.safetensors")
    factors, own = loaded_factors(pipe.transformer), image(pipe)
    pipe.unload_lora_weights()
    assert np.abs(own - plain).max() > 0.01
    forms: tuple[Format, ...] = ("diffusers", "comfyui", "kohya")
    for form in forms:
        folder = export_run(flux_run, form, tmp_path / form)
        assert np.array_equal(image_with(pipe, folder), own), form
        pipe.load_lora_weights(folder)
        found = loaded_factors(pipe.transformer)
        assert found.keys() == factors.keys() and all(
            torch.equal(found[name], factors[name]) for name in factors
        )
        pipe.unload_lora_weights()


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_unets(family: str, form: Format, tiny_sd: Path, tmp_path: Path) -> None:
    base = (
        tiny_sd if family == "sd" else write_sdxl(tmp_path / "base", unet={"layers_per_block": 2})
    )
    pipe = quiet(
        (StableDiffusionPipeline if family == "sd" else StableDiffusionXLPipeline).from_pretrained(
            base
        )
    )
    updates = random_updates(
        UNet2DConditionModel.from_pretrained(base, subfolder="unet"), UNET_TARGETS
    )
    assert {name.split(".")[0] for name in updates} == {"down_blocks", "mid_block", "up_blocks"}
    run = write_finished(tmp_path / "run", finished_recipe(family, base), updates, "unet")
    plain = image(pipe)
    pipe.load_lora_weights(run, weight_name="lora.safetensors")
    factors, own = loaded_factors(pipe.unet), image(pipe)
    pipe.unload_lora_weights()
    folder = export_run(run, form, tmp_path / "export")
    pipe.load_lora_weights(folder)
    found = loaded_factors(pipe.unet)
    assert found.keys() == factors.keys() and all(
        torch.equal(found[name], factors[name]) for name in factors
    )
    assert np.array_equal(image(pipe), own) and np.abs(own - plain).max() > 0.01
    head = (
        "lora_unet_down_blocks_1_attentions_0" if family == "sd" else "lora_unet_input_blocks_4_1"
    )
    assert any(
        key.startswith(f"{head}_transformer_blocks_0_attn1_to_q.")
        for key in load_file(next(folder.glob("*.safetensors")))
    )


def test_the_header_says_what_the_file_is(flux_run: Path, tmp_path: Path) -> None:
    folder = export_run(flux_run, "kohya", tmp_path / "kohya")
    with safe_open(folder / "red_lora_2.safetensors", "pt") as file:
        told = file.metadata()
    assert (
        told["modelspec.architecture"] == "flux-1/lora" and told["modelspec.title"] == "Red, LoRA 2"
    )
    assert (
        told["ss_network_module"] == "networks.lora_flux"
        and told["ss_network_dim"] == "2"
        and told["ss_seed"] == "7"
    )
    assert (
        len(told["directalign.recipe_sha256"]) == 64
        and told["directalign.commit"] == "0123456789abcdef"
    )
    assert not any(
        str(tmp_path) in value or "/" in value.replace("flux-1/lora", "") for value in told.values()
    )


def test_another_dtype_is_rounded_once(flux_run: Path, tmp_path: Path) -> None:
    ours = load_file(flux_run / "lora.safetensors")
    found = load_file(
        export_run(flux_run, "diffusers", tmp_path / "half", dtype="bfloat16")
        / "pytorch_lora_weights.safetensors"
    )
    assert found.keys() == ours.keys() and all(
        torch.equal(found[key], ours[key].bfloat16()) for key in ours
    )
