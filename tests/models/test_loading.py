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


SCHEDULER = "scheduler/scheduler_config.json"
DAMAGE = {
    r"model_index\.json: no such file": lambda d: (d / "model_index.json").unlink(),
    r"model_index\.json: not readable as JSON": lambda d: tear(d / "model_index.json", 9),
    r"model_index\.json: holds a list": lambda d: (d / "model_index.json").write_text("[]"),
    "FluxTransformer2DModel is needed": lambda d: edit(
        d / "model_index.json", transformer=["diffusers", "SD3Transformer2DModel"]
    ),
    "system of os, which is not known": lambda d: edit(
        d / "model_index.json", transformer=["os", "system"]
    ),
    "vae is None of None": lambda d: edit(d / "model_index.json", vae=None),
    "vae: no such folder": lambda d: shutil.rmtree(d / "vae"),
    r"text_encoder/config\.json: no such file": lambda d: (d / "text_encoder/config.json").unlink(),
    r"vae: no \.safetensors file": lambda d: weights(d / "vae").unlink(),
    r"transformer/.*\.safetensors: truncated": lambda d: tear(weights(d / "transformer"), -9),
    r"text_encoder_2/.*\.safetensors: truncated": lambda d: tear(weights(d / "text_encoder_2"), 0),
    r"b\.safetensors: no such file": lambda d: (d / "vae/x.safetensors.index.json").write_text(
        '{"weight_map": {"a": "b.safetensors"}}'
    ),
    "transformer: the weights lack": lambda d: shutil.copy(
        weights(d / "vae"), weights(d / "transformer")
    ),
    "transformer: not readable .* expected shape": lambda d: edit(
        d / "transformer/config.json", attention_head_dim=16
    ),
    r"tokenizer_2: lacks .*tokenizer\.json": lambda d: (d / "tokenizer_2/tokenizer.json").unlink(),
    "scheduler: not readable": lambda d: (d / SCHEDULER).unlink(),
    "vae: not readable": lambda d: edit(d / "vae/config.json", latent_channels=8),
    "stochastic_sampling is on": lambda d: edit(d / SCHEDULER, stochastic_sampling=True),
    r"directalign\.json: max_sequence_length is 'long'": lambda d: edit(
        d / "directalign.json", max_sequence_length="long"
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_named(tiny_flux, tmp_path, message):
    folder = shutil.copytree(tiny_flux, tmp_path / "flux")
    DAMAGE[message](folder)
    with pytest.raises(DirectAlignError, match=message) as caught:
        load_model(ModelConfig(architecture="flux", path=str(folder)), "cpu")
    assert "\n" not in str(caught.value)


def test_weights_stored_in_16_bit_are_widened(tmp_path):
    settings = ModelConfig(architecture="flux", path=str(write_flux(tmp_path)), tune="full")
    load_model(settings, "cpu").denoiser.half().save_pretrained(tmp_path / "transformer")
    model = load_model(settings.model_copy(update={"dtype": "bfloat16"}), "cpu")
    assert {parameter.dtype for parameter in model.denoiser.parameters()} == {torch.float32}
    assert model.vae.dtype == model.prompts.modules["text_encoder"].dtype == torch.bfloat16
