"""`directalign reward soft-prompts` as it is called: fit from images and from words, train with the
files, resume to the same weights; refusals in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from directalign.cli import app
from directalign.config.load import recipe_path
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
    "train.num_steps=4",
    "method.anchor.reference_updates=2",
    "train.save_every=2",
    "train.sample_every=0",
    "train.sample_prompts=[a red star on a navy background]",
)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("tokens") / "photo.safetensors"
    return call(
        "reward",
        "soft-prompts",
        "--reward",
        RECIPE,
        "--images",
        "world:photo/cg",
        "--count",
        8,
        "--num-steps",
        4,
        "--out",
        out,
    ), out


def train(tokens: Path, out: Path, *more: str) -> Result:
    words = f"method.control_phrases={{positive: [{tokens}], negative: [{tokens.with_suffix('.negative.safetensors')}, CG render], order: average}}"
    return call(
        "train",
        RECIPE,
        *(word for each in (*SHORT, words) for word in ("--set", each)),
        "--out",
        out,
        *more,
    )


def test_both_sides_are_written_and_measured_against_the_words(fitted: tuple[Result, Path]) -> None:
    result, out = fitted
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == [
        str(out),
        str(out.with_suffix(".negative.safetensors")),
    ]
    assert (
        "On 2 held-out images per side" in result.stdout
        and "│ words" in result.stdout
        and "│ tokens, step" in result.stdout
    )
    found = read_tokens(out, "words")
    assert (
        found.kind == "clip"
        and found.tokens.shape == (2, 64)
        and "8 wanted and 8 unwanted images, seed 0" in found.made
    )


def test_a_run_trains_with_them_keeps_them_and_resumes_exactly(
    fitted: tuple[Result, Path], tmp_path: Path
) -> None:
    tokens = tmp_path / "photo.safetensors"
    for suffix in (".safetensors", ".negative.safetensors"):
        shutil.copy(fitted[1].with_suffix(suffix), tokens.with_suffix(suffix))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for out in (whole, resumed):
        result = train(tokens, out)
        assert result.exit_code == 0, result.output
    assert (whole / "control_tokens/0-photo.safetensors").read_bytes() == tokens.read_bytes()
    assert (whole / "control_tokens/1-photo.negative.safetensors").is_file()
    shutil.rmtree(resumed / "checkpoints/step-000004")
    assert train(tokens, resumed, "--resume").exit_code == 0
    first, second = (load_file(out / "lora.safetensors") for out in (whole, resumed))
    assert all(bool((first[name] == second[name]).all()) for name in first)
    shutil.rmtree(resumed / "checkpoints/step-000004")
    shutil.copy(fitted[1].with_suffix(".negative.safetensors"), tokens)
    changed = train(tokens, resumed, "--resume")
    assert (
        changed.exit_code == 1
        and "not the tokens that the run in" in changed.stderr
        and changed.stderr.count("\n") == 1
    )


def test_words_alone_become_tokens(tmp_path: Path) -> None:
    result = call(
        "reward",
        "soft-prompts",
        "--reward",
        "world:reward",
        "--positive",
        "Realistic photo",
        "--positive",
        "Natural lighting",
        "--out",
        tmp_path / "a.safetensors",
    )
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'a.safetensors'}\n"), (
        result.output
    )
    assert (
        read_tokens(tmp_path / "a.safetensors", "words").made
        == "mean of the words Realistic photo, Natural lighting"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing to fit: give --images with wanted/ and unwanted/, or --positive"),
        (
            ["--out", "photo"],
            "--out photo: learned tokens are known by their ending; name it photo.safetensors",
        ),
        (["--out", "there.safetensors"], "--out: there.negative.safetensors exists already"),
        (["--images", "world:photo/photo"], "--images: world:photo/photo"),
        (["--images", "world", "--positive", "Photo"], "words of one side only"),
        (["--images", "world", "--count", "2"], "2 different captions"),
        (["--images", "world", "--count", "8", "--length", "12"], "--length: 12 learned tokens"),
        (["--positive", "Photo", "--length", "12"], "--length: 12 learned tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.negative.safetensors").touch()
    out = [] if "--out" in arguments else ["--out", "new.safetensors"]
    result = call("reward", "soft-prompts", "--reward", "world:reward", *out, *arguments)
    assert result.exit_code == 1 and told in result.stderr and result.stderr.count("\n") == 1, (
        result.output
    )
    assert not Path("new.safetensors").exists()


def test_a_check_finds_tokens_of_another_reward(
    fitted: tuple[Result, Path], tmp_path: Path
) -> None:
    words = f"method.control_phrases={{positive: [{fitted[1]}], negative: [Anime]}}"
    result = call("check", RECIPE, "--set", words, "--set", "reward.path=world:second_reward")
    assert (
        result.exit_code == 1
        and "method.control_phrases.positive" in result.stderr
        and "fitted to another clip reward" in result.stderr
    )
