"""The work that ranks share: each makes its part of the images, all know one reference, rank 0 judges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tiny
from directalign import config
from directalign.evaluation.generate import generate
from directalign.evaluation.in_training import Measurer
from directalign.interfaces import Model, ProcessGroup
from directalign.methods import load_method
from directalign.methods.objective import Reference
from directalign.models import load_model
from directalign.rewards import load_reward

PROMPTS, SEEDS = (
    ["a red star", "a blue circle", "a green square", "a star", "a circle"],
    [1, 2, 3, 4, 5],
)


class One:
    """One of several ranks, which hears nothing of the others but keeps what it tells them."""

    def __init__(self, rank: int, size: int, others: float = 0.0) -> None:
        self.rank, self.size, self.others, self.told = rank, size, others, torch.empty(0)

    def sum(self, values: Tensor) -> Tensor:
        return values + self.others

    def gather(self, values: Tensor) -> Tensor:
        self.told = values
        return torch.cat([values] * self.size)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> config.RunConfig:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    given = {
        "name": "tiny",
        "model": {
            "architecture": "flux",
            "path": str(tiny.write_flux(folder / "model")),
            "tune": "full",
        },
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"form": "absolute", "embedded_guidance": 2.0},
        "rollout": {"num_inference_steps": 2, "embedded_guidance": 2.0},
        "data": {"prompts": str(folder / "prompts.txt")},
        "train": {"num_steps": 1},
        "evaluate": {"num_samples": 5, "batch_size": 2, "diversity_prompts": 1},
    }
    return config.RunConfig.model_validate(given)


@pytest.fixture(scope="module")
def family(run: config.RunConfig) -> Model:
    return load_model(run.model, "cpu")


@pytest.mark.parametrize("size", [2, 3, 8])
def test_ranks_make_equal_parts_that_join_to_the_whole(
    run: config.RunConfig, family: Model, size: int
):
    ranks = [One(rank, size) for rank in range(size)]
    for rank in ranks:
        assert len(generate(family, PROMPTS, SEEDS, run.rollout, 2, rank)) == len(PROMPTS)
    assert len({len(rank.told) for rank in ranks}) == 1
    joined = torch.cat([rank.told for rank in ranks])[: len(PROMPTS)]
    assert (joined - generate(family, PROMPTS, SEEDS, run.rollout, 2)).abs().max() < 1e-5


def test_only_rank_0_judges(run: config.RunConfig, family: Model):
    reward = load_reward(run.reward)
    assert Measurer(run, family, reward, None, together=One(1, 2)).measure(4) == {}
    assert {"reward", "color_drift", "diversity"} <= Measurer(
        run, family, reward, None, together=One(0, 2)
    ).measure(4).keys()


def test_the_base_model_is_drawn_before_it_is_trained_away(
    run: config.RunConfig, monkeypatch: pytest.MonkeyPatch
):
    """Loaded anew, a full model would be there twice."""
    family = load_model(run.model, "cpu")
    measurer = Measurer(run, family, None, None)
    measurer.prepare()
    with torch.no_grad():
        for p in family.denoiser.parameters():
            p.mul_(1.5)
    monkeypatch.setattr("directalign.evaluate.measure.load_family", None)
    assert measurer.measure(5)["color_drift"] > 1e-4


def test_all_ranks_have_one_reference():
    here, both = Reference(2), Reference(2)
    here.update(torch.tensor([1.0, 2.0]), 0)
    both.update(torch.tensor([1.0, 2.0]), 0, One(0, 2, others=4.0))
    assert (here.total, here.count) == (3.0, 2) and (both.total, both.count) == (7.0, 6)
    both.update(torch.tensor([9.0]), 2, One(0, 2, others=4.0))
    assert both.count == 6


def test_a_method_knows_the_ranks_it_trains_with(run: config.RunConfig, family: Model):
    together: ProcessGroup = One(0, 2)
    method = load_method(run, family, load_reward(run.reward), together)
    assert method.objective.group is together  # pyright: ignore[reportAttributeAccessIssue]
