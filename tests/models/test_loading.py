"""Files of a checkpoint: the variant and its shards; damage is one line that names the file."""

import json
import re
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, T5EncoderModel

from directalign.config import ModelConfig
from directalign.models import components, load_model
from directalign.models.checkpoint_source import open_source
from directalign.models.weight_files import chosen, variant_of
from directalign.types import DirectAlignError
from tiny import write_flux

MODELS = {
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
}


def rewrite(folder, variant=None, shard="10KB", factor=1.0):
    """Every model of a folder once more, its weights multiplied, in shards."""
    for name, kind in MODELS.items():
        model = kind.from_pretrained(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        model.save_pretrained(folder / name, variant=variant, max_shard_size=shard)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Plain weights in one file each, and a variant fp16 in shards, all 0 to tell them apart."""
    folder = write_flux(tmp_path_factory.mktemp("variants") / "flux")
    rewrite(folder, variant="fp16", factor=0.0)
    return folder


@pytest.fixture
def copy(both, tmp_path):
    return shutil.copytree(both, tmp_path / "flux")


def load(folder, variant=None):
    given = {"path": str(folder), "variant": variant, "tune": "full"}
    return load_model(ModelConfig(architecture="flux", **given), "cpu")


def refusal(folder, variant=None):
    with pytest.raises(DirectAlignError) as caught:
        load(folder, variant)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zeros(family):
    modules = (family.denoiser, family.vae, *family.prompts.modules.values())
    return [all(not parameter.any() for parameter in module.parameters()) for module in modules]


def test_variants_by_the_names_of_files():
    plain = ("model.safetensors", "model-00001-of-00002.safetensors")
    assert {variant_of(name) for name in (*plain, "model.safetensors.index.json")} == {None}
    half = ("model.fp16-00001-of-00002.safetensors", "model-00001-of-00002.fp16.safetensors")
    half += ("model.safetensors.index.fp16.json", "unet/diffusion_pytorch_model.fp16.safetensors")
    assert {variant_of(name) for name in half} == {"fp16"}
    names = ["vae/model.safetensors", "vae/model.fp16.safetensors"]
    others = ["vae/sdxl_vae.safetensors", "vae/model.bin"]
    assert chosen([*names, *others], None, "vae") == names[:1]
    assert chosen([*names, *others], "fp16", "vae") == names[1:]


def test_only_the_requested_variant_is_read(both):
    assert len(list((both / "transformer").glob("*.fp16-*.safetensors"))) > 1
    assert zeros(load(both)) == [False] * 4
    assert zeros(load(both, "fp16")) == [True] * 4


def test_plain_shards_are_read(tmp_path):
    folder = write_flux(tmp_path / "flux")
    whole = load(folder).denoiser.state_dict()
    rewrite(folder)
    (folder / "transformer/diffusion_pytorch_model.safetensors").unlink()
    (folder / "text_encoder/model.safetensors").unlink()
    sharded = load(folder).denoiser.state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_a_missing_variant_is_refused_with_the_existing_ones(copy):
    there = "text_encoder: no bf16 weights, there are fp16, plain ones: leave model.variant out"
    assert there in refusal(copy, "bf16")
    for file in (copy / "vae").glob("*fp16*"):
        file.unlink()
    assert zeros(load(copy, "fp16")) == [True, False, True, True]  # each part has its own
    (copy / "transformer/diffusion_pytorch_model.safetensors").unlink()
    assert "transformer: no plain weights, there are fp16: set model.variant: fp16" in refusal(copy)


def test_a_torn_or_missing_shard_is_named_before_anything_is_loaded(copy, monkeypatch):
    monkeypatch.setattr(components, "_load_part", None)
    part = "text_encoder_2"
    shard = sorted((copy / part).glob("*fp16-*.safetensors"))[-1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3])
    assert f"{shard}: not a complete safetensors file" in refusal(copy, "fp16")
    shard.unlink()
    assert f"{shard}: no such file" in refusal(copy, "fp16")
    shard.write_bytes(whole)
    next((copy / part).glob("*.index.fp16.json")).unlink()
    assert f"{copy / part}: holds shards without their" in refusal(copy, "fp16")


def test_the_check_can_leave_weights_out(copy):
    for file in copy.glob("*/*.safetensors"):
        file.unlink()
    source = open_source(ModelConfig(architecture="flux", path=str(copy)))
    wanted = dict.fromkeys((*MODELS, "tokenizer", "scheduler"))
    found = components.check_parts(source, "FluxPipeline", wanted, weights=False)
    assert found.keys() == wanted.keys()
    with pytest.raises(DirectAlignError, match=r"transformer: no \.safetensors file of weights"):
        components.check_parts(source, "FluxPipeline", wanted)
    (copy / "vae/config.json").write_text(json.dumps([]))
    with pytest.raises(DirectAlignError, match=r"vae/config\.json: not readable as JSON"):
        components.check_parts(source, "FluxPipeline", wanted, weights=False)


# --- damage ---


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
    r"model_index\.json: vae is \[1\] of None": lambda d: edit(d / "model_index.json", vae=[1]),
    "FluxTransformer2DModel is needed": lambda d: edit(
        d / "model_index.json", transformer=["diffusers", "SD3Transformer2DModel"]
    ),
    "vae is None of None": lambda d: edit(d / "model_index.json", vae=None),
    "vae: no such folder": lambda d: shutil.rmtree(d / "vae"),
    r"text_encoder/config\.json: no such file": lambda d: (d / "text_encoder/config.json").unlink(),
    "transformer: the weights lack": lambda d: shutil.copy(
        weights(d / "vae"), weights(d / "transformer")
    ),
    "transformer: not readable .* expected shape": lambda d: edit(
        d / "transformer/config.json", attention_head_dim=16
    ),
    r"tokenizer_2: lacks .*tokenizer\.json": lambda d: (d / "tokenizer_2/tokenizer.json").unlink(),
    "scheduler: not readable": lambda d: (d / SCHEDULER).unlink(),
    "vae: not readable": lambda d: edit(d / "vae/config.json", latent_channels=8),
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


@pytest.mark.parametrize(("part", "change"), [("vae", "nan"), ("text_encoder_2", "int8")])
def test_weights_that_cannot_be_right_are_named(tiny_flux, tmp_path, part, change):
    folder = shutil.copytree(tiny_flux, tmp_path / "flux")
    file = weights(folder / part)
    tensors = load_file(file)
    name = max(tensors)
    kind = getattr(torch, change)
    value = tensors[name].to(kind) if isinstance(kind, torch.dtype) else tensors[name] * kind
    save_file(tensors | {name: value}, file, {"format": "pt"})
    with pytest.raises(DirectAlignError, match=re.escape(f"{name} ")) as caught:
        load_model(ModelConfig(architecture="flux", path=str(folder)), "cpu")
    assert str(folder / part) in str(caught.value)


def test_weights_stored_in_16_bit_are_widened(tmp_path):
    settings = ModelConfig(architecture="flux", path=str(write_flux(tmp_path)), tune="full")
    load_model(settings, "cpu").denoiser.half().save_pretrained(tmp_path / "transformer")
    model = load_model(settings.model_copy(update={"dtype": "bfloat16"}), "cpu")
    assert {parameter.dtype for parameter in model.denoiser.parameters()} == {torch.float32}
    assert model.vae.dtype == model.prompts.modules["text_encoder"].dtype == torch.bfloat16
