"""The same step on a CUDA device as on the CPU; skipped where there is none."""

import pytest
import torch

from directalign.config.load import load_run
from directalign.data.prompts import train_captions
from directalign.methods import load_method
from directalign.models import load_model, trainable
from directalign.rewards import load_reward
from directalign.types import Batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", ["world_srpo", "world_official", "world_sd"])
def test_a_step_on_the_gpu_equals_the_step_on_the_cpu(recipe):
    found = {}
    for device in ("cpu", "cuda"):
        run = load_run(recipe, [])
        family = load_model(run.model, device, run.seed)
        losses = load_method(run, family, load_reward(run.reward, device)).losses(
            Batch(0, tuple(train_captions()[:4]))
        )
        total = sum(loss.value for loss in losses)
        gradient = torch.autograd.grad(total, list(trainable(family).values()), allow_unused=True)
        found[device] = (
            float(total),
            torch.cat([g.flatten().cpu() for g in gradient if g is not None]),
        )
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], abs=1e-3)
    assert torch.cosine_similarity(found["cuda"][1], found["cpu"][1], dim=0) > 0.99
