"""`directalign average` from the command line, and what takes its folder for a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result


@pytest.mark.parametrize(("tune", "form"), [("lora", "diffusers"), ("full", "folder")])
def test_sample_and_export_take_it_for_a_run(
    recipe: Path, command: Callable[..., Result], tune: str, form: str
) -> None:
    settings = [
        "train.save_every=1",
        "train.learning_rate=0.1",
        "train.max_grad_norm=1.0",
        "evaluate.num_samples=1",
        f"model.tune={tune}",
        "model.lora.rank=2",
    ]
    assert (
        command(
            "train",
            recipe,
            "--out",
            "run",
            *(word for each in settings for word in ("--set", each)),
        ).exit_code
        == 0
    )
    done = command("average", "run", "--steps", "1,2", "--out", "mean")
    assert (done.exit_code, done.stdout) == (0, "mean\n"), done.output
    assert (
        command(
            "average", "run", "--last", "1", "--base-share", "0.999999", "--out", "base"
        ).exit_code
        == 0
    )

    for source, out in (("run", "of-run"), ("mean", "of-mean"), ("base", "of-base")):
        assert command("sample", source, "--prompt", "a red star", "--out", out).exit_code == 0
    assert (
        command(
            "sample", "mean", "--base", "--prompt", "a red star", "--out", "of-mean-base"
        ).exit_code
        == 0
    )
    pictures = {
        name: (Path(name) / "0000-seed0.png").read_bytes()
        for name in ("of-run", "of-mean", "of-mean-base")
    }
    assert len(set(pictures.values())) == 3
    near, base = (
        Image.open(Path(name) / "0000-seed0.png").convert("L").getextrema()
        for name in ("of-base", "of-mean-base")
    )
    assert all(abs(ours - theirs) <= 1 for ours, theirs in zip(near, base, strict=True))

    if tune == "lora":
        reduced = command("average", "run", "--last", "2", "--rank", "2", "--out", "reduced")
        assert (
            reduced.exit_code == 0
            and reduced.stdout.startswith("rank 2: off by ")
            and reduced.stdout.endswith("\nreduced\n")
        )

    exported = command("export", "mean", "--format", form)
    assert exported.exit_code == 0, exported.output
    card = (Path("mean") / "export" / form / "README.md").read_text()
    assert "test, mean of steps 1, 2" in card and "no measurement before and after" in card


@pytest.mark.parametrize("steps", ["", "a", "1,,2", "-1", "1.5"])
def test_steps_that_are_no_numbers(
    recipe: Path, command: Callable[..., Result], steps: str
) -> None:
    found = command("average", "run", "--steps", steps, "--out", "mean")
    assert (
        found.exit_code == 1
        and found.stderr
        == f"directalign: --steps {steps}: give whole numbers with commas between them, such as 20,30,40\n"
    )


def test_the_whole_line_of_a_mistake(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = command("average", "nowhere", "--last", "2", "--out", "mean")
    assert (
        found.exit_code == 1
        and found.stderr.count("\n") == 1
        and "holds no run (no run.yaml)" in found.stderr
    )
