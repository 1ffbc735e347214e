"""Wrong inputs end in one line that names the setting, what was given and the remedy, from `check` as from `train`, and leave nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import Result

from hub_downloads import DownloadHub, download_hub, point_at
from tiny_sd3 import write_sd3

Command = Callable[..., Result]
COMMANDS = pytest.mark.parametrize("name", ["check", "train"])


def refused(result: Result, *pieces: str) -> None:
    """One line on stderr with these pieces, nothing on stdout, exit code 1."""
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.output
    assert result.stderr.startswith("directalign: ") and "fault of directalign" not in result.stderr
    for piece in pieces:
        assert piece in result.stderr


@COMMANDS
def test_a_folder_of_another_architecture(
    command: Command, recipe: Path, tmp_path: Path, name: str
) -> None:
    other = write_sd3(tmp_path / "sd3")
    found = command(name, recipe, "--set", f"model.path={other}")
    refused(
        found,
        str(other),
        "holds a StableDiffusion3Pipeline, and model.architecture: flux needs a FluxPipeline",
    )


@COMMANDS
def test_a_missing_subfolder(command: Command, recipe: Path, tiny_flux: Path, name: str) -> None:
    shutil.copytree(tiny_flux, "model")
    shutil.rmtree("model/vae")
    refused(
        command(name, recipe, "--set", "model.path=model", "--out", "out"),
        "model/vae/config.json: no such file: give a complete diffusers folder in model.path",
    )
    assert not Path("out").exists()


@COMMANDS
def test_a_single_file_without_and_with_the_wrong_components(
    command: Command, recipe: Path, tiny_flux: Path, tiny_sd: Path, name: str
) -> None:
    save_file(
        load_file(tiny_flux / "transformer" / "diffusion_pytorch_model.safetensors"),
        "one.safetensors",
    )
    refused(
        command(name, recipe, "--set", "model.path=one.safetensors"),
        "model.components: missing",
        "one.safetensors holds FLUX.1",
    )
    wrong = ("--set", "model.path=one.safetensors", "--set", f"model.components={tiny_sd}")
    refused(
        command(name, recipe, *wrong),
        "StableDiffusionPipeline",
        "model.architecture: flux needs a FluxPipeline",
    )


@pytest.fixture
def gated(
    recipe: Path, tmp_path: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DownloadHub]:
    """A hub with a gated model, and nobody signed in."""
    disable_progress_bars()  # as the command does where there is no terminal
    with download_hub() as hub:
        hub.publish("artists/locked", tiny_flux).gated = True
        point_at(hub.url, tmp_path / "cache", monkeypatch)
        yield hub
    enable_progress_bars()


def test_a_gated_model_without_a_token(command: Command, recipe: Path, gated: DownloadHub) -> None:
    found = command(
        "train",
        recipe,
        "--set",
        "model.path=artists/locked",
        "--set=rollout.height=32",
        "--set=rollout.width=32",
        "--out",
        "out",
    )
    refused(
        found,
        f"model.path: artists/locked: is gated: accept its licence at {gated.url}/artists/locked in a browser, then run `hf auth login`",
    )
    assert not Path("out").exists()


def test_sampling_a_gated_model_without_a_token(
    command: Command, recipe: Path, gated: DownloadHub
) -> None:
    refused(
        command("sample", "artists/locked", "--prompt", "a red star"),
        "artists/locked: is gated",
        "hf auth login",
    )


@COMMANDS
@pytest.mark.parametrize("override", ["rollout.height=36", "rollout.sizes=[[32, 32], [36, 32]]"])
def test_a_size_that_does_not_divide(
    command: Command, recipe: Path, name: str, override: str
) -> None:
    refused(
        command(name, recipe, "--set", override),
        override.partition("=")[0],
        "36x32 does not fit; both are multiples of 8",
    )


@COMMANDS
@pytest.mark.parametrize(
    ("lora", "pieces"),
    [
        (
            "{rank: 2, targets: [attn.to_qq]}",
            (
                "model.lora.targets: ['attn.to_qq'] fit no linear or convolution layer",
                "did you mean",
                "attn.to_q",
            ),
        ),
        ("{rank: 64}", ("model.lora.rank: 64 is more than", "give 16 or less")),
    ],
)
def test_adapters_that_the_network_cannot_have(
    command: Command, recipe: Path, name: str, lora: str, pieces: tuple[str, ...]
) -> None:
    refused(command(name, recipe, "--set", f"model.lora={lora}", "--out", "out"), *pieces)
    assert not Path("out").exists()


@COMMANDS
def test_a_bucket_with_fewer_images_than_a_batch(command: Command, recipe: Path, name: str) -> None:
    Path("pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), "red").save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text("a red square")
    given = (
        "--set=data.images=pictures",
        "--set=data.buckets=[[32, 32]]",
        "--set=data.batch_size=4",
    )
    refused(
        command(name, recipe, *given),
        "data.buckets: [32, 32] has 3 images, and an update takes 4",
        "lower data.batch_size",
    )


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate",),
        ("report",),
        ("sample", "--prompt", "a red star"),
        ("export", "--format", "diffusers"),
    ],
)
def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(
    command: Command, recipe: Path, gated: DownloadHub, words: tuple[str, ...]
) -> None:
    Path("runs").mkdir()
    refused(command(*words, "runs/gone"), "directalign: runs/gone: ", "give ")
    assert gated.fetched == []


def test_a_single_file_is_not_sampled_by_itself(command: Command, recipe: Path) -> None:
    refused(
        command("sample", "one.safetensors", "--prompt", "a red star"),
        "one.safetensors: a single file brings no configs",
        "give a run",
    )
