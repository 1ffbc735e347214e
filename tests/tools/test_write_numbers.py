"""Records become tables, nothing outside the markers moves, and what the documents say is what was recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from directalign.types import DirectAlignError
from tools import write_numbers

ROOT = Path(__file__).parents[2]
FACTS = {
    "seed": 3,
    "commit": "0123456789abcdef",
    "machine": {"gpu": None, "cores": 2, "processor": "x86_64"},
    "versions": {"torch": "2.9.9", "diffusers": "0.39.9"},
}
MACHINE = "2 CPU cores (x86_64), torch 2.9.9, diffusers 0.39.9, seed 3, commit 0123456789."


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, on a repository of its own."""
    monkeypatch.setattr(write_numbers, "ROOT", tmp_path)
    (tmp_path / "benchmarks/results/studies").mkdir(parents=True)
    (tmp_path / "docs/findings").mkdir(parents=True)
    (tmp_path / "README.md").write_text("")
    return write_numbers


def rate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.04, "high": value + 0.04, "n": 256}


def end(photo: float, drift: float, seconds: float = 12.4) -> dict[str, Any]:
    return {
        "photo_rate": rate(photo),
        "content": rate(0.95),
        "color_drift": drift,
        "reward": 0.5,
        "align_seconds": seconds,
    }


def demo_record(matched: dict[str, float] | None) -> dict[str, Any]:
    ends = {
        "base": end(0.1, 0.07, 0.0),
        "srpo": end(0.9, 0.0456),
        "direct_align": end(0.4, 0.3),
        "srpo_long": end(0.92, 0.05),
        "official_long": end(0.9, 0.1),
    }
    return {**ends, "matched": matched, **FACTS}


def plant(module: ModuleType, name: str, record: dict[str, Any]) -> None:
    (module.ROOT / "benchmarks/results" / f"{name}.json").write_text(json.dumps(record))


def test_the_demo_s_table(numbers: ModuleType) -> None:
    matched = {"photo_rate": 0.4, "srpo": 0.03, "direct_align": 0.3, "ratio": 0.1}
    lines = numbers.demo(demo_record(matched)).splitlines()
    assert len(lines) == 2 + 5 + 2 and all(line.count("|") == 6 for line in lines[:7])
    assert lines[2] == "| base model | 10 % (6-14) | 95 % (91-99) | 0.070 |  |"
    assert lines[3] == "| **SRPO, anchored** | 90 % (86-94) | 95 % (91-99) | 0.046 | 12 |"
    assert (
        "(40 %), SRPO has drifted by 0.030 and plain Direct-Align by 0.300: a ratio of 0.10. 256 prompt-seed pairs"
        in lines[-1]
    )
    assert lines[-1].endswith(MACHINE)


def test_a_demo_without_a_common_photo_rate_says_so(numbers: ModuleType) -> None:
    text = numbers.demo(demo_record(None))
    assert "never rose" in text and "a ratio of" not in text and text.endswith(MACHINE)


def test_the_table_of_recipes(numbers: ModuleType) -> None:
    row = {
        "num_steps": 30,
        "align_seconds": 41.6,
        "before": end(0.1, 0.07),
        "after": end(0.8, 0.05),
        **FACTS,
    }
    lines = numbers.world_runs({"world_sd": row, "world_sd_v": row}).splitlines()
    assert (
        lines[2]
        == "| `world_sd.yaml` | 30 | 10 % (6-14) | 80 % (76-84) | 95 % (91-99) | 95 % (91-99) | 42 |"
    )
    assert len(lines) == 6 and lines[-1] == MACHINE


def test_the_table_of_costs(numbers: ModuleType) -> None:
    row = {
        "num_inference_steps": 25,
        "online_seconds": 1.0,
        "offline_seconds": 0.25,
        "ratio": 0.251,
        "ratio_low": 0.2,
        "ratio_high": 0.3,
        "pairs": 8,
    }
    assert numbers.offline_cost({"rows": [row], **FACTS}).splitlines()[2:] == [
        "| 25 | 1.00 s | 0.25 s | 0.25 (0.20-0.30) |",
        "",
        MACHINE,
    ]


def test_blocks_are_written_and_the_rest_stays(numbers: ModuleType) -> None:
    cost = {
        "num_inference_steps": 8,
        "online_seconds": 1.0,
        "offline_seconds": 0.5,
        "ratio": 0.5,
        "ratio_low": 0.4,
        "ratio_high": 0.6,
        "pairs": 8,
    }
    plant(numbers, "offline_cost", {"rows": [cost], **FACTS})
    shutil.copy(
        ROOT / "benchmarks/results/studies/learning_rates.jsonl",
        numbers.ROOT / "benchmarks/results/studies",
    )
    head, page = numbers.ROOT / "README.md", numbers.ROOT / "docs/findings/learning_rates.md"
    head.write_text(
        "# Head\n\n<!-- numbers: offline_cost -->\nstale | 7\n<!-- /numbers -->\ntail, 12 %"
    )
    page.write_text("<!-- numbers: learning_rates.rates -->\n<!-- /numbers -->\n")
    with pytest.raises(
        SystemExit, match=r"README\.md, docs/findings/learning_rates\.md: numbers differ"
    ):
        numbers.main(["--check"])
    assert "stale" in head.read_text()

    numbers.main([])
    written = head.read_text()
    assert (
        "stale" not in written
        and "0.50 (0.40-0.60)" in written
        and numbers.BLOCK.sub("#", written) == "# Head\n\n#\ntail, 12 %"
    )
    assert "| SRPO, anchored | photo " in page.read_text()
    numbers.main(["--check"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cost", "no block is called cost: there are demo"),
        ("learning_rates.tabel", "study learning_rates has no table tabel: there are rates"),
        ("studdy.rates", "no study is called studdy"),
        ("table1.matched_reward", r"table1\.jsonl: no such file of results"),
    ],
)
def test_an_unknown_block_is_named(numbers: ModuleType, name: str, message: str) -> None:
    shutil.copy(
        ROOT / "benchmarks/results/studies/learning_rates.jsonl",
        numbers.ROOT / "benchmarks/results/studies",
    )
    with pytest.raises(DirectAlignError, match=message):
        numbers.filled(f"<!-- numbers: {name} -->\n<!-- /numbers -->")


def test_a_finished_study_is_recorded_and_a_quick_one_is_not(
    numbers: ModuleType, tmp_path: Path
) -> None:
    folder, figures = tmp_path / "study", tmp_path / "docs/img/studies"
    figures.mkdir(parents=True)
    folder.mkdir()
    for name in ("learning_rates_former.png", "table1_trails.png"):
        (figures / name).write_bytes(b"")
    shutil.copy(ROOT / "benchmarks/results/studies/learning_rates.jsonl", folder / "results.jsonl")
    for mark in (
        None,
        {"study": "learning_rates", "size": "quick"},
        {"study": "table1", "size": "full"},
    ):
        if mark:
            (folder / "study.json").write_text(json.dumps(mark))
        with pytest.raises(
            SystemExit, match="not the full size of learning_rates: run python -m experiments"
        ):
            numbers.main(["--record", "learning_rates", str(folder)])
    (folder / "study.json").write_text(json.dumps({"study": "learning_rates", "size": "full"}))
    numbers.main(["--record", "learning_rates", str(folder)])
    assert {file.name for file in figures.iterdir()} == {"learning_rates.png", "table1_trails.png"}
    kept = tmp_path / "benchmarks/results/studies/learning_rates.jsonl"
    assert kept.read_text() == (folder / "results.jsonl").read_text()


def test_the_documents_hold_what_was_recorded() -> None:
    blocks = [
        match
        for file in write_numbers.documents()
        for match in write_numbers.BLOCK.finditer(file.read_text(encoding="utf-8"))
    ]
    assert len(blocks) >= 6
    write_numbers.main(["--check"])
