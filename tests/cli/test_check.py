"""`check` (and `train`, which checks first): a sound recipe gives two tables; each mistake one line, exit code 1, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from directalign.config.load import RECIPES, load_run
from directalign.preflight import Place, checks
from directalign.preflight.memory import Traced


def test_a_sound_recipe_gives_findings_and_memory(command, recipe: Path) -> None:
    result = command("check", recipe, "--set", "train.ema_decay=0.9")
    assert result.exit_code == 0 and not Path("runs").exists()
    for expected in (
        "recipe.yaml can run",
        "2 from prompts.txt",
        "32x32",
        "transformer",
        "measure",
        "total",
        "fits the CPU",
    ):
        assert expected in result.stdout


MISTAKES = {
    ("reward.statistic=null",): "reward.statistic: got null, and it is one of 'brightness'",
    ("reward={name: clip}",): "reward.path: missing",
    ("reward={name: clip, path: nowhere}",): "reward.path: nowhere: no such folder",
    (
        "method.form=relative",
        "method.control_phrases={positive: [Photo], negative: [CG]}",
    ): "reward.name: pixels ignores prompts, and method.form: relative compares two",
    (
        "method.form=anchored",
        "method.control_phrases={positive: [Photo], negative: [CG]}",
    ): "method.form: anchored compares two",
    (
        "method.control_phrases.positive=['  ']",
    ): "method.control_phrases.positive: contains a blank phrase",
    ("method.noise_levels={kind: window, first: 30, last: 20}",): "first < last",
    ("method.noise_levels={kind: window, first: 0}",): "method.noise_levels.first: 0 is pure noise",
    (
        "method.noise_levels={kind: uniform, sigma_low: 0.9, sigma_high: 0.5}",
    ): "sigma_low 0.9 is not below sigma_high 0.5",
    ("train.warmup_steps=9",): "train.warmup_steps: 9 is more than train.num_steps: 2",
    ("train.betas=[0.9, 1.5]",): "train.betas: [0.9, 1.5]",
    ("model.path=nowhere",): "model.path: nowhere: no such folder",
    ("model.path=world:fluks",): "world:fluks",
    (
        "model.architecture=sd",
    ): "holds a FluxPipeline, and model.architecture: sd needs a StableDiffusionPipeline",
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
def test_a_mistake_is_one_line_before_anything_is_written(
    command, recipe: Path, overrides: tuple[str, ...], name: str
) -> None:
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


def without_part(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_2")


def without_config(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()


def half_json(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (truncate, "transformer"),
        (not_safetensors, "vae"),
        (without_weights, "text_encoder"),
        (without_config, "config.json"),
        (without_part, "text_encoder_2"),
        (half_json, "model_index.json"),
    ],
)
def test_a_spoilt_model_folder_is_one_line(
    command, recipe: Path, tiny_flux: Path, spoil, named: str
) -> None:
    shutil.copytree(tiny_flux, "model")
    spoil(Path("model"))
    result = command("check", recipe, "--set", "model.path=model")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and named in result.stderr


def test_what_does_not_fit_is_said_with_what_would_lower_it(
    command, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("directalign.preflight.memory.CUDA_CONTEXT", 0)
    monkeypatch.setattr(
        "directalign.preflight.memory_suggestions.candidates",
        lambda *_: iter([("data.batch_size: 1", {"data.batch_size": 1})]),
    )
    crowded = (
        "check",
        recipe,
        "--set",
        "data.batch_size=4",
        "--set",
        "evaluate.batch_size=1",
        "--gpu-memory",
        "0.0005",
    )
    result = command(*crowded)
    assert result.exit_code == 0 and "does not fit a GPU of 0.0005 GB with 524 KiB" in result.stdout
    assert "data.batch_size: 1" in result.stdout.split("What lowers the peak")[1]
    monkeypatch.setattr("directalign.preflight.memory_suggestions.candidates", lambda *_: iter([]))
    assert "What lowers the peak: no setting of the recipe" in command(*crowded).stdout


def test_a_run_that_cannot_fit_does_not_start(
    command, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "this_machine", lambda: Place("Abacus", 1_000, is_gpu=False))
    monkeypatch.setattr(checks, "suggestions", lambda *_: [])
    refused = command("train", recipe)
    assert (
        refused.exit_code == 1
        and refused.stderr.startswith("directalign: model: needs")
        and "Abacus has 1 KiB; see directalign check" in refused.stderr
    )
    assert refused.stderr.count("\n") == 1


def test_a_run_that_may_not_fit_is_a_warning(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(recipe, [])
    counted = checks.plan(run, Path("out")).memory.counted
    monkeypatch.setattr(checks, "this_machine", lambda: Place("Abacus", counted + 1, is_gpu=False))
    assert any(
        warning.startswith("memory: about") for warning in checks.plan(run, Path("out")).warnings
    )


FLUX_24GB = {
    "name": "FLUX.1-dev on 24 GB",
    "model": {
        "architecture": "flux", "path": "black-forest-labs/FLUX.1-dev", "lora": {"rank": 32, "alpha": 32}, "dtype": "bfloat16",
        "quantization": "4bit", "gradient_checkpointing": True, "text_encoders": "free",
    },
    "reward": {"name": "clip", "path": "yuvalkirstain/PickScore_v1", "gradient_checkpointing": True},
    "method": {"form": "relative", "control_phrases": {"positive": ["Realistic photo"], "negative": ["CG Render"]}, "embedded_guidance": 3.5},
    "rollout": {"height": 720, "width": 720, "embedded_guidance": 1.0},
    "data": {"prompts": "prompts.txt"},
    "train": {"num_steps": 2},
    "evaluate": {"batch_size": 1},
}  # fmt: skip


def test_flux_on_24_gb_is_planned_without_weights_network_or_gpu(
    command, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("check must not open a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv("COLUMNS", "160")
    recipe.write_text(yaml.safe_dump(FLUX_24GB))
    result = command("check", recipe, "--gpu-memory", "24")
    assert result.exit_code == 0 and result.stderr == ""
    for expected in ("FLUX.1-dev, not downloaded yet", "11.90 B in 4 bits", "fits a GPU of 24 GB"):
        assert expected in result.stdout


def test_an_unknown_hub_id_is_a_warning(
    command, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("directalign.preflight.memory.trace", lambda *_: Traced({}, 0, ""))
    small = {
        "model": {"architecture": "sd", "path": "someone/finetune"},
        "rollout": {"height": 64, "width": 64},
        "method": {"form": "absolute"},
    }
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | small))
    result = command("check", recipe)
    assert result.exit_code == 0 and "figures are those of stable-diffusion-v1-5" in result.stderr


def test_a_bucket_needs_an_update_full_of_images(command, recipe: Path) -> None:
    pictures(Path("pictures"))
    few = (
        "--set=data.images=pictures",
        "--set=data.buckets=[[32, 32], [32, 64]]",
        "--set=data.batch_size=1",
        "--set=train.gradient_accumulation_steps=2",
    )
    result = command("check", recipe, *few)
    assert (
        result.exit_code == 1
        and "data.buckets: [32, 32] has 1, [32, 64] has 0 images, and an update takes 2"
        in result.stderr
    )
    odd = command("check", recipe, "--set=data.images=pictures", "--set=data.buckets=[[32, 36]]")
    assert odd.exit_code == 1 and "data.buckets: 32x36 does not fit" in odd.stderr


def test_a_full_disk_is_seen_beforehand(
    command, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        checks.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 0)
    )
    result = command("check", recipe, "--out", "a/b")
    assert (
        result.exit_code == 1
        and "--out a/b: checkpoints need" in result.stderr
        and "train.keep_checkpoints" in result.stderr
    )
    elsewhere = command("check", recipe, "--out", "a/b", "--gpu-memory", "8")
    assert elsewhere.exit_code == 0 and elsewhere.stderr.startswith(
        "warning: --out a/b: checkpoints need"
    )


@pytest.mark.parametrize("writable", [True, False])
def test_the_output_folder_can_be_made(
    command, recipe: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    if not writable:
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    result = command("check", recipe, "--out", "runs/x" if not writable else "prompts.txt/x")
    assert result.exit_code == 1 and "not a folder that you may write to" in result.stderr


def test_the_schema_in_the_repository_is_the_current_one(command) -> None:
    printed = command("schema").stdout
    assert RECIPES.joinpath("schema.json").read_text(encoding="utf-8") == printed, (
        "run: directalign schema --out src/directalign/recipes/schema.json"
    )
    schema = json.loads(printed)
    assert schema["additionalProperties"] is False and schema["properties"]["name"]["description"]
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False and section["description"]


def test_settings_that_the_form_does_not_read_are_a_warning(command, recipe: Path) -> None:
    """The recipe's form is absolute: it reads neither ramps nor negative phrases."""
    unread = (
        "--set",
        "method.denoise={k_pos: {high_noise: 0.2}}",
        "--set",
        "method.control_phrases={positive: [Photo], negative: [CG]}",
    )
    result = command("check", recipe, *unread)
    shown = " ".join(result.stdout.split() + result.stderr.split())
    assert (
        result.exit_code == 0
        and "method.control_phrases.negative" in shown
        and "method.denoise, method.inversion" in shown
    )
