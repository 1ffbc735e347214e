"""Diversity in closed form, on fixed seeds, and the same however the images were batched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tiny_runs import recipe, trained

from directalign.config import RunConfig
from directalign.evaluation.eval_prompts import fixed_pairs
from directalign.evaluation.image_metrics import (
    SEEDS_PER_PROMPT,
    cosine_distance,
    diversity,
    diversity_pairs,
    rmse,
    to_siblings,
)
from directalign.evaluation.in_training import Measurer
from directalign.types import DirectAlignError, Images, PerSample


def constant_images(levels: list[float]) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 8, 8).clone()


def test_constant_images_differ_by_their_levels():
    first, second = [0.1, 0.2, 0.4, 0.8], [0.5, 0.5, 0.5, 1.0]
    pairwise = [0.1, 0.3, 0.7, 0.2, 0.6, 0.4], [0, 0, 0.5, 0, 0.5, 0.5]
    expected = (sum(pairwise[0]) / 6 + sum(pairwise[1]) / 6) / 2
    assert diversity(constant_images(first + second)) == pytest.approx(expected, abs=1e-7)


def test_equal_images_have_none_and_independent_noise_has_its_own():
    assert diversity(constant_images([0.3] * 8)) == 0
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert diversity(noise) == pytest.approx(
        (1 / 6) ** 0.5, rel=0.01
    )  # two independent uniform numbers: E (a − b)² = 1/6


def test_prompts_do_not_mix():
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    apart = [diversity(images[:4]), diversity(images[4:])]
    assert diversity(images) == pytest.approx(sum(apart) / 2) == diversity(images.flip(0))


def test_the_pairs_share_seeds_between_prompts_and_with_nothing_else():
    prompts = ["a", "b", "c", "d", "e"]
    pairs = diversity_pairs(prompts, 3)
    assert len(pairs) == 3 * SEEDS_PER_PROMPT and len(set(pairs.prompts)) == 3
    assert (
        pairs.seeds == pairs.seeds[:SEEDS_PER_PROMPT] * 3
        and len(set(pairs.seeds)) == SEEDS_PER_PROMPT
    )
    assert (
        diversity_pairs(prompts, 5).first(len(pairs)) == pairs
        and len(diversity_pairs(prompts, 0)) == 0
    )
    assert not set(pairs.seeds) & set(fixed_pairs(prompts, 5000).seeds)


def test_more_prompts_than_there_are_is_an_error():
    with pytest.raises(
        DirectAlignError,
        match=r"evaluate\.diversity_prompts is 3, .* 2 prompts: ask for 2 at most",
    ):
        diversity_pairs(["a", "b"], 3)


def test_distance_to_siblings_has_the_mean_of_all_pairs_and_none_for_an_only_child():
    images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    prompts = ["a", "b", "a", "b", "only", "a", "b", "a", "b"]
    found = to_siblings(images, prompts, rmse)
    assert found[4].isnan() and found[[0, 2, 5, 7]].mean().item() == pytest.approx(
        diversity(images[[0, 2, 5, 7]]), rel=1e-9
    )
    assert found[torch.arange(9) != 4].mean().item() == pytest.approx(
        diversity(images[[0, 2, 5, 7, 1, 3, 6, 8]]), rel=1e-9
    )


def test_distances_in_closed_form():
    assert rmse(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)).tolist() == [0.5, 0.5]
    there = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    assert cosine_distance(torch.tensor([[1.0, 0.0]] * 3), there).tolist() == pytest.approx(
        [0, 1, 2], abs=1e-9
    )


def with_diversity(run: RunConfig, num_prompts: int, batch_size: int) -> RunConfig:
    return run.model_copy(
        update={
            "evaluate": run.evaluate.model_copy(
                update={"diversity_prompts": num_prompts, "batch_size": batch_size}
            )
        }
    )


def test_a_measurement_has_it_when_asked_whatever_the_batch_size(
    pipelines: dict[str, Path], prompts: Path
):
    run = recipe("flux", pipelines["flux"], prompts)
    model = trained(run)
    assert "diversity" not in Measurer(run, model, None, None).measure(2)
    one, five = (
        Measurer(with_diversity(run, 2, size), model, None, None).measure(2)["diversity"]
        for size in (1, 5)
    )
    assert one > 0 and one == pytest.approx(five, rel=1e-4)


class StyleJudge:
    """A style of its own, and a part of content."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Mapping[str, PerSample]:
        return {
            "style_drawing": torch.arange(len(images)).float(),
            "color": torch.ones(len(images)),
        }


def test_answers_about_styles_are_averaged(pipelines: dict[str, Path], prompts: Path):
    run = recipe("flux", pipelines["flux"], prompts)
    measured = Measurer(run, trained(run), None, StyleJudge()).measure(3)
    assert measured["style_drawing"] == 1.0 and "color" not in measured
