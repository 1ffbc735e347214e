"""What is trained, what is not, and which files are refused."""

import pytest
import torch

from directalign.config import LoRAConfig
from directalign.models import load_model, trainable
from directalign.types import DirectAlignError
from models.cases import CASES, load_trained
from models.srpo_by_hand import PROMPTS
from models.test_equality import image_of, noise_for, noisy, rollout_of
from tiny import write_flux


@pytest.fixture(params=["flux", "sd"])
def case(request):
    return CASES[request.param]


@pytest.fixture
def folder(case, tiny_flux, tiny_sd):
    return tiny_flux if case.architecture == "flux" else tiny_sd


@pytest.fixture
def lora(case, folder):
    def load(**given):
        return case.load(folder, tune="lora", lora=LoRAConfig(**{"rank": 2, "alpha": 3, **given}))

    return load


def pred_of(model, case):
    return model.predict(*noisy(model, case))


def moved(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def test_fresh_adapters_change_nothing_and_depend_only_on_their_seed(case, folder, lora):
    model = lora()
    assert torch.equal(pred_of(model, case), pred_of(case.load(folder), case))
    state = torch.random.get_rng_state()
    first, again, other = (
        trainable(load_model(model.model, "cpu", seed=seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_only_the_denoiser_is_trained(case, folder, lora):
    for model in (lora(), case.load(folder)):
        own = {id(parameter) for parameter in trainable(model).values()}
        assert own and own <= {id(parameter) for parameter in model.denoiser.parameters()}
        modules = [model.vae, *model.prompts.modules.values()]
        frozen = [parameter for module in modules for parameter in module.parameters()]
        before = [parameter.clone() for parameter in frozen]
        assert not any(module.training for module in [*modules, model.denoiser])
        model.decode(pred_of(model, case)).square().mean().backward()
        torch.optim.AdamW(trainable(model).values(), lr=0.1).step()
        for old, now in zip(before, frozen, strict=True):
            assert torch.equal(old, now) and now.grad is None and not now.requires_grad


def test_full_weights_in_bfloat16_are_trained_in_float32(case, folder):
    model = case.load(folder, dtype="bfloat16")
    pred = pred_of(model, case)
    assert pred.dtype == torch.float32
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    torch.testing.assert_close(pred, pred_of(case.load(folder), case), atol=0.1, rtol=0.1)


def test_lora_comes_back_whatever_alpha_is_now(case, lora, tmp_path):
    model, again = moved(lora(alpha=3)), lora(alpha=1)
    model.save(tmp_path)
    load_trained(again, tmp_path)
    torch.testing.assert_close(pred_of(again, case), pred_of(model, case), atol=1e-5, rtol=1e-5)


def test_full_weights_come_back_here_and_in_a_pipeline(case, folder, tmp_path):
    model, again, pipeline = moved(case.load(folder)), case.load(folder), case.pipeline(folder)
    model.save(tmp_path)
    load_trained(again, tmp_path)
    assert torch.equal(pred_of(again, case), pred_of(model, case))
    part = type(getattr(pipeline, model.part)).from_pretrained(tmp_path / model.part)
    setattr(pipeline, model.part, part)
    noise, rollout = noise_for(model), rollout_of(case)
    expected = case.call(pipeline, model, PROMPTS, noise, rollout)
    assert (image_of(model, case, noise, rollout) - expected).abs().max() <= 1e-5


def test_files_that_do_not_fit_are_refused(case, folder, lora, tmp_path):
    model = lora()
    with pytest.raises(DirectAlignError, match=r"lora\.safetensors: no such file"):
        load_trained(model, tmp_path)
    with pytest.raises(DirectAlignError, match="no such folder"):
        load_trained(case.load(folder), tmp_path)
    model.save(tmp_path)
    with pytest.raises(DirectAlignError, match=r"lora\.safetensors: .* is \(2, .*model\.lora\.ran"):
        load_trained(lora(rank=4), tmp_path)
    with pytest.raises(DirectAlignError, match=r"lora\.safetensors: made for other layers"):
        load_trained(lora(targets=["to_q"]), tmp_path)


UNFIT = [
    ({"targets": ["to_k", "too_q"]}, r"targets: \['too_q'\] fit no .*: did you mean .*to_q"),
    ({"targets": ["norm"]}, "leave the key out for the default"),
    ({"targets": ["nothing"]}, r"model\.lora\.targets: \['nothing'\]"),
    ({"rank": 17}, r"model\.lora\.rank: 17 is more than \S+ can take, .* 16: give 16 or less"),
]


def test_adapters_that_do_not_fit_are_refused(lora):
    for settings, message in UNFIT:
        with pytest.raises(DirectAlignError, match=message) as caught:
            lora(**settings)
        assert "\n" not in str(caught.value)


def test_full_weights_of_another_architecture_are_refused(tiny_flux, tmp_path):
    case = CASES["flux"]
    case.load(write_flux(tmp_path / "plain", guidance_embeds=False)).save(tmp_path)
    with pytest.raises(DirectAlignError, match=r"made for other layers.*lacks time_text_embed\.gu"):
        load_trained(case.load(tiny_flux), tmp_path)
