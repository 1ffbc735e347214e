"""Exported pipelines: diffusers loads the trained weights, in the given dtype and shard size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from torch import nn

from directalign.export import export_run
from directalign.export.lora_formats import LowRank
from directalign.export.weights import merge
from directalign.types import DirectAlignError
from finished_runs import finished_recipe, image, write_finished
from low_rank_updates import updates_of_shape


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
