"""The benchmark of an update in its small size on a CPU: phases, operations, ranked levers."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu_step

CASES = ["online_lora", "online_lora_8bit", "offline_lora"]


def test_cases_are_measured_phase_by_phase(tmp_path, monkeypatch):
    out = tmp_path / "found.json"
    given = ["--size", "tiny", "--updates", "1", "--folder", str(tmp_path / "models")]
    given += ["--out", str(out), "--cases", *CASES]
    monkeypatch.setattr(sys, "argv", ["gpu_step.py", *given])
    memory = SimpleNamespace(allocated=2**30)  # tests/preflight measure the estimate
    monkeypatch.setattr(gpu_step, "estimate", lambda run, machine: memory)
    gpu_step.main()
    rows = {row["case"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == CASES
    online, quantized, offline = (rows[name] for name in CASES)
    assert "rollout" in online["phases"] and "rollout" not in offline["phases"]
    assert "encode image" in offline["phases"]
    assert {"train call", "decode", "reward", "backward", "optimiser"} <= online["phases"].keys()
    operations = [each["tera_operations"] for each in (quantized, online, offline)]
    assert operations[0] == operations[1] > operations[2] > 0
    for row in rows.values():
        assert math.isfinite(row["seconds"]) and row["seconds"] > 0 and row["predicted_gib"] == 1
