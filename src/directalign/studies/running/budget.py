"""Equal budgets: how many updates of a method the same number of network calls pays for.

The currency is `records.call_equivalents`. An update's price is measured, not derived: a few updates are taken without
stepping the optimiser, since some methods draw at random how far back they differentiate.
"""

from __future__ import annotations

from ...config import RunConfig
from ...config.load import dump_run
from ...io.atomic import write_text
from ...methods import load_method
from ...models import load_model
from ...rewards import load_reward
from ...training import checkpoint
from ...training.data import open_data
from ...training.distributed import process_group
from ...training.step import NFECounter
from .experiment import settings_of
from .records import Arm, Number, call_equivalents
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Budget:
    """What an arm may spend, and how closely it is watched.

    `calls` are call equivalents, `measurements` how often the run is measured on `num_pairs` pairs while it spends them,
    `probed` how many updates the price is measured on.
    """

    calls: Number
    measurements: int
    num_pairs: int
    diversity_prompts: int
    probed: int = 16

    def times(self, factor: int) -> Budget:
        """A budget that lasts `factor` times as long, measured at the same distances."""
        return replace(self, calls=factor * self.calls, measurements=factor * self.measurements)


def within(budget: Budget, arm: Arm, out: Path, recipes: Path) -> Arm:
    """The arm with as many updates as the budget pays for; prices that were measured are kept in `out/prices.json`."""
    updates = math.ceil(budget.calls / price(settings_of(arm, 0, recipes), budget.probed, out / "prices.json"))
    every = max(1, math.ceil(updates / budget.measurements))
    return replace(arm, overrides=(*arm.overrides, *_overrides(budget, updates, every)))


def _overrides(budget: Budget, updates: int, every: int) -> Sequence[str]:
    """One sample grid before and one after; the same pairs at every measurement, so that all numbers of a run are paired."""
    return (
        f"train.num_steps={updates}",
        f"train.checkpoint_every={every}",
        "train.sample_every=0",
        f"evaluate.every={every}",
        f"evaluate.num_pairs={budget.num_pairs}",
        f"evaluate.pairs_during={budget.num_pairs}",
        f"evaluate.diversity_prompts={budget.diversity_prompts}",
    )


def price(settings: RunConfig, probed: int, kept: Path) -> Number:
    """Call equivalents of one update of a run, the mean over its first `probed` updates; read from `kept` if it is there."""
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    key = hashlib.sha256(f"{probed} {dump_run(settings)}".encode()).hexdigest()[:16]
    if key not in known:
        known[key] = _measured_price(settings, probed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(known, indent=1) + "\n")
    return known[key]


def _measured_price(settings: RunConfig, probed: int) -> Number:
    with process_group() as ranks:
        checkpoint.seed_all(settings.seed)
        family = load_model(settings.model, ranks.device, settings.seed)
        method = load_method(settings, family, load_reward(settings.reward, ranks.device))
        feed, counter = open_data(settings, family, ranks), NFECounter(family.denoiser)
        for step in range(probed):
            checkpoint.seed_step(settings.seed, step)
            for batch in feed.batches(step):
                for loss in method.losses(batch):
                    loss.value.backward()
    return call_equivalents(*counter.take()) / probed
