"""Attention backends and compiled blocks change the speed, not the answer; what cannot train is
refused.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor, nn
from torch._dynamo.utils import counters

from directalign.config import ModelConfig
from directalign.models import load_model
from directalign.models.block_cache import block_cache
from directalign.models.lora import ReferenceModel
from directalign.models.rollout_lora import RolloutLoRA
from directalign.types import DirectAlignError
from low_rank_updates import updates_of_shape, write_lora
from tiny import SIZE


def answer(model):
    noise = torch.Generator().manual_seed(0)
    x_t = torch.randn(1, *model.latent_shape(SIZE, SIZE), generator=noise)
    cond = model.encode_prompt(["a red star"]).guided(3.5, 1.0)
    pred = model.predict(x_t, torch.tensor([0.5], dtype=torch.float64), cond)
    weights = [each for each in model.denoiser.parameters() if each.requires_grad]
    return pred.detach(), torch.autograd.grad(pred.square().sum(), weights, allow_unused=True)


def load(folder, architecture="flux", **settings):
    given = {"architecture": architecture, "path": str(folder), "tune": "full", **settings}
    return load_model(ModelConfig.model_validate(given), "cpu")


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_another_backend_gives_the_same_answer_and_gradient_here_only(tiny_flux):
    before = _AttentionBackendRegistry.get_active_backend()
    model = load(tiny_flux, attention="_native_math")
    assert _AttentionBackendRegistry.get_active_backend() == before
    processors = [block.attn.processor for block in model.denoiser.transformer_blocks]
    assert {each._attention_backend for each in processors} == {"_native_math"}
    assert_same(answer(model), answer(load(tiny_flux)))


def test_compiled_blocks_give_the_same_answer_and_gradient(tiny_flux, monkeypatch):
    """Traced and differentiated as when compiled, without the code generator (minutes)."""
    whole = nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda module, **options: whole(module, backend="aot_eager", **options),
    )
    compiled = load(tiny_flux, compile=True, gradient_checkpointing=True)
    blocks = compiled.denoiser.transformer_blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert_same(answer(compiled), answer(load(tiny_flux)))


def test_compiled_blocks_stay_compiled_with_several_sizes_and_the_base_model(
    tiny_flux, monkeypatch
):
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: whole(module, backend="eager"))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    model = load(tiny_flux, compile=True, tune="lora", lora={"rank": 2})
    base = ReferenceModel(model.denoiser)
    for height, width in ((16, 32), (32, 48)):
        noise, sigma = torch.randn(2, *model.latent_shape(height, width)), torch.tensor([0.5, 0.5])
        for b in (1, 2):
            cond = model.encode_prompt(["a red star"] * b).guided(3.5, 1.0)
            with torch.no_grad():
                before = model.predict(noise[:b], sigma[:b], cond)
                with base.active():
                    torch.testing.assert_close(model.predict(noise[:b], sigma[:b], cond), before)
            model.predict(noise[:b], sigma[:b], cond).sum().backward()


def test_compiled_blocks_notice_the_lora_and_the_cache_of_rollouts(
    tiny_flux, tmp_path, monkeypatch
):
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: whole(module, backend="eager"))
    torch._dynamo.reset()
    plain, compiled = load(tiny_flux), load(tiny_flux, compile=True)
    write_lora(tmp_path, updates_of_shape({"transformer_blocks.0.attn.to_q": (16, 16)}))
    few_steps = {each: RolloutLoRA(str(tmp_path), each) for each in (plain, compiled)}
    noise, sigma = torch.randn(2, *plain.latent_shape(32, 32)), torch.tensor([0.5, 0.5])

    def predicted(model: Any) -> list[Tensor]:
        cond = model.encode_prompt(["a red star"] * 2).guided(3.5, 1.0)
        found = []
        with torch.no_grad():
            for inside in (nullcontext(), few_steps[model].active(), nullcontext()):
                with inside:
                    found.append(model.predict(noise, sigma, cond))
            with block_cache(model.denoiser, 1e9):
                found += [model.predict(each * noise, sigma, cond) for each in (1, 2)]
        return [*found, model.predict(2 * noise, sigma, cond).detach()]

    expected = torch.stack(predicted(plain))
    for _ in range(2):
        torch.testing.assert_close(torch.stack(predicted(compiled)), expected)
    graphs = counters["stats"]["unique_graphs"]
    predicted(compiled)
    assert graphs == counters["stats"]["unique_graphs"] > 0
    plainly, with_lora, _, _, cached, again = expected
    assert (with_lora - plainly).abs().max() > 0.01 and (cached - again).abs().max() > 1e-3


REFUSED = {
    ("flux", "fastest"): "fastest is not a backend that can train: choose one of .*native",
    ("flux", "flash"): "flash cannot be used here",
    ("sd", "native"): "has no choice of attention",
}


@pytest.mark.parametrize(("architecture", "name"), REFUSED)
def test_a_backend_that_cannot_be_used_is_refused(tiny_flux, tiny_sd, architecture, name):
    folder = {"flux": tiny_flux, "sd": tiny_sd}[architecture]
    with pytest.raises(DirectAlignError, match=f"model.attention: .*{REFUSED[architecture, name]}"):
        load(folder, architecture, attention=name)


UNFIT = {
    ("flux", "_native_flash", "float32"): "takes no float32",
    ("flux", "flash_varlen_hub", "float32"): "takes no float32",
    ("qwen_image", "_native_flash", "bfloat16"): "takes no mask, which Qwen-Image needs",
}


@pytest.mark.parametrize(("architecture", "name", "dtype"), UNFIT)
def test_a_backend_that_does_not_take_the_inputs_is_refused_before_loading(
    tmp_path, architecture, name, dtype
):
    with pytest.raises(DirectAlignError, match=UNFIT[architecture, name, dtype]):
        load(tmp_path / "missing", architecture, attention=name, dtype=dtype)
