"""`directalign export` from the command line, once in a process of its own with a stand-in of the Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from finished_runs import finished_recipe, write_finished
from hub_stand_in import WRITER, hub_stand_in
from low_rank_updates import updates_of_shape


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_finished(
        tmp_path / "run",
        finished_recipe("sd", "someone/else"),
        updates_of_shape({"mid_block.attentions.0.proj_in": (4, 4)}),
        "unet",
    )


def test_a_run_goes_to_the_hub_by_the_command(run: Path, tmp_path: Path) -> None:
    with hub_stand_in() as hub:
        given = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": WRITER,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "OMP_NUM_THREADS": "1",
        }
        words = [
            sys.executable,
            "-m",
            "directalign",
            "export",
            str(run),
            "--format",
            "kohya",
            "--dtype",
            "bfloat16",
            "--push-to-hub",
            "me/mine",
            "--private",
        ]
        done = subprocess.run(
            words, env=os.environ | given, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        out = run / "export" / "kohya"
        assert done.stdout.split() == [str(out), f"{hub.url}/me/mine"]
        repo = hub.repos["model", "me/mine"]
        assert repo.private and repo.files == {
            file.name: file.read_bytes() for file in out.iterdir()
        }
        assert set(repo.files) == {"README.md", "before_after.png", "red_lora_2.safetensors"}
        assert [
            asked for asked in hub.unknown if not asked.startswith("GET ")
        ] == []  # the library looks around by itself


def test_what_the_command_line_cannot_mean(run: Path, command: Callable[..., Result]) -> None:
    assert command("export", run, "--format", "onnx").exit_code == 2
    found = command("export", run, "--format", "kohya", "--private")
    assert (
        found.exit_code == 1
        and found.stderr
        == "directalign: --private is for --push-to-hub OWNER/NAME: give both, or neither\n"
    )


def test_without_a_token_nothing_is_exported(
    run: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("directalign.export.upload.get_token", lambda: None)
    found = command("export", run, "--format", "kohya", "--push-to-hub", "me/mine")
    assert (
        found.exit_code == 1
        and "no token of the Hub on this machine" in found.stderr
        and not (run / "export").exists()
    )


def test_a_mistake_is_one_line(run: Path, command: Callable[..., Result]) -> None:
    found = command("export", run, "--format", "folder")
    assert found.exit_code == 1 and found.stderr.count("\n") == 1 and "add --merge" in found.stderr
