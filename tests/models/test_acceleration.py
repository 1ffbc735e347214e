"""Attention backends and compiled blocks change the speed, not the answer; what cannot train is refused."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn

from directalign.config import ModelConfig
from directalign.models import load_model
from directalign.types import DirectAlignError
from tiny import SIZE


def answer(family):
    x_t = torch.randn(
        1, *family.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(0)
    )
    pred = family.predict(
        x_t,
        torch.tensor([0.5], dtype=torch.float64),
        family.encode_prompt(["a red star"]).guided(3.5, 1.0),
    )
    pred.square().sum().backward()
    return pred.detach(), [
        p.grad.clone() for p in family.denoiser.parameters() if p.grad is not None
    ]


def family_of(folder, **settings):
    return load_model(
        ModelConfig(architecture="flux", path=str(folder), tune="full", **settings), "cpu"
    )


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_another_backend_gives_the_same_answer_and_gradient(tiny_flux):
    assert_same(
        answer(family_of(tiny_flux, attention="_native_math")), answer(family_of(tiny_flux))
    )


def test_the_choice_is_this_networks_alone(tiny_flux):
    before = _AttentionBackendRegistry.get_active_backend()
    family = family_of(tiny_flux, attention="_native_math")
    assert _AttentionBackendRegistry.get_active_backend() == before
    assert all(
        block.attn.processor._attention_backend == "_native_math"
        for block in family.denoiser.transformer_blocks
    )


def test_compiled_blocks_give_the_same_answer_and_gradient(tiny_flux, monkeypatch):
    """Traced and differentiated as when they are compiled; the code generator itself takes minutes and a C++ compiler, and is left out."""
    whole = nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda module, **options: whole(module, backend="aot_eager", **options),
    )
    compiled = family_of(tiny_flux, compile=True, gradient_checkpointing=True)
    assert all(
        block._compiled_call_impl is not None for block in compiled.denoiser.transformer_blocks
    )
    assert_same(answer(compiled), answer(family_of(tiny_flux)))


@pytest.mark.parametrize("name", ["sage", "fastest"])
def test_a_backend_that_cannot_train_is_refused(tiny_flux, name):
    with pytest.raises(
        DirectAlignError,
        match=rf"model\.attention: {name} is not a backend that can train: choose one of .*native",
    ):
        family_of(tiny_flux, attention=name)


def test_a_backend_that_is_not_installed_is_named(tiny_flux):
    with pytest.raises(DirectAlignError, match=r"model\.attention: flash cannot be used here"):
        family_of(tiny_flux, attention="flash")


def test_a_network_that_chooses_its_own_attention_is_named(tiny_sd):
    with pytest.raises(DirectAlignError, match="chooses its attention itself"):
        load_model(ModelConfig(architecture="sd", path=str(tiny_sd), attention="native"), "cpu")
