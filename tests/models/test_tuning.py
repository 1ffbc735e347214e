"""What is trained, what is not, and that trained weights come back: in our family and in a fresh diffusers pipeline."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline

from directalign.config import LoRAConfig, ModelConfig
from directalign.diffusion.sampling import sample
from directalign.models import common, load_model, load_trained, trainable
from directalign.types import DirectAlignError
from tiny import MAX_SEQUENCE_LENGTH, SIZE, write_flux

PROMPTS = ["a red star", "a blue circle"]


@pytest.fixture(params=["flux", "sd"])
def case(request, tiny_flux, tiny_sd):
    return {
        "architecture": request.param,
        "path": str(tiny_flux if request.param == "flux" else tiny_sd),
    }


def lora(case, rank=2, alpha=3, **settings):
    return load_model(
        ModelConfig(**case, tune="lora", lora=LoRAConfig(rank=rank, alpha=alpha), **settings), "cpu"
    )


def guidance(family):
    return 2.0 if family.path == "flow" else None


def pred_of(family, seed=0):
    x_t = torch.randn(
        2, *family.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(seed)
    )
    cond = family.encode_prompt(PROMPTS).guided(guidance(family), 1.0)
    return family.predict(x_t, torch.tensor([0.8, 0.4], dtype=torch.float64), cond)


def trained_a_little(family, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(family).values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return family


def image_of_pipeline(pipeline, noise):
    """Four steps of diffusers' own loop on our noise."""
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "height": SIZE, "width": SIZE, "output_type": "pt"}
    if isinstance(pipeline, FluxPipeline):
        return pipeline(
            PROMPTS,
            latents=common.pack(noise),
            guidance_scale=2.0,
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            **call,
        ).images
    return pipeline(PROMPTS, latents=noise, guidance_scale=1.0, **call).images


def image_of_ours(family, noise):
    cond = family.encode_prompt(PROMPTS).guided(guidance(family), 1.0)
    with torch.no_grad():
        return family.decode(sample(family, cond, noise, family.sigmas(4, SIZE, SIZE))).clamp(0, 1)


def pipeline_of(case):
    return (
        FluxPipeline.from_pretrained(case["path"])
        if case["architecture"] == "flux"
        else StableDiffusionPipeline.from_pretrained(case["path"], safety_checker=None)
    )


def noise_for(family):
    return torch.randn(
        2, *family.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(3)
    )


def test_fresh_adapters_change_nothing(case):
    full = load_model(ModelConfig(**case, tune="full"), "cpu")
    assert torch.equal(pred_of(lora(case)), pred_of(full))


def test_adapters_are_drawn_from_their_seed_alone(case):
    state = torch.random.get_rng_state()
    model = ModelConfig(**case)
    first, again, other = (trainable(load_model(model, "cpu", seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_only_the_denoiser_is_trained(case):
    for family in (lora(case), load_model(ModelConfig(**case, tune="full"), "cpu")):
        own = {id(parameter) for parameter in trainable(family).values()}
        assert own
        assert own <= {id(parameter) for parameter in family.denoiser.parameters()}
        frozen = [family.vae, *family.prompts.modules.values()]
        assert not any(
            parameter.requires_grad for module in frozen for parameter in module.parameters()
        )
        assert not any(module.training for module in [*frozen, family.denoiser])


def test_a_step_touches_nothing_frozen(case):
    family = lora(case)
    modules = [family.vae, *family.prompts.modules.values()]
    before = [parameter.clone() for module in modules for parameter in module.parameters()]
    optimiser = torch.optim.AdamW(trainable(family).values(), lr=0.1)
    family.decode(pred_of(family)).square().mean().backward()
    optimiser.step()
    after = [parameter for module in modules for parameter in module.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    assert any(
        parameter.grad is not None and parameter.grad.abs().max() > 0
        for parameter in trainable(family).values()
    )


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_bfloat16_keeps_trained_weights_and_answers_in_float32(case, tune):
    family = load_model(ModelConfig(**case, tune=tune, dtype="bfloat16"), "cpu")
    pred = pred_of(family)
    family.decode(pred).mean().backward()
    assert pred.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in trainable(family).values())
    assert any(
        parameter.grad is not None and parameter.grad.abs().max() > 0
        for parameter in trainable(family).values()
    )
    exact = pred_of(load_model(ModelConfig(**case, tune="full"), "cpu"))
    torch.testing.assert_close(pred, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_checkpointing_gives_equal_gradients(case, tune):
    gradients = []
    for gradient_checkpointing in (False, True):
        family = trained_a_little(
            load_model(
                ModelConfig(**case, tune=tune, gradient_checkpointing=gradient_checkpointing), "cpu"
            )
        )
        family.decode(pred_of(family)).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in trainable(family).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


def test_checkpointing_recomputes_the_decoder(case):
    calls = []
    family = lora(case, gradient_checkpointing=True)
    family.vae.decoder.up_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    family.decode(pred_of(family)).sum().backward()
    assert len(calls) == 2


def test_lora_gives_the_same_images_in_a_fresh_pipeline(case, tmp_path):
    family = trained_a_little(lora(case))
    family.save(tmp_path)
    pipeline, noise = pipeline_of(case), noise_for(family)
    without = image_of_pipeline(pipeline, noise)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    images = image_of_pipeline(pipeline, noise)
    assert (images - without).abs().max() > 1e-3
    assert (images - image_of_ours(family, noise)).abs().max() <= 1e-5


def test_lora_comes_back_whatever_alpha_is_now(case, tmp_path):
    family = trained_a_little(lora(case, alpha=3))
    family.save(tmp_path)
    again = lora(case, alpha=1)
    load_trained(again, tmp_path)
    torch.testing.assert_close(pred_of(again), pred_of(family), atol=1e-5, rtol=1e-5)


def test_full_weights_come_back_here_and_in_a_pipeline(case, tmp_path):
    model = ModelConfig(**case, tune="full")
    family = trained_a_little(load_model(model, "cpu"))
    family.save(tmp_path)
    again, pipeline = load_model(model, "cpu"), pipeline_of(case)
    load_trained(again, tmp_path)
    assert torch.equal(pred_of(again), pred_of(family))
    part = "transformer" if case["architecture"] == "flux" else "unet"
    setattr(pipeline, part, type(getattr(pipeline, part)).from_pretrained(tmp_path / part))
    noise = noise_for(family)
    assert (image_of_pipeline(pipeline, noise) - image_of_ours(family, noise)).abs().max() <= 1e-5


def test_another_rank_or_other_layers_are_refused(case, tmp_path):
    lora(case).save(tmp_path)
    with pytest.raises(
        DirectAlignError, match=r"lora\.safetensors: .* is \(2, .*model\.lora\.rank"
    ):
        load_trained(lora(case, rank=4), tmp_path)
    other = load_model(ModelConfig(**case, lora=LoRAConfig(rank=2, targets=["to_q"])), "cpu")
    with pytest.raises(DirectAlignError, match=r"lora\.safetensors: made for other layers"):
        load_trained(other, tmp_path)


def test_targets_that_fit_nothing_are_refused_with_near_names(case):
    with pytest.raises(
        DirectAlignError,
        match=r"model\.lora\.targets: \['too_q'\] fit no .* layer of this model: did you mean .*to_q",
    ) as caught:
        load_model(ModelConfig(**case, lora=LoRAConfig(targets=["to_k", "too_q"])), "cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(DirectAlignError, match="leave the key out for the usual ones"):
        load_model(ModelConfig(**case, lora=LoRAConfig(targets=["norm"])), "cpu")


def test_a_rank_that_a_layer_cannot_hold_is_refused_by_its_name(case):
    with pytest.raises(
        DirectAlignError,
        match=r"model\.lora\.rank: 17 is more than \S+ can take, whose smaller side is 16: give 16 or less",
    ):
        load_model(ModelConfig(**case, lora=LoRAConfig(rank=17)), "cpu")


def test_targets_that_fit_nothing_are_refused(case):
    with pytest.raises(DirectAlignError, match=r"model\.lora\.targets: \['nothing'\]"):
        load_model(ModelConfig(**case, lora=LoRAConfig(targets=["nothing"])), "cpu")


def test_missing_and_torn_files_are_refused(case, tmp_path):
    family = lora(case)
    with pytest.raises(DirectAlignError, match=r"lora\.safetensors: no such file"):
        load_trained(family, tmp_path)
    family.save(tmp_path)
    file = tmp_path / "lora.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DirectAlignError, match=r"lora\.safetensors: truncated"):
        load_trained(family, tmp_path)
    with pytest.raises(DirectAlignError, match="no such folder"):
        load_trained(load_model(ModelConfig(**case, tune="full"), "cpu"), tmp_path)


def test_full_weights_of_another_architecture_are_refused(tiny_flux, tmp_path):
    family = load_model(
        ModelConfig(
            architecture="flux",
            path=str(write_flux(tmp_path / "plain", guidance_embeds=False)),
            tune="full",
        ),
        "cpu",
    )
    family.save(tmp_path)
    with pytest.raises(
        DirectAlignError,
        match=r"transformer: made for other layers.*lacks time_text_embed\.guidance",
    ):
        load_trained(
            load_model(ModelConfig(architecture="flux", path=str(tiny_flux), tune="full"), "cpu"),
            tmp_path,
        )
    assert (
        json.loads((tmp_path / "transformer/config.json").read_text())["guidance_embeds"] is False
    )
