"""The benchmark of an update runs at its small size on a CPU, counts the same operations for the
same shape, and ranks levers by what they gain."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu_step() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_step
    finally:
        sys.path.remove(str(BENCHMARKS))
    return gpu_step


def test_cases_are_measured_phase_by_phase(gpu_step, tmp_path, monkeypatch):
    out = tmp_path / "found.json"
    cases = ["online_lora", "online_lora_8bit", "offline_lora", "offline_full_bf16"]
    given = [
        "gpu_step.py",
        "--size",
        "tiny",
        "--updates",
        "1",
        "--folder",
        str(tmp_path / "models"),
        "--out",
        str(out),
        "--cases",
        *cases,
    ]
    monkeypatch.setattr(sys, "argv", given)
    gpu_step.main()
    rows = {row["case"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == set(cases)
    online, rounded, offline = (rows[name] for name in cases[:3])
    assert (
        "rollout" in online["phases"]
        and "rollout" not in offline["phases"]
        and "encode image" in offline["phases"]
    )
    assert {"train call", "decode", "reward", "backward", "optimiser"} <= online["phases"].keys()
    assert rounded["tera_operations"] == online["tera_operations"] > offline["tera_operations"] > 0
    assert all(
        math.isfinite(row["seconds"]) and row["seconds"] > 0 and row["predicted_gib"] > 0
        for row in rows.values()
    )
    assert rounded["predicted_gib"] < online["predicted_gib"]


def test_levers_are_ranked_by_seconds_of_a_prompt(gpu_step):
    rows = [
        {"case": "online_lora", "seconds_per_prompt": 4.0},
        {"case": "online_lora_compiled", "seconds_per_prompt": 2.0},
        {"case": "online_lora_batch_2", "seconds_per_prompt": 1.0},
        {"case": "offline_lora", "seconds_per_prompt": 1.0},
        {"case": "online_lora_4bit", "failed": "no room"},
    ]
    assert [(gain["case"], gain["gain"]) for gain in gpu_step.ranked(rows)] == [
        ("online_lora_batch_2", 4.0),
        ("online_lora_compiled", 2.0),
    ]
