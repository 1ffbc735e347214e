"""Recorded steps are reproduced within the bounds; a broken case gives one error line."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import replay_reference

CASES = Path(__file__).parents[1] / "fixtures" / "reference"


@pytest.fixture
def case(tmp_path):
    """A copy of a recorded case, to be broken."""
    for ending in ("json", "safetensors"):
        shutil.copy(CASES / f"hps_mid.{ending}", tmp_path / f"case.{ending}")
    return tmp_path / "case"


@pytest.mark.parametrize("name", ["hps_mid", "pickscore", "span_clipped_low"])
def test_official_recordings_are_reproduced(name):
    errors = replay_reference.replay(CASES / name)
    assert errors.image <= 1e-5 and errors.loss <= 1e-6
    assert errors.gradient <= 1e-5 and errors.norm <= 1e-5


@pytest.mark.parametrize("tensor", ["branch1.image", "grad.proj_out.bias"])
def test_a_deviation_is_reported(case, tensor, capsys):
    tensors = load_file(case.with_suffix(".safetensors"))
    tensors[tensor] = tensors[tensor] + 1e-3
    save_file(tensors, case.with_suffix(".safetensors"))
    assert replay_reference.main([str(case)]) == 1
    assert "PAST BOUNDS" in capsys.readouterr().out


def rewrite(**changes: Any) -> Callable[[Path], None]:
    """Overwrite settings; None removes one."""

    def damage(case: Path) -> None:
        file = case.with_suffix(".json")
        settings = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))

    return damage


def truncate_tensors(case: Path) -> None:
    file = case.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda case: case.with_suffix(".json").unlink(), "case.json"),
        (truncate_tensors, "case.safetensors"),
        (rewrite(train_guidance=None), "train_guidance is not recorded"),
        (rewrite(branches=[{"kind": "sideways"}]), "'sideways' is unknown"),
        (rewrite(mid_timestep=1000), "mid_timestep 1000"),
        (rewrite(mid_timestep=510), "the network gets timestep"),
        (rewrite(branches=[]), "branches is empty"),
        (rewrite(height=80), "clean_packed has 16 tokens"),
        (rewrite(vae_config={"latent_channels": 3}), "vae"),
    ],
)
def test_a_broken_case_is_one_error_line(case, damage, message, capsys):
    damage(case)
    assert replay_reference.main([str(case), str(CASES / "hps_mid")]) == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1 and message in output.err and str(case) in output.err
    assert output.out.startswith("hps_mid") and output.out.rstrip().endswith("ok")
