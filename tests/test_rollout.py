"""Which steps of a rollout keep their graph, and schedules without a grid. Equality with the
pipelines: tests/models.
"""

from __future__ import annotations

import pytest
import torch

from directalign.config import ModelConfig, RolloutConfig
from directalign.diffusion.sampling import rollout_sigmas, sample
from directalign.models import load_model, trainable
from directalign.types import DirectAlignError
from tiny import SIZE, write_flux, write_qwen_image, write_sd

PROMPTS = ["a red star", "a blue circle"]


def noise_for(family):
    return torch.randn(
        2, *family.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(3)
    )


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
        match=r"num_inference_steps 1 at 32x32: .* has no such grid: sample in more steps",
    ):
        rollout_sigmas(family, RolloutConfig(num_inference_steps=1), SIZE, SIZE)
    assert rollout_sigmas(
        family, RolloutConfig(num_inference_steps=1, shift=3.0), SIZE, SIZE
    ).tolist() == [1.0, 0.0]
