"""Flux2Klein says what Flux2KleinPipeline and the raw transformer say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import Flux2KleinPipeline

from directalign.config import RolloutConfig
from directalign.models import common, trainable
from directalign.types import DirectAlignError
from models import proofs
from models.proofs import LIBRARY_CALL, image_of_ours, noise_for, noisy
from models.srpo_by_hand import PROMPTS, TRAINING_CFG
from tiny import SIZE
from tiny_klein import write_klein

LONG = "a red star on a sandy background . " * 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def family(folder):
    return proofs.load("flux2_klein", folder)


@pytest.fixture(scope="module")
def pipeline(folder):
    return pipeline_of(folder)


def pipeline_of(folder):
    pipeline = Flux2KleinPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def raw(pipeline, x_t, sigma, prompts):
    """Velocity of the raw network under prompts that the pipeline encoded."""
    with torch.no_grad():
        sequence, text_ids = pipeline.encode_prompt(list(prompts))
    ids = Flux2KleinPipeline._prepare_latent_ids(x_t)
    tokens = pipeline.transformer(
        hidden_states=Flux2KleinPipeline._pack_latents(x_t),
        timestep=sigma.float(),
        guidance=None,
        encoder_hidden_states=sequence,
        txt_ids=text_ids,
        img_ids=ids,
    ).sample
    return Flux2KleinPipeline._unpack_latents_with_ids(tokens, ids)


def raw_with_cfg(pipeline, x_t, sigma, scale):
    cond, uncond = raw(pipeline, x_t, sigma, PROMPTS), raw(pipeline, x_t, sigma, ["", ""])
    return (1 - scale) * uncond + scale * cond


def batch_norm(pipeline):
    norm = pipeline.vae.bn
    return norm.running_mean[:, None, None], (norm.running_var + 1e-4).sqrt()[:, None, None]


def library_decode(pipeline, x0):
    mean, std = batch_norm(pipeline)
    return (
        pipeline.vae.decode(Flux2KleinPipeline._unpatchify_latents(x0 * std + mean)).sample / 2
        + 0.5
    )


def library_call(pipeline, family, noise, rollout, **call):
    size = {"height": 8 * noise.shape[2], "width": 8 * noise.shape[3]}
    return pipeline(
        prompt=PROMPTS, latents=noise, **LIBRARY_CALL | size | family.call_arguments(rollout) | call
    ).images


def test_encode_prompt_equals_the_pipeline(family, pipeline):
    prompts = [*PROMPTS, LONG]
    cond = family.encode_prompt(prompts)
    for tensors, asked in ((cond.tensors, prompts), (cond.unconditional, [""] * 3)):
        with torch.no_grad():
            sequence, _ = pipeline.encode_prompt(asked)
        torch.testing.assert_close(tensors["sequence"], sequence, atol=1e-6, rtol=0)
    assert sequence.shape == (3, 512, 24)


def test_tokens_and_their_places_are_the_pipelines():
    latents, device = (
        torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)),
        torch.device("cpu"),
    )
    assert torch.equal(common.flatten(latents), Flux2KleinPipeline._pack_latents(latents))
    assert torch.equal(common.unflatten(common.flatten(latents), 4, 6), latents)
    assert torch.equal(
        common.image_places(4, 6, device), Flux2KleinPipeline._prepare_latent_ids(latents)[0]
    )
    assert torch.equal(
        common.text_places(5, device), Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 5, 3))[0]
    )


def test_prompts_may_be_encoded_one_by_one(family):
    proofs.check_rows_of_a_cache(family)


def test_predict_equals_the_raw_network_value_and_gradient(family, pipeline):
    x_t, sigma, cond = noisy(family)
    proofs.check_gradient(
        family,
        pipeline.transformer,
        family.predict(x_t, sigma, cond),
        raw(pipeline, x_t, sigma, PROMPTS),
    )


@torch.no_grad()
def test_predict_with_cfg_is_two_passes(family, pipeline):
    x_t, sigma, cond = noisy(family)
    guided = family.predict(x_t, sigma, cond.guided(None, 3.0))
    assert (guided - family.predict(x_t, sigma, cond)).abs().max() > 1e-3
    torch.testing.assert_close(guided, raw_with_cfg(pipeline, x_t, sigma, 3.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_rollout_equals_the_pipeline(family, pipeline, cfg_scale):
    noise, rollout = noise_for(family), RolloutConfig(cfg_scale=cfg_scale)
    torch.testing.assert_close(
        image_of_ours(family, noise, rollout),
        library_call(pipeline, family, noise, rollout),
        atol=1e-4,
        rtol=0,
    )


def test_the_shift_follows_the_size_and_the_number_of_steps(family, pipeline):
    noise = noise_for(family, width=3 * SIZE)
    images = library_call(pipeline, family, noise, RolloutConfig())
    torch.testing.assert_close(
        image_of_ours(family, noise, RolloutConfig(), 3 * SIZE), images, atol=1e-4, rtol=0
    )
    assert torch.equal(family.sigmas(4, SIZE, 3 * SIZE), pipeline.scheduler.sigmas.double())
    assert not torch.equal(family.sigmas(4, SIZE, SIZE), family.sigmas(4, SIZE, 3 * SIZE))
    assert not torch.equal(family.sigmas(4, SIZE, SIZE), family.sigmas(8, SIZE, SIZE)[::2])


def test_srpo_update_equals_the_one_written_out_with_the_raw_network(family, pipeline):
    def sample_by_library(noise, cfg_scale):
        latents = library_call(
            pipeline, family, noise, RolloutConfig(cfg_scale=cfg_scale), output_type="latent"
        )
        mean, std = batch_norm(pipeline)
        return (Flux2KleinPipeline._patchify_latents(latents) - mean) / std

    proofs.check_srpo_update(
        family,
        pipeline.transformer,
        sample_by_library,
        predict=lambda x_t, sigma: raw_with_cfg(pipeline, x_t, sigma, TRAINING_CFG),
        decode=lambda x0: library_decode(pipeline, x0),
    )


@torch.no_grad()
def test_decode_and_encode_are_the_pipelines(family, pipeline):
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    x0 = pipeline._encode_vae_image(2 * images - 1, generator=None)
    torch.testing.assert_close(family.encode_image(images), x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(family.decode(x0), library_decode(pipeline, x0), atol=1e-5, rtol=0)


def test_lora_comes_back_in_a_fresh_pipeline_and_in_ours(folder, tmp_path):
    proofs.check_lora("flux2_klein", folder, pipeline_of(folder), library_call, tmp_path)


def test_lora_adapts_both_kinds_of_blocks(folder):
    names = trainable(proofs.load("flux2_klein", folder, tune="lora"))
    assert any(name.startswith("transformer_blocks.0.ff_context.linear_in") for name in names)
    assert any(
        name.startswith("single_transformer_blocks.0.attn.to_qkv_mlp_proj") for name in names
    )


def test_checkpointing_recomputes_and_changes_nothing(folder):
    proofs.check_recomputing("flux2_klein", folder)


def test_bfloat16_stays_close_to_float32(folder):
    proofs.check_bfloat16("flux2_klein", folder)


def test_a_distilled_model_takes_no_guidance(tmp_path):
    folder = write_klein(tmp_path, is_distilled=True)
    family, pipeline = proofs.load("flux2_klein", folder), pipeline_of(folder)
    assert json.loads((folder / "model_index.json").read_text())["is_distilled"] is True
    noise = noise_for(family)
    torch.testing.assert_close(
        image_of_ours(family, noise, RolloutConfig()),
        library_call(pipeline, family, noise, RolloutConfig()),
        atol=1e-4,
        rtol=0,
    )
    with pytest.raises(
        DirectAlignError, match=r"cfg_scale 4\.0: this FLUX\.2 klein is step-distilled"
    ):
        image_of_ours(family, noise, RolloutConfig(cfg_scale=4.0))


def test_eight_bits_stay_close(tmp_path):
    proofs.check_eight_bits(
        "flux2_klein", write_klein(tmp_path, transformer={"num_attention_heads": 8})
    )


def test_embedded_guidance_and_a_missing_unconditional_are_refused(family):
    x_t, sigma, cond = noisy(family)
    with pytest.raises(
        DirectAlignError,
        match=r"FLUX\.2 klein has no input for it: leave rollout\.embedded_guidance",
    ):
        family.predict(x_t, sigma, cond.guided(3.5, 1.0))
    with pytest.raises(DirectAlignError, match="empty prompt"):
        family.predict(x_t, sigma, replace(cond.guided(None, 3.0), unconditional=None))


def test_a_size_that_does_not_fit_names_the_multiple(family):
    assert family.latent_shape(SIZE, 2 * SIZE) == (16, 4, 8)
    assert family.default_size == (SIZE, SIZE)
    with pytest.raises(DirectAlignError, match="multiples of 8"):
        family.latent_shape(SIZE + 4, SIZE)


def test_models_that_are_not_klein_are_refused(tmp_path, tiny_flux):
    with pytest.raises(
        DirectAlignError, match="transformer: takes 20 channels, the VAE gives 4 x 4"
    ):
        proofs.load("flux2_klein", write_klein(tmp_path / "other", transformer={"in_channels": 20}))
    with pytest.raises(DirectAlignError, match="guidance_embeds is on"):
        proofs.load(
            "flux2_klein", write_klein(tmp_path / "dev", transformer={"guidance_embeds": True})
        )
    with pytest.raises(DirectAlignError, match="stochastic_sampling is on"):
        proofs.load(
            "flux2_klein", write_klein(tmp_path / "noisy", scheduler={"stochastic_sampling": True})
        )
    with pytest.raises(DirectAlignError, match="holds a FluxPipeline, not a Flux2KleinPipeline"):
        proofs.load("flux2_klein", tiny_flux)
