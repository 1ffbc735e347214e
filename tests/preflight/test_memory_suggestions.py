"""What lowers the peak: each change estimated on the changed recipe, best first, and together where one is not enough."""

# ruff: noqa: F811
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preflight_runs import a_run, changed

from directalign import preflight
from directalign.config import RunConfig
from directalign.preflight import memory_suggestions
from directalign.preflight.memory import Traced
from tiny import tiny_flux  # noqa: F401 (fixture)

HUGE = preflight.Place("the CPU", 10**12, is_gpu=False)


@pytest.fixture
def run(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Activations of a megabyte for each image that is trained on at once, ten without checkpointing."""

    def traced(run: RunConfig, *_: Any) -> Traced:
        return Traced(
            {"train": (10**6 if run.model.gradient_checkpointing else 10**7) * run.data.batch_size},
            0,
            "",
        )

    monkeypatch.setattr("directalign.preflight.memory.trace", traced)
    return changed(a_run("flux", tiny_flux), data={"batch_size": 4})


def test_the_change_that_saves_most_stands_first_and_is_the_estimate_of_the_changed_recipe(
    run: RunConfig,
) -> None:
    found = preflight.suggestions(run, HUGE)
    peaks = [each.estimate.peak for each in found]
    assert peaks == sorted(peaks) and peaks[-1] < preflight.estimate(run, HUGE).peak
    assert [each.change for each in found[:2]] == [
        "model.gradient_checkpointing: true",
        "data.batch_size: 2",
    ]
    assert (
        peaks[0]
        == preflight.estimate(changed(run, model={"gradient_checkpointing": True}), HUGE).peak
    )


def test_changes_that_alone_do_not_suffice_are_put_together(run: RunConfig) -> None:
    both = preflight.estimate(
        changed(run, model={"gradient_checkpointing": True}, data={"batch_size": 2}), HUGE
    ).peak
    found = preflight.suggestions(run, preflight.Place("the CPU", both, is_gpu=False))
    assert [each.estimate.fits for each in found[:-1]] == [False] * (len(found) - 1)
    assert (
        found[-1].estimate.fits
        and found[-1].change == "together: model.gradient_checkpointing: true, data.batch_size: 2"
    )


def test_a_change_that_the_recipe_refuses_is_not_named(run: RunConfig) -> None:
    """Sharding and rounded weights do not go together, nor do eight-bit averages of what is not trained whole."""
    sharded = changed(run, train={"parallel": "sharded"})
    assert not any("quantization" in each.change for each in preflight.suggestions(sharded, HUGE))
    names = [change for change, _ in memory_suggestions.candidates(run, HUGE)]
    assert not any("adamw8bit" in each or "--ranks" in each for each in names)


def test_training_all_weights_may_be_shared_out_or_given_up(run: RunConfig) -> None:
    names = [
        change
        for change, _ in memory_suggestions.candidates(changed(run, model={"tune": "full"}), HUGE)
    ]
    assert (
        "--ranks 2" in names
        and "model.tune: lora" in names
        and "train.optimizer: adamw8bit" in names
    )
    assert not any("quantization" in each for each in names)
