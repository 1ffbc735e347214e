"""Which steps of a rollout keep their graph, and schedules without a grid. Equality with the
pipelines: tests/models.
"""

import pytest
import torch

from directalign.config import ModelConfig, RolloutConfig
from directalign.diffusion.sampling import rollout_sigmas, sample
from directalign.models import load_model, trainable
from directalign.types import DirectAlignError
from tiny import SIZE, write_flux, write_qwen_image

PROMPTS = ["a red star", "a blue circle"]


def load(name, folder, **settings):
    return load_model(ModelConfig(architecture=name, path=str(folder), **settings), "cpu")


def test_only_the_last_steps_keep_their_graph(tmp_path):
    model = load("flux", write_flux(tmp_path), tune="full")
    shape, weights = model.latent_shape(SIZE, SIZE), list(trainable(model).values())
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    cond, sigmas = model.encode_prompt(PROMPTS).guided(1.0, 1.0), model.sigmas(3, SIZE, SIZE)
    assert not sample(model, cond, noise, sigmas).requires_grad
    before_last = sample(model, cond, noise, sigmas[:-1])
    kept = sample(model, cond, noise, sigmas, grad_steps=1).sum()
    last_only = sample(model, cond, before_last, sigmas[-2:], grad_steps=1).sum()
    gradients = [torch.autograd.grad(each, weights) for each in (kept, last_only)]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("error")
def test_a_scheduler_without_a_single_step_is_refused(tmp_path):
    model = load("qwen_image", write_qwen_image(tmp_path))
    one, two = RolloutConfig(num_inference_steps=1), RolloutConfig(num_inference_steps=2)
    assert rollout_sigmas(model, two, SIZE, SIZE).isfinite().all()
    message = r"num_inference_steps 1 at 32x32: .* has no such grid: sample in more steps"
    with pytest.raises(DirectAlignError, match=message):
        rollout_sigmas(model, one, SIZE, SIZE)
    shifted = one.model_copy(update={"shift": 3.0})
    assert rollout_sigmas(model, shifted, SIZE, SIZE).tolist() == [1.0, 0.0]
