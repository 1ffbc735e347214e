"""Records become tables, nothing outside the markers moves, and what the documents say is what was recorded."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
    """The script, on a repository of its own with one document."""
    spec = importlib.util.spec_from_file_location(
        "write_numbers", ROOT / "benchmarks" / "write_numbers.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "DOCUMENTS", ("README.md",))
    return module


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
    (module.RESULTS / f"{name}.json").write_text(json.dumps(record))


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["write_numbers.py", *words])
    module.main()


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


def test_blocks_are_written_and_the_rest_stays(
    numbers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    plant(
        numbers,
        "demo",
        demo_record({"photo_rate": 0.4, "srpo": 0.03, "direct_align": 0.3, "ratio": 0.1}),
    )
    document = numbers.ROOT / "README.md"
    first, second = (
        ("<!-- numbers: offline_cost -->\n", "<!-- /numbers -->"),
        ("<!-- numbers: demo -->\n", "<!-- /numbers -->"),
    )
    document.write_text(
        f"# Head\n\n{first[0]}stale | 7\n{first[1]}\nbetween, 12 %\n{second[0]}{second[1]}\ntail"
    )
    with pytest.raises(SystemExit, match=r"README\.md: numbers differ"):
        run(numbers, monkeypatch, "--check")
    assert "stale" in document.read_text()

    run(numbers, monkeypatch)
    written = document.read_text()
    assert (
        "stale" not in written and "0.50 (0.40-0.60)" in written and "**SRPO, anchored**" in written
    )
    assert numbers.BLOCK.sub("#", written) == "# Head\n\n#\nbetween, 12 %\n#\ntail"
    run(numbers, monkeypatch, "--check")
    run(numbers, monkeypatch)
    assert document.read_text() == written


def test_the_documents_say_what_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(
        "write_numbers_here", ROOT / "benchmarks" / "write_numbers.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wanted = {
        match[2]
        for name in module.DOCUMENTS
        for match in module.BLOCK.finditer((ROOT / name).read_text(encoding="utf-8"))
    }
    assert wanted
    assert [
        name
        for name in wanted
        if not any(
            (module.RESULTS / f).is_file() for f in (f"{name}.json", f"studies/{name}.jsonl")
        )
    ] == []
    run(module, monkeypatch, "--check")
