"""An image depends on prompt, seed and weights only, and plain diffusers makes it too."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import recipe, trained, with_settings, write_run_folder

from directalign.config import RunConfig
from directalign.evaluation.generate import generate, sample_images, save_png
from directalign.models import load_model, trainable
from directalign.models.lora import ReferenceModel
from directalign.rewards import black_box
from directalign.types import DirectAlignError, NonFiniteError
from tiny import write_flux

PROMPTS, SEEDS = ["a red star", "a blue circle", "a green square"], [1, 2, 3]


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_images_do_not_depend_on_the_batch(pipelines, name):
    run = recipe(name, pipelines[name], "none")
    model = load_model(run.model, "cpu")
    whole = generate(model, PROMPTS, SEEDS, run.rollout, batch_size=3)
    parts = generate(model, PROMPTS[::-1], SEEDS[::-1], run.rollout, batch_size=2).flip(0)
    assert whole.shape == (3, 3, 32, 32) and whole.min() >= 0 and whole.max() <= 1
    assert (whole - parts).abs().max() < 1e-5
    assert (whole[0] - whole[1]).abs().max() > 0.01


def test_base_weights_are_the_untrained_ones(pipelines):
    run = recipe("flux", pipelines["flux"], "none")
    fresh, tuned = load_model(run.model, "cpu"), trained(run)
    expected = generate(fresh, PROMPTS, SEEDS, run.rollout)
    with ReferenceModel(tuned.denoiser).active():
        assert torch.equal(generate(tuned, PROMPTS, SEEDS, run.rollout), expected)
    assert (generate(tuned, PROMPTS, SEEDS, run.rollout) - expected).abs().max() > 0.01
    assert trainable(tuned).keys() == trainable(fresh).keys()


def rerun(folder: Path) -> torch.Tensor:
    """Execute the last recorded call, with another type of output: (3, H, W) in [0, 1]."""
    code = json.loads((folder / "images.jsonl").read_text().splitlines()[-1])["diffusers"]["code"]
    diffusers.utils.logging.disable_progress_bar()
    names: dict[str, torch.Tensor] = {}
    exec(code.replace("generator=", "output_type='pt', generator="), names)
    return names["image"]


def pixels_of(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)) / 255


def single_flux(run: RunConfig, tmp_path: Path) -> RunConfig:
    """The run on a transformer in a single file."""
    folder = write_flux(tmp_path / "other", seed=3) / "transformer"
    file = tmp_path / "one.safetensors"
    save_file(load_file(folder / "diffusion_pytorch_model.safetensors"), file)
    return with_settings(run, "model", path=str(file), components=run.model.path)


@pytest.mark.parametrize(
    ("name", "rollout", "kind"),
    [
        ("flux", {}, "lora"),
        ("flux", {"shift": 2.0}, "lora"),
        ("flux", {"solver": "unipc", "num_inference_steps": 3}, "lora"),
        ("sd", {"cfg_scale": 2.0}, "lora"),
        ("sd", {"solver": "dpm_solver", "num_inference_steps": 3}, "lora"),
        ("flux", {}, "full"),
        ("sd", {}, "full"),
        ("flux", {}, "single file"),
    ],
)
def test_the_recorded_call_makes_the_same_image(pipelines, tmp_path, name, rollout, kind):
    run = recipe(name, pipelines[name], "none", **rollout)
    if kind == "full":
        run = with_settings(run, "model", tune="full")
    elif kind == "single file":
        run = single_flux(run, tmp_path)
    folder = write_run_folder(tmp_path / "run", run)
    settings = {"num_inference_steps": 3}
    _, file = sample_images(folder, PROMPTS[:2], SEEDS[:2], tmp_path / "out", rollout=settings)
    rollout_of_3 = run.rollout.model_copy(update=settings)
    image = rerun(tmp_path / "out")
    expected = generate(trained(run), PROMPTS[:2], SEEDS[:2], rollout_of_3)[1]
    assert (image - expected).abs().max() < 1e-4
    assert np.abs(pixels_of(file) - image.permute(1, 2, 0).numpy()).max() < 1 / 255


@pytest.mark.parametrize(
    ("name", "guidance"), [("sd", {"cfg_scale": 3.0}), ("flux", {"embedded_guidance": 1.0})]
)
def test_a_bare_model_is_sampled_with_given_guidance_and_size(pipelines, tmp_path, name, guidance):
    settings = {"num_inference_steps": 2, "height": 48, "width": 32}
    guided, plain = (
        sample_images(pipelines[name], PROMPTS[:1], [1], tmp_path / key, {**settings, **more})[0]
        for key, more in (("out", guidance), ("plain", {}))
    )
    image = rerun(tmp_path / "out").permute(1, 2, 0).numpy()
    assert pixels_of(guided).shape == (48, 32, 3)
    assert np.abs(pixels_of(guided) - image).max() < 1 / 255
    assert guided.read_bytes() != plain.read_bytes()


def test_bad_sources_and_folders_are_refused(pipelines, tmp_path):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "run.yaml"
    file.write_text("")
    for source, out, words in (
        (tmp_path, tmp_path / "out", "neither a run"),
        (pipelines["flux"], file.parent, "holds a run already"),
        (pipelines["flux"], file, "is a file"),
    ):
        with pytest.raises(DirectAlignError, match=words):
            sample_images(source, PROMPTS[:1], [1], out)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_image_that_is_not_finite_is_refused_wherever_it_becomes_8_bit(
    pipelines, tmp_path, monkeypatch, value
):
    image = torch.rand(3, 8, 8)
    image[1, 2, 3] = value
    for write in (lambda: save_png(image, tmp_path / "image.png"), lambda: black_box.png(image)):
        with pytest.raises(NonFiniteError, match=r"not finite.*model\.dtype: float32"):
            write()
    run = recipe("flux", pipelines["flux"], "none")
    model = load_model(run.model, "cpu")
    decode = model.decode
    monkeypatch.setattr(
        model, "decode", lambda x0: decode(x0).clone().index_fill_(3, torch.tensor(0), value)
    )
    with pytest.raises(NonFiniteError, match="'a red star', seed 1,"):
        generate(model, PROMPTS, SEEDS, run.rollout)
    assert not list(tmp_path.iterdir())
