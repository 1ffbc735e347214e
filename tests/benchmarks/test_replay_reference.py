"""Recorded steps are reproduced within the bounds, whatever their settings, and a broken case is
one line."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from recorder import Recipe, record
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "fixtures" / "reference"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(
        "replay_reference", ROOT / "benchmarks" / "replay_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def case(tmp_path) -> Path:
    """A copy of a recorded case, to be broken."""
    for ending in ("json", "safetensors"):
        shutil.copy(CASES / f"hps_mid.{ending}", tmp_path / f"case.{ending}")
    return tmp_path / "case"


def rewrite(case: Path, **settings) -> None:
    file = case.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("name", ["hps_mid", "pickscore", "span_clipped_low"])
def test_official_recordings_are_reproduced(benchmark, name):
    errors = benchmark.replay(CASES / name)
    assert errors.image <= 1e-5
    assert errors.loss <= 1e-6
    assert errors.gradient <= 1e-5


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(m=50, kinds=("denoise",), guidance=None),
        Recipe(m=6, kinds=("inversion",), height=24, width=8, seed=4),
        Recipe(
            m=75,
            window=(0, 50),
            ratio=0.9,
            accumulation=1,
            kinds=("inversion", "denoise", "denoise"),
        ),
    ],
    ids=[
        "clipped_high",
        "denoise_only_no_guidance",
        "inversion_only_clipped_low",
        "whole_schedule_three_branches",
    ],
)
def test_other_settings_are_reproduced(benchmark, tmp_path, recipe):
    errors = benchmark.replay(record(tmp_path, recipe))
    assert errors.within_bounds(), errors


def test_command_prints_a_line_per_case_and_ends_with_zero(benchmark, capsys):
    assert benchmark.main([str(CASES / "hps_mid")]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("hps_mid")
    assert output.out.rstrip().endswith("ok")
    assert output.err == ""


@pytest.mark.parametrize("tensor", ["branch1.image", "grad.proj_out.bias"])
def test_a_deviation_is_seen(benchmark, case, tensor, capsys):
    tensors = load_file(case.with_suffix(".safetensors"))
    tensors[tensor] = tensors[tensor] + 1e-3
    save_file(tensors, case.with_suffix(".safetensors"))
    assert benchmark.main([str(case)]) == 1
    assert "PAST BOUNDS" in capsys.readouterr().out


def break_json(case):
    case.with_suffix(".json").write_text("{")


def drop_json(case):
    case.with_suffix(".json").unlink()


def truncate_tensors(case):
    file = case.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:5000])


def drop_setting(case):
    file = case.with_suffix(".json")
    settings = json.loads(file.read_text())
    del settings["train_guidance"]
    file.write_text(json.dumps(settings))


def unknown_kind(case):
    settings = json.loads(case.with_suffix(".json").read_text())
    settings["branches"][0]["kind"] = "sideways"
    rewrite(case, branches=settings["branches"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_json, "case.json"),
        (break_json, "case.json"),
        (truncate_tensors, "case.safetensors"),
        (drop_setting, "train_guidance is not recorded"),
        (unknown_kind, "'sideways' is unknown"),
        (lambda case: rewrite(case, mid_timestep=1000), "mid_timestep 1000"),
        (lambda case: rewrite(case, mid_timestep=510), "shows the network timestep"),
        (lambda case: rewrite(case, branches=[]), "branches is empty"),
        (lambda case: rewrite(case, height=80), "clean_packed has 16 tokens"),
        (lambda case: rewrite(case, vae_config={"latent_channels": 3}), "vae"),
        (lambda case: rewrite(case, transformer_config=7), "transformer"),
    ],
)
def test_a_broken_case_is_one_clear_line(benchmark, case, damage, message, capsys):
    damage(case)
    assert benchmark.main([str(case), str(CASES / "hps_mid")]) == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1
    assert message in output.err
    assert str(case) in output.err
    assert output.out.startswith("hps_mid")
