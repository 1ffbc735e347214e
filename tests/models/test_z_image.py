"""ZImage says what ZImagePipeline and the raw transformer say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import ZImagePipeline
from diffusers.pipelines.z_image import pipeline_z_image

from directalign.config import RolloutConfig
from directalign.types import DirectAlignError
from models import proofs
from models.proofs import LIBRARY_CALL, image_of_ours, noise_for, noisy
from models.srpo_by_hand import PROMPTS, TRAINING_CFG
from tiny import SIZE
from tiny_z_image import write_z_image

LONG = "a red star on a sandy background . " * 90
DYNAMIC = {
    "use_dynamic_shifting": True,
    "shift": 1.0,
    "base_image_seq_len": 16,
    "max_image_seq_len": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_z_image(tmp_path_factory.mktemp("z_image"))


@pytest.fixture(scope="module")
def family(folder):
    return proofs.load("z_image", folder)


@pytest.fixture(scope="module")
def pipeline(folder):
    return pipeline_of(folder)


def pipeline_of(folder):
    pipeline = ZImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def raw(pipeline, x_t, sigma, prompts):
    """Velocity of the raw network under prompts that the pipeline encoded."""
    with torch.no_grad():
        sequences, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    from_noise = pipeline.transformer(
        list(x_t.unsqueeze(2)), ((1000 - 1000 * sigma) / 1000).float(), sequences
    ).sample
    return -torch.cat(from_noise, dim=1).transpose(0, 1)


def raw_with_cfg(pipeline, x_t, sigma, scale):
    cond, uncond = raw(pipeline, x_t, sigma, PROMPTS), raw(pipeline, x_t, sigma, ["", ""])
    return (1 - scale) * uncond + scale * cond


def library_call(pipeline, family, noise, rollout, **call):
    size = {
        "height": 4 * noise.shape[2],
        "width": 4 * noise.shape[3],
        "sigmas": [1.0, 0.75, 0.5, 0.25],
    }
    return pipeline(
        list(PROMPTS), latents=noise, **LIBRARY_CALL | size | family.call_arguments(rollout) | call
    ).images


def test_encode_prompt_equals_the_pipeline(family, pipeline):
    prompts = [*PROMPTS, LONG]
    cond = family.encode_prompt(prompts)
    with torch.no_grad():
        sequences, empty = pipeline.encode_prompt(list(prompts))
    for tensors, expected in ((cond.tensors, sequences), (cond.unconditional, empty)):
        for sequence, mask, rows in zip(
            tensors["sequence"], tensors["mask"], expected, strict=True
        ):
            torch.testing.assert_close(sequence[mask], rows, atol=1e-6, rtol=0)
    assert [len(rows) for rows in sequences] == [11, 15, 512]
    assert not cond.tensors["sequence"][~cond.tensors["mask"]].any()


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


@torch.no_grad()
def test_a_prompt_is_answered_alike_whoever_it_is_batched_with(family):
    x_t, sigma, _ = noisy(family)
    alone = family.predict(x_t[:1], sigma[:1], family.encode_prompt(PROMPTS[:1]))
    for mate in (PROMPTS[1], LONG):
        batched = family.predict(x_t, sigma, family.encode_prompt([PROMPTS[0], mate]))
        torch.testing.assert_close(batched[:1], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_rollout_equals_the_pipeline(family, pipeline, cfg_scale):
    noise, rollout = noise_for(family), RolloutConfig(cfg_scale=cfg_scale)
    torch.testing.assert_close(
        image_of_ours(family, noise, rollout),
        library_call(pipeline, family, noise, rollout),
        atol=1e-4,
        rtol=0,
    )
    assert family.call_arguments(rollout)["guidance_scale"] == cfg_scale - 1


def test_the_shift_follows_the_size_where_the_scheduler_says_so(tmp_path):
    folder = write_z_image(tmp_path, scheduler=DYNAMIC)
    family, pipeline = proofs.load("z_image", folder), pipeline_of(folder)
    noise = noise_for(family, width=3 * SIZE)
    images = library_call(pipeline, family, noise, RolloutConfig())
    torch.testing.assert_close(
        image_of_ours(family, noise, RolloutConfig(), 3 * SIZE), images, atol=1e-4, rtol=0
    )
    assert torch.equal(family.sigmas(4, SIZE, 3 * SIZE), pipeline.scheduler.sigmas.double())
    assert not torch.equal(family.sigmas(4, SIZE, SIZE), family.sigmas(4, SIZE, 3 * SIZE))


@pytest.mark.skipif(
    not hasattr(pipeline_z_image, "get_default_z_image_sigmas"),
    reason="this release stands still in the last of its steps",
)
def test_the_grid_is_the_pipelines_own(family, pipeline):
    noise = noise_for(family)
    images = library_call(pipeline, family, noise, RolloutConfig(), sigmas=None)
    torch.testing.assert_close(
        image_of_ours(family, noise, RolloutConfig()), images, atol=1e-4, rtol=0
    )


def test_srpo_update_equals_the_one_written_out_with_the_raw_network(family, pipeline):
    def sample_by_library(noise, cfg_scale):
        return library_call(
            pipeline, family, noise, RolloutConfig(cfg_scale=cfg_scale), output_type="latent"
        )

    proofs.check_srpo_update(
        family,
        pipeline.transformer,
        sample_by_library,
        predict=lambda x_t, sigma: raw_with_cfg(pipeline, x_t, sigma, TRAINING_CFG),
        decode=lambda x0: pipeline.vae.decode(x0 / 0.4 + 0.1).sample / 2 + 0.5,
    )


@torch.no_grad()
def test_decode_and_encode_are_the_vaes(family, pipeline):
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    x0 = (pipeline.vae.encode(2 * images - 1).latent_dist.mode() - 0.1) * 0.4
    torch.testing.assert_close(family.encode_image(images), x0, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        family.decode(x0), pipeline.vae.decode(x0 / 0.4 + 0.1).sample / 2 + 0.5, atol=1e-5, rtol=0
    )


def test_lora_comes_back_in_a_fresh_pipeline_and_in_ours(folder, tmp_path):
    proofs.check_lora("z_image", folder, pipeline_of(folder), library_call, tmp_path)


def test_checkpointing_recomputes_and_changes_nothing(folder):
    proofs.check_recomputing("z_image", folder)


def test_bfloat16_stays_close_to_float32(folder):
    proofs.check_bfloat16("z_image", folder)


def test_eight_bits_stay_close(tmp_path):
    proofs.check_eight_bits(
        "z_image", write_z_image(tmp_path, transformer={"dim": 64, "n_heads": 8, "n_kv_heads": 8})
    )


def test_embedded_guidance_and_a_missing_unconditional_are_refused(family):
    x_t, sigma, cond = noisy(family)
    with pytest.raises(
        DirectAlignError, match=r"Z-Image has no input for it: leave rollout\.embedded_guidance"
    ):
        family.predict(x_t, sigma, cond.guided(3.5, 1.0))
    with pytest.raises(DirectAlignError, match="empty prompt"):
        family.predict(x_t, sigma, replace(cond.guided(None, 3.0), unconditional=None))


def test_a_size_that_does_not_fit_names_the_multiple(family):
    assert family.latent_shape(SIZE, 2 * SIZE) == (4, 8, 16)
    assert family.default_size == (SIZE, SIZE)
    with pytest.raises(DirectAlignError, match="multiples of 8"):
        family.latent_shape(SIZE + 4, SIZE)


def test_models_that_are_not_plain_z_image_are_refused(tmp_path, tiny_flux):
    with pytest.raises(DirectAlignError, match="transformer: takes 9 channels, the VAE has 4"):
        proofs.load("z_image", write_z_image(tmp_path / "editing", transformer={"in_channels": 9}))
    with pytest.raises(DirectAlignError, match=r"reads images too \(siglip_feat_dim\)"):
        proofs.load("z_image", write_z_image(tmp_path / "omni", transformer={"siglip_feat_dim": 8}))
    with pytest.raises(DirectAlignError, match="stochastic_sampling is on"):
        proofs.load(
            "z_image", write_z_image(tmp_path / "noisy", scheduler={"stochastic_sampling": True})
        )
    with pytest.raises(DirectAlignError, match="holds a FluxPipeline, not a ZImagePipeline"):
        proofs.load("z_image", tiny_flux)
