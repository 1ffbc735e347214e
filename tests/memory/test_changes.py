"""What lowers the peak: each change estimated on the changed recipe, best first, and together where one is not enough."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_runs import a_run, changed

from directalign import memory
from directalign.config import RunConfig
from directalign.memory import changes
from directalign.memory.held import Subject
from tiny import tiny_flux  # noqa: F401 (fixture)

HUGE = memory.Place("the CPU", 10**12, is_gpu=False)


def fake_peaks(subject: Subject) -> dict[str, int]:
    """A megabyte for each image that is trained on at once, ten without checkpointing."""
    run = subject.run
    per_image = 10**6 if run.model.gradient_checkpointing else 10**7
    return dict.fromkeys(memory.PHASES, 0) | {"train": per_image * run.data.batch_size}


@pytest.fixture
def run(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:  # noqa: F811
    monkeypatch.setattr("directalign.memory.phases.passing", fake_peaks)
    monkeypatch.setattr("directalign.memory.phases.says", lambda subject: "")
    return changed(a_run("flux", tiny_flux), data={"batch_size": 4})


def test_the_change_that_saves_most_stands_first_and_is_the_estimate_of_the_changed_recipe(run: RunConfig) -> None:
    found = memory.remedies(run, HUGE)
    peaks = [remedy.estimate.peak for remedy in found]
    assert peaks == sorted(peaks) and peaks[-1] < memory.estimate(run, HUGE).peak
    assert found[0].says == "model.gradient_checkpointing: true"
    assert found[0].estimate.peak == memory.estimate(changed(run, model={"gradient_checkpointing": True}), HUGE).peak
    assert found[1].says == "data.batch_size: 2"


def test_changes_that_alone_do_not_suffice_are_put_together(run: RunConfig) -> None:
    both = memory.estimate(changed(run, model={"gradient_checkpointing": True}, data={"batch_size": 2}), HUGE).peak
    found = memory.remedies(run, memory.Place("the CPU", both, is_gpu=False))
    assert [remedy.estimate.fits for remedy in found[:-1]] == [False] * (len(found) - 1)
    assert found[-1].estimate.fits and found[-1].says == "together: model.gradient_checkpointing: true, data.batch_size: 2"


def test_a_change_that_the_recipe_refuses_is_not_named(run: RunConfig) -> None:
    """Sharding and rounded weights do not go together, nor do eight-bit averages of what is not trained whole."""
    sharded = changed(run, train={"parallel": "sharded"})
    assert not any("quantization" in remedy.says for remedy in memory.remedies(sharded, HUGE))
    names = [says for says, _ in changes.candidates(run, HUGE)]
    assert not any("adamw8bit" in says or "--ranks" in says for says in names)


def test_training_all_weights_may_be_shared_out_or_given_up(run: RunConfig) -> None:
    names = [says for says, _ in changes.candidates(changed(run, model={"tune": "full"}), HUGE)]
    assert "--ranks 2" in names and "model.tune: lora" in names and "train.optimizer: adamw8bit" in names
    assert not any("quantization" in says for says in names)
