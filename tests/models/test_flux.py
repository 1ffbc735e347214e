"""Flux says what FluxPipeline and the raw transformer say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline

from directalign.config import ModelConfig
from directalign.models import common, load_model, trainable
from directalign.types import DirectAlignError
from tiny import MAX_SEQUENCE_LENGTH, SIZE, write_flux

PROMPTS = ["a red star", "a blue circle on a sandy background"]


@pytest.fixture(scope="module")
def family(tiny_flux):
    return load_model(ModelConfig(architecture="flux", path=str(tiny_flux), tune="full"), "cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_flux):
    return FluxPipeline.from_pretrained(tiny_flux)


def noisy(family, seed=0):
    x_t = torch.randn(
        2, *family.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(seed)
    )
    return (
        x_t,
        torch.tensor([0.9, 0.3], dtype=torch.float64),
        family.encode_prompt(PROMPTS).guided(3.5, 1.0),
    )


def raw(transformer, x_t, sigma, tensors):
    sequence = tensors["sequence"]
    return transformer(
        hidden_states=FluxPipeline._pack_latents(x_t, *x_t.shape),
        timestep=sigma.float(),
        guidance=torch.tensor([3.5, 3.5]),
        pooled_projections=tensors["pooled"],
        encoder_hidden_states=sequence,
        txt_ids=torch.zeros(sequence.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32),
    ).sample


def test_encode_prompt_equals_the_pipeline(family, pipeline):
    cond = family.encode_prompt(PROMPTS)
    for prompts, tensors in ((PROMPTS, cond.tensors), (["", ""], cond.unconditional)):
        with torch.no_grad():
            sequence, pooled, _ = pipeline.encode_prompt(
                prompts, max_sequence_length=MAX_SEQUENCE_LENGTH
            )
        torch.testing.assert_close(tensors["sequence"], sequence, atol=1e-6, rtol=0)
        torch.testing.assert_close(tensors["pooled"], pooled, atol=1e-6, rtol=0)


def test_sequence_length_is_512_unless_the_folder_says_otherwise(tmp_path):
    folder = write_flux(tmp_path)
    (folder / "directalign.json").unlink()
    cond = load_model(ModelConfig(architecture="flux", path=str(folder)), "cpu").encode_prompt(
        ["a star"]
    )
    assert cond.tensors["sequence"].shape[1] == 512


def test_predict_equals_the_raw_network(family, pipeline):
    x_t, sigma, cond = noisy(family)
    with torch.no_grad():
        tokens = raw(pipeline.transformer, x_t, sigma, cond.tensors)
        expected = FluxPipeline._unpack_latents(tokens, SIZE, SIZE, 4)
        torch.testing.assert_close(family.predict(x_t, sigma, cond), expected, atol=1e-6, rtol=0)


def test_predict_with_cfg_is_two_passes(family):
    x_t, sigma, cond = noisy(family)
    with torch.no_grad():
        with_prompt = family.predict(x_t, sigma, cond)
        without = family.predict(x_t, sigma, replace(cond, tensors=cond.unconditional))
        guided = family.predict(x_t, sigma, cond.guided(3.5, 3.0))
    assert (with_prompt - without).abs().max() > 1e-3
    torch.testing.assert_close(guided, without + 3 * (with_prompt - without), atol=1e-5, rtol=0)


def test_cfg_without_the_empty_prompt_is_refused(family):
    x_t, sigma, cond = noisy(family)
    with pytest.raises(DirectAlignError, match="empty prompt"):
        family.predict(x_t, sigma, replace(cond.guided(3.5, 3.0), unconditional=None))


def test_gradient_equals_the_raw_networks(family, pipeline):
    x_t, sigma, cond = noisy(family)
    weights = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))
    family.denoiser.zero_grad()
    (family.predict(x_t, sigma, cond) * weights).sum().backward()
    pipeline.transformer.zero_grad()
    (raw(pipeline.transformer, x_t, sigma, cond.tensors) * common.pack(weights)).sum().backward()
    expected = dict(pipeline.transformer.named_parameters())
    for name, parameter in trainable(family).items():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-5)


def test_decode_is_the_pipelines_before_its_clamp(family, pipeline):
    x0 = 3 * noisy(family)[0]
    with torch.no_grad():
        latents = x0 / 0.4 + 0.1
        expected = pipeline.vae.decode(latents).sample / 2 + 0.5
        torch.testing.assert_close(family.decode(x0), expected, atol=1e-5, rtol=0)


def test_encode_image_is_the_scaled_mode(family, pipeline):
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mode = pipeline.vae.encode(2 * images - 1).latent_dist.mode()
    torch.testing.assert_close(family.encode_image(images), (mode - 0.1) * 0.4, atol=1e-6, rtol=0)


def test_guidance_must_fit_the_network(family, tmp_path):
    x_t, sigma, cond = noisy(family)
    with pytest.raises(
        DirectAlignError, match=r"rollout\.embedded_guidance and method\.embedded_guidance"
    ):
        family.predict(x_t, sigma, cond.guided(None, 1.0))
    plain = load_model(
        ModelConfig(architecture="flux", path=str(write_flux(tmp_path, guidance_embeds=False))),
        "cpu",
    )
    assert plain.predict(x_t, sigma, cond.guided(None, 1.0)).shape == x_t.shape
    with pytest.raises(DirectAlignError, match="no input for it"):
        plain.predict(x_t, sigma, cond)


def test_a_size_that_does_not_fit_names_the_multiple(family):
    assert family.latent_shape(SIZE, 2 * SIZE) == (4, 8, 16)
    assert family.default_size == (SIZE, SIZE)
    with pytest.raises(DirectAlignError, match="multiples of 8"):
        family.latent_shape(SIZE + 4, SIZE)
