"""`directalign reward soft-prompts`: fit from images or phrases, train with the files, resume."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from directalign.cli import app
from directalign.config.load import load_run, recipe_path
from directalign.rewards.soft_prompts import read_tokens

RECIPE = recipe_path("world_srpo_lora")
TINY = (
    "data.batch_size=2",
    "rollout.num_inference_steps=2",
    "evaluate.every=0",
    "evaluate.num_samples=2",
    "evaluate.num_samples_during=2",
)
SHORT = (
    *TINY,
    "train.num_steps=2",
    "method.anchor.reference_updates=1",
    "train.save_every=1",
    "train.sample_every=0",
    "train.sample_prompts=[a red star on a navy background]",
)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens") / "photo.safetensors"
    options = ["--images", "world:photo/cg", "--count", 8, "--num-steps", 4, "--out", out]
    return call("reward", "soft-prompts", "--reward", RECIPE, *options), out


def train(tokens: Path, out: Path, *more: str) -> Result:
    negative = tokens.with_suffix(".negative.safetensors")
    phrases = f"{{positive: [{tokens}], negative: [{negative}, CG render], order: average}}"
    settings = (*SHORT, f"method.control_phrases={phrases}")
    return call("train", RECIPE, *(f"--set={each}" for each in settings), "--out", out, *more)


def test_both_sides_are_written_and_compared_with_the_phrases(fitted):
    result, out = fitted
    assert result.exit_code == 0, result.output
    files = [str(out), str(out.with_suffix(".negative.safetensors"))]
    recipe = out.with_suffix(".yaml")
    assert result.stdout.splitlines()[-3:] == [*files, f"next: directalign train {recipe}"]
    made, base = load_run(recipe), load_run(RECIPE)
    phrases = {"positive": [files[0]], "negative": [files[1]], "order": "average"}
    assert made.method.control_phrases.model_dump(exclude_unset=True) == phrases
    same = made.method.model_copy(update={"control_phrases": base.method.control_phrases})
    assert made.model_copy(update={"name": base.name, "method": same}) == base
    checked = call("check", recipe)  # the files of tokens are read without the reward's weights
    assert checked.exit_code == 0 and checked.stderr == "", checked.output
    for text in ("On 2 held-out images per side", "│ words", "│ tokens, step"):
        assert text in result.stdout
    found = read_tokens(out, "words")
    assert found.kind == "clip" and found.tokens.shape == (2, 64)
    assert "8 wanted and 8 unwanted images, seed 0" in found.made


def test_a_run_copies_the_tokens_and_resumes_exactly(fitted, tmp_path):
    tokens = tmp_path / "photo.safetensors"
    for suffix in (".safetensors", ".negative.safetensors"):
        shutil.copy(fitted[1].with_suffix(suffix), tokens.with_suffix(suffix))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    result = train(tokens, whole)
    assert result.exit_code == 0, result.output
    shutil.copytree(whole, resumed)
    assert (whole / "control_tokens/0-photo.safetensors").read_bytes() == tokens.read_bytes()
    assert (whole / "control_tokens/1-photo.negative.safetensors").is_file()
    shutil.rmtree(resumed / "checkpoints/step-000002")
    assert train(tokens, resumed, "--resume").exit_code == 0
    first, second = (load_file(out / "lora.safetensors") for out in (whole, resumed))
    assert all(bool((first[name] == second[name]).all()) for name in first)
    shutil.rmtree(resumed / "checkpoints/step-000002")
    shutil.copy(fitted[1].with_suffix(".negative.safetensors"), tokens)
    changed = train(tokens, resumed, "--resume")
    assert changed.exit_code == 1
    assert "not the tokens that the run in" in changed.stderr.splitlines()[-1]


def test_phrases_alone_become_tokens(tmp_path):
    phrases, out = ["Realistic photo", "Natural lighting"], tmp_path / "a.safetensors"
    options = [word for phrase in phrases for word in ("--positive", phrase)]
    result = call("reward", "soft-prompts", "--reward", "world:reward", *options, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\nnext: directalign train {out.with_suffix('.yaml')}\n"
    made = load_run(out.with_suffix(".yaml"))
    assert made.reward.path == "world:reward" and made.method.control_phrases.positive == [str(out)]
    assert read_tokens(out, "words").made == f"mean of the words {', '.join(phrases)}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "nothing to fit: give --images with wanted/ and unwanted/, or --positive"),
        ("--out photo", "--out photo: learned tokens are known by their ending; name it photo.s"),
        ("--out there.safetensors", "--out: there.negative.safetensors exists already"),
        ("--images world --positive Photo", "words of one side only"),
        ("--images world --wanted a --unwanted b", "--images world: give either this or --wanted"),
        ("--wanted a", "--wanted a: give --wanted DIR and --unwanted DIR"),
        ("--wanted . --unwanted absent", "--unwanted: no folder absent; give a folder"),
        ("--positive Photo --length 12", "--length: 12 learned tokens"),
    ],
)
def test_wrong_options_are_one_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.negative.safetensors").touch()
    words = ["--out", "new.safetensors", *options.split()]
    result = call("reward", "soft-prompts", "--reward", "world:reward", *words)
    assert result.exit_code == 1 and message in result.stderr, result.output
    assert result.stderr.count("\n") == 1 and not Path("new.safetensors").exists()


def test_tokens_of_another_reward_are_refused(fitted):
    phrases = f"method.control_phrases={{positive: [{fitted[1]}], negative: [Anime]}}"
    result = call("check", RECIPE, "--set", phrases, "--set", "reward.path=world:second_reward")
    assert result.exit_code == 1 and "fitted to another clip reward" in result.stderr
    assert "method.control_phrases.positive" in result.stderr
