"""Recipes: values as written, and every mistake is one line with file, key, value and remedy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from directalign.config import EvaluateConfig, UniformNoiseLevels
from directalign.config.load import (
    RECIPES,
    RENAMED,
    ResumedRun,
    changes_at_resume,
    dump_run,
    load_run,
    recipe_path,
    resumed_run,
)
from directalign.config.run import recipe_schema
from directalign.data.prompts import read_prompts
from directalign.errors import Mistakes
from directalign.types import DirectAlignError

RECIPE = """
name: test
model: {architecture: flux, path: "world:flux"}
reward: {name: clip, path: "world:reward"}
method:
  control_phrases: {positive: [Realistic photo], negative: [CG render]}
  noise_levels: {kind: window, first: 4}
data: {prompts: world}
train:
  num_steps: 3
  learning_rate: 1e-4
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def complaint(file: Path | str, *overrides: str) -> str:
    """One line, or one for each mistake."""
    with pytest.raises(DirectAlignError) as raised:
        load_run(file, overrides)
    lines = raised.value.lines if isinstance(raised.value, Mistakes) else ()
    assert str(raised.value).count("\n") == max(len(lines) - 1, 0)
    assert all(": " in line for line in lines)
    return str(raised.value)


def test_every_mistake_has_a_line(recipe):
    said = complaint(recipe, "train.num_steps=x", "train.betas=1", "model.tun=lora", "seed=-1")
    lines = said.split("\n")
    assert lines[0].startswith("--set model.tun: unknown key; did you mean 'tune'?")
    keys = ("train.num_steps", "train.betas", "seed")
    assert sorted(line.split(":")[0] for line in lines[1:]) == sorted(f"--set {k}" for k in keys)


def test_numbers_are_read_as_people_write_them(recipe):
    given = "train.weight_decay=1E-2 train.max_grad_norm=1 name=2026-01-01 evaluate.judge=none"
    run = load_run(recipe, [*given.split(), "train.betas=[0.5, .9]"])
    assert (run.train.learning_rate, run.train.weight_decay) == (1e-4, 0.01)
    assert (run.train.max_grad_norm, run.train.betas) == (1.0, (0.5, 0.9))
    assert (run.name, run.evaluate.judge) == ("2026-01-01", "none")


def test_overrides_precede_the_file_and_the_file_its_preset(recipe):
    overrides = ["preset=official_flux", "method.margin=null", "train. num_steps = 7"]
    run = load_run(recipe, [*overrides, "model.lora={rank: 2}"])
    assert (run.train.num_steps, run.method.margin, run.model.lora.rank) == (7, None, 2)
    assert (run.method.noise_levels.first, run.method.noise_levels.last) == (4, 25)
    assert run.method.embedded_guidance == 3.5
    assert run.train.learning_rate == 1e-4  # the file's, not the preset's 5e-6


def test_empty_and_null_remove_a_section(recipe):
    held_out = (
        "evaluate.rewards={a: {name: pixels, statistic: redness}, b: {name: python, path: x}}"
    )
    recipe.write_text(RECIPE + f"evaluate: {{every: 3, {held_out[9:].replace('=', ': ')}}}\n")
    for override, left in (
        ("evaluate.rewards={}", []),
        ("evaluate.rewards=null", []),
        ("evaluate.rewards.a=null", ["b"]),
        ("evaluate={every: 3}", ["a", "b"]),
    ):
        run = load_run(recipe, [override])
        assert (list(run.evaluate.rewards), run.evaluate.every) == (left, 3), override
    assert load_run(recipe, ["evaluate=null"]).evaluate.every == 0


@pytest.mark.parametrize("preset", [[], ["preset=official_flux"]])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.learning_rate", 5e-6),
        ("method.noise_levels.first", 5),
        ("evaluate.rewards.a", None),
        ("evaluate", EvaluateConfig()),
        ("train.no_such_key.below", None),
    ],
)
def test_null_removes_a_key_that_cannot_be_null(recipe, preset, key, value):
    held_out = "evaluate: {rewards: {a: {name: pixels, statistic: redness}}}\n"
    recipe.write_text(RECIPE + held_out)
    if "no_such" in key:
        assert "unknown key" in complaint(recipe, *preset, f"{key}=null")
        return
    found: Any = load_run(recipe, [*preset, f"{key}=null"])
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else getattr(found, name)
    assert found == value


def test_a_resume_continues_what_run_yaml_says(recipe, tmp_path, monkeypatch):
    given = ["train.num_steps=7", "data.batch_size=2", 'name="a # b"', "evaluate.every=3"]
    file = tmp_path / "run.yaml"
    file.write_text(dump_run(load_run(recipe, given), given))
    assert load_run(file) == load_run(recipe, given)
    assert resumed_run(recipe, tmp_path) == ResumedRun(load_run(recipe, given), given, [])
    again = resumed_run(recipe, tmp_path, ["train.num_steps=9", "train.save_every=2"])
    assert again.overrides == [*given[1:], "train.num_steps=9", "train.save_every=2"]
    assert again.run == load_run(recipe, again.overrides) and again.unused == []
    changes = ["train.num_steps 7 -> 9", "train.save_every 0 -> 2"]
    assert changes_at_resume(tmp_path, load_run(file), again.run) == changes

    recipe.write_text(recipe.read_text().replace("num_steps: 3", "num_steps: 3\n  sample_every: 5"))
    edited = resumed_run(recipe, tmp_path, ["train.num_steps=9"])
    assert edited.run.train.sample_every == 0 and edited.run.train.num_steps == 9
    assert edited.unused == ["train.sample_every 0 -> 5"]
    held = resumed_run(recipe, tmp_path, ["train.sample_every=5"])
    assert held.run.train.sample_every == 5 and held.unused == []

    monkeypatch.setenv("WORLD_SIZE", "2")  # batch sizes are those of one number of processes
    other = resumed_run(recipe, tmp_path)
    assert other.run.data.batch_size == 1 and other.overrides == [given[0], *given[2:]]
    for damaged in ("[", '"train num_steps"', '"seed=["'):
        file.write_text(f"# --set {damaged}\n")
        with pytest.raises(DirectAlignError, match=r"run\.yaml: a line # --set is damaged"):
            resumed_run(recipe, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.betas=[0, 0.9]", r"another config: train\.betas \(0\.9, 0\.999\) -> "),
        ("evaluate.num_samples=32", r"evaluate\.num_samples 256 -> 32; .* \(directalign evaluate"),
        ("evaluate.num_samples_during=32", r"evaluate\.num_samples_during 64 -> 32; restore"),
        ("evaluate.rewards={a: {name: pixels, statistic: redness}}", r"evaluate\.rewards\.a None"),
        ("evaluate.every=2", r"every 0 -> 2: .* 64 samples, and .* on all 256 only; keep 0"),
    ],
)
def test_what_must_stay_at_a_resume_is_named(recipe, override, message):
    """Among it what is measured, so that all measurements of a run are of the same samples."""
    before = load_run(recipe)
    with pytest.raises(DirectAlignError, match=message):
        changes_at_resume(recipe, before, load_run(recipe, [override]))


@pytest.mark.parametrize(
    ("text", "name"), [("a #2", "a #2"), ("#2", "#2"), ("a#2", "a#2"), ("'a' # b", "a")]
)
def test_a_hash_in_an_override_is_part_of_the_text(recipe, text, name):
    assert load_run(recipe, [f"name={text}"]).name == name
    assert load_run(recipe, ["train.num_steps=7 # more"]).train.num_steps == 7


def test_another_kind_of_noise_levels_replaces_the_section(recipe):
    overrides = ["method.noise_levels.kind=uniform", "method.noise_levels.jump=0.1"]
    assert load_run(recipe, overrides).method.noise_levels == UniformNoiseLevels(jump=0.1)


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "preset=official_pickscore",
        "preset=official_qwen method.noise_levels.kind=constant_gain name='1e-4'",
    ],
)
def test_a_dumped_run_reads_back_equal(recipe, tmp_path, overrides):
    odd = "method.control_phrases.positive=['yes', 'null', '1e3', 'Ölbild: fein', '#1']"
    run = load_run(recipe, [*overrides.split(), odd])
    (tmp_path / "run.yaml").write_text(dump_run(run), encoding="utf-8")
    assert load_run(tmp_path / "run.yaml") == run
    assert yaml.safe_load(dump_run(run))["train"]["num_steps"] == 3


def test_a_recipe_of_the_package_is_found_by_name():
    assert recipe_path("world_srpo") == RECIPES / "world_srpo.yaml"
    assert load_run("world_srpo") == load_run(RECIPES / "world_srpo.yaml")
    line = complaint("recipes/flux_srpo_lora.yaml")
    assert "no such recipe" in line and "did you mean flux_srpo_lora_24gb or" in line
    assert "names: flux_srpo, " in complaint("xyz")


SWAP = "model.block_swap=2 model.gradient_checkpointing=true "
FULL = "model.tune=full model.dtype=bfloat16 model.trained_dtype=bfloat16 "
OVERRIDES = {
    "train.num_stps=3": "--set train.num_stps: unknown key; did you mean 'num_steps'?",
    "learning_rate=1": "--set learning_rate: unknown key; did you mean 'train.learning_rate'?",
    "reward.statistic=brightness": "--set reward.statistic: unknown key; it belongs to another "
    "kind of reward: remove it, or set reward.name to that kind",
    "method.noise_levels.kind=unform": "kind 'unform' is none of window, uniform, constant_gain, "
    "rollout; did you mean 'uniform'?",
    "train.num_steps=true": "got true, and it should be a valid integer; write a whole number",
    "train.learning_rate=fast": 'got "fast", and it should be a valid number; write a number such',
    "train.betas=[0.9]": "--set train.betas: train.betas.1: missing",
    "data.strict=yes": 'got "yes", and it should be a valid boolean; write true or false',
    "method.form=relativ": "got \"relativ\", and it is one of 'absolute', 'relative' or "
    "'anchored'; did you mean 'relative'?",
    "preset=oficial_flux": "did you mean 'official_flux'?",
    "method.control_phrases.negative=[]": "form relative needs control_phrases.positive and",
    "method.control_phrases.positive=['cg render. ']": "'cg render. ' is both positive and neg",
    "data.prompts=null": "nothing to train on: give data.prompts (online) or data.images",
    "train.num_steps": "write it as section.key=value",
    "train.clip_norm=1": "--set train.clip_norm: train.clip_norm: renamed to max_grad_norm",
    # settings that exclude each other
    "model.quantization=4bit model.tune=full": "quantization 4bit freezes the weights that tune:",
    "model.trained_dtype=bfloat16": "trained_dtype: bfloat16 needs tune: full and dtype: bfloat16",
    "model.components=some/folder": "components is for a single .safetensors file in path",
    FULL: "loses updates smaller than its last digit: set train.optimizer: adamw8bit",
    f"{FULL}train.optimizer=adamw8bit train.ema_decay=0.9": "train.ema_decay: a moving average in",
    "model.quantization=8bit train.parallel=sharded": "cannot split the weights of model.quantiz",
    "model.quantization=8bit train.parallel=hybrid": "train.parallel: hybrid cannot split",
    f"{SWAP}train.parallel=sharded": "cannot split the weights of model.block_swap: remove model.",
    f"{SWAP}model.tune=full": "block_swap 2 is for frozen blocks that are recomputed",
    f"{SWAP}model.compile=true": "block_swap 2 is for frozen blocks that are recomputed, and not",
    "model.block_swap=2": "gradient_checkpointing: true and compile: false, or remove block_swap",
    "train.global_batch_size=8 train.gradient_accumulation_steps=2": "both set the batches per",
    "data.buckets=[[64,64]]": "buckets needs data.images",
    "method.noise_levels.kind=rollout rollout.sizes=[[64,64]]": "rollout.sizes: method.noise_l",
    "data.images=x method.name=refl": "method refl trains on rollouts only: remove data.images",
    "method.name=draft method.grad_steps=26": "grad_steps 26 is more than rollout.num_inference_s",
    "early_stopping={}": "early_stopping: needs measurements, and evaluate.every is 0",
    "model.lora.targets=[]": "model.lora.targets: got [], and it should have at least 1 item",
    # numbers and paths beyond any use
    "seed=18446744073709551616": "seed: got 18446744073709551616, and it should be less than or",
    f"data.images={'x' * 300}": f"--set data.images: got '{'x' * 40}'..., which is longer than any",
    f"reward.path={'x/' * 3000}": "longer than any path",
    f"evaluate.metrics=['{'x' * 300}.py:f']": "longer than any path",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_wrong_override_is_one_line(recipe, override):
    overrides = override.split() if override.count("=") > 1 and "{" not in override else [override]
    assert OVERRIDES[override] in complaint(recipe, *overrides)


TAGGED = {
    "!!int abc": "'abc' is no !!int",
    "!!bool maybe": "'maybe' is no !!bool",
    "!!timestamp 2026-13-45": "'2026-13-45' is no !!timestamp",
    "!!map abc": "expected a mapping node, but found scalar",
    "!!str [a]": "expected a scalar node, but found sequence",
    "9" * 5000: f"'{'9' * 60}' is no !!int",
}
ALIASES = "&a0 [x, x]\n" + "".join(
    f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  num_steps: 3\n", "", "recipe.yaml: train.num_steps: missing; add it (Optimizer upd"),
        ("num_steps: 3", "num_step: 3", "did you mean 'num_steps'?\n"),
        ("first: 4", "jump: 0.1", "recipe.yaml: method.noise_levels.jump: unknown key"),
        ("num_steps: 3", "num_steps: 3\n  num_steps: 4", ":11: not a YAML recipe: key 'num_steps'"),
        ("name: test", "name: !!binary aGVsbG8=", "something other than text, numbers, lists"),
        ("Realistic photo", '"\\ude00"', "method.control_phrases.positive.0: not Unicode: U+DE00"),
        ("name: test", "name: " + "[" * 5000, "nested too deeply"),
        *(
            ("name: test", f"name: {tagged}", f"recipe.yaml:2: not a YAML recipe: {reason}")
            for tagged, reason in TAGGED.items()
        ),
        ("name: test", f"name: {ALIASES}", "holds over 50,000 values with its aliases written out"),
        (RECIPE, "#" * 300_000, "recipe.yaml: 300,000 bytes, and the limit of a recipe is 262,144"),
    ],
)
def test_a_wrong_recipe_is_one_line(recipe, old, new, expected):
    recipe.write_text(RECIPE.replace(old, new))
    assert expected in complaint(recipe)


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.yaml"):
        with pytest.raises(DirectAlignError, match="is a pipe or a device; write the"):
            load_run(tmp_path / name)
    with pytest.raises(DirectAlignError, match="is a pipe or a device; write the prompt file"):
        read_prompts(tmp_path / "pipe.txt")


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"name: caf\xe9")
    assert f"{tmp_path / 'recipe.yaml'}:1: not UTF-8" in complaint(tmp_path / "recipe.yaml")
    assert complaint(tmp_path) == f"{tmp_path}: is a folder, and a recipe is needed"


CLIP = {"name": "clip", "path": "world:reward"}
MEMBERS = [
    {"label": "taste", "reward": CLIP},
    {"label": "dark", "form": "absolute", "reward": {"name": "pixels", "statistic": "redness"}},
]
KINDS = "clip, altclip, siglip, latent_clip, image_reward, aesthetic, mps, vlm, hpsv3, pixels, "
KINDS += "preservation, ocr, python, remote, vlm_api"
OBJECT = "and it should be an object; write a section"
NESTED: list[tuple[str, Any, str]] = [
    ("reward/members/0/reward", {"path": "x"}, f"missing key name; add it, one of {KINDS}"),
    ("reward/members/1/control_phrases", "Photo", f'got "Photo", {OBJECT}'),
    ("reward/members/1/words", {}, "renamed to control_phrases"),
    ("reward/members", {"dark": 1}, 'got {"dark": 1}, and it should be a valid array; write a'),
    ("evaluate/rewards/second/scal", 2, "unknown key; did you mean 'scale'?"),
]
DEEPER = [  # the named key lies below the changed one
    ("reward/members/0/reward", {"name": "clip"}, "reward.members.0.reward.path: missing; add it"),
    (
        "reward/members/1/control_phrases",
        {"positive": [3]},
        "reward.members.1.control_phrases.positive.0: got 3, and it should be a valid string",
    ),
    ("reward/members/0/label", "dark", "reward: two members have the label dark: give each its"),
]


@pytest.mark.parametrize(
    ("changed", "value", "expected"),
    [(key, value, f"{key.replace('/', '.')}: {text}") for key, value, text in NESTED] + DEEPER,
)
def test_a_mistake_in_a_list_or_a_named_section_is_located(recipe, changed, value, expected):
    settings = yaml.safe_load(RECIPE) | {"evaluate": {"rewards": {"second": CLIP}}}
    settings |= {"reward": {"name": "mix", "members": MEMBERS}}
    settings["train"]["learning_rate"] = 1e-4
    section: Any = json.loads(json.dumps(settings))
    settings = section
    *above, last = [int(key) if key.isdigit() else key for key in changed.split("/")]
    for key in above:
        section = section[key]
    section[last] = value
    recipe.write_text(yaml.safe_dump(settings))
    assert complaint(recipe).removeprefix(f"{recipe}: ").startswith(expected)


def test_renamed_keys_name_keys_that_exist():
    properties = json.dumps(recipe_schema())
    for new in RENAMED.values():
        assert f'"{new.split()[0].rstrip(":")}"' in properties


def test_the_schema_beside_the_recipes_is_up_to_date():
    schema = recipe_schema()
    written = json.loads((RECIPES / "schema.json").read_text(encoding="utf-8"))
    assert written == schema, "run: directalign schema --out src/directalign/recipes/schema.json"
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False and section["description"]
