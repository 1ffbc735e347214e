"""`directalign export` and `directalign average`, once as a process with a stand-in of the Hub."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from finished_runs import finished_recipe, write_finished
from hub_stand_in import WRITER, hub_stand_in, point_at
from low_rank_updates import updates_of_shape

Command = Callable[..., Result]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run in the current folder."""
    monkeypatch.chdir(tmp_path)
    updates = updates_of_shape({"mid_block.attentions.0.proj_in": (4, 4)})
    return write_finished(Path("run"), finished_recipe("sd", "someone/else"), updates, "unet")


def test_a_run_is_exported_and_uploaded(run, tmp_path, command, monkeypatch):
    options = ["--format", "kohya", "--dtype", "bfloat16", "--push-to-hub", "me/mine", "--private"]
    with hub_stand_in() as hub:
        point_at(hub.url, tmp_path / "home", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        done = command("export", run, *options)
        assert done.exit_code == 0, done.stderr
        out, repo = run / "export" / "kohya", hub.repos["me/mine"]
        assert done.stdout.split() == [str(out), f"{hub.url}/me/mine"]
        assert repo.private
        assert repo.files == {file.name: file.read_bytes() for file in out.iterdir()}
        assert set(repo.files) == {"README.md", "before_after.png", "red_lora_2.safetensors"}
        assert [request for request in hub.unknown if not request.startswith("GET ")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--format kohya --private", "--private is for --push-to-hub OWNER/NAME: give both"),
        ("--format folder", "add --merge"),
    ],
)
def test_wrong_options_are_one_line(run, command, monkeypatch, options, message):
    monkeypatch.setattr("directalign.io.hub.get_token", lambda: None)
    found = command("export", run, *options.split())
    assert found.exit_code == 1 and message in found.stderr and found.stderr.count("\n") == 1
    assert not (run / "export").exists()
    assert command("export", run, "--format", "onnx").exit_code == 2


# --- average --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tune", "form"), [("lora", "diffusers"), ("full", "folder")])
def test_sample_and_export_accept_an_average(recipe, command, tune, form):
    def call(*words: str | Path) -> str:
        result = command(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    settings = [
        "train.save_every=1",
        "train.learning_rate=0.1",
        "train.max_grad_norm=1.0",
        "evaluate.num_samples=1",
        f"model.tune={tune}",
        "model.lora.rank=2",
    ]
    call("train", recipe, "--out", "run", *(f"--set={each}" for each in settings))
    assert call("average", "run", "--steps", "1,2", "--out", "mean") == "mean\n"
    call("average", "run", "--last", "1", "--base-share", "0.999999", "--out", "near-base")

    prompt = ("--prompt", "a red star", "--out")
    for source in ("run", "mean", "near-base"):
        call("sample", source, *prompt, f"of-{source}")
    call("sample", "mean", "--base", *prompt, "of-base")
    files = {name: Path(f"of-{name}") / "0000-seed0.png" for name in ("run", "mean", "base")}
    assert len({file.read_bytes() for file in files.values()}) == 3
    images = files["base"], Path("of-near-base") / "0000-seed0.png"
    extrema = [Image.open(file).convert("L").getextrema() for file in images]
    assert all(abs(a - b) <= 1 for a, b in zip(*extrema, strict=True))

    if tune == "lora":
        said = call("average", "run", "--last", "2", "--rank", "2", "--out", "reduced")
        assert said.startswith("rank 2: relative error ") and said.endswith("\nreduced\n")
    call("export", "mean", "--format", form)
    card = (Path("mean") / "export" / form / "README.md").read_text()
    assert "test, mean of steps 1, 2" in card and "no measurement before and after" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1,,2"], "--steps 1,,2: give whole numbers with commas between them"),
        (["--last", "2"], "holds no run (no run.yaml)"),
    ],
)
def test_wrong_options_of_average_are_one_line(command, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    found = command("average", "nowhere", *options, "--out", "mean")
    assert found.exit_code == 1 and message in found.stderr and found.stderr.count("\n") == 1
