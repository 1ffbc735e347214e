"""Arms side by side where they are equal, on planted runs: who reaches a level, with which seeds, and what stands in the table."""

from __future__ import annotations

import pytest
from planted import run

from directalign.studies.comparing.matching import (
    Column,
    absent,
    at_common_budget,
    at_same_level,
    base_row,
    level_of_most,
    summit,
    table,
)
from directalign.studies.running.records import arms_of

ROWS = [
    *run("srpo", 0, [0.1, 0.5, 0.9], 100),
    *run("srpo", 1, [0.1, 0.7, 0.8], 100),
    *run("refl", 0, [0.1, 0.3, 0.5, 0.7], 100),
    *run("refl", 1, [0.1, 0.2, 0.3, 0.4], 100),
    *run("flow_grpo", 0, [0.1, 0.1, 0.1], 1000),
    *run("flow_grpo", 1, [0.1, 0.1, 0.1], 1000),
]


def test_a_summit_is_what_every_seed_reaches() -> None:
    assert [summit(ROWS, arm, "photo_rate") for arm in arms_of(ROWS)] == [0.8, 0.4, 0.1]


def test_the_common_level_is_reached_by_two_thirds_of_the_arms() -> None:
    assert level_of_most(ROWS, "photo_rate") == 0.4
    assert (
        level_of_most(ROWS, "photo_rate", share=1.0) == 0.1
        and level_of_most(ROWS, "photo_rate", share=0.1) == 0.8
    )


def test_arms_are_read_off_at_a_level_seed_by_seed() -> None:
    found = at_same_level(ROWS, "photo_rate", 0.4)
    assert {
        arm: [row["call_equivalents"] for row in each] for arm, each in found.reached.items()
    } == {
        "srpo": pytest.approx([75.0, 50.0]),
        "refl": pytest.approx([150.0, 300.0]),
    }
    assert found.missed == {"flow_grpo": 0} and found.interval("flow_grpo", "color_drift") is None


def test_an_arm_that_gets_there_with_some_seeds_only_is_named_and_not_compared() -> None:
    found = at_same_level(ROWS, "photo_rate", 0.6)
    assert list(found.reached) == ["srpo"] and found.missed == {"refl": 1, "flow_grpo": 0}
    assert (
        absent(found, arms_of(ROWS), seeds=2)
        == "Not reached by ReFL (1 of 2 seeds), Flow-GRPO (0 of 2 seeds)."
    )
    assert absent(at_same_level(ROWS, "photo_rate", 0.1), arms_of(ROWS), seeds=2) == ""


def test_the_common_budget_is_what_every_run_spent() -> None:
    amount, found = at_common_budget(ROWS)
    assert amount == 200 and found.missed == {}
    assert [row["photo_rate"] for row in found.reached["srpo"]] == [0.9, 0.8]
    assert [row["photo_rate"] for row in found.reached["refl"]] == pytest.approx([0.5, 0.3])
    assert [row["step"] for row in found.reached["flow_grpo"]] == pytest.approx([2.0, 2.0])


def test_a_table_has_the_base_model_and_an_interval_behind_every_mean() -> None:
    found = at_same_level(ROWS, "photo_rate", 0.4)
    columns = (
        Column("photo_rate", "photo rate", 0, percent=True),
        Column("call_equivalents", "calls", 1),
        Column("gone", "gone"),
    )
    lines = table(found, arms_of(ROWS), columns, base_row(ROWS)).splitlines()
    assert lines[0] == "| method | photo rate | calls | gone |"
    assert lines[2] == "| base model | 10 % | 0.0 | – |"
    # 75 and 50: mean 62.5, standard error 12.5, t(1) = 12.706
    assert lines[3] == "| SRPO, anchored | 40 % (40–40) | 62.5 (−96.3 to 221.3) | – |"
    assert len(lines) == 5 and lines[4].startswith("| ReFL | 40 % (40–40) | 225.0 (")
