"""StableDiffusion3 says what StableDiffusion3Pipeline and the raw transformer say: SD3, SD3.5-medium, and SD3 without T5."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from directalign.config import Lora, Model, Rollout
from directalign.families.loading import load_family, load_trained, trainable
from directalign.methods.srpo import SRPO
from directalign.rollout import sample
from directalign.types import DirectAlignError
from families.srpo_by_hand import BATCH, PROMPTS, SETTINGS, TRAINING_CFG, known_noise, losses_by_hand
from methods.toy import ToyReward
from tiny import SIZE
from tiny_sd3 import MEDIUM, write_sd3

CASES = {"sd3": {}, "sd35_medium": {"transformer": MEDIUM}, "without_t5": {"t5": False}}
DYNAMIC = {"use_dynamic_shifting": True, "shift": 1.0, "base_image_seq_len": 16, "max_image_seq_len": 64}


@pytest.fixture(scope="module", params=CASES)
def folder(request, tmp_path_factory):
    return write_sd3(tmp_path_factory.mktemp(request.param), **CASES[request.param])


@pytest.fixture(scope="module")
def family(folder):
    return load_family(Model(family="sd3", path=str(folder), tune="full"), "cpu")


@pytest.fixture(scope="module")
def pipeline(folder):
    return pipeline_of(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One SD3, for what does not differ between them."""
    return write_sd3(tmp_path_factory.mktemp("plain"))


def pipeline_of(folder):
    has_t5 = (folder / "text_encoder_3").exists()
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **({} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None}))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noisy(family, seed=0):
    x_t = torch.randn(2, *family.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    return x_t, torch.tensor([0.9, 0.3], dtype=torch.float64), family.encode_prompt(PROMPTS)


def raw(pipeline, x_t, sigma, tensors):
    return pipeline.transformer(x_t, tensors["sequence"], tensors["pooled"], (1000 * sigma).float()).sample


def raw_with_cfg(pipeline, x_t, sigma, prompts, scale):
    sequence, empty_sequence, pooled, empty_pooled = pipeline.encode_prompt(prompts, None, None)
    cond = raw(pipeline, x_t, sigma, {"sequence": sequence.detach(), "pooled": pooled.detach()})
    uncond = raw(pipeline, x_t, sigma, {"sequence": empty_sequence.detach(), "pooled": empty_pooled.detach()})
    return (1 - scale) * uncond + scale * cond


def image_of_pipeline(pipeline, family, noise, rollout):
    call = {"latents": noise, "num_inference_steps": 4, "height": 4 * noise.shape[2], "width": 4 * noise.shape[3], "output_type": "pt"}
    return pipeline(PROMPTS, **call, **family.call_arguments(rollout)).images


@torch.no_grad()
def image_of_ours(family, noise, rollout):
    cond = family.encode_prompt(PROMPTS).guided(None, rollout.cfg_scale)
    return family.decode(sample(family, cond, noise, family.sigmas(4, 4 * noise.shape[2], 4 * noise.shape[3]))).clamp(0, 1)


def test_encode_prompt_equals_the_pipeline(family, pipeline):
    prompts = [*PROMPTS, "a red star on a sandy background . " * 4]
    cond = family.encode_prompt(prompts)
    with torch.no_grad():
        sequence, empty_sequence, pooled, empty_pooled = pipeline.encode_prompt(prompts, None, None)
    for ours, theirs in ((cond.tensors, (sequence, pooled)), (cond.unconditional, (empty_sequence, empty_pooled))):
        torch.testing.assert_close(ours["sequence"], theirs[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(ours["pooled"], theirs[1], atol=1e-6, rtol=0)
    assert sequence.shape[1] == 16 + 256
    assert bool(sequence[:, 16:].any()) is (pipeline.text_encoder_3 is not None)


def test_predict_equals_the_raw_network_value_and_gradient(family, pipeline):
    x_t, sigma, cond = noisy(family)
    weights = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))
    pred, expected = family.predict(x_t, sigma, cond), raw(pipeline, x_t, sigma, cond.tensors)
    torch.testing.assert_close(pred, expected, atol=1e-6, rtol=0)
    family.denoiser.zero_grad()
    pipeline.transformer.zero_grad()
    (pred * weights).sum().backward()
    (expected * weights).sum().backward()
    theirs = dict(pipeline.transformer.named_parameters())
    for name, parameter in trainable(family).items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-5)


def test_predict_with_cfg_is_two_passes(family, pipeline):
    x_t, sigma, cond = noisy(family)
    with torch.no_grad():
        guided = family.predict(x_t, sigma, cond.guided(None, 3.0))
        assert (guided - family.predict(x_t, sigma, cond)).abs().max() > 1e-3
        torch.testing.assert_close(guided, raw_with_cfg(pipeline, x_t, sigma, PROMPTS, 3.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_rollout_equals_the_pipeline(family, pipeline, cfg_scale):
    noise, rollout = noisy(family, seed=3)[0], Rollout(cfg_scale=cfg_scale)
    torch.testing.assert_close(image_of_ours(family, noise, rollout), image_of_pipeline(pipeline, family, noise, rollout), atol=1e-4, rtol=0)


def test_srpo_step_equals_the_one_written_out_with_the_raw_network(family, pipeline):
    rollout = Rollout(num_sampling_steps=4, cfg_scale=3.0)
    ours = list(SRPO(family, ToyReward(), SETTINGS, rollout).losses(BATCH))
    noise = known_noise(family.latent_shape(SIZE, SIZE))
    x0 = pipeline(PROMPTS, latents=noise, num_inference_steps=4, height=SIZE, width=SIZE, output_type="latent", guidance_scale=3.0).images
    theirs = losses_by_hand(
        path="flow",
        predict=lambda x_t, sigma: raw_with_cfg(pipeline, x_t, sigma, PROMPTS, TRAINING_CFG),
        decode=lambda x0: pipeline.vae.decode(x0 / 0.4 + 0.1).sample / 2 + 0.5,
        x0=x0,
        noise=noise,
    )
    assert [loss.branch for loss in ours] == ["denoise", "inversion"]
    for our, their in zip(ours, theirs, strict=True):
        assert their > 0
        torch.testing.assert_close(our.value, their, atol=1e-5, rtol=1e-5)
    parameters = dict(pipeline.transformer.named_parameters())
    names, weights = zip(*trainable(family).items(), strict=True)
    found = torch.autograd.grad(sum(loss.value for loss in ours), weights)
    expected = torch.autograd.grad(sum(theirs), [parameters[name] for name in names])
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    for name, our, their in zip(names, found, expected, strict=True):
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_lora_comes_back_in_a_fresh_pipeline_and_in_ours(folder, pipeline, tmp_path):
    model = Model(family="sd3", path=str(folder), lora=Lora(rank=2, alpha=3))
    family, noise, rollout = load_family(model, "cpu"), noisy(load_family(model, "cpu"), seed=3)[0], Rollout(cfg_scale=2.0)
    generator = torch.Generator().manual_seed(1)
    for parameter in trainable(family).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    family.save(tmp_path)
    image = image_of_ours(family, noise, rollout)
    assert (image - image_of_pipeline(pipeline, family, noise, rollout)).abs().max() > 1e-2

    fresh = pipeline_of(folder)
    fresh.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    torch.testing.assert_close(image, image_of_pipeline(fresh, family, noise, rollout), atol=1e-4, rtol=0)
    again = load_family(model, "cpu", seed=9)
    load_trained(again, tmp_path)
    torch.testing.assert_close(image_of_ours(again, noise, rollout), image, atol=1e-5, rtol=0)


def test_lora_adapts_the_second_attention_where_there_is_one(folder):
    names = trainable(load_family(Model(family="sd3", path=str(folder)), "cpu"))
    layers = {name.split("transformer_blocks.0.")[1].split(".lora_")[0] for name in names if "transformer_blocks.0." in name}
    first = {f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}
    second = {f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    dual = json.loads((folder / "transformer/config.json").read_text())["dual_attention_layers"]
    assert layers == (first | second if dual else first)


@pytest.mark.parametrize("width", [SIZE, 3 * SIZE])
def test_the_shift_follows_the_size_where_the_scheduler_says_so(tmp_path, width):
    folder = write_sd3(tmp_path, scheduler=DYNAMIC)
    family, rollout = load_family(Model(family="sd3", path=str(folder)), "cpu"), Rollout()
    noise = torch.randn(2, *family.latent_shape(SIZE, width), generator=torch.Generator().manual_seed(4))
    pipeline = pipeline_of(folder)
    torch.testing.assert_close(image_of_ours(family, noise, rollout), image_of_pipeline(pipeline, family, noise, rollout), atol=1e-4, rtol=0)
    torch.testing.assert_close(family.sigmas(4, SIZE, width), pipeline.scheduler.sigmas.double(), atol=0, rtol=0)
    assert not torch.equal(family.sigmas(4, SIZE, SIZE), family.sigmas(4, SIZE, 3 * SIZE))


def test_decode_and_encode_are_the_vaes(plain):
    family, pipeline = load_family(Model(family="sd3", path=str(plain)), "cpu"), pipeline_of(plain)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x0 = (pipeline.vae.encode(2 * images - 1).latent_dist.mode() - 0.1) * 0.4
        torch.testing.assert_close(family.encode_image(images), x0, atol=1e-6, rtol=0)
        torch.testing.assert_close(family.decode(x0), pipeline.vae.decode(x0 / 0.4 + 0.1).sample / 2 + 0.5, atol=1e-5, rtol=0)


def test_bfloat16_stays_close_to_float32(plain):
    exact, rounded = (load_family(Model(family="sd3", path=str(plain), dtype=dtype), "cpu") for dtype in ("float32", "bfloat16"))
    x_t, sigma, cond = noisy(exact)
    pred = rounded.predict(x_t, sigma, rounded.encode_prompt(PROMPTS))
    assert pred.dtype == torch.float32
    torch.testing.assert_close(pred, exact.predict(x_t, sigma, cond), atol=3e-2, rtol=0)


def test_embedded_guidance_and_a_missing_empty_prompt_are_refused(plain):
    family = load_family(Model(family="sd3", path=str(plain)), "cpu")
    x_t, sigma, cond = noisy(family)
    with pytest.raises(DirectAlignError, match=r"SD3 has no input for it.*use cfg_scale"):
        family.predict(x_t, sigma, cond.guided(3.5, 1.0))
    with pytest.raises(DirectAlignError, match="empty prompt"):
        family.predict(x_t, sigma, replace(cond.guided(None, 3.0), unconditional=None))


def test_a_size_that_does_not_fit_is_named(plain):
    family = load_family(Model(family="sd3", path=str(plain)), "cpu")
    assert family.default_size == (SIZE, SIZE)
    assert family.latent_shape(SIZE, 192) == (16, 8, 48)
    with pytest.raises(DirectAlignError, match="multiples of 8"):
        family.latent_shape(SIZE + 4, SIZE)
    with pytest.raises(DirectAlignError, match=r"32x200: .* end at 192 pixels a side \(pos_embed_max_size 24\)"):
        family.latent_shape(SIZE, 200)


def test_models_that_are_not_plain_sd3_are_refused(tmp_path, tiny_flux):
    with pytest.raises(DirectAlignError, match="transformer: takes 33 channels, text-to-image needs 16"):
        load_family(Model(family="sd3", path=str(write_sd3(tmp_path / "editing", transformer={"in_channels": 33}))), "cpu")
    with pytest.raises(DirectAlignError, match="stochastic_sampling is on"):
        load_family(Model(family="sd3", path=str(write_sd3(tmp_path / "noisy", scheduler={"stochastic_sampling": True}))), "cpu")
    with pytest.raises(DirectAlignError, match="holds a FluxPipeline, not a StableDiffusion3Pipeline"):
        load_family(Model(family="sd3", path=str(tiny_flux)), "cpu")


def test_a_t5_that_is_named_must_be_there(tmp_path):
    folder = write_sd3(tmp_path)
    (folder / "tokenizer_3/tokenizer.json").unlink()
    with pytest.raises(DirectAlignError, match=r"tokenizer_3: lacks .*tokenizer\.json"):
        load_family(Model(family="sd3", path=str(folder)), "cpu")
