"""Recipes: what is written is what is read, and every mistake is one line with file (or override), key, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from directalign.config import UniformNoiseLevels
from directalign.config.load import dump_run, load_run
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
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def complaint(file: Path, *overrides: str) -> str:
    with pytest.raises(DirectAlignError) as raised:
        load_run(file, overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_numbers_are_read_as_people_write_them(recipe: Path) -> None:
    run = load_run(
        recipe,
        [
            "train.weight_decay=1E-2",
            "train.max_grad_norm=1",
            "train.betas=[0.5, .9]",
            "name=2026-01-01",
            "evaluate.judge=none",
        ],
    )
    assert (
        run.train.learning_rate,
        run.train.weight_decay,
        run.train.max_grad_norm,
        run.train.betas,
    ) == (1e-4, 0.01, 1.0, (0.5, 0.9))
    assert (run.name, run.evaluate.judge) == ("2026-01-01", "none")


def test_overrides_lie_over_the_file_and_the_file_over_its_preset(recipe: Path) -> None:
    run = load_run(
        recipe,
        ["preset=official_flux", "method.margin=null", "train.num_steps=7", "model.lora={rank: 2}"],
    )
    assert (run.train.num_steps, run.method.margin, run.model.lora.rank) == (7, None, 2)
    assert (run.method.noise_levels.first, run.method.noise_levels.last) == (
        4,
        25,
    ) and run.method.embedded_guidance == 3.5  # pyright: ignore
    assert run.train.learning_rate == 1e-4  # the file's, not the preset's 5e-6


def test_another_kind_of_moves_replaces_the_section(recipe: Path) -> None:
    assert load_run(
        recipe, ["method.noise_levels.kind=uniform", "method.noise_levels.jump=0.1"]
    ).method.noise_levels == UniformNoiseLevels(jump=0.1)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["preset=official_pickscore"],
        ["preset=official_qwen", "method.noise_levels.kind=constant_gain", "name='1e-4'"],
    ],
)
def test_a_dumped_run_reads_back_equal(recipe: Path, tmp_path: Path, overrides: list[str]) -> None:
    run = load_run(
        recipe,
        [
            *overrides,
            "method.control_phrases.positive=['yes', 'null', '1e3', 'Ölbild: fein', '#1']",
        ],
    )
    (tmp_path / "run.yaml").write_text(dump_run(run), encoding="utf-8")
    assert load_run(tmp_path / "run.yaml") == run
    assert yaml.safe_load(dump_run(run))["train"]["num_steps"] == 3


MISTAKES = {
    "train.num_stps=3": "--set train.num_stps: unknown key; did you mean 'num_steps'?",
    "trian.num_steps=3": "recipe.yaml with --set trian.num_steps: trian: unknown key; did you mean 'train'?",
    "learning_rate=1": "--set learning_rate: unknown key; did you mean 'train.learning_rate'?",
    "train.zzz=1": "unknown key; train has num_steps, learning_rate",
    "model.lora.rnk=4": "unknown key; did you mean 'rank'?",
    "reward.statistic=brightness": "--set reward.statistic: unknown key; it belongs to another kind of reward: remove it, or set reward.name to that kind",
    "method.noise_levels.frist=4": "--set method.noise_levels.frist: unknown key; did you mean 'first'?",
    "method.noise_levels.kind=unform": "kind 'unform' is none of window, uniform, constant_gain; did you mean 'uniform'?",
    "method.noise_levels=3": "--set method.noise_levels: got 3, and it should be an object; write a section",
    "method.denoise.k_pos.low=1": "--set method.denoise.k_pos.low: unknown key; did you mean 'low_noise'?",
    "train.num_steps=0": "got 0, and it should be greater than or equal to 1 (Optimiser updates)",
    "train.num_steps=true": "got true, and it should be a valid integer; write a whole number",
    "train.num_steps=": "got null, and it should be a valid integer",
    "train.num_steps='5'": 'got "5", and it should be a valid integer',
    "train.num_steps=1.5": "got 1.5, and it should be a valid integer",
    "train.learning_rate=fast": 'got "fast", and it should be a valid number; write a number such as 1e-4',
    "train.learning_rate=.nan": "got NaN, and it should be a finite number",
    "train.ema_decay=1": "got 1, and it should be less than 1",
    "train.betas=[0.9]": "--set train.betas: train.betas.1: missing",
    "data.strict=yes": 'got "yes", and it should be a valid boolean; write true or false',
    "name=3": "got 3, and it should be a valid string; write text, in quotes if it looks like a number",
    "method.form=relativ": "got \"relativ\", and it is one of 'absolute', 'relative' or 'anchored'; did you mean 'relative'?",
    "preset=oficial_flux": "did you mean 'official_flux'?",
    "preset=[official_flux]": 'got ["official_flux"]',
    "method.control_phrases.negative=[]": "form relative compares two phrasings: give words.positive and words.negative",
    "evaluate.adherence={name: detektor}": "evaluate.adherence: name 'detektor' is none of detector, vlm; did you mean 'detector'?",
    "evaluate.adherence={name: vlm}": "--set evaluate.adherence: evaluate.adherence.path: missing; add it",
    "data.prompts=null": "nothing to train on: give data.prompts (online) or data.images (offline)",
    "train.num_steps": "write it as section.key=value",
    "=3": "write it as section.key=value",
    "name=[": "--set name=[: the value is not YAML",
    "name=!!python/object:os.system x": "could not determine a constructor for the tag",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_wrong_override_is_one_line(recipe: Path, override: str) -> None:
    line = complaint(recipe, override)
    assert MISTAKES[override] in line and "--set" in line


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "  num_steps: 3\n",
            "",
            "recipe.yaml: train.num_steps: missing; add it (Optimiser updates)",
        ),
        (
            "num_steps: 3",
            "num_step: 3",
            "recipe.yaml: train.num_step: unknown key; did you mean 'num_steps'? (1 more to mend after this one)",
        ),
        (
            "kind: window, ",
            "",
            "recipe.yaml: method.noise_levels: missing key kind; add it, one of window, uniform, constant_gain",
        ),
        ("first: 4", "jump: 0.1", "recipe.yaml: method.noise_levels.jump: unknown key"),
        (
            "num_steps: 3",
            "num_steps: 3\n  num_steps: 4",
            "recipe.yaml:11: not a YAML recipe: key 'num_steps' is given twice",
        ),
        ("name: test", "name: [test", "not a YAML recipe"),
        ("name: test", "\tname: test", "recipe.yaml:2: not a YAML recipe"),
        (
            "name: test",
            "name: !!binary aGVsbG8=",
            "holds something other than text, numbers, lists and sections",
        ),
        (
            "name: test",
            "name: &a [*a]",
            "holds something other than text, numbers, lists and sections",
        ),
        ("name: test", "1: test", "key 1 is not text"),
        ("name: test", "name: " + "[" * 5000, "nested too deeply"),
        (
            "name: test",
            "name: test\nstop: {}",
            "recipe.yaml: stop: judges the run by its measurements, and evaluate.every is 0",
        ),
        (RECIPE, "", "recipe.yaml: empty"),
        (RECIPE, "- a\n- b", "this is a list"),
        (RECIPE, "a: 1\n---\nb: 2", "recipe.yaml:2: not a YAML recipe"),
        (RECIPE, "a\0b", "special characters are not allowed"),
    ],
)
def test_a_wrong_recipe_is_one_line(recipe: Path, old: str, new: str, expected: str) -> None:
    recipe.write_text(RECIPE.replace(old, new))
    assert expected in complaint(recipe)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such recipe"),
        (b"name: caf\xe9", ":1: not UTF-8"),
        (b"\x89PNG\r\n\x1a\n", ":1: not UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_named(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    file = tmp_path / "recipe.yaml"
    if content is not None:
        file.write_bytes(content)
    assert expected in complaint(file) and str(file) in complaint(file)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"{tmp_path}: is a folder, and a recipe is needed"


FULL = ["model.tune=full", "model.dtype=bfloat16", "model.trained_dtype=bfloat16"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model.quantization=4bit", "model.tune=full"],
            "quantization 4bit freezes the weights that tune: full trains",
        ),
        (
            ["model.trained_dtype=bfloat16"],
            "trained_dtype: bfloat16 is for tune: full with dtype: bfloat16",
        ),
        (
            ["model.components=some/folder"],
            "components complete a single .safetensors file in path",
        ),
        (FULL, "loses updates smaller than its last digit: set train.optimizer: adamw8bit"),
        (
            [*FULL, "train.optimizer=adamw8bit", "train.ema_decay=0.9"],
            "an average kept in model.trained_dtype: bfloat16 stands still",
        ),
        (
            ["model.tune=lora", "model.quantization=8bit", "train.parallel=sharded"],
            "train.parallel: sharded splits plain weights alone",
        ),
        (
            ["train.global_batch_size=8", "train.gradient_accumulation_steps=2"],
            "global_batch_size sets the batches per update, and so does accumulation 2",
        ),
        (["data.buckets=[[64,64]]"], "buckets needs data.images"),
        (["rollout.sizes=[[64,4]]"], "rollout.sizes"),
        (["rollout.sizes=[]"], "rollout.sizes"),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    recipe: Path, overrides: list[str], expected: str
) -> None:
    assert expected in complaint(recipe, *overrides)
