"""Rows of studies that never ran: photo rates that rise at a speed of each arm's own, and a gradient that grows with depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from directalign.studies.showing.palette import title_of

FACTS = {
    "commit": "0123456789abcdef",
    "machine": {"gpu": None, "cores": 2, "processor": "x86_64", "threads": 1},
    "versions": {"torch": "2.9.9", "diffusers": "0.39.9"},
}


def photo_rate(step: int, summit: float) -> float:
    """From .1 at the beginning towards `summit`, in a straight line over ten updates."""
    return 0.1 + (summit - 0.1) * min(1.0, step / 10)


def runs(
    prices: Mapping[str, float],
    summits: Mapping[str, float],
    seeds: Sequence[int] = (0, 1, 2),
    study: str = "convergence",
) -> list[dict[str, Any]]:
    """Eleven measurements per run; an update of an arm costs `prices[arm]` forward calls and a tenth of that in seconds.

    A seed multiplies all prices by 1.1 ** seed, so that ratios over seeds are exact.
    """
    return [
        row
        for arm in prices
        for seed in seeds
        for row in _run(study, arm, prices[arm] * 1.1**seed, summits.get(arm, 0.95), seed)
    ]


def _run(study: str, arm: str, price: float, summit: float, seed: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(0, 21, 2):
        calls = price * step
        photo = photo_rate(step, summit)
        spent = {
            "step": step,
            "seconds": calls / 10,
            "forward_calls": calls,
            "backward_calls": calls / 2,
            "call_equivalents": 2 * calls,
        }
        judged = {
            "photo_rate": photo,
            "content": 1 - photo / 10,
            "color_drift": photo / 20,
            "reward": 0.5 + photo / 4,
            "score_pos": 0.4 + photo / 4,
        }
        rows.append(
            {
                "study": study,
                "arm": arm,
                "title": title_of(arm),
                "seed": seed,
                **spent,
                **judged,
                **FACTS,
            }
        )
    return rows


def depths(
    model: str, length: int, growth: float, study: str = "convergence"
) -> list[dict[str, Any]]:
    """What `depth` measures: an update of K steps takes 1 + K/4 times Direct-Align's time, the gradient is `growth`-fold with each step."""
    named = {
        "study": study,
        "model": model,
        "num_inference_steps": length,
        "batches": 4,
        "seed": 0,
        **FACTS,
    }
    rows: list[dict[str, Any]] = []
    for steps in [0, *sorted({*(2**power for power in range(1 + int(math.log2(length)))), length})]:
        calls = {"forward_calls": 8 * (length + (steps == 0)), "backward_calls": 8 * max(1, steps)}
        numbers = {
            **_around("ratio", 1 + steps / 4),
            **_around("grad_norm", growth ** max(1, steps)),
            "seconds": 1 + steps / 4,
            "spread": 0.2,
            "agreement": 0.3,
        }
        way = f"{steps} of {length} steps" if steps else "Direct-Align"
        rows.append(
            {
                **named,
                "arm": f"{model}-{length}-{steps}",
                "title": f"{model}, {way}",
                "kind": "depth",
                "grad_steps": steps,
                **numbers,
                **calls,
            }
        )
    for depth in range(length + 1):
        numbers = {
            "sigma": depth / length,
            **_around("norm", 0.1 * growth**depth),
            **_around("growth", growth**depth),
        }
        rows.append(
            {
                **named,
                "arm": f"{model}-{length}-state",
                "title": "",
                "kind": "state",
                "depth": depth,
                **numbers,
            }
        )
    return rows


def _around(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": 0.8 * value, f"{name}_high": 1.25 * value}
