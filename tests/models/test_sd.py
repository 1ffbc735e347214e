"""StableDiffusion says what StableDiffusionPipeline and the raw UNet say."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from directalign.config import ModelConfig
from directalign.models import load_model, trainable
from directalign.types import DirectAlignError
from tiny import SIZE, write_sd

PROMPTS = ["a red star", "a blue circle on a sandy background"]


@pytest.fixture(scope="module")
def family(tiny_sd):
    return load_model(ModelConfig(architecture="sd", path=str(tiny_sd), tune="full"), "cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_sd):
    return StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)


def noisy(family, timesteps=(901, 7)):
    x_t = torch.randn(
        2, *family.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(0)
    )
    alphas_cumprod = family.scheduler.alphas_cumprod.double()
    return x_t, (1 - alphas_cumprod[list(timesteps)]).sqrt(), family.encode_prompt(PROMPTS)


def test_encode_prompt_equals_the_pipeline(family, pipeline):
    cond = family.encode_prompt(PROMPTS)
    with torch.no_grad():
        sequence, empty = pipeline.encode_prompt(
            PROMPTS, "cpu", 1, do_classifier_free_guidance=True
        )
    torch.testing.assert_close(cond.tensors["sequence"], sequence, atol=1e-6, rtol=0)
    torch.testing.assert_close(cond.unconditional["sequence"], empty, atol=1e-6, rtol=0)


def test_predict_equals_the_raw_network_value_and_gradient(family, pipeline):
    x_t, sigma, cond = noisy(family)
    weights = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))
    pred = family.predict(x_t, sigma, cond)
    expected = pipeline.unet(x_t, torch.tensor([901, 7]), cond.tensors["sequence"]).sample
    torch.testing.assert_close(pred, expected, atol=1e-6, rtol=0)
    (pred * weights).sum().backward()
    (expected * weights).sum().backward()
    theirs = dict(pipeline.unet.named_parameters())
    for name, parameter in trainable(family).items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-5)


def test_prediction_follows_the_scheduler(family, tiny_sd_v):
    assert (family.path, family.prediction) == ("vp", "epsilon")
    assert load_model(ModelConfig(architecture="sd", path=str(tiny_sd_v)), "cpu").prediction == "v"


def test_sigmas_are_the_levels_of_ddim_and_end_in_0(family):
    sigmas = family.sigmas(4, SIZE, SIZE)
    expected = (1 - family.scheduler.alphas_cumprod[[751, 501, 251, 1]].double()).sqrt()
    torch.testing.assert_close(
        sigmas, torch.cat([expected, torch.zeros(1, dtype=torch.float64)]), atol=1e-12, rtol=0
    )


def test_zero_terminal_snr_starts_at_1(tiny_sd_v):
    assert (
        load_model(ModelConfig(architecture="sd", path=str(tiny_sd_v)), "cpu").sigmas(
            5, SIZE, SIZE
        )[0]
        == 1
    )


@pytest.mark.parametrize("num_inference_steps", [1000, 1001])
def test_more_steps_than_levels_are_refused(family, num_inference_steps):
    with pytest.raises(DirectAlignError, match="ask for fewer"):
        family.sigmas(num_inference_steps, SIZE, SIZE)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"clip_sample": True}, "clip_sample is on"),
        ({"prediction_type": "sample"}, "prediction_type sample"),
        ({"rescale_betas_zero_snr": True}, "set rescale_betas_zero_snr to false"),
    ],
)
def test_schedules_that_cannot_be_repeated_are_refused(tmp_path, scheduler, message):
    file = write_sd(tmp_path) / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | scheduler))
    with pytest.raises(DirectAlignError, match=message):
        load_model(ModelConfig(architecture="sd", path=str(tmp_path)), "cpu")


def test_embedded_guidance_is_refused(family):
    x_t, sigma, cond = noisy(family)
    with pytest.raises(DirectAlignError, match="use cfg_scale"):
        family.predict(x_t, sigma, cond.guided(3.5, 1.0))


def test_decode_and_encode_are_the_vaes(family, pipeline):
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x0 = pipeline.vae.encode(2 * images - 1).latent_dist.mode() * 0.4
        torch.testing.assert_close(family.encode_image(images), x0, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            family.decode(x0), pipeline.vae.decode(x0 / 0.4).sample / 2 + 0.5, atol=1e-5, rtol=0
        )


def test_a_size_that_does_not_fit_names_the_multiple(family):
    assert family.default_size == (SIZE, SIZE)
    with pytest.raises(DirectAlignError, match="multiples of 8"):
        family.latent_shape(SIZE, SIZE - 4)
