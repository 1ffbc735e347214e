"""One rule chooses every method's rate: the highest photo rate among measurements that keep the content, else the best product."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from planted import run

from directalign.studies import tuning
from directalign.studies.running.arms import ARMS, CHOSEN
from directalign.studies.running.records import read_rows
from directalign.studies.tuning import RATES, choice, chosen, draw, tell, with_rate

Curve = Sequence[tuple[float, float]]
SLOW, MIDDLE, FAST = RATES


def tried(method: str, curves: dict[float, Curve]) -> list[dict[str, Any]]:
    """A method's runs along (photo rate, content), one for each learning rate, from a base model with photo rate .1 and content 1."""
    rows = []
    for rate, curve in curves.items():
        points = [(0.1, 1.0), *curve]
        planted = run(
            f"{method}-{rate}",
            100,
            [photo for photo, _ in points],
            100,
            method=method,
            learning_rate=rate,
        )
        rows += [
            row | {"content": content} for row, (_, content) in zip(planted, points, strict=True)
        ]
    return rows


ROWS = [
    *tried(
        "srpo",
        {
            SLOW: [(0.4, 1.0), (0.6, 0.99)],
            MIDDLE: [(0.7, 0.96), (0.95, 0.94)],
            FAST: [(0.9, 0.5), (0.99, 0.1)],
        },
    ),
    *tried(
        "refl",
        {
            SLOW: [(0.2, 0.9), (0.3, 0.8)],
            MIDDLE: [(0.6, 0.7), (0.7, 0.5)],
            FAST: [(0.9, 0.4), (0.9, 0.3)],
        },
    ),
]


def test_the_highest_photo_rate_with_content_kept_decides() -> None:
    found = choice(ROWS, "srpo")
    assert found.keeps and (
        found.row["learning_rate"],
        found.row["photo_rate"],
        found.row["step"],
    ) == (MIDDLE, 0.7, 10)


def test_without_content_kept_the_best_product_decides() -> None:
    found = choice(ROWS, "refl")  # .42 against .24, .35, .36 and .27
    assert not found.keeps and (found.row["learning_rate"], found.row["photo_rate"]) == (
        MIDDLE,
        0.6,
    )


def test_the_base_model_itself_is_no_candidate() -> None:
    rows = tried("srpo", {SLOW: [(0.05, 1.0)], FAST: [(0.08, 1.0)]})
    assert chosen(rows) == {"srpo": FAST}


def test_the_text_names_every_choice_and_where_it_is_weak() -> None:
    text = tell(
        [*ROWS, *tried("drtune", {SLOW: [(0.8, 1.0)], MIDDLE: [(0.5, 1.0)], FAST: [(0.4, 1.0)]})]
    )
    assert chosen(ROWS) == {"srpo": MIDDLE, "refl": MIDDLE}
    lines = text.splitlines()
    assert "| method | 3e-05 | 1e-04 | 3e-04 | chosen |" in lines
    assert (
        "| SRPO, anchored | photo 60 %, content 99 %, update 20 | photo 70 %, content 96 %, update 10 | (photo 90 %, content 50 %, update 10) | 1e-04 |"
        in lines
    )
    assert (
        lines[-3]
        == "Chosen at an end of the tried rates, so that a rate beyond may be better: DRTune."
    )
    assert lines[-1] == "Without any measurement that kept the content: ReFL."
    assert "keep 95 % of the base model's content (95.0 % of the images right)" in text


def test_the_figure_has_a_panel_for_every_method(tmp_path: Path) -> None:
    (file,) = draw(ROWS, tmp_path)
    assert file == tmp_path / "tuning.png" and file.read_bytes().startswith(b"\x89PNG")


def test_every_method_is_tried_with_the_same_rates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        tuning, "within", lambda budget, arm, out, recipes: asked.append(budget) or arm
    )
    monkeypatch.setattr(
        tuning,
        "run_arms",
        lambda study, arms, seeds, out, recipes: [
            {"arm": arm.name, "seed": seed} for arm in arms for seed in seeds
        ],
    )
    rows = tuning.measure(tmp_path, False, Path("recipes"))
    assert [(row["method"], row["arm"]) for row in rows] == [
        (arm.name, with_rate(arm, rate).name) for arm in ARMS for rate in RATES
    ]
    assert {row["seed"] for row in rows} == {tuning.SEED} and set(asked) == {
        tuning.FULL,
        tuning.FULL.times(3),
    }
    assert "train.learning_rate=3e-05" in with_rate(ARMS[0], 3e-5).overrides


def test_methods_are_compared_under_the_rates_that_the_recorded_study_chose() -> None:
    recorded = Path(__file__).parents[2] / "benchmarks/results/studies/tuning.jsonl"
    assert chosen(read_rows(recorded)) == CHOSEN
