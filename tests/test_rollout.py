"""Schedules without a grid. Equality of rollouts with the pipelines: tests/models."""

import pytest

from directalign.config import ModelConfig, RolloutConfig
from directalign.diffusion.sampling import rollout_sigmas
from directalign.models import load_model
from directalign.types import DirectAlignError
from tiny import SIZE, write_qwen_image


@pytest.mark.filterwarnings("error")
def test_a_scheduler_without_a_single_step_is_refused(tmp_path):
    section = ModelConfig(architecture="qwen_image", path=str(write_qwen_image(tmp_path)))
    model = load_model(section, "cpu")
    one, two = RolloutConfig(num_inference_steps=1), RolloutConfig(num_inference_steps=2)
    assert rollout_sigmas(model, two, SIZE, SIZE).isfinite().all()
    message = r"num_inference_steps 1 at 32x32: .* has no such grid: sample in more steps"
    with pytest.raises(DirectAlignError, match=message):
        rollout_sigmas(model, one, SIZE, SIZE)
    shifted = one.model_copy(update={"shift": 3.0})
    assert rollout_sigmas(model, shifted, SIZE, SIZE).tolist() == [1.0, 0.0]
