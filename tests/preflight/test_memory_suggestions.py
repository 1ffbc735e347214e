"""Suggestions that lower the peak: best first, combined if one is not enough."""

from typing import Any

import pytest
from preflight_runs import a_run, changed

from directalign import preflight
from directalign.config import RunConfig
from directalign.preflight import lower_memory
from directalign.preflight.memory import Traced

HUGE = preflight.Place("the CPU", 10**12, is_gpu=False)


@pytest.fixture
def run(tiny_flux, monkeypatch):
    """Activations take 1 MB for each image of a batch, 10 MB without checkpointing."""

    def traced(run: RunConfig, *_: Any) -> Traced:
        each = 10**6 if run.model.gradient_checkpointing else 10**7
        return Traced({"train": each * run.data.batch_size})

    monkeypatch.setattr("directalign.preflight.memory.trace", traced)
    return changed(a_run("flux", tiny_flux), data={"batch_size": 4})


def test_the_largest_saving_is_first_and_estimated_on_the_changed_recipe(run):
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


def test_changes_that_do_not_suffice_alone_are_combined(run):
    both = changed(run, model={"gradient_checkpointing": True}, data={"batch_size": 2})
    peak = preflight.estimate(both, HUGE).peak
    found = preflight.suggestions(run, preflight.Place("the CPU", peak, is_gpu=False))
    assert [each.estimate.fits for each in found[:-1]] == [False] * (len(found) - 1)
    both_changes = "combined: model.gradient_checkpointing: true, data.batch_size: 2"
    assert found[-1].estimate.fits and found[-1].change == both_changes


def test_a_change_that_the_recipe_refuses_is_not_named(run):
    """Quantization excludes sharding; LoRA excludes the 8-bit optimizer and ranks."""
    sharded = changed(run, train={"parallel": "sharded"})
    assert not any("quantization" in each.change for each in preflight.suggestions(sharded, HUGE))
    names = [change for change, _ in lower_memory.candidates(run, HUGE)]
    assert not any("adamw8bit" in each or "--ranks" in each for each in names)
