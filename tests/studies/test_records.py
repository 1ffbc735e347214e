"""A run's records become rows: costs add up over updates, measuring is left out, intervals lie flat; files are whole or refused by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from directalign.studies.running.records import (
    Arm,
    arms_of,
    call_equivalents,
    of_run,
    read_rows,
    rows_of,
    seeds_of,
    write_rows,
)
from directalign.types import DirectAlignError

ARM = Arm("refl", "ReFL", "world_refl")
FACTS = {"commit": "0123abc", "machine": {"cores": 2}, "versions": {"torch": "2.13"}}
RECIPE = {
    "name": "test",
    "model": {"family": "flux", "path": "world:flux"},
    "reward": {"name": "pixels", "statistic": "redness"},
    "method": {"form": "absolute"},
    "data": {"prompts": "world"},
    "train": {"num_steps": 3, "learning_rate": 3e-4},
}


def update(step: int) -> dict[str, Any]:
    return {
        "event": "step",
        "step": step,
        "loss": 0.1,
        "seconds": 0.5,
        "network_calls": {"forward": 80, "backward": 8},
    }


def measurement(step: int, photo: float) -> dict[str, Any]:
    return {
        "event": "evaluate",
        "step": step,
        "photo_rate": {"value": photo, "low": photo - 0.1, "high": photo + 0.1, "n": 8},
        "reward": None if step == 2 else 0.7,
        "seconds": 99.0,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = [
        measurement(0, 0.1),
        update(1),
        update(2),
        measurement(2, 0.3),
        update(3),
        measurement(3, 0.4),
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "summary.json").write_text(json.dumps(FACTS | {"align_seconds": 1.5}))
    return tmp_path


def test_a_row_says_what_the_updates_took_and_what_was_measured_then(folder: Path) -> None:
    first, second, third = rows_of("table1", ARM, 7, folder)
    assert second == {
        "study": "table1", "arm": "refl", "title": "ReFL", "seed": 7, "step": 2,
        "seconds": 1.0, "forward_calls": 160, "backward_calls": 16, "call_equivalents": 192, "learning_rate": 3e-4,
        "photo_rate": 0.3, "photo_rate_low": 0.3 - 0.1, "photo_rate_high": 0.3 + 0.1, "reward": None, **FACTS,
    }  # fmt: skip
    assert (first["step"], first["seconds"], first["call_equivalents"], first["reward"]) == (
        0,
        0.0,
        0,
        0.7,
    )
    assert (third["seconds"], third["forward_calls"], third["backward_calls"]) == (1.5, 240, 24)


def test_a_gradient_costs_two_calls_more() -> None:
    assert call_equivalents(100, 30) == 160


def test_an_unfinished_run_has_no_rows(folder: Path) -> None:
    (folder / "summary.json").unlink()
    with pytest.raises(DirectAlignError, match="holds no finished run"):
        rows_of("table1", ARM, 7, folder)


def test_rows_come_back_as_they_were_written(folder: Path, tmp_path: Path) -> None:
    rows = rows_of("table1", ARM, 7, folder)
    write_rows(rows, tmp_path / "new" / "results.jsonl")
    assert read_rows(tmp_path / "new" / "results.jsonl") == rows
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["results.jsonl"]


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    write_rows([{"step": 1}], file)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows([{"step": float("nan")}], file)
    assert read_rows(file) == [{"step": 1}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [('{"step": 1', "not JSON"), ("[1]", "a list where an object is expected"), ("", "not JSON")],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(DirectAlignError, match=rf"results\.jsonl, line 2: {problem}"):
        read_rows(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DirectAlignError, match=r"gone\.jsonl: no such file of results"):
        read_rows(tmp_path / "gone.jsonl")


def test_rows_are_found_by_arm_and_seed() -> None:
    rows = [
        {"arm": arm, "title": arm.upper(), "seed": seed, "step": step}
        for arm in ("b", "a")
        for seed in (2, 1)
        for step in (10, 0)
    ]
    assert (
        arms_of(rows) == {"b": "B", "a": "A"}
        and seeds_of(rows) == [1, 2]
        and seeds_of(rows, "c") == []
    )
    assert [row["step"] for row in of_run(rows, "a", 2)] == [0, 10]
