"""StableDiffusionXL says what StableDiffusionXLPipeline, sampling with DDIM, and the raw UNet say, for noise and for v."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, StableDiffusionXLPipeline

from directalign.config import ModelConfig, RolloutConfig
from directalign.methods.srpo import SRPO
from directalign.models import load_model, trainable
from directalign.types import DirectAlignError
from methods.toy import ToyReward
from models import proofs
from models.proofs import LIBRARY_CALL, STEPS, image_of_ours, noise_for
from models.srpo_by_hand import (
    BATCH,
    PROMPTS,
    SETTINGS,
    TRAINING_CFG,
    known_noise,
    losses_by_hand,
)
from tiny import SIZE, ZERO_SNR
from tiny_sdxl import write_sdxl

CASES = {
    "epsilon": {},
    "v_zero_snr": {
        "prediction_type": "v_prediction",
        "scheduler": ZERO_SNR,
        "force_zeros_for_empty_prompt": False,
        "force_upcast": False,
    },
}


@pytest.fixture(scope="module", params=CASES)
def folder(request, tmp_path_factory):
    return write_sdxl(tmp_path_factory.mktemp(request.param), **CASES[request.param])


@pytest.fixture(scope="module")
def family(folder):
    return load_model(ModelConfig(architecture="sdxl", path=str(folder), tune="full"), "cpu")


@pytest.fixture(scope="module")
def pipeline(folder):
    return pipeline_of(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One SDXL, for what does not differ between them."""
    return write_sdxl(tmp_path_factory.mktemp("plain"))


def pipeline_of(folder):
    """The folder's pipeline with DDIM to clean in place of its own sampler."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noisy(family, timesteps=(901, 7), width=SIZE):
    x_t = torch.randn(
        2, *family.latent_shape(SIZE, width), generator=torch.Generator().manual_seed(0)
    )
    return (
        x_t,
        (1 - family.scheduler.alphas_cumprod.double()[list(timesteps)]).sqrt(),
        family.encode_prompt(PROMPTS),
    )


def raw(pipeline, x_t, timesteps, sequence, pooled):
    height, width = 4 * x_t.shape[2], 4 * x_t.shape[3]
    size = torch.tensor([[height, width, 0, 0, height, width]] * 2, dtype=torch.float32)
    return pipeline.unet(
        x_t,
        timesteps,
        sequence.detach(),
        added_cond_kwargs={"text_embeds": pooled.detach(), "time_ids": size},
    ).sample


def raw_with_cfg(pipeline, x_t, timesteps, scale):
    sequence, empty_sequence, pooled, empty_pooled = pipeline.encode_prompt(PROMPTS)
    cond, uncond = (
        raw(pipeline, x_t, timesteps, sequence, pooled),
        raw(pipeline, x_t, timesteps, empty_sequence, empty_pooled),
    )
    return (1 - scale) * uncond + scale * cond


def image_of_pipeline(pipeline, family, noise, rollout):
    sizes = {"height": 4 * noise.shape[2], "width": 4 * noise.shape[3]}
    return pipeline(
        PROMPTS, latents=noise, **sizes, **LIBRARY_CALL, **family.call_arguments(rollout)
    ).images


def test_encode_prompt_equals_the_pipeline(family, pipeline):
    prompts = [*PROMPTS, "a red star on a sandy background . " * 4]
    cond = family.encode_prompt(prompts)
    with torch.no_grad():
        sequence, empty_sequence, pooled, empty_pooled = pipeline.encode_prompt(prompts)
    for ours, theirs in (
        (cond.tensors, (sequence, pooled)),
        (cond.unconditional, (empty_sequence, empty_pooled)),
    ):
        torch.testing.assert_close(ours["sequence"], theirs[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(ours["pooled"], theirs[1], atol=1e-6, rtol=0)
    assert (
        bool(cond.unconditional["sequence"].any())
        is not pipeline.config.force_zeros_for_empty_prompt
    )


def test_predict_equals_the_raw_network_value_and_gradient(family, pipeline):
    x_t, sigma, cond = noisy(family, width=2 * SIZE)
    expected = raw(
        pipeline, x_t, torch.tensor([901, 7]), cond.tensors["sequence"], cond.tensors["pooled"]
    )
    proofs.check_gradient(family, pipeline.unet, family.predict(x_t, sigma, cond), expected)


def test_predict_with_cfg_is_two_passes(family, pipeline):
    x_t, sigma, cond = noisy(family)
    with torch.no_grad():
        guided = family.predict(x_t, sigma, cond.guided(None, 3.0))
        assert (guided - family.predict(x_t, sigma, cond)).abs().max() > 1e-3
        torch.testing.assert_close(
            guided, raw_with_cfg(pipeline, x_t, torch.tensor([901, 7]), 3.0), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(("cfg_scale", "width"), [(1.0, SIZE), (4.0, 2 * SIZE)])
def test_rollout_equals_the_pipeline_with_ddim(family, pipeline, cfg_scale, width):
    noise, rollout = noise_for(family, width), RolloutConfig(cfg_scale=cfg_scale)
    torch.testing.assert_close(
        image_of_ours(family, noise, rollout, width),
        image_of_pipeline(pipeline, family, noise, rollout),
        atol=1e-4,
        rtol=0,
    )
    visited = pipeline.scheduler.timesteps
    torch.testing.assert_close(
        family.levels.timestep_of(family.sigmas(STEPS, SIZE, width)[:-1]),
        visited.double(),
        atol=1e-6,
        rtol=0,
    )


def test_srpo_step_equals_the_one_written_out_with_the_raw_network(family, pipeline):
    rollout = RolloutConfig(num_inference_steps=STEPS, cfg_scale=3.0)
    ours = list(SRPO(family, ToyReward(), SETTINGS, rollout).losses(BATCH))
    noise = known_noise(family.latent_shape(SIZE, SIZE))
    x0 = pipeline(
        PROMPTS,
        latents=noise,
        num_inference_steps=STEPS,
        height=SIZE,
        width=SIZE,
        output_type="latent",
        guidance_scale=3.0,
    ).images
    table = (1 - pipeline.scheduler.alphas_cumprod.double()).sqrt().numpy()

    def predict(x_t, sigma):
        timesteps = torch.from_numpy(np.interp(sigma.numpy(), table, np.arange(1000)))
        return raw_with_cfg(pipeline, x_t, timesteps.float(), TRAINING_CFG)

    theirs = losses_by_hand(
        "vp",
        predict,
        lambda x0: pipeline.vae.decode(x0 / 0.4).sample / 2 + 0.5,
        x0,
        noise,
        family.prediction,
    )
    assert [loss.branch for loss in ours] == ["denoise", "inversion"]
    for our, their in zip(ours, theirs, strict=True):
        assert their > 0
        torch.testing.assert_close(our.value, their, atol=1e-5, rtol=1e-5)
    parameters = dict(pipeline.unet.named_parameters())
    names, weights = zip(*trainable(family).items(), strict=True)
    found = torch.autograd.grad(sum(loss.value for loss in ours), weights)
    expected = torch.autograd.grad(sum(theirs), [parameters[name] for name in names])
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    for name, our, their in zip(names, found, expected, strict=True):
        torch.testing.assert_close(
            our, their, atol=1e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_lora_comes_back_in_a_fresh_pipeline_and_in_ours(folder, tmp_path):
    proofs.check_lora("sdxl", folder, pipeline_of(folder), image_of_pipeline, tmp_path)


def test_a_vae_that_overflows_in_half_precision_stays_in_float32(folder):
    family = load_model(ModelConfig(architecture="sdxl", path=str(folder), dtype="bfloat16"), "cpu")
    upcast = json.loads((folder / "vae/config.json").read_text())["force_upcast"]
    assert family.vae.dtype == (torch.float32 if upcast else torch.bfloat16)
    assert next(family.prompts.modules["text_encoder"].parameters()).dtype == torch.bfloat16
    x_t, sigma, cond = noisy(family)
    exact = load_model(ModelConfig(architecture="sdxl", path=str(folder)), "cpu")
    with torch.no_grad():
        torch.testing.assert_close(
            family.predict(x_t, sigma, cond),
            exact.predict(x_t, sigma, exact.encode_prompt(PROMPTS)),
            atol=5e-2,
            rtol=0,
        )
        torch.testing.assert_close(
            family.decode(x_t), exact.decode(x_t), atol=1e-6 if upcast else 5e-2, rtol=0
        )


def test_held_in_8_bits_it_answers_nearly_the_same(tmp_path):
    proofs.check_eight_bits("sdxl", write_sdxl(tmp_path, unet={"block_out_channels": (8, 64)}))


def test_gradient_checkpointing_changes_no_gradient(plain):
    proofs.check_recomputing("sdxl", plain)


def test_prompts_encoded_one_by_one_are_the_same(family):
    proofs.check_rows_of_a_cache(family)


def test_decode_and_encode_are_the_vaes(plain):
    family, pipeline = (
        load_model(ModelConfig(architecture="sdxl", path=str(plain)), "cpu"),
        pipeline_of(plain),
    )
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x0 = pipeline.vae.encode(2 * images - 1).latent_dist.mode() * 0.4
        torch.testing.assert_close(family.encode_image(images), x0, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            family.decode(x0), pipeline.vae.decode(x0 / 0.4).sample / 2 + 0.5, atol=1e-5, rtol=0
        )


def test_embedded_guidance_is_refused(plain):
    family = load_model(ModelConfig(architecture="sdxl", path=str(plain)), "cpu")
    x_t, sigma, cond = noisy(family)
    with pytest.raises(DirectAlignError, match=r"SDXL has no input for it.*use cfg_scale"):
        family.predict(x_t, sigma, cond.guided(3.5, 1.0))


def test_a_size_that_does_not_fit_names_the_multiple(plain):
    family = load_model(ModelConfig(architecture="sdxl", path=str(plain)), "cpu")
    assert family.default_size == (SIZE, SIZE)
    assert family.latent_shape(SIZE, 2 * SIZE) == (4, 8, 16)
    with pytest.raises(DirectAlignError, match="multiples of 8"):
        family.latent_shape(SIZE, SIZE - 4)


def test_more_steps_than_levels_are_refused(plain):
    family = load_model(ModelConfig(architecture="sdxl", path=str(plain)), "cpu")
    with pytest.raises(DirectAlignError, match="ask for fewer"):
        family.sigmas(1001, SIZE, SIZE)


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"in_channels": 9}, "takes 9 channels"),
        ({"addition_embed_type": None}, "addition_embed_type is None"),
        ({"time_cond_proj_dim": 8}, "takes its guidance as an input"),
        (
            {"projection_class_embeddings_input_dim": 5 * 4 + 12},
            "takes 32 numbers beside the prompt, SDXL has 36 to tell: refiners are not read",
        ),
    ],
)
def test_unets_of_another_kind_are_refused(tmp_path, unet, message):
    with pytest.raises(DirectAlignError, match=message):
        load_model(
            ModelConfig(architecture="sdxl", path=str(write_sdxl(tmp_path, unet=unet))), "cpu"
        )


def test_latents_shifted_by_channel_are_refused(plain, tmp_path):
    folder = write_sdxl(tmp_path)
    file = folder / "vae/config.json"
    file.write_text(
        json.dumps(
            json.loads(file.read_text())
            | {"latents_mean": [0.1, 0, 0, 0], "latents_std": [1, 1, 1, 1]}
        )
    )
    with pytest.raises(DirectAlignError, match="latents_mean"):
        load_model(ModelConfig(architecture="sdxl", path=str(folder)), "cpu")


def test_a_scheduler_without_a_ddpm_table_is_refused(tmp_path):
    folder = write_sdxl(tmp_path)
    EDMEulerScheduler().save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(
        json.dumps(
            json.loads(index.read_text()) | {"scheduler": ["diffusers", "EDMEulerScheduler"]}
        )
    )
    with pytest.raises(DirectAlignError, match="a EDMEulerScheduler has no DDPM table"):
        load_model(ModelConfig(architecture="sdxl", path=str(folder)), "cpu")


def test_a_folder_of_the_smaller_model_is_refused(tiny_sd):
    with pytest.raises(
        DirectAlignError, match="holds a StableDiffusionPipeline, not a StableDiffusionXLPipeline"
    ):
        load_model(ModelConfig(architecture="sdxl", path=str(tiny_sd)), "cpu")
