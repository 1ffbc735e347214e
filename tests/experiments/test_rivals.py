"""Intervals over seeds and captions, and the choice of rate and length."""

import numpy as np
import pytest

from directalign.stats import Z_95, t_quantile
from experiments import rivals
from experiments.rows import Rows


def told(arm: str, answers: np.ndarray) -> Rows:
    return Rows(
        {"arm": arm, "title": arm, "seed": seed, "answers": each.astype(int).tolist()}
        for seed, each in enumerate(answers)
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_interval_knows_what_varies(axis: int) -> None:
    """Answers that vary over seeds or captions alone have the spread of that sample."""
    caption_of, sizes = rivals._captions(240)
    size = (8, len(sizes))[axis]
    varied = np.random.default_rng(5).random(size) < 0.5
    answers = np.broadcast_to(varied[:, None] if axis == 0 else varied[caption_of], (8, 240))
    drawn = rivals.resampled(told("srpo", answers))
    assert drawn.mean() == pytest.approx(varied.mean(), abs=0.03)
    wider = t_quantile(7) / Z_95 * (8 / 7) ** 0.5 if axis == 0 else 1
    assert drawn.std() == pytest.approx(wider * varied.std() / size**0.5, rel=0.05)


def test_prompts_are_drawn_alike_for_all_methods() -> None:
    """A difference of two methods that answer alike for every seed is exactly 0."""
    answers = np.broadcast_to(np.random.default_rng(6).random(100) < 0.3, (8, 100))
    both = Rows([*told("srpo", answers), *told("refl", answers)])
    difference, p = rivals.differences(both)["refl"]
    assert (difference["low"], difference["high"], p) == (0.0, 0.0, 1.0)


def test_differences_are_corrected_for_their_number() -> None:
    draw = np.random.default_rng(7)
    rates = {"srpo": 0.7, "refl": 0.1, "draft_lv": 0.7}
    rows = Rows(
        row for arm, rate in rates.items() for row in told(arm, draw.random((8, 250)) < rate)
    )
    found = rivals.differences(rows)
    assert found["refl"][1] < 0.01 and found["refl"][0]["high"] < -0.4
    assert found["draft_lv"][1] > 0.05


def test_only_a_rate_of_all_tuning_seeds_is_chosen() -> None:
    """Of equal ones the smallest rate; the update with the best mean."""
    values = {(1e-4, 100): (0.2, 0.6), (1e-4, 101): (0.4, 0.2), (3e-4, 100): (0.9, 0.9)}
    values |= {(1e-5, 100): (0.3, 0.1), (1e-5, 101): (0.5, 0.1)}
    rows = Rows(
        {"arm": "srpo", "learning_rate": rate, "seed": seed, "step": step, rivals.TUNED: value}
        for (rate, seed), found in values.items()
        for step, value in zip((10, 20), found, strict=True)
    )
    found = rivals.chosen(rows)
    assert (found["learning_rate"], found["step"], found[rivals.TUNED]) == (1e-5, 10, 0.4)


@pytest.mark.parametrize(
    ("values", "further"),
    [
        ({3e-5: 0.1, 1e-4: 0.5, 3e-4: 0.3}, None),
        ({3e-5: 0.4, 1e-4: 0.2, 3e-4: 0.3}, 1e-5),
        ({3e-5: 0.1, 1e-4: 0.2, 3e-4: 0.3}, 1e-3),
        ({1e-6: 0.5, 3e-6: 0.2}, None),
    ],
)
def test_a_grid_goes_on_where_its_best_rate_is_at_its_edge(values, further):
    rows = [
        {"learning_rate": rate, "seed": 0, "step": 10, rivals.TUNED: value}
        for rate, value in values.items()
    ]
    assert rivals._further(rivals.Rows(rows)) == further
