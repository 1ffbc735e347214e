"""The table that `directalign evaluate` and `directalign compare` print."""

from __future__ import annotations

from typing import Any

from directalign.cli.comparing import table_of

MODELS = [{"key": key, "label": key, "trained_on": []} for key in ("base", "tuned")]


def cells(n: int, spread: float) -> list[str]:
    found = {"value": 0.5, "low": 0.5 - spread, "high": 0.5 + spread, "n": n}
    names = {"entropy": {"label": "Entropy", "role": "drift", "better": 0}}
    summary: dict[str, Any] = {
        "names": names,
        "models": {each["key"]: {"entropy": found} for each in MODELS},
        "differences": [],
        "wins": [],
    }
    return list(table_of(MODELS, summary).columns[2].cells)


def test_a_mean_stands_above_its_interval() -> None:
    assert cells(4, 0.25)[-1] == "[bold]0.50[/bold]\n0.25 to 0.75"


def test_a_single_image_has_no_interval() -> None:
    assert cells(1, 0.0)[-1] == "[bold]0.500[/bold]\n"
