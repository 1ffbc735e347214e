"""`check` (and `train`, which checks first): a sound recipe gives two tables; each mistake one line, exit code 1, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from directalign import planning


def test_a_sound_recipe_gives_findings_and_memory(command, recipe: Path) -> None:
    result = command("check", recipe, "--set", "train.ema_decay=0.9")
    assert result.exit_code == 0 and not Path("runs").exists()
    for expected in ("recipe.yaml can run", "2 from prompts.txt", "32x32", "transformer", "average of weights", "allowance", "total", "fits"):
        assert expected in result.stdout


MISTAKES = {
    ("reward.statistic=null",): "reward.statistic: missing",
    ("reward={name: clip}",): "reward.path: missing",
    ("reward={name: clip, path: nowhere}",): "reward.path: nowhere: no such folder",
    ("method.form=relative", "method.words={positive: [Photo], negative: [CG]}"): "reward.name: pixels ignores prompts, and method.form: relative compares two",
    ("method.form=anchored", "method.words={positive: [Photo], negative: [CG]}"): "method.form: anchored compares two",
    ("method.words.positive=['  ']",): "method.words.positive: holds a blank phrase",
    ("method.moves={kind: window, first: 30, last: 20}",): "first < last",
    ("method.moves={kind: window, first: 0}",): "method.moves.first: 0 starts at pure noise",
    ("method.moves={kind: uniform, sigma_low: 0.9, sigma_high: 0.5}",): "sigma_low 0.9 is not below sigma_high 0.5",
    ("train.warmup_steps=9",): "train.warmup_steps: 9 is more than train.num_steps: 2",
    ("train.betas=[0.9, 1.5]",): "train.betas: [0.9, 1.5]",
    ("model.path=nowhere",): "model.path: nowhere: no such folder",
    ("model.path=world:fluks",): "world:fluks",
    ("model.family=sd",): "holds a FluxPipeline, and model.family: sd needs a StableDiffusionPipeline",
    ("rollout.height=36",): "36x32 does not fit",
    ("method.embedded_guidance=null",): "method.embedded_guidance: missing",
    ("data.prompts=gone.txt",): "gone.txt: no such prompt file",
    ("data.prompts=empty.txt",): "empty.txt: no prompts",
    ("data.prompts=latin.txt",): "latin.txt:2: not UTF-8",
    ("data.prompts=long.txt",): "long.txt:1: prompt of 10,000 characters",
    ("data.images=pictures", "data.strict=true"): "cut.png: unreadable",
    ("data.images=gone",): "gone: no such image folder",
    ("train.num_stps=3",): "did you mean 'num_steps'?",
}


@pytest.mark.parametrize("overrides", MISTAKES, ids=lambda overrides: overrides[0])
@pytest.mark.parametrize("name", ["check", "train"])
def test_a_mistake_is_one_line_before_anything_is_written(command, recipe: Path, overrides: tuple[str, ...], name: str) -> None:
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes(b"a\ncaf\xe9")
    Path("long.txt").write_text("x" * 10_000)
    pictures(Path("pictures"))
    before = sorted(Path().rglob("*"))
    result = command(name, recipe, *(f"--set={override}" for override in overrides), "--out", "out")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and MISTAKES[overrides] in result.stderr
    assert sorted(Path().rglob("*")) == before


def pictures(folder: Path) -> None:
    folder.mkdir()
    for name in ("cut", "whole"):
        Image.new("RGB", (40, 40), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a red square")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:60])


def test_images_that_will_be_skipped_are_a_warning(command, recipe: Path) -> None:
    pictures(Path("pictures"))
    result = command("check", recipe, "--set", "data.images=pictures")
    assert result.exit_code == 0 and "1 from pictures, 1 skipped" in result.stdout
    assert "warning: data.images: 1 of 2 images are skipped: cut.png" in result.stderr


def truncate(folder: Path) -> None:
    file = next((folder / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def not_safetensors(folder: Path) -> None:
    next((folder / "vae").glob("*.safetensors")).write_bytes(b"version https://git-lfs")


def without_weights(folder: Path) -> None:
    next((folder / "text_encoder").glob("*.safetensors")).unlink()


def without_config(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()


def half_json(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [(truncate, "transformer"), (not_safetensors, "vae"), (without_weights, "text_encoder"), (without_config, "config.json"), (half_json, "model_index.json")],
)
def test_a_spoilt_model_folder_is_one_line(command, recipe: Path, tiny_flux: Path, spoil, named: str) -> None:
    shutil.copytree(tiny_flux, "model")
    spoil(Path("model"))
    result = command("check", recipe, "--set", "model.path=model")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and named in result.stderr


def test_what_does_not_fit_is_refused_and_what_may_not_fit_is_a_warning(command, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("directalign.memory._device", lambda: ("Abacus", 1_000))
    refused = command("check", recipe)
    assert refused.exit_code == 1 and "Abacus has 1.0 kB; set model.tune: lora" in refused.stderr
    monkeypatch.setattr("directalign.memory._device", lambda: ("Abacus", 600_000))
    doubtful = command("check", recipe)
    assert doubtful.exit_code == 0 and "does not fit Abacus" in doubtful.stdout and doubtful.stderr.startswith("warning: memory: about")


def test_a_full_disk_is_seen_beforehand(command, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 0))
    result = command("check", recipe, "--out", "a/b")
    assert result.exit_code == 1 and "--out a/b: checkpoints need" in result.stderr and "train.keep_checkpoints" in result.stderr


@pytest.mark.parametrize("writable", [True, False])
def test_the_output_folder_can_be_made(command, recipe: Path, monkeypatch: pytest.MonkeyPatch, writable: bool) -> None:
    if not writable:
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    result = command("check", recipe, "--out", "runs/x" if not writable else "prompts.txt/x")
    assert result.exit_code == 1 and "not a folder that you may write to" in result.stderr


def test_the_schema_in_the_repository_is_the_current_one(command) -> None:
    printed = command("schema").stdout
    assert Path(__file__).parents[2].joinpath("recipes/schema.json").read_text(encoding="utf-8") == printed, "run: directalign schema --out recipes/schema.json"
    schema = json.loads(printed)
    assert schema["additionalProperties"] is False and schema["properties"]["name"]["description"]
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False and section["description"]


def test_settings_that_the_form_does_not_read_are_a_warning(command, recipe: Path) -> None:
    """The recipe's form is absolute: it reads neither ramps nor negative phrases."""
    unread = ("--set", "method.denoise={k_pos: {high_noise: 0.2}}", "--set", "method.words={positive: [Photo], negative: [CG]}")
    result = command("check", recipe, *unread)
    shown = " ".join(result.stdout.split() + result.stderr.split())
    assert result.exit_code == 0 and "method.words.negative" in shown and "method.denoise, method.inversion" in shown
