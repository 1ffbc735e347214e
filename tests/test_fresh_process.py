"""What a run leaves needs nothing of this package: a fresh process with diffusers alone paints the
very images of `directalign sample`."""

import json
import subprocess
import sys

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from directalign.cli import app
from directalign.config.load import load_run
from directalign.evaluation.generate import generate, load_run_model
from directalign.evaluation.run_weights import find_weights
from directalign.training import run as train

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
    "evaluate.references=false",
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


def test_a_fresh_process_paints_the_images_that_sample_wrote(tmp_path):
    run_folder, images = tmp_path / "lora", tmp_path / "images"
    train(load_run("world_srpo_lora", TINY), run_folder, resume=False)
    prompts = [f"--prompt={prompt}" for prompt in PROMPTS]
    directalign("sample", run_folder, *prompts, "--seed", SEED, "--out", images)
    directalign("world", "export", tmp_path / "world")
    (tmp_path / "stranger.py").write_text(STRANGER)
    words = ["stranger.py", "world", "lora", "images/images.jsonl", "painted.npz"]
    process = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    painted = np.load(tmp_path / "painted.npz")  # base and tuned, each (n, h, w, 3) in [0, 1]
    run = load_run(run_folder / "run.yaml")
    model, seeds = load_run_model(run, find_weights(run, run_folder)), [SEED] * len(PROMPTS)
    ours = generate(model, PROMPTS, seeds, run.rollout, batch_size=1).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - painted["tuned"]).max() <= 1e-4
    assert np.abs(painted["tuned"] - painted["base"]).mean() > 0.01
    records = [json.loads(line) for line in (images / "images.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == PROMPTS
    for record, image in zip(records, painted["tuned"], strict=True):
        written = np.asarray(Image.open(images / record["file"])).astype(int)
        assert np.abs(written - (image * 255).round()).max() <= 1
