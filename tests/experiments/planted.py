"""Rows as a study makes them, without a training."""

from collections.abc import Sequence
from typing import Any

from experiments.plots import title_of
from experiments.rows import Rows

FACTS = {
    "commit": "0123abc",
    "machine": {"cores": 2, "processor": "x86_64", "threads": 1, "gpu": None},
    "versions": {"torch": "2.13"},
}


def run(arm: str, seed: int, photo: Sequence[float], calls: float, **more: Any) -> Rows:
    """A run measured every ten updates: its photo rates, and NFE of `calls` from one to the next.

    Colour drift is a tenth of the photo rate, content stays; `more` overrules any of it.
    """
    named = {"study": "table1", "arm": arm, "title": title_of(arm), "seed": seed}
    rows = Rows()
    for place, rate in enumerate(photo):
        spent = {"step": 10 * place, "seconds": 0.5 * calls * place}
        spent |= {"call_equivalents": calls * place, "learning_rate": 1e-4}
        numbers = {"photo_rate": rate, "content": 1.0, "color_drift": rate / 10}
        rows.append({**named, **spent, **numbers, "score_pos": 0.5 + rate, **FACTS, **more})
    return rows
