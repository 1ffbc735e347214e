"""The commands of the tutorials, as they are written, on tiny models; the ComfyUI workflow.

`your_taste.md` is run by tests/arena/test_two_folders.py, `from_votes.md` by
tests/arena/test_taste.py.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from safetensors import safe_open
from torch.distributed import run as distributed_run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from typer.testing import CliRunner

import forked
from directalign.cli import app
from directalign.config.presets import merged
from directalign.export import export_run
from document_commands import CODE, command_lines
from finished_runs import finished_recipe, write_finished
from low_rank_updates import updates_of_shape
from tiny import SIZE, write_sdxl

ROOT = Path(__file__).parents[1]
SHORT = [
    "train.num_steps=5",
    "train.save_every=5",
    "train.sample_every=0",
    "train.sample_prompts=[a red star on a navy background]",
    "rollout.num_inference_steps=2",
    "data.batch_size=2",
    "evaluate.every=0",
    "evaluate.num_samples=2",
    "evaluate.num_samples_during=2",
    "evaluate.diversity_prompts=0",
    "evaluate.references=false",
]
SETS = [f"--set={each}" for each in SHORT]


def tutorial(name: str) -> str:
    return (ROOT / "docs" / "tutorials" / f"{name}.md").read_text("utf-8")


def follow(text: str, renamed: Mapping[str, str], added: Mapping[str, list[str]]) -> None:
    """Run the commands in order; of `added` the words for each command. All must succeed."""
    for _, *words in command_lines(text):
        line = [renamed.get(word, word) for word in words] + added.get(words[0], [])
        if words[0] == "recipes":  # typer's Context does not pass the checks of conftest.py
            subprocess.run([sys.executable, "-m", "directalign", *line], check=True)
            continue
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, f"{line}\n{result.output}"


def edited(recipe: Path, *changes: Mapping[str, Any]) -> None:
    """Change a recipe as a user does in an editor."""
    settings = yaml.safe_load(recipe.read_text("utf-8"))
    for each in changes:
        settings = merged(settings, dict(each))
    recipe.write_text(yaml.safe_dump(settings), "utf-8")


def section(text: str) -> dict[str, Any]:
    """The YAML that a tutorial shows."""
    (code,) = [code for language, code in CODE.findall(text) if language == "yaml"]
    return yaml.safe_load(code)


def test_from_an_sdxl_checkpoint_to_comfyui(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, components = tutorial("sdxl_to_comfyui"), write_sdxl(tmp_path / "sdxl")
    update = updates_of_shape({"mid_block.attentions.0.proj_in": (16, 16)})
    run = write_finished(tmp_path / "a", finished_recipe("sdxl", components), update, "unet")
    (file,) = export_run(run, "checkpoint", dtype="float32").glob("*.safetensors")
    shutil.move(file, "my_checkpoint.safetensors")
    copy, rest = text.split("## 2.")
    follow(copy, {}, {})
    small = {
        "model": {"components": str(components), "dtype": "float32", "lora": {"rank": 4}},
        "reward": {"path": "world:reward", "processor": None, "gradient_checkpointing": False},
        "rollout": {"height": SIZE, "width": SIZE, "num_inference_steps": 2},
        "method": {"anchor": {"reference_updates": 1}},
        "train": {"num_steps": 2, "save_every": 1, "sample_every": 0, "global_batch_size": 1},
        "evaluate": {"every": 0, "num_samples": 2, "num_samples_during": 2},
    }
    edited(Path("mine.yaml"), section(text), small)
    steps = {"10": "1", "runs/mine@10": "runs/mine@1", "runs/mine@20": "runs/mine@2"}
    follow(f"    {rest}", steps, {"compare": ["--num-samples=2"]})
    (lora,) = Path("lora").glob("*.safetensors")
    with safe_open(lora, framework="pt") as opened:
        assert all(name.startswith("lora_unet_") for name in opened.keys())  # noqa: SIM118
    assert list(Path("step10").glob("*.png")) and list(Path("base").glob("*.png"))


def test_a_reward_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tutorial("add_a_reward")
    (code,) = [code for language, code in CODE.findall(text) if language == "python"]
    Path("my_reward.py").write_text(code, "utf-8")
    copy, rest = text.split("Replace its `reward`")
    follow(copy, {}, {})
    recipe = Path("tones.yaml")
    settings = yaml.safe_load(recipe.read_text("utf-8"))
    recipe.write_text(yaml.safe_dump(settings | section(text)), "utf-8")
    follow(rest, {}, {"check": SETS, "train": SETS, "evaluate": ["--num-samples=2"]})
    summary = json.loads(Path("runs/tones/evaluation/summary.json").read_text("utf-8"))
    assert {"score_clip"} <= {key.lower() for each in summary["models"].values() for key in each}


def test_methods_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fewer = {
        "0,1,2": "0,1",
        "train.learning_rate=3e-4,1e-3": "train.learning_rate=1e-3",
        "ReFL=runs/refl@20": "ReFL=runs/refl@5",
    }
    added = {"train": SETS, "sweep": SETS, "compare": ["--num-samples=2"]}
    follow(tutorial("compare_methods"), fewer, added)
    report = Path("comparison/report.html").read_text("utf-8")
    assert all(name in report for name in ("SRPO", "ReFL", "DRaFT"))
    assert Path("rates.csv").is_file() and r"\begin{tabular}" in Path("rates.tex").read_text()


def test_four_nodes(tmp_path):
    """The launch line, with two nodes of one process on this machine."""
    text = tutorial("four_nodes")
    (words,) = command_lines(text, "torchrun")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here = {
        "4": "2",
        "8": "1",
        "node-0:29500": f"127.0.0.1:{port}",
        "flux_srpo": "world_srpo",
        "/shared/runs/flux": str(tmp_path / "run"),
    }
    shorter = [each.replace("num_steps=5", "num_steps=2") for each in SETS]
    shorter.append("--set=method.anchor.reference_updates=1")
    line = [here.get(word, word) for word in words[1:]] + shorter
    with mock.patch.object(subprocess_handler, "Popen", forked.popen):
        launch = partial(distributed_run.main, line)
        nodes = [forked.process(launch, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [node.communicate(timeout=600)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert (tmp_path / "run/summary.json").is_file()


def test_the_slurm_script_waits_for_a_checkpoint_and_continues(tmp_path):
    """With programs that print their arguments in the place of Slurm's."""
    for name, lines in {
        "torchrun": "echo '  --shutdown-timeout SECONDS'",
        "scontrol": "echo node-7\necho node-8",
        "srun": 'printf "%s\\n" "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "5"}
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [
        "bash",
        str(ROOT / "examples/four_nodes.sbatch"),
        "flux_srpo",
        str(tmp_path / "o ut"),
    ]
    said = [subprocess.run(command, env=slurm | path, capture_output=True, text=True).stdout]
    (tmp_path / "o ut").mkdir()
    (tmp_path / "o ut/run.yaml").touch()
    said += [subprocess.run(command, env=slurm | path, capture_output=True, text=True).stdout]
    first, second = (each.splitlines() for each in said)
    assert {"node-7:29500", "--shutdown-timeout=540", str(tmp_path / "o ut")} <= {*first}
    assert second == [*first, "--resume"]


OUTPUTS = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"),
    "LoraLoaderModelOnly": ("MODEL",),
    "CLIPTextEncode": ("CONDITIONING",),
    "EmptyLatentImage": ("LATENT",),
    "KSampler": ("LATENT",),
    "VAEDecode": ("IMAGE",),
    "SaveImage": (),
}
"""ComfyUI's built-in nodes and the types of their outputs."""
INPUTS = {
    "model": "MODEL",
    "clip": "CLIP",
    "vae": "VAE",
    "positive": "CONDITIONING",
    "negative": "CONDITIONING",
    "latent_image": "LATENT",
    "samples": "LATENT",
    "images": "IMAGE",
}


def test_the_comfyui_workflow_is_connected():
    """Built-in nodes; each link has the type of its input; the LoRA lies before the sampler."""
    nodes = json.loads((ROOT / "examples/comfyui_lora_workflow.json").read_text("utf-8"))
    for node in nodes.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source, output = value
                assert OUTPUTS[nodes[source]["class_type"]][output] == INPUTS[name]
            else:
                assert name not in INPUTS
    by_type = {node["class_type"]: key for key, node in nodes.items()}
    assert set(by_type) == set(OUTPUTS)
    assert nodes[by_type["KSampler"]]["inputs"]["model"] == [by_type["LoraLoaderModelOnly"], 0]
