"""An image depends on prompt, seed and weights alone, and plain diffusers makes it too."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import recipe, trained, write_run_folder

from directalign.config import ModelConfig
from directalign.evaluation import generate as reproduce
from directalign.evaluation.generate import base_weights, generate, sample_images
from directalign.models import load_model, single_file, trainable
from directalign.types import DirectAlignError
from tiny import write_flux

PROMPTS, SEEDS = ["a red star", "a blue circle", "a green square"], [1, 2, 3]


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_images_do_not_depend_on_the_batch(pipelines: dict[str, Path], name: str):
    run = recipe(name, pipelines[name], "none")
    model = load_model(run.model, "cpu")
    in_one = generate(model, PROMPTS, SEEDS, run.rollout, batch_size=3)
    apart = generate(model, PROMPTS[::-1], SEEDS[::-1], run.rollout, batch_size=2).flip(0)
    assert in_one.shape == (3, 3, 32, 32) and in_one.min() >= 0 and in_one.max() <= 1
    assert (in_one - apart).abs().max() < 1e-5
    assert (in_one[0] - in_one[1]).abs().max() > 0.01


def test_base_weights_are_the_untrained_ones_and_training_goes_on_after(pipelines: dict[str, Path]):
    run = recipe("flux", pipelines["flux"], "none")
    fresh, tuned = load_model(run.model, "cpu"), trained(run)
    expected = generate(fresh, PROMPTS, SEEDS, run.rollout)
    with base_weights(tuned):
        base = generate(tuned, PROMPTS, SEEDS, run.rollout)
    assert torch.equal(base, expected)
    assert (generate(tuned, PROMPTS, SEEDS, run.rollout) - expected).abs().max() > 0.01
    assert trainable(tuned).keys() == trainable(fresh).keys()


def test_base_weights_of_a_fully_trained_model_are_gone(pipelines: dict[str, Path]):
    run = recipe("sd", pipelines["sd"], "none")
    model = load_model(run.model.model_copy(update={"tune": "full"}), "cpu")
    with (
        pytest.raises(DirectAlignError, match=r"load it by itself from model\.path"),
        base_weights(model),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "rollout"), [("flux", {}), ("flux", {"shift": 2.0}), ("sd", {"cfg_scale": 2.0})]
)
def test_the_recorded_call_makes_the_same_image(
    pipelines: dict[str, Path], tmp_path: Path, name: str, rollout: dict[str, float]
):
    folder = write_run_folder(tmp_path / "run", recipe(name, pipelines[name], "none", **rollout))
    files = sample_images(
        folder, PROMPTS[:2], SEEDS[:2], tmp_path / "out", rollout={"num_inference_steps": 3}
    )
    record = json.loads((tmp_path / "out" / "images.jsonl").read_text().splitlines()[1])
    image = _run(record["diffusers"]["code"])
    run = recipe(name, pipelines[name], "none", **{**rollout, "num_inference_steps": 3})
    assert (
        image - generate(trained(run), PROMPTS[:2], SEEDS[:2], run.rollout)[1]
    ).abs().max() < 1e-4
    assert (
        np.abs(np.asarray(Image.open(files[1])) / 255 - image.permute(1, 2, 0).numpy()).max()
        < 1 / 255
    )
    assert (
        record["prompt"] == PROMPTS[1]
        and record["diffusers"]["arguments"]["num_inference_steps"] == 3
    )


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_the_call_for_a_fully_trained_model(pipelines: dict[str, Path], tmp_path: Path, name: str):
    run = recipe(name, pipelines[name], "none")
    run = run.model_copy(update={"model": run.model.model_copy(update={"tune": "full"})})
    folder = write_run_folder(tmp_path / "run", run)
    sample_images(folder, PROMPTS[:1], [1], tmp_path / "out")
    image = _run(json.loads((tmp_path / "out" / "images.jsonl").read_text())["diffusers"]["code"])
    assert (image - generate(trained(run), PROMPTS[:1], [1], run.rollout)[0]).abs().max() < 1e-4


def test_the_call_for_a_run_on_a_single_file(pipelines: dict[str, Path], tmp_path: Path):
    tensors = load_file(
        write_flux(tmp_path / "other", seed=3)
        / "transformer"
        / "diffusion_pytorch_model.safetensors"
    )
    save_file(tensors, tmp_path / "one.safetensors")
    run = recipe("flux", pipelines["flux"], "none")
    single = {"path": str(tmp_path / "one.safetensors"), "components": str(pipelines["flux"])}
    run = run.model_copy(update={"model": run.model.model_copy(update=single)})
    folder = write_run_folder(tmp_path / "run", run)
    sample_images(folder, PROMPTS[:1], [1], tmp_path / "out")
    image = _run(json.loads((tmp_path / "out" / "images.jsonl").read_text())["diffusers"]["code"])
    assert (image - generate(trained(run), PROMPTS[:1], [1], run.rollout)[0]).abs().max() < 1e-4


@pytest.mark.parametrize("brings", [("vae",), ("vae", "text_encoder")])
def test_a_file_with_more_than_the_denoiser_opens_with_all_of_it(
    monkeypatch: pytest.MonkeyPatch, brings: tuple[str, ...]
):
    layout = single_file.LAYOUTS[-1]
    held = single_file.Contents(
        Path("one.safetensors"), layout, {name: {} for name in (layout.part, *brings)}
    )
    monkeypatch.setattr(single_file, "contents", lambda file: held)
    model = ModelConfig(
        architecture="sd",
        path="one.safetensors",
        components="owner/name",
        revision="v2",
        variant="fp16",
        dtype="bfloat16",
    )
    classes, opened = reproduce._opened("StableDiffusionPipeline", model)
    ends = "config='owner/name', {}torch_dtype=torch.bfloat16)"
    if "text_encoder" in brings:
        assert (classes, opened) == (
            ["StableDiffusionPipeline"],
            f"StableDiffusionPipeline.from_single_file('one.safetensors', {ends.format('')}",
        )
    else:
        assert classes == ["StableDiffusionPipeline", "UNet2DConditionModel", "AutoencoderKL"]
        assert opened.startswith(
            "StableDiffusionPipeline.from_pretrained('owner/name', revision='v2', "
            "variant='fp16', unet=UNet2DConditionModel."
        )
        assert (
            "vae=AutoencoderKL.from_single_file('one.safetensors', "
            + ends.format("subfolder='vae', ")
            in opened
        )


def test_base_and_trained_differ(pipelines: dict[str, Path], tmp_path: Path):
    folder = write_run_folder(tmp_path / "run", recipe("sd", pipelines["sd"], "none"))
    tuned = sample_images(folder, PROMPTS[:1], [1], tmp_path / "tuned")
    base = sample_images(folder, PROMPTS[:1], [1], tmp_path / "base", base=True)
    plain = sample_images(
        pipelines["sd"], PROMPTS[:1], [1], tmp_path / "plain", rollout={"num_inference_steps": 2}
    )
    assert base[0].read_bytes() == plain[0].read_bytes() != tuned[0].read_bytes()


@pytest.mark.parametrize(
    ("name", "rollout"), [("sd", {"cfg_scale": 3.0}), ("flux", {"embedded_guidance": 1.0})]
)
def test_a_bare_model_is_sampled_with_the_guidance_and_size_asked_for(
    pipelines: dict[str, Path], tmp_path: Path, name: str, rollout: dict[str, float]
):
    settings = {"num_inference_steps": 2, "height": 48, "width": 32, **rollout}
    files = sample_images(pipelines[name], PROMPTS[:1], [1], tmp_path / "out", settings)
    image = _run(json.loads((tmp_path / "out" / "images.jsonl").read_text())["diffusers"]["code"])
    pixels = np.asarray(Image.open(files[0])) / 255
    assert (
        pixels.shape == (48, 32, 3)
        and np.abs(pixels - image.permute(1, 2, 0).numpy()).max() < 1 / 255
    )
    plain = sample_images(
        pipelines[name],
        PROMPTS[:1],
        [1],
        tmp_path / "plain",
        {name: settings[name] for name in ("num_inference_steps", "height", "width")},
    )
    assert files[0].read_bytes() != plain[0].read_bytes()


def test_bad_sources_and_full_folders_get_one_line(pipelines: dict[str, Path], tmp_path: Path):
    with pytest.raises(DirectAlignError, match="neither a run"):
        sample_images(tmp_path, PROMPTS[:1], [1], tmp_path / "out")
    (tmp_path / "images.jsonl").write_text("")
    with pytest.raises(DirectAlignError, match="holds images already"):
        sample_images(pipelines["flux"], PROMPTS[:1], [1], tmp_path)
    with pytest.raises(DirectAlignError, match="is a file"):
        sample_images(pipelines["flux"], PROMPTS[:1], [1], tmp_path / "images.jsonl")


def _run(code: str) -> torch.Tensor:
    """Execute the recorded lines as they are, but for the type of the output: (3, H, W) in [0,
    1]."""
    diffusers.utils.logging.disable_progress_bar()
    names: dict[str, torch.Tensor] = {}
    exec(code.replace("generator=", "output_type='pt', generator="), names)
    return names["image"]
