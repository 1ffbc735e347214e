"""StableDiffusion3 says what StableDiffusion3Pipeline and the raw transformer say: SD3, SD3.5-medium, and SD3 without T5."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from directalign.config import ModelConfig, RolloutConfig
from directalign.models import load_model, trainable
from directalign.types import DirectAlignError
from models import proofs
from models.proofs import LIBRARY_CALL, STEPS, image_of_ours, noise_for, noisy
from models.srpo_by_hand import PROMPTS, TRAINING_CFG
from tiny import SIZE
from tiny_sd3 import MEDIUM, write_sd3

CASES = {"sd3": {}, "sd35_medium": {"transformer": MEDIUM}, "without_t5": {"t5": False}}
DYNAMIC = {
    "use_dynamic_shifting": True,
    "shift": 1.0,
    "base_image_seq_len": 16,
    "max_image_seq_len": 64,
}


@pytest.fixture(scope="module", params=CASES)
def folder(request, tmp_path_factory):
    return write_sd3(tmp_path_factory.mktemp(request.param), **CASES[request.param])


@pytest.fixture(scope="module")
def family(folder):
    return proofs.load("sd3", folder)


@pytest.fixture(scope="module")
def pipeline(folder):
    return pipeline_of(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One SD3, for what does not differ between them."""
    return write_sd3(tmp_path_factory.mktemp("plain"))


def pipeline_of(folder):
    has_t5 = (folder / "text_encoder_3").exists()
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, **({} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None})
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def raw(pipeline, x_t, sigma, tensors):
    return pipeline.transformer(
        x_t, tensors["sequence"], tensors["pooled"], (1000 * sigma).float()
    ).sample


def raw_with_cfg(pipeline, x_t, sigma, prompts, scale):
    sequence, empty_sequence, pooled, empty_pooled = pipeline.encode_prompt(prompts, None, None)
    cond = raw(pipeline, x_t, sigma, {"sequence": sequence.detach(), "pooled": pooled.detach()})
    uncond = raw(
        pipeline, x_t, sigma, {"sequence": empty_sequence.detach(), "pooled": empty_pooled.detach()}
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
        sequence, empty_sequence, pooled, empty_pooled = pipeline.encode_prompt(prompts, None, None)
    for ours, theirs in (
        (cond.tensors, (sequence, pooled)),
        (cond.unconditional, (empty_sequence, empty_pooled)),
    ):
        torch.testing.assert_close(ours["sequence"], theirs[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(ours["pooled"], theirs[1], atol=1e-6, rtol=0)
    assert sequence.shape[1] == 16 + 256
    assert bool(sequence[:, 16:].any()) is (pipeline.text_encoder_3 is not None)


def test_predict_equals_the_raw_network_value_and_gradient(family, pipeline):
    x_t, sigma, cond = noisy(family)
    proofs.check_gradient(
        family,
        pipeline.transformer,
        family.predict(x_t, sigma, cond),
        raw(pipeline, x_t, sigma, cond.tensors),
    )


def test_predict_with_cfg_is_two_passes(family, pipeline):
    x_t, sigma, cond = noisy(family)
    with torch.no_grad():
        guided = family.predict(x_t, sigma, cond.guided(None, 3.0))
        assert (guided - family.predict(x_t, sigma, cond)).abs().max() > 1e-3
        torch.testing.assert_close(
            guided, raw_with_cfg(pipeline, x_t, sigma, PROMPTS, 3.0), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_rollout_equals_the_pipeline(family, pipeline, cfg_scale):
    noise, rollout = noise_for(family), RolloutConfig(cfg_scale=cfg_scale)
    torch.testing.assert_close(
        image_of_ours(family, noise, rollout),
        image_of_pipeline(pipeline, family, noise, rollout),
        atol=1e-4,
        rtol=0,
    )


def test_srpo_step_equals_the_one_written_out_with_the_raw_network(family, pipeline):
    def sample_by_library(noise, cfg_scale):
        sizes = {"height": SIZE, "width": SIZE, "num_inference_steps": STEPS}
        return pipeline(
            PROMPTS, latents=noise, guidance_scale=cfg_scale, output_type="latent", **sizes
        ).images

    proofs.check_srpo_update(
        family,
        pipeline.transformer,
        sample_by_library,
        predict=lambda x_t, sigma: raw_with_cfg(pipeline, x_t, sigma, PROMPTS, TRAINING_CFG),
        decode=lambda x0: pipeline.vae.decode(x0 / 0.4 + 0.1).sample / 2 + 0.5,
    )


def test_lora_comes_back_in_a_fresh_pipeline_and_in_ours(folder, tmp_path):
    proofs.check_lora("sd3", folder, pipeline_of(folder), image_of_pipeline, tmp_path)


def test_lora_adapts_the_second_attention_where_there_is_one(folder):
    names = trainable(load_model(ModelConfig(architecture="sd3", path=str(folder)), "cpu"))
    layers = {
        name.split("transformer_blocks.0.")[1].split(".lora_")[0]
        for name in names
        if "transformer_blocks.0." in name
    }
    first = {
        f"attn.{name}"
        for name in (
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_add_out",
        )
    }
    second = {f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    dual = json.loads((folder / "transformer/config.json").read_text())["dual_attention_layers"]
    assert layers == (first | second if dual else first)


@pytest.mark.parametrize("width", [SIZE, 3 * SIZE])
def test_the_shift_follows_the_size_where_the_scheduler_says_so(tmp_path, width):
    folder = write_sd3(tmp_path, scheduler=DYNAMIC)
    family, rollout = (
        load_model(ModelConfig(architecture="sd3", path=str(folder)), "cpu"),
        RolloutConfig(),
    )
    noise, pipeline = noise_for(family, width), pipeline_of(folder)
    torch.testing.assert_close(
        image_of_ours(family, noise, rollout, width),
        image_of_pipeline(pipeline, family, noise, rollout),
        atol=1e-4,
        rtol=0,
    )
    torch.testing.assert_close(
        family.sigmas(4, SIZE, width), pipeline.scheduler.sigmas.double(), atol=0, rtol=0
    )
    assert not torch.equal(family.sigmas(4, SIZE, SIZE), family.sigmas(4, SIZE, 3 * SIZE))


def test_decode_and_encode_are_the_vaes(plain):
    family, pipeline = (
        load_model(ModelConfig(architecture="sd3", path=str(plain)), "cpu"),
        pipeline_of(plain),
    )
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x0 = (pipeline.vae.encode(2 * images - 1).latent_dist.mode() - 0.1) * 0.4
        torch.testing.assert_close(family.encode_image(images), x0, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            family.decode(x0),
            pipeline.vae.decode(x0 / 0.4 + 0.1).sample / 2 + 0.5,
            atol=1e-5,
            rtol=0,
        )


def test_bfloat16_stays_close_to_float32(plain):
    proofs.check_bfloat16("sd3", plain)


def test_held_in_8_bits_it_answers_nearly_the_same(tmp_path):
    proofs.check_eight_bits(
        "sd3",
        write_sd3(tmp_path, transformer={"attention_head_dim": 64, "caption_projection_dim": 128}),
    )


def test_gradient_checkpointing_changes_no_gradient(plain):
    proofs.check_recomputing("sd3", plain)


def test_prompts_encoded_one_by_one_are_the_same(family):
    proofs.check_rows_of_a_cache(family)


def test_embedded_guidance_and_a_missing_empty_prompt_are_refused(plain):
    family = load_model(ModelConfig(architecture="sd3", path=str(plain)), "cpu")
    x_t, sigma, cond = noisy(family)
    with pytest.raises(DirectAlignError, match=r"SD3 has no input for it.*use cfg_scale"):
        family.predict(x_t, sigma, cond.guided(3.5, 1.0))
    with pytest.raises(DirectAlignError, match="empty prompt"):
        family.predict(x_t, sigma, replace(cond.guided(None, 3.0), unconditional=None))


def test_a_size_that_does_not_fit_is_named(plain):
    family = load_model(ModelConfig(architecture="sd3", path=str(plain)), "cpu")
    assert family.default_size == (SIZE, SIZE)
    assert family.latent_shape(SIZE, 192) == (16, 8, 48)
    with pytest.raises(DirectAlignError, match="multiples of 8"):
        family.latent_shape(SIZE + 4, SIZE)
    with pytest.raises(
        DirectAlignError, match=r"32x200: .* end at 192 pixels a side \(pos_embed_max_size 24\)"
    ):
        family.latent_shape(SIZE, 200)


def test_models_that_are_not_plain_sd3_are_refused(tmp_path, tiny_flux):
    with pytest.raises(
        DirectAlignError, match="transformer: takes 33 channels, text-to-image needs 16"
    ):
        load_model(
            ModelConfig(
                architecture="sd3",
                path=str(write_sd3(tmp_path / "editing", transformer={"in_channels": 33})),
            ),
            "cpu",
        )
    with pytest.raises(DirectAlignError, match="stochastic_sampling is on"):
        load_model(
            ModelConfig(
                architecture="sd3",
                path=str(write_sd3(tmp_path / "noisy", scheduler={"stochastic_sampling": True})),
            ),
            "cpu",
        )
    with pytest.raises(
        DirectAlignError, match="holds a FluxPipeline, not a StableDiffusion3Pipeline"
    ):
        load_model(ModelConfig(architecture="sd3", path=str(tiny_flux)), "cpu")


def test_a_t5_that_is_named_must_be_there(tmp_path):
    folder = write_sd3(tmp_path)
    (folder / "tokenizer_3/tokenizer.json").unlink()
    with pytest.raises(DirectAlignError, match=r"tokenizer_3: lacks .*tokenizer\.json"):
        load_model(ModelConfig(architecture="sd3", path=str(folder)), "cpu")
