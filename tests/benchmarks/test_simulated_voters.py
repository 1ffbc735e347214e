"""Voters with planted preferences: intervals hold the truth, and nothing false is claimed."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from simulated_voters import SCENARIOS, main, simulate

RECORD = Path(__file__).parents[2] / "benchmarks/results/simulated_voters.json"
FEW = "3 people"


def assert_honest(found, repeats):
    """Coverage from 90 to 99 %, at most 8 % of false claims, or no claim; 2.5 errors of leeway
    below 200 repeats."""
    leeway = 0 if repeats == 200 else 2.5 * (0.08 * 0.92 / repeats) ** 0.5
    assert found["claimed, none"] <= 0.08 + leeway
    assert found["wrong of these people"] <= 0.025 + leeway
    for name, share in found.items():
        if "hold" in name or "these people's" in name:
            assert 0.9 - leeway <= share <= 0.99 + leeway or found["voters"] == FEW, name


@pytest.mark.parametrize("name", SCENARIOS)
def test_simulated_voters(name):
    found = simulate(SCENARIOS[name], repeats=25)
    assert_honest({"voters": name, **found}, 25)
    assert found["claimed, some"] == 0 if name == FEW else found["claimed, some"] > 0.2


def test_the_record_is_of_200_repeats_of_each(tmp_path):
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    assert [row["voters"] for row in found["rows"]] == list(SCENARIOS)
    assert found["repeats"] == 200 and {"machine", "commit", "seed"} <= found.keys()
    for row in found["rows"]:
        assert_honest(row, 200)
    main(["--only", "alike", "--repeats", "1", "--out", str(tmp_path / "found.json")])
    again = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert again["rows"][0].keys() == found["rows"][0].keys()
