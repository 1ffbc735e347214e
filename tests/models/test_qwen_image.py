"""QwenImage says what QwenImagePipeline and the raw transformer say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import QwenImagePipeline

from directalign.config import RolloutConfig
from directalign.models import common
from directalign.types import DirectAlignError
from models import proofs
from models.proofs import LIBRARY_CALL, image_of_ours, noise_for, noisy
from models.srpo_by_hand import PROMPTS, TRAINING_CFG
from tiny import SIZE
from tiny_qwen import LATENTS_MEAN, LATENTS_STD, write_qwen_image

LONG = "a red star on a sandy background . " * 90
MEAN, STD = (torch.tensor(numbers)[:, None, None] for numbers in (LATENTS_MEAN, LATENTS_STD))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_qwen_image(tmp_path_factory.mktemp("qwen_image"))


@pytest.fixture(scope="module")
def family(folder):
    return proofs.load("qwen_image", folder)


@pytest.fixture(scope="module")
def pipeline(folder):
    return pipeline_of(folder)


def pipeline_of(folder):
    pipeline = QwenImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def raw(pipeline, x_t, sigma, prompts):
    """Tokens of the raw network under prompts that the pipeline encoded."""
    with torch.no_grad():
        sequence, mask = pipeline.encode_prompt(prompts)
    return pipeline.transformer(
        hidden_states=QwenImagePipeline._pack_latents(x_t, *x_t.shape),
        timestep=sigma.float(),
        encoder_hidden_states=sequence,
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, x_t.shape[2] // 2, x_t.shape[3] // 2)]] * len(x_t),
    ).sample


def raw_with_cfg(pipeline, x_t, sigma, scale):
    """Two passes, and every token as long as under the prompt."""
    cond, uncond = raw(pipeline, x_t, sigma, PROMPTS), raw(pipeline, x_t, sigma, [" ", " "])
    guided = (1 - scale) * uncond + scale * cond
    return unpacked(
        guided
        / guided.square().sum(-1, keepdim=True).sqrt()
        * cond.square().sum(-1, keepdim=True).sqrt()
    )


def unpacked(tokens):
    return QwenImagePipeline._unpack_latents(tokens, SIZE, SIZE, 4)[:, :, 0]


def library_call(pipeline, family, noise, rollout, **call):
    arguments = family.call_arguments(rollout)
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(PROMPTS)
    size = {"height": 4 * noise.shape[2], "width": 4 * noise.shape[3]}
    return pipeline(
        PROMPTS, latents=common.pack(noise), **LIBRARY_CALL | size | arguments | call
    ).images


def test_encode_prompt_equals_the_pipeline(family, pipeline):
    prompts = [*PROMPTS, LONG]
    cond = family.encode_prompt(prompts)
    with torch.no_grad():
        sequence, mask = pipeline.encode_prompt(prompts, max_sequence_length=512)
        space, _ = pipeline.encode_prompt([" "] * 3)
    torch.testing.assert_close(cond.tensors["sequence"], sequence, atol=1e-6, rtol=0)
    torch.testing.assert_close(cond.unconditional["sequence"], space, atol=1e-6, rtol=0)
    assert torch.equal(cond.tensors["mask"], mask.bool())
    assert mask.sum(1).tolist() == [8, 12, 512]
    assert cond.unconditional["mask"].all()


def test_the_instruction_is_dropped(family):
    instruction = family.template.split("{}")[0]
    assert len(family.tokenizer(instruction).input_ids) == family.dropped == 34


def test_prompts_may_be_encoded_one_by_one(family):
    proofs.check_rows_of_a_cache(family)


def test_predict_equals_the_raw_network_value_and_gradient(family, pipeline):
    x_t, sigma, cond = noisy(family)
    proofs.check_gradient(
        family,
        pipeline.transformer,
        family.predict(x_t, sigma, cond),
        unpacked(raw(pipeline, x_t, sigma, PROMPTS)),
    )


@torch.no_grad()
def test_predict_with_cfg_keeps_the_norm_of_each_token(family, pipeline):
    x_t, sigma, cond = noisy(family)
    guided, plain = (
        family.predict(x_t, sigma, cond.guided(None, 3.0)),
        family.predict(x_t, sigma, cond),
    )
    assert (guided - plain).abs().max() > 1e-3
    torch.testing.assert_close(
        common.pack(guided).norm(dim=-1), common.pack(plain).norm(dim=-1), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(guided, raw_with_cfg(pipeline, x_t, sigma, 3.0), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_prompt_is_answered_alike_whoever_it_is_batched_with(family):
    x_t, sigma, _ = noisy(family)
    alone = family.predict(x_t[:1], sigma[:1], family.encode_prompt(PROMPTS[:1]))
    for mate in (PROMPTS[1], LONG):
        batched = family.predict(x_t, sigma, family.encode_prompt([PROMPTS[0], mate]))
        torch.testing.assert_close(batched[:1], alone, atol=1e-6, rtol=0)


@torch.no_grad()
def test_what_the_mask_hides_is_not_read(family):
    x_t, sigma, cond = noisy(family)
    hidden = cond.tensors["sequence"] + 9 * ~cond.tensors["mask"][..., None]
    assert not torch.equal(hidden, cond.tensors["sequence"])
    moved = replace(cond, tensors={**cond.tensors, "sequence": hidden})
    torch.testing.assert_close(
        family.predict(x_t, sigma, moved), family.predict(x_t, sigma, cond), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_rollout_equals_the_pipeline(family, pipeline, cfg_scale):
    noise, rollout = noise_for(family), RolloutConfig(cfg_scale=cfg_scale)
    torch.testing.assert_close(
        image_of_ours(family, noise, rollout),
        library_call(pipeline, family, noise, rollout),
        atol=1e-4,
        rtol=0,
    )


def test_the_shift_follows_the_size(family, pipeline):
    noise = noise_for(family, width=3 * SIZE)
    images = library_call(pipeline, family, noise, RolloutConfig())
    torch.testing.assert_close(
        image_of_ours(family, noise, RolloutConfig(), 3 * SIZE), images, atol=1e-4, rtol=0
    )
    assert torch.equal(family.sigmas(4, SIZE, 3 * SIZE), pipeline.scheduler.sigmas.double())
    assert not torch.equal(family.sigmas(4, SIZE, SIZE), family.sigmas(4, SIZE, 3 * SIZE))
    assert family.sigmas(4, SIZE, SIZE)[-2:].tolist() == pytest.approx([0.02, 0])


def test_a_fixed_shift_is_taken_too(tmp_path):
    family = proofs.load(
        "qwen_image",
        write_qwen_image(
            tmp_path,
            scheduler={"use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": None},
        ),
    )
    torch.testing.assert_close(
        family.sigmas(2, SIZE, SIZE),
        torch.tensor([1.0, 0.75, 0.0], dtype=torch.float64),
        atol=1e-7,
        rtol=0,
    )


def test_srpo_update_equals_the_one_written_out_with_the_raw_network(family, pipeline):
    def sample_by_library(noise, cfg_scale):
        return unpacked(
            library_call(
                pipeline, family, noise, RolloutConfig(cfg_scale=cfg_scale), output_type="latent"
            )
        )

    proofs.check_srpo_update(
        family,
        pipeline.transformer,
        sample_by_library,
        predict=lambda x_t, sigma: raw_with_cfg(pipeline, x_t, sigma, TRAINING_CFG),
        decode=lambda x0: (
            pipeline.vae.decode((x0 * STD + MEAN)[:, :, None]).sample[:, :, 0] / 2 + 0.5
        ),
    )


def test_decode_is_the_pipelines_before_the_clamp_of_its_vae(family, pipeline):
    x0 = noisy(family)[0]
    with torch.no_grad():
        torch.testing.assert_close(
            family.decode(x0),
            pipeline.vae.decode((x0 * STD + MEAN)[:, :, None]).sample[:, :, 0] / 2 + 0.5,
            atol=1e-5,
            rtol=0,
        )
        pipeline.vae.decoder.conv_out.bias += 2.5
        family.vae.decoder.conv_out.bias += 2.5
        bright, clamped = (
            family.decode(x0),
            pipeline.vae.decode((x0 * STD + MEAN)[:, :, None]).sample[:, :, 0] / 2 + 0.5,
        )
        pipeline.vae.decoder.conv_out.bias -= 2.5
        family.vae.decoder.conv_out.bias -= 2.5
    assert bright.max() > 1.2
    torch.testing.assert_close(bright.clamp(0, 1), clamped, atol=1e-5, rtol=0)


def test_encode_image_is_the_scaled_mode(family, pipeline):
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mode = pipeline.vae.encode(2 * images[:, :, None] - 1).latent_dist.mode()[:, :, 0]
    torch.testing.assert_close(family.encode_image(images), (mode - MEAN) / STD, atol=1e-6, rtol=0)


def test_lora_comes_back_in_a_fresh_pipeline_and_in_ours(folder, tmp_path):
    proofs.check_lora("qwen_image", folder, pipeline_of(folder), library_call, tmp_path)


def test_checkpointing_recomputes_and_changes_nothing(folder):
    proofs.check_recomputing("qwen_image", folder)


def test_bfloat16_stays_close_to_float32(folder):
    proofs.check_bfloat16("qwen_image", folder)


def test_eight_bits_stay_close(tmp_path):
    proofs.check_eight_bits(
        "qwen_image", write_qwen_image(tmp_path, transformer={"num_attention_heads": 8})
    )


def test_embedded_guidance_and_a_missing_unconditional_are_refused(family):
    x_t, sigma, cond = noisy(family)
    with pytest.raises(
        DirectAlignError, match=r"Qwen-Image has no input for it: leave rollout\.embedded_guidance"
    ):
        family.predict(x_t, sigma, cond.guided(3.5, 1.0))
    with pytest.raises(DirectAlignError, match="empty prompt"):
        family.predict(x_t, sigma, replace(cond.guided(None, 3.0), unconditional=None))


def test_a_size_that_does_not_fit_names_the_multiple(family, pipeline):
    assert family.latent_shape(SIZE, 2 * SIZE) == (4, 8, 16)
    assert family.default_size == (pipeline.default_sample_size * 4,) * 2
    with pytest.raises(DirectAlignError, match="multiples of 8"):
        family.latent_shape(SIZE + 4, SIZE)


@pytest.mark.parametrize("name", ["guidance_embeds", "use_additional_t_cond"])
def test_networks_that_want_more_inputs_are_refused(tmp_path, name):
    with pytest.raises(DirectAlignError, match=f"transformer: {name} is on"):
        proofs.load("qwen_image", write_qwen_image(tmp_path, transformer={name: True}))


def test_models_that_are_not_plain_qwen_image_are_refused(tmp_path, tiny_flux):
    with pytest.raises(
        DirectAlignError, match="transformer: takes 20 channels, text-to-image needs 4 x 4"
    ):
        proofs.load(
            "qwen_image", write_qwen_image(tmp_path / "editing", transformer={"in_channels": 20})
        )
    with pytest.raises(DirectAlignError, match="invert_sigmas is on"):
        proofs.load(
            "qwen_image", write_qwen_image(tmp_path / "inverted", scheduler={"invert_sigmas": True})
        )
    with pytest.raises(DirectAlignError, match="holds a FluxPipeline, not a QwenImagePipeline"):
        proofs.load("qwen_image", tiny_flux)
