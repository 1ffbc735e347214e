"""Every row of malformed_inputs.yaml ends in one line, with exit code 1, and changes no file."""

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from directalign.cli import app
from finished_runs import finished_recipe

TRAIN = {"num_steps": 2, "save_every": 2, "sample_prompts": ["a red star"]}
TABLE = yaml.safe_load((Path(__file__).parent / "malformed_inputs.yaml").read_text("utf-8"))
FILES = [
    (kind, n, x) for kind in ("prompts", "pictures") for n, xs in TABLE[kind].items() for x in xs
]


def digests() -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path().rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def refuses(command):
    """Asserts that a command ends with lines that name one of `about`, and leaves all files."""

    def refuses(*words: object, about: Sequence[str]) -> None:
        before = digests()
        result = command(*words)
        lines = result.stderr.splitlines()
        assert result.exit_code == 1, result.output
        assert lines and lines[-1].startswith("directalign: "), result.output
        said = [line for line in lines if line.startswith("directalign: ")]  # one per mistake
        assert any(name in line for name in about for line in said), said
        assert "bug in directalign" not in result.output, said
        assert "Traceback" not in result.output and "weights_only" not in result.output
        assert all("warning: " in line for line in lines if line not in said), lines
        assert digests() == before

    return refuses


@pytest.mark.parametrize("override", TABLE["overrides"])
def test_settings(refuses, recipe, override):
    refuses(
        "train",
        recipe,
        "--set",
        override,
        "--out",
        "out",
        about=[each for each in override.split("=", 1) if each],
    )


@pytest.mark.parametrize("text", TABLE["recipes"])
def test_recipes(refuses, recipe, text):
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    refuses("train", recipe, "--out", "out", about=["recipe.yaml"])


def broken_picture(kind: str, suffix: str) -> bytes:
    file = io.BytesIO()
    if kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(file, "PNG")
    elif kind in ("torn", "half header"):
        noise = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
        Image.fromarray(noise.numpy()).save(file, {"jpg": "JPEG"}.get(suffix, suffix))
        return file.getvalue()[: 12 if kind == "half header" else -len(file.getvalue()) // 2]
    made = {"empty": b"", "text": b"not a picture\n", "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n"}
    return made.get(kind, file.getvalue())


@pytest.mark.parametrize(("kind", "name", "content"), FILES)
def test_prompts_and_pictures(refuses, recipe, kind, name, content):
    if kind == "prompts":
        Path(name).write_bytes(content)
        return refuses(
            "train", recipe, "--set", f"data.prompts={name}", "--out", "out", about=[name]
        )
    Path("pictures").mkdir()
    Path("pictures", name).write_bytes(broken_picture(content, name.split(".")[-1]))
    Path("pictures/a.txt").write_text("a red star")
    sets = ("--set", "data={images: pictures, batch_size: 1}", "--set", "method.noise.source=fresh")
    return refuses("train", recipe, *sets, "--out", "out", about=["pictures"])


def spoil(file: Path, how: str) -> None:
    """Spoil a weight file as the table says."""
    tensors = load_file(file)
    name, first = next(iter(tensors.items()))
    bad: dict[str, Any] = {"nan": first * torch.nan, "inf": first * torch.inf}
    bad |= {kind: first.to(getattr(torch, dtype)) for kind, dtype in TYPES.items()}
    bad |= {"shape": first[:1], "transposed": first.reshape(-1, 1)}
    sizes = {"header of no JSON": (2, b"{x"), "header too long": (2**60, b"{}")}
    sizes["header of a list"] = (2, b"[]")
    raw = {"empty": b"", "text": b"no weights\n", "torn": file.read_bytes()[:-9]}
    raw |= {kind: size.to_bytes(8, "little") + text for kind, (size, text) in sizes.items()}
    raw["pickle"] = pickle.dumps({"a": 1})
    if how in raw:
        file.write_bytes(raw[how])
    else:
        others = {"no tensors": {}, "other names": {"a": torch.zeros(2)}}
        chosen = others[how] if how in others else tensors | {name: bad[how].contiguous()}
        save_file(chosen, file)


TYPES = {"int8": "int8", "int32": "int32", "bool": "bool", "complex": "complex64"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_flux):
    """A LoRA run of two updates with one checkpoint, and its recipe."""
    folder = tmp_path_factory.mktemp("trained")
    run = finished_recipe("flux", tiny_flux).model_dump(mode="json") | {"train": TRAIN}
    run["method"]["embedded_guidance"] = run["rollout"]["embedded_guidance"] = 1.0
    run["data"] = {"prompts": str(folder / "prompts.txt"), "batch_size": 1}
    (folder / "prompts.txt").write_text("a red star\n")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(run))
    words = ["train", str(folder / "recipe.yaml"), "--out", str(folder / "run")]
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 0, made.output
    return folder


@pytest.mark.parametrize("how", TABLE["weights"])
def test_weights(refuses, recipe, tiny_flux, trained, how):
    shutil.copytree(trained / "run", "run")
    spoil(Path("run/lora.safetensors"), how)
    refuses("sample", "run", "--prompt", "a red star", "--out", "a.png", about=["lora.safetensors"])
    shutil.copytree(tiny_flux, "model")
    spoil(Path("model/transformer/diffusion_pytorch_model.safetensors"), how)
    refuses("train", recipe, "--set", "model.path=model", "--out", "out", about=["transformer"])


@pytest.mark.parametrize(("file", "key", "value"), TABLE["configs"])
def test_configs(refuses, recipe, tiny_flux, file, key, value):
    shutil.copytree(tiny_flux, "model")
    config = Path("model", file)
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    folder = config.parent.name
    refuses("train", recipe, "--set", "model.path=model", "--out", "out", about=[folder])


def test_a_shard_outside_of_the_folder(refuses, recipe, tiny_flux):
    shutil.copytree(tiny_flux, "model")
    weights = Path("model/transformer/diffusion_pytorch_model.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(weights), "../../out.safetensors")}
    weights.rename("out.safetensors")
    save_file({"a": torch.zeros(1)}, weights)
    Path(f"{weights}.index.json").write_text(json.dumps(index))
    refuses("train", recipe, "--set", "model.path=model", "--out", "out", about=["its index names"])


@pytest.mark.parametrize("option", TABLE["sampling"])
def test_sampling(refuses, trained, recipe, option):
    words = ("sample", trained / "run", "--prompt", "a", "--out", "images")
    refuses(*words, *option.split(), about=option.split()[:1])


@pytest.mark.parametrize("option", TABLE["choices of weights"])
def test_choices_of_weights(refuses, trained, recipe, option):
    """Of a run with a checkpoint of step 2 only."""
    run, words = str(trained / "run"), option.split()
    for command in (
        ("sample", "--prompt", "a"),
        ("export", "--format", "diffusers"),
        ("evaluate",),
    ):
        refuses(command[0], run, *command[1:], "--out", "out", *words, about=words[:1])
    value = words[1] if words[0] == "--step" else f":{words[1]}"
    refuses("compare", f"{run}@{value}", "--out", "out", about=words[:1])


@pytest.mark.parametrize("edit", TABLE["edited runs"])
def test_edited_runs(refuses, trained, recipe, edit):
    shutil.copytree(trained / "run", "run")
    settings = yaml.safe_load(Path("run/run.yaml").read_text())
    settings["model"] |= edit
    Path("run/run.yaml").write_text(yaml.safe_dump(settings))
    refuses("sample", "run", "--prompt", "a", "--out", "images", about=["run.yaml"])
    refuses("export", "run", "--format", "diffusers", about=["run.yaml"])


def damage(run: Path, how: str) -> None:
    """Damage a run's only checkpoint, its run.yaml or its records as the table says."""
    checkpoint = next((run / "checkpoints").iterdir())
    files = {"manifest": checkpoint / "manifest.json", "record": checkpoint / "record.json"}
    weights, optimizer = checkpoint / "weights.safetensors", checkpoint / "optimizer.pt"
    name, _, change = how.partition(" of ")
    if name in files:
        text = json.loads(files[name].read_text())
        text["format" if name == "record" else "files"] = 99
        texts = {"no JSON": "{", "a list": "[1]"}
        files[name].write_text(texts.get(change, json.dumps(text)))
    elif how.startswith("no "):
        (files | {"weights": weights, "optimizer": optimizer})[how[3:]].unlink()
    elif how == "torn weights":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif how == "flipped bit":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    elif how == "pickled optimizer":
        optimizer.write_bytes(pickle.dumps(Path("a")))
    elif name == "run.yaml":
        (run / "run.yaml").write_text("name: another")
    else:
        lines = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(("{bad\n" if "bad" in how else "[1]\n") + lines)


@pytest.mark.parametrize("how", TABLE["checkpoints"])
def test_checkpoints(refuses, trained, tmp_path, monkeypatch, how):
    """Of a run with one checkpoint, so that there is none before it to go back to."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "run", "run")
    damage(Path("run"), how)
    refuses("train", trained / "recipe.yaml", "--out", "run", "--resume", about=["run"])
