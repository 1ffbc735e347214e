"""Our rollout is the diffusers pipelines' own, from the same noise and weights; and what keeps its graph."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FluxPipeline, StableDiffusionPipeline

from directalign.config import ModelConfig, RolloutConfig
from directalign.diffusion.sampling import rollout_sigmas, sample
from directalign.models import common, load_model, trainable
from directalign.types import DirectAlignError
from tiny import MAX_SEQUENCE_LENGTH, SIZE, ZERO_SNR, write_flux, write_sd
from tiny_qwen import write_qwen_image

PROMPTS = ["a red star", "a blue circle"]
DYNAMIC = {
    "use_dynamic_shifting": True,
    "base_image_seq_len": 4,
    "max_image_seq_len": 64,
    "base_shift": 0.5,
    "max_shift": 1.15,
}


def noise_for(family):
    return torch.randn(
        2, *family.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(3)
    )


def ours(family, noise, num_inference_steps, embedded_guidance, cfg_scale):
    cond = family.encode_prompt(PROMPTS).guided(embedded_guidance, cfg_scale)
    with torch.no_grad():
        x0 = sample(family, cond, noise, family.sigmas(num_inference_steps, SIZE, SIZE))
        return x0, family.decode(x0).clamp(0, 1)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_equal(got, want):
    """Within 1e-5 of the largest value: an untrained network's latents grow to 40 near alpha = 0."""
    assert (got - want).abs().max() <= 1e-5 * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("scheduler", [{"shift": 3.0}, DYNAMIC], ids=["static", "dynamic"])
def test_flux_equals_the_pipeline(tmp_path, scheduler):
    folder = write_flux(tmp_path, scheduler=scheduler)
    family, pipeline = (
        load_model(ModelConfig(architecture="flux", path=str(folder)), "cpu"),
        quiet(FluxPipeline.from_pretrained(folder)),
    )
    noise = noise_for(family)
    for num_inference_steps, cfg_scale in ((1, 1.0), (4, 1.0), (7, 3.0)):
        settings = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": 2.5,
            "true_cfg_scale": cfg_scale,
            "negative_prompt": ["", ""],
        }
        call = {
            "height": SIZE,
            "width": SIZE,
            "latents": common.pack(noise),
            "max_sequence_length": MAX_SEQUENCE_LENGTH,
        } | settings
        x0, images = ours(family, noise, num_inference_steps, 2.5, cfg_scale)
        assert_equal(common.pack(x0), pipeline(PROMPTS, output_type="latent", **call).images)
        assert_equal(images, pipeline(PROMPTS, output_type="pt", **call).images)


@pytest.mark.parametrize(
    ("prediction_type", "scheduler"),
    [("epsilon", {}), ("v_prediction", {}), ("v_prediction", ZERO_SNR)],
    ids=["epsilon", "v", "v_zero_snr"],
)
def test_sd_equals_the_pipeline(tmp_path, prediction_type, scheduler):
    folder = write_sd(tmp_path, prediction_type, scheduler)
    family, pipeline = (
        load_model(ModelConfig(architecture="sd", path=str(folder)), "cpu"),
        quiet(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)),
    )
    noise = noise_for(family)
    for num_inference_steps, cfg_scale in ((1, 1.0), (4, 3.0), (10, 1.0)):
        call = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": cfg_scale,
            "latents": noise,
            "height": SIZE,
            "width": SIZE,
        }
        x0, images = ours(family, noise, num_inference_steps, None, cfg_scale)
        assert_equal(x0, pipeline(PROMPTS, output_type="latent", **call).images)
        assert_equal(images, pipeline(PROMPTS, output_type="pt", **call).images)


def test_a_table_without_a_clean_end_is_sampled_to_the_end(tmp_path):
    folder = write_sd(tmp_path, scheduler={"set_alpha_to_one": False})
    family, pipeline = (
        load_model(ModelConfig(architecture="sd", path=str(folder)), "cpu"),
        quiet(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)),
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, set_alpha_to_one=True)
    noise = noise_for(family)
    expected = pipeline(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=1.0,
        latents=noise,
        height=SIZE,
        width=SIZE,
        output_type="latent",
    ).images
    assert_equal(ours(family, noise, 4, None, 1.0)[0], expected)


def test_only_the_last_steps_keep_their_graph(tmp_path):
    family = load_model(
        ModelConfig(architecture="flux", path=str(write_flux(tmp_path)), tune="full"), "cpu"
    )
    cond, noise, sigmas = (
        family.encode_prompt(PROMPTS).guided(1.0, 1.0),
        noise_for(family),
        family.sigmas(3, SIZE, SIZE),
    )
    assert not sample(family, cond, noise, sigmas).requires_grad
    before_last = sample(family, cond, noise, sigmas[:-1])
    kept = torch.autograd.grad(
        sample(family, cond, noise, sigmas, grad_steps=1).sum(), list(trainable(family).values())
    )
    alone = torch.autograd.grad(
        sample(family, cond, before_last, sigmas[-2:], grad_steps=1).sum(),
        list(trainable(family).values()),
    )
    for got, want in zip(kept, alone, strict=True):
        torch.testing.assert_close(got, want)


def test_no_graph_under_no_grad(tmp_path):
    family = load_model(ModelConfig(architecture="sd", path=str(write_sd(tmp_path))), "cpu")
    with torch.no_grad():
        x0 = sample(
            family,
            family.encode_prompt(PROMPTS),
            noise_for(family),
            family.sigmas(2, SIZE, SIZE),
            grad_steps=2,
        )
    assert not x0.requires_grad


@pytest.mark.filterwarnings("error")
def test_a_scheduler_without_a_single_step_is_refused(tmp_path):
    family = load_model(
        ModelConfig(architecture="qwen_image", path=str(write_qwen_image(tmp_path))), "cpu"
    )
    assert rollout_sigmas(family, RolloutConfig(num_inference_steps=2), SIZE, SIZE).isfinite().all()
    with pytest.raises(
        DirectAlignError,
        match=r"num_inference_steps 1 at 32x32: the checkpoint's scheduler has no such grid: sample in more steps",
    ):
        rollout_sigmas(family, RolloutConfig(num_inference_steps=1), SIZE, SIZE)
    assert rollout_sigmas(
        family, RolloutConfig(num_inference_steps=1, shift=3.0), SIZE, SIZE
    ).tolist() == [1.0, 0.0]
