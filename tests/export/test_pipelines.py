"""Whole pipelines: what the library loads from an export is what was trained, in the asked dtype, in files of the asked size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from directalign.export import export_run
from directalign.export.weights import merge
from directalign.types import DirectAlignError
from finished_runs import finished_recipe, write_finished
from low_rank_updates import updates_of_shape


@pytest.fixture
def full_run(tmp_path: Path, tiny_flux: Path) -> Path:
    """All weights of a FLUX transformer, moved."""
    network = FluxTransformer2DModel.from_pretrained(tiny_flux, subfolder="transformer")
    with torch.no_grad():
        for each in network.parameters():
            each.add_(0.1)
    folder = write_finished(tmp_path / "run", finished_recipe("flux", tiny_flux, "full"))
    network.save_pretrained(folder / "transformer")
    return folder


def image(folder: Path, lora: Path | None = None) -> np.ndarray:
    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora, weight_name="lora.safetensors")
    generator = torch.Generator().manual_seed(0)
    return pipe("a red star", num_inference_steps=2, output_type="np", generator=generator, height=32, width=32, max_sequence_length=12).images[0]


def test_all_weights_in_bfloat16_and_in_shards(full_run: Path, tiny_flux: Path, tmp_path: Path) -> None:
    out = export_run(full_run, "folder", tmp_path / "out", max_shard_size="20KB")
    index = json.loads((out / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    pipe = FluxPipeline.from_pretrained(out, torch_dtype=torch.bfloat16)
    trained = FluxTransformer2DModel.from_pretrained(full_run / "transformer").state_dict()
    assert all(torch.equal(each, trained[name].bfloat16()) for name, each in pipe.transformer.state_dict().items())
    stored = [tensor.dtype for file in out.rglob("*.safetensors") for tensor in load_file(file).values() if tensor.is_floating_point()]
    assert set(stored) == {torch.bfloat16}
    assert (out / "tokenizer_2" / "tokenizer.json").read_bytes() == (tiny_flux / "tokenizer_2" / "tokenizer.json").read_bytes()
    assert (out / "directalign.json").is_file()


def test_a_merged_lora_draws_what_the_lora_draws(flux_run: Path, tiny_flux: Path, tmp_path: Path) -> None:
    out = export_run(flux_run, "folder", tmp_path / "out", dtype="float32", merge=True)
    merged, beside, plain = image(out), image(tiny_flux, flux_run), image(tiny_flux)
    assert np.abs(merged - beside).max() < 1e-5 < 0.01 < np.abs(merged - plain).max()


def test_parts_that_the_base_lacks_are_left_out(tiny_sd: Path, tmp_path: Path) -> None:
    """A base from the Hub comes without the safety checker's weights: the pipeline is told so and loads."""
    base = tmp_path / "base"
    _copied(tiny_sd, base, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    folder = write_finished(tmp_path / "run", finished_recipe("sd", base, "full"))
    UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet").save_pretrained(folder / "unet")
    out = export_run(folder, "folder", tmp_path / "out", dtype="float32")
    pipe = StableDiffusionPipeline.from_pretrained(out)
    assert pipe.safety_checker is None and pipe.config["requires_safety_checker"] is False


def _copied(source: Path, target: Path, **changes: list[str]) -> None:
    target.mkdir()
    for part in source.iterdir():
        (target / part.name).symlink_to(part)
    (target / "model_index.json").unlink()
    index = json.loads((source / "model_index.json").read_text())
    (target / "model_index.json").write_text(json.dumps(index | changes))


def test_merging_rounds_the_sum_once_and_reads_convolutions() -> None:
    network = nn.ModuleDict({"line": nn.Linear(6, 4), "conv": nn.Conv2d(3, 5, 1)}).bfloat16()
    line, conv = network["line"].weight.detach().clone(), network["conv"].weight.detach().clone()
    updates = updates_of_shape({"line": (4, 6), "conv": (5, 3)})
    updates["conv"] = type(updates["conv"])(updates["conv"].down[..., None, None], updates["conv"].up[..., None, None])
    merge(network, updates, torch.bfloat16)
    assert torch.equal(network["line"].weight, (line.float() + updates["line"].up @ updates["line"].down).bfloat16())
    product = updates["conv"].up.flatten(1) @ updates["conv"].down.flatten(1)
    assert torch.equal(network["conv"].weight, (conv.float() + product[..., None, None]).bfloat16())


def test_a_base_of_another_shape_is_named() -> None:
    with pytest.raises(DirectAlignError, match=r"line: the base model has no such layer, or one of another size"):
        merge(nn.ModuleDict({"line": nn.Linear(5, 4)}), updates_of_shape({"line": (4, 6)}), torch.float32)
