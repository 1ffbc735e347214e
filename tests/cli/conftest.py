"""A recipe on a tiny random model, and a way to run the command in this process."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from directalign.cli import app


@pytest.fixture
def recipe(tmp_path, tiny_flux, monkeypatch):
    """recipe.yaml and prompts.txt in an otherwise empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    given = {
        "name": "test",
        "model": {"architecture": "flux", "path": str(tiny_flux)},
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"form": "absolute", "embedded_guidance": 3.5},
        "rollout": {"num_inference_steps": 2, "embedded_guidance": 1.0},
        "data": {"prompts": "prompts.txt"},
        "train": {"num_steps": 2},
    }
    (tmp_path / "prompts.txt").write_text("a red star\na blue circle\n")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    return Path("recipe.yaml")


@pytest.fixture
def command():
    """Run `directalign` with the given words."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])
