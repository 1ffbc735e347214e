"""Learned control tokens: equal to words with words' vectors, a true gradient, refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from directalign.config.load import load_run
from directalign.preflight.checks import check_method
from directalign.rewards import load_reward
from directalign.rewards.clip import ClipReward
from directalign.rewards.soft_prompts import ControlTokens, check_phrases, fingerprint, write_tokens
from published_layouts import images_drawn
from rewards.cases import refused

CAPTIONS = ["a red star on a navy background", "x x blue ring"]
RECIPE = "world_srpo"


@pytest.fixture(scope="module")
def reward(clip_folder):
    return ClipReward.load(str(clip_folder))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "photo.safetensors"


def save(reward: Any, tokens: torch.Tensor, file: Path) -> None:
    write_tokens(file, reward.soft_prompts.made(tokens, "by a test"))


def before(phrase: object) -> list[str]:
    return [f"{phrase}. {caption}" for caption in CAPTIONS]


@pytest.mark.parametrize(
    ("name", "words"),
    [("clip", "Realistic photo"), ("siglip", "a star"), ("image_reward", "realistic photo")],
)
def test_the_vectors_of_words_are_those_words(name, words, sections, file):
    reward: Any = load_reward(sections(name))
    save(reward, reward.soft_prompts.embedding_of(words), file)
    features = reward.encode(images_drawn(2, 32, 32, 1))
    as_words, learned, bare = (
        reward.score(features, prompts) for prompts in (before(words), before(file), CAPTIONS)
    )
    torch.testing.assert_close(learned, as_words, atol=1e-6, rtol=1e-6)
    assert (learned - bare).abs().min() > 1e-5
    mixed = reward.score(features, [before(file)[0], CAPTIONS[1]])
    torch.testing.assert_close(mixed, torch.stack([as_words[0], bare[1]]), atol=1e-6, rtol=1e-6)


def test_a_file_is_read_once(reward, file):
    save(reward, torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), file)
    features = reward.encode(images_drawn(2, 32, 32, 1))
    first = reward.score(features, before(file))
    assert not torch.allclose(first, reward.score(features, before("x x x")), atol=1e-3)
    file.unlink()
    assert torch.equal(reward.score(features, before(file)), first)
    assert not reward.soft_prompts.table._forward_hooks


def test_a_long_prompt_is_cut_and_not_the_tokens(reward, tmp_path):
    long = "a red star on a navy background " * 9
    photo, other = tmp_path / "long.safetensors", tmp_path / "other.safetensors"
    words = "Realistic photo " * 4  # the longest allowed: half of what the text tower reads
    save(reward, reward.soft_prompts.embedding_of(words), photo)
    save(reward, reward.soft_prompts.embedding_of("CG render " * 4), other)
    texts = [reward.encode_text([f"{each}. {long}"]) for each in (photo, words, other)]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


def test_the_gradient_of_the_tokens(clip_folder):
    reward = ClipReward.load(str(clip_folder))
    reward.model.double()
    tokens = reward.soft_prompts.embedding_of("Realistic photo").requires_grad_()
    direction = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(vectors: torch.Tensor) -> torch.Tensor:
        reward.soft_prompts.held["held.safetensors"] = vectors
        return (reward.encode_text(before("held.safetensors")) * direction).sum()

    assert torch.autograd.gradcheck(value, (tokens,), eps=1e-6, atol=1e-7, rtol=1e-5)
    assert all(parameter.grad is None for parameter in reward.model.parameters())


def test_a_fingerprint_identifies_its_table_in_any_dtype():
    table = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert fingerprint(table) == fingerprint(table.float()) == fingerprint(table.double())
    changed = table.float().clone()
    changed[0, 0] += 1
    assert len({fingerprint(each) for each in (table, changed, table[:-1])}) == 3


ONES = torch.ones(2, 16)
UNUSABLE: list[tuple[dict[str, Any] | None, str]] = [
    ({}, "no such file; make it with directalign reward soft-prompts"),
    ({"tokens": ONES}, "not a file of learned tokens"),
    ({"content": b"cut"}, "not a complete safetensors file"),
    ({"made": {"tokens": ONES * torch.nan}}, "not finite"),
    ({"tokens": torch.ones(2, 16, dtype=torch.int64)}, "tokens is of type int64"),
    ({"made": {"kind": "siglip"}}, "fitted to a reward of kind siglip, and this is clip"),
    ({"made": {"tokens": torch.ones(2, 24)}}, "24 numbers a token, this one has 16"),
    ({"made": {"fingerprint": "0" * 16}}, "another text embedding of the same width"),
    ({"made": {"tokens": torch.ones(9, 16)}}, "9 learned tokens, and the reward reads 16 in all"),
]
"""Tensors of the file, its content, or what differs from a usable one."""


@pytest.mark.parametrize(("given", "complaint"), UNUSABLE)
def test_unusable_files_are_refused_by_the_check_and_the_reward(
    given, complaint, reward, clip_folder, file
):
    if "made" in given:
        write_tokens(file, replace(reward.soft_prompts.made(ONES, "by a test"), **given["made"]))
    elif "content" in given:
        file.write_bytes(given["content"])
    elif given:
        save_file(given, file)
    with refused(rf"words: {file}: .*{complaint}"):
        check_phrases(["Photo", str(file)], "clip", clip_folder, "words")
    with refused(rf"control_phrases: {file}: .*{complaint}"):
        reward.encode_text([f"{file}. a star"])


def test_without_the_weights_only_kind_and_file_are_checked(file):
    write_tokens(file, ControlTokens(torch.ones(2, 24), "clip", "0" * 16, "table", "by a test"))
    check_phrases([str(file)], "clip", None, "words")
    with refused("fitted to a reward of kind clip, and this is siglip"):
        check_phrases([str(file)], "siglip", None, "words")


def test_the_check_of_a_recipe_finds_them(file, reward):
    save(reward, ONES, file)
    phrases = f"{{positive: [{file}], negative: [Anime]}}"
    with refused(r"method\.control_phrases\.positive: .*16 numbers a token, this one has 64"):
        check_method(load_run(RECIPE, [f"method.control_phrases={phrases}"]))
    file.unlink()
    clip = "{name: clip, path: 'world:reward'}"
    member = f"{{label: a, reward: {clip}, control_phrases: {phrases}}}"
    mix = f"reward={{name: mix, members: [{member}, {{label: b, reward: {clip}}}]}}"
    with refused(r"reward\.members\.0\.control_phrases\.positive: .*: no such file"):
        check_method(load_run(RECIPE, [mix]))
