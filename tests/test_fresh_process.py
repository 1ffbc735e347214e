"""What a run leaves needs nothing of this package: a fresh process with diffusers alone paints the
very images of `directalign sample`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from directalign.cli import app
from directalign.config.load import load_run, recipe_path
from directalign.evaluation.generate import generate, load_run_model

RECIPE = recipe_path("world_srpo_lora")
PROMPTS = ["a red star on a navy background", "a pink ring on a gray background"]
SEED = 7
TINY = [
    "train.num_steps=2",
    "train.learning_rate=0.02",
    "train.save_every=0",
    "train.sample_prompts=[a red star on a navy background]",
    "data.batch_size=2",
    "rollout.num_inference_steps=4",
    "method.anchor.reference_updates=1",
    "evaluate.num_samples=2",
    "evaluate.every=0",
]
STRANGER = """
import json, sys
import diffusers, numpy, torch

world, run, record, out = sys.argv[1:]
pipe = diffusers.FluxPipeline.from_pretrained(f"{world}/flux")
pipe.set_progress_bar_config(disable=True)

def paint(call):
    scheduler = getattr(diffusers, call["scheduler"]["class"])
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **call["scheduler"]["changes"])
    generator = torch.Generator().manual_seed(call["seed"])
    return pipe(**call["arguments"], generator=generator, output_type="np").images[0]

calls = [json.loads(line)["diffusers"] for line in open(record, encoding="utf-8")]
base = numpy.stack([paint(call) for call in calls])
pipe.load_lora_weights(run, weight_name="lora.safetensors")
tuned = numpy.stack([paint(call) for call in calls])
numpy.savez(out, base=base, tuned=tuned)
assert "directalign" not in sys.modules
"""


def directalign(*words: object) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lora"
    directalign("train", RECIPE, *(f"--set={each}" for each in TINY), "--out", out)
    return out


@pytest.fixture(scope="module")
def sampled(run_folder):
    """PNG files and images.jsonl."""
    out = run_folder.parent / "images"
    directalign(
        "sample",
        run_folder,
        *(f"--prompt={prompt}" for prompt in PROMPTS),
        "--seed",
        SEED,
        "--out",
        out,
    )
    return out


@pytest.fixture(scope="module")
def painted(run_folder, sampled):
    """The images of a process that knows diffusers alone: {"base", "tuned"}, each (n, H, W, 3) in
    [0, 1]."""
    folder = run_folder.parent
    directalign("world", "export", folder / "world")
    (folder / "stranger.py").write_text(STRANGER)
    words = [
        folder / "stranger.py",
        folder / "world",
        run_folder,
        sampled / "images.jsonl",
        folder / "painted.npz",
    ]
    process = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    with np.load(folder / "painted.npz") as found:
        return dict(found)


def test_a_fresh_process_paints_the_same_images(run_folder, painted):
    run = load_run(run_folder / "run.yaml")
    ours = generate(
        load_run_model(run, run_folder), PROMPTS, [SEED] * len(PROMPTS), run.rollout, batch_size=1
    )
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() - painted["tuned"]).max() <= 1e-4


def test_the_files_that_sample_wrote_are_these_images(sampled, painted):
    records: list[dict[str, Any]] = [
        json.loads(line)
        for line in (sampled / "images.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [record["prompt"] for record in records] == PROMPTS
    for record, image in zip(records, painted["tuned"], strict=True):
        written = np.asarray(Image.open(sampled / record["file"])).astype(int)
        assert np.abs(written - (image * 255).round()).max() <= 1


def test_the_adapters_did_change_the_images(painted):
    assert np.abs(painted["tuned"] - painted["base"]).mean() > 0.01
