"""A checkpoint in one file, in its makers' layout, is read into the weights it was written from."""

import json
import shutil

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from directalign.config import ModelConfig
from directalign.models import load_model, single_file
from directalign.models import original_layouts as makers
from directalign.models.checkpoint_source import Source, open_source
from directalign.models.components import check_parts, load_parts
from directalign.types import DirectAlignError
from models import original_layouts as layouts
from tiny import MEDIUM, write_flux, write_sd, write_sd3, write_sdxl

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


def load(folder, file, pipeline, parts, **dtypes):
    return load_parts(Source(str(file), folder, file), pipeline, dict.fromkeys(parts), dtypes)


def ldm_weights(folder, **encoders):
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, **encoders}
    return {part: saved(folder, part, kind) for part, kind in kinds.items()}


def ldm_tensors(weights):
    unet = makers.ldm_unet(weights["unet"], layers_per_block=1)
    vae = makers.ldm_vae(weights["vae"], levels=3)
    return makers.prefixed(COMFY, unet) | makers.prefixed("first_stage_model.", vae)


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """(components folder without those weights, file, weights by part)."""
    folder = write_sd(tmp_path_factory.mktemp("single") / "sd")
    weights = ldm_weights(folder, text_encoder=CLIPTextModel)
    tensors = {
        **ldm_tensors(weights),
        **makers.prefixed("cond_stage_model.transformer.", makers.clip(weights["text_encoder"])),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(16)[None],
        "first_stage_model.loss.logvar": torch.zeros(1),
        "betas": torch.zeros(1000),
    }
    return folder, write(folder.parent / "sd.safetensors", tensors), weights


def test_stable_diffusion(stable_diffusion):
    folder, file, weights = stable_diffusion
    loaded = load(folder, file, "StableDiffusionPipeline", (*weights, "tokenizer", "scheduler"))
    for part, own in weights.items():
        assert_equal(loaded[part], own)
        assert not any(
            [loaded[part].training, *(p.requires_grad for p in loaded[part].parameters())]
        )
    given = {"components": str(folder), "tune": "full", "dtype": "bfloat16"}
    settings = ModelConfig(architecture="sd", path=str(file), **given)
    model = load_model(settings, "cpu")
    assert_equal(model.denoiser, weights["unet"])
    assert_equal(model.vae, {name: tensor.bfloat16() for name, tensor in weights["vae"].items()})
    networks = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    wanted = dict.fromkeys(networks)
    assert check_parts(open_source(settings), "StableDiffusionPipeline", wanted) == networks


def test_sdxl(tmp_path):
    folder = write_sdxl(tmp_path / "sdxl")
    encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    weights = ldm_weights(folder, **encoders)
    first, second = makers.clip(weights["text_encoder"]), weights["text_encoder_2"]
    tensors = {
        **ldm_tensors(weights),
        **makers.prefixed("conditioner.embedders.0.transformer.", first),
        **makers.prefixed("conditioner.embedders.1.model.", makers.open_clip(second)),
    }
    file = write(tmp_path / "sdxl.safetensors", tensors)
    parts = (*weights, "tokenizer", "tokenizer_2")
    loaded = load(folder, file, "StableDiffusionXLPipeline", parts)
    for part, own in weights.items():
        assert_equal(loaded[part], own)


@pytest.mark.parametrize(
    ("prefix", "settings", "with_vae"), [("", {}, False), (COMFY, MEDIUM, False), (COMFY, {}, True)]
)
def test_sd3_takes_from_the_folder_what_the_file_lacks(tmp_path, prefix, settings, with_vae):
    folder = write_sd3(tmp_path / "sd3", transformer=settings)
    vae = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    weights = saved(folder, "transformer", SD3Transformer2DModel)
    tensors = makers.prefixed(prefix, layouts.sd3(weights))
    if with_vae:
        vae = saved(folder, "vae", AutoencoderKL)
        tensors |= makers.prefixed("first_stage_model.", makers.ldm_vae(vae, levels=3))
        tensors["text_encoders.clip_l.logit_scale"] = torch.zeros(1)
        tensors["model_sampling.sigmas"] = torch.zeros(10)
    file = write(tmp_path / "sd3.safetensors", tensors)
    parts = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
    loaded = load(folder, file, "StableDiffusion3Pipeline", parts)
    assert_equal(loaded["transformer"], weights)
    assert_equal(loaded["vae"], vae)


FLUX2 = Flux2Transformer2DModel(
    num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
    in_channels=16, joint_attention_dim=16, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
)  # fmt: skip
Z_IMAGE = ZImageTransformer2DModel(
    dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
    in_channels=4, axes_dims=[2, 2, 4], axes_lens=[32, 32, 32],
)  # fmt: skip
QWEN = QwenImageTransformer2DModel(
    num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
    in_channels=16, out_channels=4, axes_dims_rope=(2, 2, 4),
)  # fmt: skip


def read_transformer(file, model, folder, dtype):
    held = single_file.contents(file)
    assert held.parts.keys() == {"transformer"}
    single_file.check(held, "transformer", type(model), folder)
    return held, single_file.load(held, "transformer", type(model), folder, dtype)


@pytest.mark.parametrize("prefix", ["", COMFY])
@pytest.mark.parametrize(
    ("model", "original", "name"),
    [
        (FLUX2, layouts.flux2, "FLUX.2"),
        (Z_IMAGE, layouts.z_image, "Z-Image"),
        (QWEN, dict, "Qwen-Image"),
    ],
    ids=["flux2", "z_image", "qwen_image"],
)
def test_other_transformers(tmp_path, model, original, name, prefix):
    random_weights(model)
    model.save_config(tmp_path / "transformer")
    tensors = makers.prefixed(prefix, original(model.state_dict()))
    file = write(tmp_path / "x.safetensors", tensors)
    held, loaded = read_transformer(file, model, tmp_path, torch.float32)
    assert held.layout.name == name
    assert_equal(loaded, model.state_dict())


def patterned(like, start):
    """A run of 4093 bfloat16 numbers that begins elsewhere for each tensor: faster than random."""
    run = torch.arange(0x3000, 0x3000 + 4093, dtype=torch.int16).view(torch.bfloat16).roll(start)
    return run.repeat(like.numel() // len(run) + 1)[: like.numel()].view(like.shape)


ONE_OF_EACH = {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 16}
ONE_WIDTH = {
    "FLUX.1": (
        *(FluxTransformer2DModel, makers.flux),
        {"guidance_embeds": True, "pooled_projection_dim": 16, **ONE_OF_EACH},
    ),
    "Chroma": (
        *(ChromaTransformer2DModel, layouts.chroma),
        {"approximator_hidden_dim": 16, "approximator_layers": 2, **ONE_OF_EACH},
    ),
    "Lumina 2": (
        *(Lumina2Transformer2DModel, layouts.lumina2),
        {"num_layers": 1, "num_refiner_layers": 2, "ffn_dim_multiplier": 0.01, "cap_feat_dim": 16},
    ),
}


@pytest.mark.parametrize("name", ONE_WIDTH)
def test_a_network_is_read_at_the_one_width_that_diffusers_converts(tmp_path, name):
    """Few blocks of the published width: diffusers' converters have it written into them."""
    kind, original, sizes = ONE_WIDTH[name]
    with torch.device("meta"):
        model = kind(**sizes)
    model.save_config(tmp_path / "transformer")
    weights = {
        name: patterned(tensor, 89 * place)
        for place, (name, tensor) in enumerate(model.state_dict().items())
    }
    tensors = makers.prefixed(COMFY, original(weights))
    file = write(tmp_path / "x.safetensors", tensors)
    held, loaded = read_transformer(file, model, tmp_path, torch.bfloat16)
    file.unlink()
    assert held.layout.name == name
    assert_equal(loaded, weights)


def test_a_file_under_the_names_of_diffusers_is_read_as_it_is(tiny_flux):
    file = tiny_flux / "transformer/diffusion_pytorch_model.safetensors"
    given = {"path": str(file), "components": str(tiny_flux), "tune": "full"}
    model = load_model(ModelConfig(architecture="flux", **given), "cpu")
    assert_equal(model.denoiser, load_file(file))


def test_weights_in_8_bit_floats_are_widened(tmp_path):
    folder = write_sd3(tmp_path / "sd3")
    exact = saved(folder, "transformer", SD3Transformer2DModel)
    narrow = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in exact.items()}
    original = layouts.sd3({name: tensor.float() for name, tensor in narrow.items()})
    original = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in original.items()}
    file = write(tmp_path / "sd3_fp8.safetensors", original)
    parts, dtype = ("transformer",), torch.bfloat16
    loaded = load(folder, file, "StableDiffusion3Pipeline", parts, transformer=dtype)
    assert_equal(loaded["transformer"], {name: each.bfloat16() for name, each in narrow.items()})


def refusal(file, components, architecture="sd"):
    given = {"path": str(file), "components": components and str(components)}
    with pytest.raises(DirectAlignError) as caught:
        load_model(ModelConfig(architecture=architecture, **given), "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_does_not_fit_is_refused(stable_diffusion, tiny_flux, tmp_path):
    folder, file, _ = stable_diffusion
    message = refusal(file, None)
    assert "model.components: missing" in message and "stable-diffusion-v1-5" in message
    assert "holds Stable Diffusion 1 or 2" in message
    assert f"{file}: holds Stable Diffusion 1 or 2" in refusal(file, tiny_flux, "flux")
    mark = "joint_blocks.0.context_block.adaLN_modulation.1.bias"
    other = write(tmp_path / "sd3.safetensors", {mark: torch.zeros(4)})
    assert f"{other}: holds SD3" in refusal(other, folder)
    assert "no.safetensors: no such file" in refusal(tmp_path / "no.safetensors", folder)
    shutil.copytree(folder, tmp_path / "sd")
    settings = tmp_path / "sd/unet/config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"cross_attention_dim": 24}))
    message = refusal(file, tmp_path / "sd")
    assert "weights in its unet" in message and "give the model.components that it" in message


@pytest.mark.parametrize(
    ("marks", "metadata", "scheduler", "message"),
    [
        (["v_pred"], {}, {}, "marked as prediction_type: v_prediction"),
        (["ztsnr"], {}, {}, "marked as rescale_betas_zero_snr: True"),
        (
            *([], {"modelspec.prediction_type": "epsilon"}),
            *({"prediction_type": "v_prediction"}, "marked as prediction_type: epsilon"),
        ),
        (
            *(["v_pred", "ztsnr"], {"modelspec.prediction_type": "v"}),
            *({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, None),
        ),
    ],
)
def test_marks_of_what_the_network_predicts_are_followed(
    stable_diffusion, tmp_path, marks, metadata, scheduler, message
):
    folder, file, _ = stable_diffusion
    shutil.copytree(folder, tmp_path / "sd")
    settings = tmp_path / "sd/scheduler/scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | scheduler))
    tensors = load_file(file) | {name: torch.empty(0) for name in marks}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    if message:
        assert message in refusal(tmp_path / "x.safetensors", tmp_path / "sd")
    else:
        given = {"path": str(tmp_path / "x.safetensors"), "components": str(tmp_path / "sd")}
        assert load_model(ModelConfig(architecture="sd", **given), "cpu").prediction == "v"


def test_a_flux_of_another_width_and_a_missing_part_are_refused(tmp_path):
    folder = write_flux(tmp_path / "flux")
    weights = FluxTransformer2DModel.from_pretrained(folder / "transformer").state_dict()
    file = write(tmp_path / "x.safetensors", makers.flux(weights))
    expected = "x.safetensors: not readable as a FluxTransformer2DModel"
    assert expected in refusal(file, folder, "flux")
    plain = folder / "transformer/diffusion_pytorch_model.safetensors"
    file = plain.rename(tmp_path / "flux.safetensors")
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert f"{folder / 'vae'}: no .safetensors file" in refusal(file, folder, "flux")


FOREIGN = {
    "a LoRA": "unet.down_blocks.0.attn.to_q.lora_A.weight",
    "only a VAE": "decoder.conv_in.weight",
    "only a text encoder": "text_model.embeddings.token_embedding.weight",
    "no architecture that is known here": "some.weight",
    "its weights are quantised (x.scale_weight)": "x.scale_weight",
}


def test_other_files_are_named(tmp_path, tiny_flux):
    for what, name in FOREIGN.items():
        file = write(tmp_path / "x.safetensors", {name: torch.zeros(2, 2)})
        assert what in refusal(file, tiny_flux, "flux")
