"""Two arms read off where they are equal, on planted runs, and rows told apart by kind."""

from __future__ import annotations

import pytest

from directalign.studies.comparing import reading
from directalign.studies.comparing.statistics import mean_interval
from directalign.studies.comparing.versus import (
    after,
    at_photo_rate,
    common_photo_rate,
    excludes_zero,
    signed,
    table,
    versus,
)
from directalign.studies.running.records import Row


def run(arm: str, seed: int, photo: float, calls: float) -> list[Row]:
    """From a photo rate of 0.1 to `photo` in 20 updates of `calls` calls each."""
    return [
        {"arm": arm, "seed": seed, "step": step, "photo_rate": 0.1 + (photo - 0.1) * step / 20, "content": 1.0, "color_drift": 0.1 + 0.001 * seed,
         "call_equivalents": calls * step, "seconds": calls * step / 10}
        for step in (0, 10, 20)
    ]  # fmt: skip


@pytest.fixture
def rows() -> list[Row]:
    return [
        *run("ours", 0, 0.9, 10),
        *run("ours", 1, 0.8, 10),
        *run("ours", 2, 0.9, 10),
        *run("theirs", 0, 0.5, 20),
        *run("theirs", 1, 0.6, 20),
    ]


def test_equal_updates_pair_the_seeds_that_both_have(rows: list[Row]) -> None:
    found = versus(rows, "ours", "theirs", "after 20 updates", after(20))
    assert found.seeds == 2 and found.differences["photo_rate"] == pytest.approx(
        mean_interval([0.4, 0.2])
    )
    assert found.ratios["call_equivalents"] == pytest.approx(
        {"value": 0.5, "low": 0.5, "high": 0.5, "n": 2}
    )


def test_equal_photo_rate_is_read_between_measurements(rows: list[Row]) -> None:
    level = common_photo_rate(rows, ["ours", "theirs"])
    found = versus(rows, "ours", "theirs", "there", at_photo_rate(level))
    assert level == pytest.approx(0.5) and found.differences["photo_rate"] == pytest.approx(
        {"value": 0, "low": 0, "high": 0, "n": 2}
    )
    assert 0.2 < found.ratios["call_equivalents"]["value"] < 0.4


def test_a_seed_that_never_gets_there_is_left_out_and_none_is_a_dash(rows: list[Row]) -> None:
    assert versus(rows, "ours", "theirs", "there", at_photo_rate(0.55)).seeds == 1
    nobody = versus(rows, "ours", "theirs", "there", at_photo_rate(0.99))
    assert (
        nobody.seeds == 0
        and nobody.differences["content"] is None
        and nobody.ratios["seconds"] is None
    )
    assert "| there | – | – | – | – | – | 0 |" in table([nobody])


def test_what_cost_nothing_has_no_ratio(rows: list[Row]) -> None:
    assert versus(rows, "ours", "theirs", "at the start", after(0)).ratios == {
        "call_equivalents": None,
        "seconds": None,
    }


@pytest.mark.parametrize(
    ("values", "shown", "clear"),
    [([0.1, 0.11], "+0.105", True), ([-0.1, 0.3], "+0.100", False), ([0.2], "+0.200", False)],
)
def test_a_difference_shows_its_sign_and_whether_it_is_clear(
    values: list[float], shown: str, clear: bool
) -> None:
    difference = mean_interval(values)
    assert signed(difference).startswith(shown) and excludes_zero(difference) == clear


def test_rows_of_another_kind_are_kept_apart(rows: list[Row]) -> None:
    mixed = [
        *rows,
        {"kind": "facts", "arm": "ours", "seed": 0, "target": None},
        {"kind": "facts", "arm": "theirs", "seed": 0, "target": "photo"},
    ]
    assert (
        reading.of_runs(mixed) == rows
        and reading.of_kind(mixed, "facts", target="photo")[0]["arm"] == "theirs"
    )
    assert (
        reading.steps_of(rows, "ours") == [0, 10, 20] and reading.before_training(rows)["step"] == 0
    )
    assert [row["seed"] for row in reading.at_step(rows, "ours", 10)] == [0, 1, 2] and reading.over(
        [], "step"
    ) is None


def test_a_band_is_drawn_only_where_every_interval_is_known(rows: list[Row]) -> None:
    whole = reading.line("ours", reading.curve(rows, "ours", "photo_rate"))
    assert (
        list(whole.x) == [0, 10, 20]
        and len(whole.low) == 3
        and whole.y[-1] == pytest.approx(2.6 / 3)
    )
    one_seed = reading.line(
        "ours", reading.curve([row for row in rows if row["seed"] == 0], "ours", "photo_rate")
    )
    assert (
        one_seed.low == ()
        and reading.line("ours", reading.curve(rows, "ours", "photo_rate"), banded=False).high == ()
    )
