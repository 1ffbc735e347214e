"""What each command imports: in one process, from the lightest command to the heaviest."""

import importlib.util
import json
import subprocess
import sys

import pytest

TINY = [
    *("train.num_steps=1", "train.save_every=0", "train.sample_prompts=[]"),
    *("data.batch_size=1", "rollout.num_inference_steps=2", "evaluate.num_samples=1"),
    *("evaluate.every=0", "evaluate.references=false", "method.anchor.reference_updates=1"),
]
SET = [word for each in TINY for word in ("--set", each)]
COMMANDS = [
    (["--help"], []),
    (["recipes", "list"], ["pydantic"]),
    (["recipes", "show", "world_srpo"], []),
    (["schema"], []),
    (["ui", "--help"], []),
    (["world", "images", "photos", "--count", "1"], ["PIL", "numpy", "torch"]),
    (["world", "export", "world"], []),
    (
        ["train", "world_srpo_lora", "--out", "run", *SET],
        ["diffusers", "jinja2", "peft", "scipy", "tensorboard", "transformers"],
    ),
    (["check", "world_srpo"], []),
    (["sample", "run", "--prompt", "a red star on a navy background"], []),
    (["export", "run", "--format", "diffusers"], []),
    (["report", "run"], []),
    (["train", "world_srpo_lora", "--out", "4bit", *SET, "--set", "model.quantization=4bit"], None),
]
"""A command and what it imports of these that none before it did; None: bitsandbytes too."""
PACKAGES = {name for _, names in COMMANDS for name in names or ["bitsandbytes"]} | {
    *("datasets", "fastapi", "kernels", "matplotlib", "pandas", "pyarrow", "trackio", "uvicorn"),
    *("torch._inductor.compile_fx", "wandb"),
}
PROGRAM = """
import json, sys
import directalign.cli
from typer.testing import CliRunner

commands, packages = json.loads(sys.argv[1])
directalign.cli._silence_libraries()
before = set()
for words in commands:
    result = CliRunner().invoke(directalign.cli.app, words)
    assert result.exit_code == 0, (words, result.output)
    loaded = {name for name in packages if sys.modules.get(name) is not None}
    print(json.dumps(sorted(loaded - before)))
    before |= loaded
"""


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra quantize"
)
def test_each_command_imports_only_what_it_needs(tmp_path):
    words = json.dumps([[words for words, _ in COMMANDS], sorted(PACKAGES)])
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    *found, four_bits = map(json.loads, process.stdout.splitlines())
    assert found == [names for _, names in COMMANDS[:-1]]
    assert "bitsandbytes" in four_bits
    assert "gemm_4bit" not in process.stderr
