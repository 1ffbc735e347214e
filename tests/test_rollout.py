"""Schedules without a grid. Equality of rollouts with the pipelines: tests/models."""

import pytest
import torch

from directalign.config import ModelConfig, RolloutConfig
from directalign.diffusion.sampling import (
    FLOW_SOLVER,
    SOLVERS,
    RolloutStart,
    flow_shift,
    rollout_sigmas,
    sample_rollout,
)
from directalign.models import load_model
from directalign.types import DirectAlignError
from models.cases import CASES
from models.srpo_by_hand import PROMPTS
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


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["flux_by_size", "sd", "sd_v_zero_snr"])
def test_a_solver_gives_the_images_of_the_pipeline_with_that_scheduler(name, solver, tmp_path):
    case = CASES[name]
    folder = case.folder(tmp_path)
    model, pipeline = case.load(folder), case.pipeline(folder)
    settings = {"height": SIZE, "width": SIZE, "embedded_guidance": case.embedded}
    rollout = RolloutConfig(num_inference_steps=5, solver=solver, **settings)
    noise = torch.randn(2, *model.latent_shape(SIZE, SIZE))
    sigmas = rollout_sigmas(model, rollout, SIZE, SIZE)
    cond = case.encode(model, PROMPTS).guided(case.embedded, 1.0)
    x0 = sample_rollout(model, RolloutStart(cond, noise, sigmas, solver))
    changes = FLOW_SOLVER if model.path == "flow" else {}
    pipeline.scheduler = SOLVERS[solver].from_config(pipeline.scheduler.config, **changes)
    expected = case.call(pipeline, model, PROMPTS, noise, rollout)
    torch.testing.assert_close(model.decode(x0).clamp(0, 1), expected, atol=1e-4, rtol=0)
    euler = sample_rollout(model, RolloutStart(cond, noise, sigmas))
    assert (x0 - euler).abs().max() > 1e-3


def test_grids_and_steps_that_a_solver_cannot_take_are_refused(tmp_path):
    model = CASES["sd3"].load(CASES["sd3"].folder(tmp_path))
    with pytest.raises(DirectAlignError, match=r"no shifted linspace.*set rollout\.shift"):
        flow_shift(model.sigmas(4, SIZE, SIZE))
    shifted = rollout_sigmas(model, RolloutConfig(num_inference_steps=4, shift=3), SIZE, SIZE)
    assert flow_shift(shifted) == pytest.approx(3)
    with pytest.raises(DirectAlignError, match="2 are too few: set 3 or more"):
        flow_shift(torch.tensor([1, 0.5, 0]))
