"""A folder that is not whole ends in one line that names the file."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from directalign.config import ModelConfig
from directalign.models import load_model
from directalign.types import DirectAlignError
from tiny import write_flux


def weights(folder):
    return next(folder.glob("*.safetensors"))


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def tear(file, length):
    file.write_bytes(file.read_bytes()[:length])


DAMAGE = {
    "no index": (lambda d: (d / "model_index.json").unlink(), r"model_index\.json: no such file"),
    "torn index": (
        lambda d: tear(d / "model_index.json", 9),
        r"model_index\.json: not readable as JSON",
    ),
    "index of a list": (
        lambda d: (d / "model_index.json").write_text("[]"),
        r"model_index\.json: holds a list",
    ),
    "other transformer": (
        lambda d: edit(d / "model_index.json", transformer=["diffusers", "SD3Transformer2DModel"]),
        "FluxTransformer2DModel is needed",
    ),
    "unknown library": (
        lambda d: edit(d / "model_index.json", transformer=["os", "system"]),
        "system of os, which is not known",
    ),
    "part not named": (lambda d: edit(d / "model_index.json", vae=None), "vae is None of None"),
    "no part": (lambda d: shutil.rmtree(d / "vae"), "vae: no such folder"),
    "no config": (
        lambda d: (d / "text_encoder/config.json").unlink(),
        r"text_encoder/config\.json: no such file",
    ),
    "no weights": (lambda d: weights(d / "vae").unlink(), r"vae: no \.safetensors file"),
    "torn weights": (
        lambda d: tear(weights(d / "transformer"), -9),
        r"transformer/.*\.safetensors: truncated",
    ),
    "empty weights": (
        lambda d: tear(weights(d / "text_encoder_2"), 0),
        r"text_encoder_2/.*\.safetensors: truncated",
    ),
    "absent shard": (
        lambda d: (d / "vae/x.safetensors.index.json").write_text(
            '{"weight_map": {"a": "b.safetensors"}}'
        ),
        r"b\.safetensors: no such file",
    ),
    "weights of the vae": (
        lambda d: shutil.copy(weights(d / "vae"), weights(d / "transformer")),
        "transformer: the weights lack",
    ),
    "other shape": (
        lambda d: edit(d / "transformer/config.json", attention_head_dim=16),
        "transformer: not readable .* expected shape",
    ),
    "no tokenizer": (
        lambda d: (d / "tokenizer_2/tokenizer.json").unlink(),
        r"tokenizer_2: lacks .*tokenizer\.json",
    ),
    "no scheduler": (
        lambda d: (d / "scheduler/scheduler_config.json").unlink(),
        "scheduler: not readable",
    ),
    "channels": (lambda d: edit(d / "vae/config.json", latent_channels=8), "vae: not readable"),
    "stochastic": (
        lambda d: edit(d / "scheduler/scheduler_config.json", stochastic_sampling=True),
        "stochastic_sampling is on",
    ),
    "sequence length": (
        lambda d: edit(d / "directalign.json", max_sequence_length="long"),
        r"directalign\.json: max_sequence_length is 'long'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tiny_flux, tmp_path, damage):
    folder = tmp_path / "flux"
    shutil.copytree(tiny_flux, folder)
    do, message = DAMAGE[damage]
    do(folder)
    with pytest.raises(DirectAlignError, match=message) as caught:
        load_model(ModelConfig(architecture="flux", path=str(folder)), "cpu")
    assert "\n" not in str(caught.value)


def test_weights_stored_in_16_bit_are_widened(tmp_path):
    folder = write_flux(tmp_path)
    stored = load_model(ModelConfig(architecture="flux", path=str(folder), tune="full"), "cpu")
    stored.denoiser.half().save_pretrained(folder / "transformer")
    family = load_model(
        ModelConfig(architecture="flux", path=str(folder), tune="full", dtype="bfloat16"), "cpu"
    )
    assert {parameter.dtype for parameter in family.denoiser.parameters()} == {torch.float32}
    assert family.vae.dtype == family.prompts.modules["text_encoder"].dtype == torch.bfloat16
