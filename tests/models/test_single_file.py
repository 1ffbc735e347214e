"""A checkpoint in one file, in its makers' layout, is read into the very weights it was written from."""

from __future__ import annotations

import json
import shutil

import original_layouts as layouts
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from directalign.config import ModelConfig
from directalign.models import load_model, single_file
from directalign.models.checkpoint_source import Source, open_source
from directalign.models.components import check_parts, load_parts
from directalign.types import DirectAlignError
from tiny import write_flux, write_sd
from tiny_sd3 import MEDIUM, write_sd3
from tiny_sdxl import write_sdxl

COMFY = "model.diffusion_model."


def random_weights(model, seed=0):
    """Every tensor of a model from a seed, so that no two of one shape are equal; in place."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)
    return model


def saved(folder, part, kind):
    """A part of a folder with random weights, which are then removed from the folder."""
    model = random_weights(kind.from_pretrained(folder / part))
    next((folder / part).glob("*.safetensors")).unlink()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write(file, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def assert_equal(model, weights):
    loaded = model.state_dict()
    assert loaded.keys() == weights.keys() and all(
        torch.equal(loaded[name], weights[name]) for name in weights
    )


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """(components folder without those weights, file, weights by part)."""
    folder = write_sd(tmp_path_factory.mktemp("single") / "sd")
    weights = {
        "unet": saved(folder, "unet", UNet2DConditionModel),
        "vae": saved(folder, "vae", AutoencoderKL),
    }
    weights["text_encoder"] = saved(folder, "text_encoder", CLIPTextModel)
    tensors = {
        **layouts.prefixed(COMFY, layouts.ldm_unet(weights["unet"], layers_per_block=1)),
        **layouts.prefixed("first_stage_model.", layouts.ldm_vae(weights["vae"], levels=3)),
        **layouts.prefixed("cond_stage_model.transformer.", layouts.clip(weights["text_encoder"])),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(16)[None],
        "first_stage_model.loss.logvar": torch.zeros(1),
        "betas": torch.zeros(1000),
    }
    return folder, write(folder.parent / "sd.safetensors", tensors), weights


def test_stable_diffusion_comes_whole_from_its_file(stable_diffusion):
    folder, file, weights = stable_diffusion
    parts = dict.fromkeys(("unet", "vae", "text_encoder", "tokenizer", "scheduler"))
    loaded = load_parts(Source(str(file), folder, file), "StableDiffusionPipeline", parts, {})
    for part, own in weights.items():
        assert_equal(loaded[part], own)
        assert not loaded[part].training and not any(
            each.requires_grad for each in loaded[part].parameters()
        )


def test_a_family_is_loaded_from_a_recipe_that_names_a_file(stable_diffusion):
    folder, file, weights = stable_diffusion
    family = load_model(
        ModelConfig(
            architecture="sd", path=str(file), components=str(folder), tune="full", dtype="bfloat16"
        ),
        "cpu",
    )
    assert_equal(family.denoiser, weights["unet"])
    assert_equal(family.vae, {name: tensor.bfloat16() for name, tensor in weights["vae"].items()})


def test_sdxl_comes_whole_from_its_file(tmp_path):
    folder = write_sdxl(tmp_path / "sdxl")
    weights = {
        "unet": saved(folder, "unet", UNet2DConditionModel),
        "vae": saved(folder, "vae", AutoencoderKL),
    }
    weights |= {
        "text_encoder": saved(folder, "text_encoder", CLIPTextModel),
        "text_encoder_2": saved(folder, "text_encoder_2", CLIPTextModelWithProjection),
    }
    tensors = {
        **layouts.prefixed(COMFY, layouts.ldm_unet(weights["unet"], layers_per_block=1)),
        **layouts.prefixed("first_stage_model.", layouts.ldm_vae(weights["vae"], levels=3)),
        **layouts.prefixed(
            "conditioner.embedders.0.transformer.", layouts.clip(weights["text_encoder"])
        ),
        **layouts.prefixed(
            "conditioner.embedders.1.model.", layouts.open_clip(weights["text_encoder_2"])
        ),
    }
    file = write(tmp_path / "sdxl.safetensors", tensors)
    loaded = load_parts(
        Source(str(file), folder, file),
        "StableDiffusionXLPipeline",
        dict.fromkeys((*weights, "tokenizer", "tokenizer_2")),
        {},
    )
    for part, own in weights.items():
        assert_equal(loaded[part], own)


@pytest.mark.parametrize("prefix", ["", COMFY])
@pytest.mark.parametrize("settings", [{}, MEDIUM], ids=["sd3", "sd35"])
def test_sd3_takes_its_transformer_from_the_file_and_the_rest_from_the_folder(
    tmp_path, prefix, settings
):
    folder = write_sd3(tmp_path / "sd3", transformer=settings)
    weights = saved(folder, "transformer", SD3Transformer2DModel)
    file = write(tmp_path / "sd3.safetensors", layouts.prefixed(prefix, layouts.sd3(weights)))
    parts = dict.fromkeys(
        ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
    )
    loaded = load_parts(Source(str(file), folder, file), "StableDiffusion3Pipeline", parts, {})
    assert_equal(loaded["transformer"], weights)
    assert_equal(loaded["vae"], load_file(folder / "vae/diffusion_pytorch_model.safetensors"))


def test_the_vae_comes_from_the_file_where_it_is_in_there(tmp_path):
    folder = write_sd3(tmp_path / "sd3")
    weights = {
        "transformer": saved(folder, "transformer", SD3Transformer2DModel),
        "vae": saved(folder, "vae", AutoencoderKL),
    }
    tensors = layouts.prefixed(COMFY, layouts.sd3(weights["transformer"])) | layouts.prefixed(
        "first_stage_model.", layouts.ldm_vae(weights["vae"], levels=3)
    )
    file = write(
        tmp_path / "sd3.safetensors",
        tensors
        | {
            "text_encoders.clip_l.logit_scale": torch.zeros(1),
            "model_sampling.sigmas": torch.zeros(10),
        },
    )
    loaded = load_parts(
        Source(str(file), folder, file), "StableDiffusion3Pipeline", dict.fromkeys(weights), {}
    )
    assert_equal(loaded["transformer"], weights["transformer"])
    assert_equal(loaded["vae"], weights["vae"])


def transformers():
    """For each architecture whose other parts are not in the file: a small denoiser and its original layout."""
    flux2 = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "in_channels": 16,
        "joint_attention_dim": 16,
    }
    z_image = {
        "dim": 16,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 16,
        "axes_dims": [2, 2, 4],
        "in_channels": 4,
    }
    qwen = {
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "in_channels": 16,
        "out_channels": 4,
    }
    yield (
        Flux2Transformer2DModel(**flux2, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False),
        layouts.flux2,
        "FLUX.2",
    )
    yield ZImageTransformer2DModel(**z_image, axes_lens=[32, 32, 32]), layouts.z_image, "Z-Image"
    yield QwenImageTransformer2DModel(**qwen, axes_dims_rope=(2, 2, 4)), dict, "Qwen-Image"


@pytest.mark.parametrize("prefix", ["", COMFY])
@pytest.mark.parametrize(
    ("model", "original", "name"), transformers(), ids=["flux2", "z_image", "qwen_image"]
)
def test_other_transformers_are_read_alone(tmp_path, model, original, name, prefix):
    random_weights(model)
    model.save_config(tmp_path / "transformer")
    held = single_file.contents(
        write(tmp_path / "x.safetensors", layouts.prefixed(prefix, original(model.state_dict())))
    )
    assert held.layout.name == name and held.parts.keys() == {"transformer"}
    single_file.check(held, "transformer", type(model), tmp_path)
    assert_equal(
        single_file.load(held, "transformer", type(model), tmp_path, torch.float32),
        model.state_dict(),
    )


def patterned(like, start):
    """A run of 4093 bfloat16 numbers that begins elsewhere for each tensor, made faster than random ones."""
    run = torch.arange(0x3000, 0x3000 + 4093, dtype=torch.int16).view(torch.bfloat16).roll(start)
    return run.repeat(like.numel() // len(run) + 1)[: like.numel()].view(like.shape)


def test_flux_is_read_at_the_one_width_that_diffusers_converts(tmp_path):
    """One block of each kind, 3072 wide as all of FLUX.1: diffusers' converter has that number written into it (1 GB in bfloat16)."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            guidance_embeds=True,
            joint_attention_dim=16,
            pooled_projection_dim=16,
        )
    model.save_config(tmp_path / "transformer")
    weights = {
        name: patterned(tensor, 89 * place)
        for place, (name, tensor) in enumerate(model.state_dict().items())
    }
    held = single_file.contents(
        write(tmp_path / "flux.safetensors", layouts.prefixed(COMFY, layouts.flux(weights)))
    )
    single_file.check(held, "transformer", FluxTransformer2DModel, tmp_path)
    loaded = single_file.load(held, "transformer", FluxTransformer2DModel, tmp_path, torch.bfloat16)
    held.file.unlink()
    assert_equal(loaded, weights)


def test_flux_of_another_width_is_refused_by_name(tiny_flux, tmp_path):
    file = write(
        tmp_path / "x.safetensors",
        layouts.flux(
            FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer").state_dict()
        ),
    )
    with pytest.raises(
        DirectAlignError, match=r"x\.safetensors: not readable as a FluxTransformer2DModel"
    ):
        load_model(
            ModelConfig(architecture="flux", path=str(file), components=str(tiny_flux)), "cpu"
        )


def test_a_file_under_the_names_of_diffusers_is_read_as_it_is(tiny_flux):
    file = tiny_flux / "transformer/diffusion_pytorch_model.safetensors"
    family = load_model(
        ModelConfig(architecture="flux", path=str(file), components=str(tiny_flux), tune="full"),
        "cpu",
    )
    assert_equal(family.denoiser, load_file(file))


def test_weights_in_8_bit_floats_are_widened(tmp_path):
    folder = write_sd3(tmp_path / "sd3")
    weights = {
        name: tensor.to(torch.float8_e4m3fn)
        for name, tensor in saved(folder, "transformer", SD3Transformer2DModel).items()
    }
    file = write(
        tmp_path / "sd3.safetensors",
        layouts.sd3({name: tensor.float() for name, tensor in weights.items()}),
    )
    narrow = write(
        tmp_path / "sd3_fp8.safetensors",
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()},
    )
    loaded = load_parts(
        Source("x", folder, narrow),
        "StableDiffusion3Pipeline",
        {"transformer": None},
        {"transformer": torch.bfloat16},
    )
    assert_equal(
        loaded["transformer"], {name: tensor.bfloat16() for name, tensor in weights.items()}
    )


def refusal(file, components, family="sd"):
    with pytest.raises(DirectAlignError) as caught:
        load_model(
            ModelConfig(
                architecture=family, path=str(file), components=components and str(components)
            ),
            "cpu",
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_alone_asks_for_its_components(stable_diffusion):
    _, file, _ = stable_diffusion
    message = refusal(file, None)
    assert (
        "model.components: missing" in message
        and "holds Stable Diffusion 1 or 2" in message
        and "stable-diffusion-v1-5" in message
    )


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_pickles_are_not_read(tmp_path, name):
    assert "can run code" in refusal(tmp_path / name, None)


def test_another_architecture_is_named(stable_diffusion, tiny_flux, tmp_path):
    folder, file, _ = stable_diffusion
    assert f"{file}: holds Stable Diffusion 1 or 2" in refusal(file, tiny_flux, "flux")
    other = write(
        tmp_path / "sd3.safetensors",
        {"joint_blocks.0.context_block.adaLN_modulation.1.bias": torch.zeros(4)},
    )
    assert f"{other}: holds SD3" in refusal(other, folder)
    assert f"{other}: holds SD3" in refusal(other, tiny_flux, "flux")


def test_a_file_of_other_sizes_is_counted(stable_diffusion, tmp_path):
    folder, file, _ = stable_diffusion
    shutil.copytree(folder, tmp_path / "sd")
    settings = tmp_path / "sd/unet/config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"cross_attention_dim": 24}))
    message = refusal(file, tmp_path / "sd")
    assert (
        "weights in its unet" in message
        and "give the model.components that it was trained from" in message
    )


FOREIGN = {
    "a LoRA": {"unet.down_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 2)},
    "a VAE alone": {"decoder.conv_in.weight": torch.zeros(2, 2)},
    "a text encoder alone": {"text_model.embeddings.token_embedding.weight": torch.zeros(2, 2)},
    "no architecture that is known here": {"some.weight": torch.zeros(2, 2)},
    "its weights are quantised (double_blocks.0.img_attn.qkv.scale_weight)": {
        "double_blocks.0.img_attn.qkv.scale_weight": torch.zeros(1)
    },
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_model_is_named(tmp_path, tiny_flux, what):
    assert what in refusal(write(tmp_path / "x.safetensors", FOREIGN[what]), tiny_flux, "flux")


def test_torn_and_missing_files_are_named(stable_diffusion, tmp_path):
    folder, file, _ = stable_diffusion
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(file.read_bytes()[:-9])
    assert f"{torn}: truncated" in refusal(torn, folder)
    assert "no.safetensors: no such file" in refusal(tmp_path / "no.safetensors", folder)


def test_the_check_loads_nothing_and_needs_no_weights_in_the_folder(stable_diffusion):
    folder, file, _ = stable_diffusion
    source = open_source(ModelConfig(architecture="sd", path=str(file), components=str(folder)))
    classes = check_parts(
        source, "StableDiffusionPipeline", dict.fromkeys(("unet", "vae", "text_encoder"))
    )
    assert classes == {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
    }


def test_a_part_that_the_file_and_the_folder_lack_is_named(tmp_path):
    folder = write_flux(tmp_path / "flux")
    file = (folder / "transformer/diffusion_pytorch_model.safetensors").rename(
        tmp_path / "flux.safetensors"
    )
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert f"{folder / 'vae'}: no .safetensors file" in refusal(file, folder, "flux")
