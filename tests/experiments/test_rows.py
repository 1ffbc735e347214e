"""Rows and their files, intervals worked out by hand, runs compared at equal levels, tables."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from directalign.types import DirectAlignError
from experiments import rows as reading
from experiments.plots import title_of
from experiments.rows import Rows, after, at_budget, at_level, at_photo_rate, mean_interval, mean_of
from experiments.tables import VERSUS, signed, versus

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


def test_rows_are_read_back_as_they_were_written(tmp_path):
    rows, file = run("srpo", 0, [0.1, 0.4], 10), tmp_path / "new" / "results.jsonl"
    reading.write_rows(rows, file)
    assert reading.read_rows(file) == rows
    with pytest.raises(ValueError, match="not JSON compliant"):
        reading.write_rows([{"step": float("nan")}], file)
    assert reading.read_rows(file) == rows, "a failed write keeps the former file"
    assert [each.name for each in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("line", "problem"), [('{"a": 1', "not JSON"), ("[1]", "not a JSON object"), ("", "not JSON")]
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path, line, problem):
    file = tmp_path / "results.jsonl"
    file.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(DirectAlignError, match=rf"results\.jsonl, line 2: {problem}"):
        reading.read_rows(file)
    with pytest.raises(DirectAlignError, match=r"gone\.jsonl: no such file of results"):
        reading.read_rows(tmp_path / "gone.jsonl")


def test_intervals_over_seeds_by_hand():
    """1, 2, 3: standard error 1/√3, t(2) = 4.302653. Log-ratios ln 2, ln 8: t(1) = 12.7062."""
    half = 4.302653 / 3**0.5
    wanted = {"value": 2.0, "low": 2 - half, "high": 2 + half, "n": 3}
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx(wanted, rel=1e-6)
    assert mean_interval([0.25]) == {"value": 0.25, "low": None, "high": None, "n": 1}
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
    half = 12.70620474 * math.log(4) / 2
    wanted = {"value": 4.0, "low": 4 * math.exp(-half), "high": 4 * math.exp(half), "n": 2}
    assert reading.ratio_interval([2.0, 16.0], [1.0, 2.0]) == pytest.approx(wanted, rel=1e-8)
    with pytest.raises(ValueError, match="positive"):
        reading.ratio_interval([1.0], [0.0])
    free = mean_interval([0.9, 1.0, 1.0])
    assert free["high"] is not None and free["high"] > 1
    assert mean_of("photo_rate", [0.9, 1.0, 1.0]) == {**free, "high": 1.0}
    assert mean_of("color_drift", [0.9, 1.0, 1.0]) == free
    rows = [{"x": 1.0}, {"x": 3.0}, {"y": 2.0}]
    assert reading.over(rows[:2], "x") == mean_interval([1.0, 3.0])
    assert reading.over(rows, "x") is reading.over([], "x") is None


POINTS = ((0, 0.1, 0.0), (10, 0.5, 4.0), (20, 0.4, 8.0), (30, 0.9, 12.0))
ROWS: list[dict[str, Any]] = [
    {"step": s, "photo_rate": p, "seconds": t, "machine": "m"} for s, p, t in POINTS
]


def test_a_level_is_read_where_it_is_first_reached():
    wanted = {"step": 5, "photo_rate": 0.3, "seconds": 2.0, "machine": "m"}
    assert at_level(ROWS, "photo_rate", 0.3) == pytest.approx(wanted)
    late = at_level(ROWS[::-1], "photo_rate", 0.7)  # whatever the order of the rows
    assert late is not None and (late["step"], late["seconds"]) == pytest.approx((26.0, 10.4))
    exact = [at_level(ROWS, "photo_rate", level) for level in (0.5, 0.05)]
    assert exact == [ROWS[1], ROWS[0]]
    for given in ((ROWS, "photo_rate", 0.91), (ROWS, "diversity", 0.1), ([], "x", 0)):
        assert at_level(*given) is None
    partly = [ROWS[0] | {"reward": 0.2}, ROWS[1] | {"reward": None}, ROWS[3] | {"other": 1.0}]
    assert {"reward", "other"}.isdisjoint(at_level(partly, "photo_rate", 0.3) or {"reward": 0})
    spent = at_budget(ROWS, "seconds", 10.0)
    assert spent is not None and (spent["step"], spent["photo_rate"]) == pytest.approx((25.0, 0.65))
    assert at_budget(ROWS, "seconds", 12.1) is None
    with pytest.raises(ValueError, match="photo_rate falls during the run"):
        at_budget(ROWS, "photo_rate", 0.3)


ARMS = Rows(
    [
        *run("srpo", 0, [0.1, 0.5, 0.9], 100),
        *run("srpo", 1, [0.1, 0.7, 0.8], 100),
        *run("refl", 0, [0.1, 0.3, 0.5, 0.7], 100),
        *run("refl", 1, [0.1, 0.2, 0.3, 0.4], 100),
        *run("flow_grpo", 0, [0.1, 0.1, 0.1], 1000),
        *run("flow_grpo", 1, [0.1, 0.1, 0.1], 1000),
    ]
)


def test_arms_are_compared_seed_by_seed_at_levels_that_every_seed_reaches():
    assert [ARMS.highest_common([arm]) for arm in ARMS.arms] == [0.8, 0.4, 0.1]
    assert ARMS.level_of_most("photo_rate") == 0.4 and ARMS.level_of_most("photo_rate", 0.1) == 0.8
    found = ARMS.matched(at_photo_rate(0.4))
    nfe = {arm: [row["call_equivalents"] for row in rows] for arm, rows in found.items()}
    wanted = {"srpo": pytest.approx([75.0, 50.0]), "refl": pytest.approx([150.0, 300.0])}
    assert nfe == wanted
    assert list(ARMS.matched(at_photo_rate(0.6))) == ["srpo"], "one seed of refl never reaches it"
    levels = {f"at {level}": at_photo_rate(level) for level in (0.4, 0.6, 2)}
    conditions = {"after 20": after(20), **levels, "start": after(0)}
    lines = versus(ARMS, "srpo", "refl", conditions)
    assert [line[0] for line in lines] == list(conditions)
    assert all(len(line) == len(VERSUS) for line in lines)
    assert lines[0][1:3] == [signed(mean_interval([0.4, 0.5])), "0.000 (0.000–0.000)"]
    assert lines[0][4:6] == ["1.00 (1.00–1.00)"] * 2 and lines[1][4].startswith("0.29 (")
    assert [line[-1] for line in lines] == ["2", "2", "1", "0", "2"]
    assert lines[3][1:-1] == ["–"] * 5 and lines[4][4:6] == ["–", "–"], "no cost, no ratio"
