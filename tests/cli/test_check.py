"""`check`, and `train` which checks first: tables for a valid recipe, one line for a mistake."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from directalign import preflight
from directalign.config.load import load_run
from directalign.models import load_model
from directalign.preflight import PHASES, Place, checks
from directalign.preflight.memory import Traced
from tiny_rewards import write_altclip

pytestmark = pytest.mark.usefixtures("traced")


def test_a_sound_recipe_gives_findings_and_memory(command, recipe):
    result = command("check", recipe, "-v", "--set", "train.ema_decay=0.9")
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


def test_an_altclip_is_estimated_and_trained_on(command, recipe, tmp_path):
    overrides = (
        f"reward={{name: altclip, path: {write_altclip(tmp_path / 'altclip')}}}",
        "method={form: relative, control_phrases: {positive: [Photo], negative: [x]}}",
        "train.num_steps=1",
        "evaluate={num_samples: 1, references: false}",
    )
    trained = command("train", recipe, "--out", "out", *(f"--set={each}" for each in overrides))
    assert trained.exit_code == 0, trained.output
    lines = map(json.loads, Path("out/metrics.jsonl").read_text().splitlines())
    (step,) = (each for each in lines if each["event"] == "step")
    assert step["reward"] != 0 and step["grad_norm"] > 0


def pictures(folder: Path) -> None:
    folder.mkdir()
    for name in ("cut", "whole"):
        Image.new("RGB", (40, 40), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a red square")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:60])


def test_what_may_be_intended_is_a_warning(command, recipe):
    """A truncated image, a held-out reward that is trained on, settings that the form ignores."""
    pictures(Path("pictures"))
    same, other = (f"{{name: pixels, statistic: {each}}}" for each in ("redness", "brightness"))
    overrides = (
        "data.images=pictures",
        f"evaluate.rewards={{same: {same}, other: {other}}}",
        "method.denoise={k_pos: {high_noise: 0.2}}",
        "method.control_phrases={positive: [Photo], negative: [CG]}",
    )
    result = command("check", recipe, *(f"--set={override}" for override in overrides))
    assert result.exit_code == 0 and "1 from pictures, 1 skipped" in result.stdout
    for expected in (
        "warning: data.images: 1 of 2 images are skipped: cut.png",
        "warning: evaluate.rewards.same: is also trained on",
        "warning: method.control_phrases.negative: ",
        "warning: method.denoise, method.inversion: ",
    ):
        assert expected in result.stderr
    assert "rewards.other" not in result.stderr


def test_what_does_not_fit_comes_with_what_would_lower_it(command, recipe, monkeypatch):
    monkeypatch.setattr("directalign.preflight.memory.CUDA_CONTEXT", 0)
    monkeypatch.setattr(
        "directalign.preflight.lower_memory.candidates",
        lambda *_: iter([("data.batch_size: 1", {"data.batch_size": 1})]),
    )
    overrides = ("--set=data.batch_size=4", "--set=evaluate.batch_size=1")
    crowded = ("check", recipe, *overrides, "--gpu-memory", "0.0005")
    result = command(*crowded)
    assert result.exit_code == 0 and "does not fit a GPU of 0.0005 GB with 524 KiB" in result.stdout
    assert "data.batch_size: 1" in result.stdout.split("What lowers the peak")[1]
    monkeypatch.setattr("directalign.preflight.lower_memory.candidates", lambda *_: iter([]))
    assert "What lowers the peak: no setting of the recipe" in command(*crowded).stdout


def test_a_run_that_cannot_fit_does_not_start(command, recipe, monkeypatch):
    """If only the activations may not fit, that is a warning."""
    run = load_run(recipe, [])
    size = checks.plan(run, Path("out")).memory.counted + 1
    monkeypatch.setattr(checks, "this_machine", lambda: Place("Abacus", size, is_gpu=False))
    warnings = checks.plan(run, Path("out")).warnings
    assert any(warning.startswith("memory: about") for warning in warnings)
    monkeypatch.setattr(checks, "this_machine", lambda: Place("Abacus", 1_000, is_gpu=False))
    monkeypatch.setattr(checks, "suggestions", lambda *_: [])
    refused = command("train", recipe)
    assert (
        refused.exit_code == 1
        and refused.stderr.startswith("directalign: model: needs")
        and "Abacus has 1 KiB; see directalign check" in refused.stderr
    )
    assert refused.stderr.count("\n") == 1


def test_flux_on_24_gb_is_planned_without_weights_network_or_gpu(command, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("check must not open a connection")

    survey, found = preflight.survey, []

    def once(*given: object) -> preflight.Plan:
        found.append(found[0] if found else survey(*given))
        return found[0]

    monkeypatch.setattr(preflight, "survey", once)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv("COLUMNS", "80")
    words = ["check", "flux_srpo_lora_24gb", "--gpu-memory", "24", "--tflops", "150"]
    result = command(*words)
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in result.stdout
    assert "fits a GPU of 24 GB" in lines[1]
    assert [line.split()[0] for line in lines[4:9]] == list(PHASES)
    for expected in (
        "FLUX.1-dev, not downloaded yet",
        "black-forest-labs/FLUX.1-dev: to be downloaded, about 31.4 GiB",  # 16.9 B in 16 bits
        "about 38.8 GiB in all",
        "for 100 updates",
        "at 150 TFLOPS",
    ):
        assert expected in result.stdout
    assert "11.90 B" not in result.stdout
    detailed = command(*words, "-v").stdout
    assert "11.90 B in 4 bits" in detailed and max(map(len, detailed.splitlines())) <= 80
    assert len(found) == 2


def test_operations_are_those_of_the_products_of_a_network(command, recipe):
    """By hand: the FLOPs of every linear layer of one call, times the calls of an update."""
    run = load_run(recipe, ["model.tune=full"])
    found = checks.survey(run, Path("out"), Place("Abacus", 10**12, is_gpu=False))
    model = load_model(run.model, "cpu")
    counted = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        nonlocal counted
        counted += 2 * made.numel() * layer.in_features

    for layer in model.denoiser.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(count)
    latents = torch.zeros(1, *model.latent_shape(32, 32))
    cond = model.encode_prompt(["a red star"]).guided(1.0, 1.0, None)
    model.predict(latents, torch.ones(1), cond)
    # two steps of a rollout, two branches whose backward pass costs twice the forward pass
    for part, linear in (("rollout", 2 * counted), ("train", 2 * 3 * counted)):
        assert 0.9 * linear < found.cost.parts[part] < 1.5 * linear  # and the products of attention
    assert found.cost.training == 2 * found.cost.update
    (hundred, whole), (_, half) = found.cost.hours(1e-6), found.cost.hours(2e-6)
    assert hundred == 100 * found.cost.update / 3600e6 and whole == 2 * half > 0
    assert {(each.path, each.is_here) for each in found.files} == {(run.model.path, True)}


def test_a_full_disk_is_seen_beforehand(command, recipe, monkeypatch):
    monkeypatch.setattr("directalign.preflight.memory.trace", lambda *_: Traced())
    monkeypatch.setattr(
        checks.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 0)
    )
    result = command("check", recipe, "--out", "a/b")
    assert (
        result.exit_code == 1
        and "--out a/b: checkpoints need" in result.stderr
        and "train.keep_checkpoints" in result.stderr
    )
    below_a_file = command("check", recipe, "--out", "prompts.txt/x")
    assert below_a_file.exit_code == 1
    assert "not a folder that you may write to" in below_a_file.stderr
    elsewhere = command("check", recipe, "--out", "a/b", "--gpu-memory", "8")
    assert elsewhere.exit_code == 0 and elsewhere.stderr.startswith(
        "warning: --out a/b: checkpoints need"
    )
