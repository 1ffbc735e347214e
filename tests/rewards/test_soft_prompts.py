"""Learned control tokens in a reward: exactly words where they are words' vectors, a true gradient,
and one line for every file that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from directalign import config
from directalign.config.load import load_run, recipe_path
from directalign.preflight.checks import check_method
from directalign.rewards.clip import ClipReward, SiglipReward
from directalign.rewards.soft_prompts import (
    ControlTokens,
    check_phrases,
    fingerprint,
    is_tokens_file,
    read_tokens,
    split,
    write_tokens,
)
from directalign.types import DirectAlignError
from tiny_siglip import write_siglip

CAPTIONS = ["a red star on a navy background", "x x blue ring"]
RECIPE = recipe_path("world_srpo")


@pytest.fixture(scope="module")
def reward(clip_folder: Path) -> ClipReward:
    return ClipReward.load(str(clip_folder))


@pytest.fixture
def saved(reward: ClipReward, tmp_path: Path) -> Callable[[torch.Tensor], str]:
    """Vectors as a file that fits the reward."""

    def save(tokens: torch.Tensor, name: str = "photo.safetensors") -> str:
        write_tokens(tmp_path / name, reward.soft_prompts.made(tokens, "by a test"))
        return str(tmp_path / name)

    return save


def before(phrase: str) -> list[str]:
    return [f"{phrase}. {caption}" for caption in CAPTIONS]


def test_the_vectors_of_words_are_those_words(
    reward: ClipReward, saved: Callable[..., str]
) -> None:
    file = saved(reward.soft_prompts.embedding_of("Realistic photo"))
    assert torch.equal(
        reward.encode_text(before(file)), reward.encode_text(before("Realistic photo"))
    )
    mixed = [*before(file), *CAPTIONS, *before("CG render")]
    assert torch.equal(
        reward.encode_text(mixed),
        reward.encode_text([*before("Realistic photo"), *CAPTIONS, *before("CG render")]),
    )


def test_other_vectors_are_something_else_and_are_read_once(
    reward: ClipReward, saved: Callable[..., str]
) -> None:
    file = saved(
        torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), "noise.safetensors"
    )
    features = reward.encode(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    first = reward.score(features, before(file))
    assert not torch.allclose(first, reward.score(features, before("x x x")), atol=1e-3)
    Path(file).unlink()
    assert torch.equal(reward.score(features, before(file)), first)
    assert not reward.soft_prompts.table._forward_hooks


def test_a_long_prompt_is_cut_and_not_the_tokens(
    reward: ClipReward, saved: Callable[..., str]
) -> None:
    long = "a red star on a navy background " * 9
    words = "Realistic photo " * 4  # as long as may be: half of what the text tower reads
    file = saved(reward.soft_prompts.embedding_of(words), "long.safetensors")
    assert torch.equal(
        reward.encode_text([f"{file}. {long}"]), reward.encode_text([f"{words}. {long}"])
    )
    other = saved(reward.soft_prompts.embedding_of("CG render " * 4), "other.safetensors")
    assert not torch.equal(
        reward.encode_text([f"{file}. {long}"]), reward.encode_text([f"{other}. {long}"])
    )


def test_siglip_reads_tokens_too(tmp_path: Path) -> None:
    siglip = SiglipReward.from_config(config.SiglipConfig(path=str(write_siglip(tmp_path))))
    assert isinstance(siglip, SiglipReward)
    write_tokens(
        tmp_path / "a.safetensors",
        siglip.soft_prompts.made(siglip.soft_prompts.embedding_of("a star"), "by a test"),
    )
    learned, words = (
        siglip.encode_text([f"{phrase}. a red star"])
        for phrase in (tmp_path / "a.safetensors", "a star")
    )
    assert torch.equal(learned, words) and not torch.allclose(
        learned, siglip.encode_text(["a red star"]), atol=1e-4
    )


def test_the_gradient_reaches_the_tokens_and_is_right(clip_folder: Path) -> None:
    reward = ClipReward.load(str(clip_folder))
    reward.model.double()
    tokens = reward.soft_prompts.embedding_of("Realistic photo").requires_grad_()
    direction = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(vectors: torch.Tensor) -> torch.Tensor:
        reward.soft_prompts.held["held.safetensors"] = vectors
        return (reward.encode_text(before("held.safetensors")) * direction).sum()

    assert torch.autograd.gradcheck(value, (tokens,), eps=1e-6, atol=1e-7, rtol=1e-5)
    assert all(parameter.grad is None for parameter in reward.model.parameters())


def test_prompts_with_and_without_a_file() -> None:
    assert split("dir/a b.safetensors. a red. star") == ("dir/a b.safetensors", "a red. star")
    assert split("Realistic photo. a red star") == (None, "Realistic photo. a red star")
    assert split("a.safetensors. b.safetensors. c") == ("a.safetensors", "b.safetensors. c")
    assert is_tokens_file("a.safetensors") and not is_tokens_file("a photo of a.safetensors file")


def test_a_fingerprint_knows_its_table_in_any_storage() -> None:
    table = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert fingerprint(table) == fingerprint(table.float()) == fingerprint(table.double())
    changed = table.float().clone()
    changed[0, 0] += 1
    assert len({fingerprint(each) for each in (table, changed, table[:-1])}) == 3


def test_a_file_says_what_it_was_made_for(reward: ClipReward, tmp_path: Path) -> None:
    made = reward.soft_prompts.made(torch.ones(2, 16), "from the words a, b")
    write_tokens(tmp_path / "new/folder.safetensors", made)
    found = read_tokens(tmp_path / "new/folder.safetensors", "words")
    assert torch.equal(found.tokens, made.tokens) and (found.kind, found.made) == (
        "clip",
        "from the words a, b",
    )
    assert (found.fingerprint, found.table) == (
        fingerprint(reward.soft_prompts.table.weight),
        "text_model.embeddings.token_embedding.weight",
    )


def broken(kind: str, file: Path, reward: ClipReward) -> None:
    """One way to be no fitting file."""
    good = reward.soft_prompts.made(torch.ones(2, 16), "by a test")
    match kind:
        case "cut":
            write_tokens(file, good)
            file.write_bytes(file.read_bytes()[:-20])
        case "other tensors":
            save_file({"weight": torch.ones(2, 16)}, file)
        case "no facts":
            save_file({"tokens": torch.ones(2, 16)}, file)
        case "not finite":
            write_tokens(
                file, reward.soft_prompts.made(torch.full((2, 16), torch.nan), "by a test")
            )
        case "other kind":
            write_tokens(
                file, ControlTokens(good.tokens, "siglip", good.fingerprint, good.table, good.made)
            )
        case "other width":
            write_tokens(
                file,
                ControlTokens(torch.ones(2, 24), "clip", good.fingerprint, good.table, good.made),
            )
        case "other reward":
            write_tokens(
                file, ControlTokens(good.tokens, "clip", "0123456789abcdef", good.table, good.made)
            )
        case "too long":
            write_tokens(file, reward.soft_prompts.made(torch.ones(9, 16), "by a test"))


BROKEN = {
    "missing": "no such file; make it with directalign reward soft-prompts",
    "cut": "not a complete safetensors file",
    "other tensors": "not a file of learned tokens",
    "no facts": "not a file of learned tokens",
    "not finite": "not finite",
    "other kind": "fitted to a reward of kind siglip, and this is clip",
    "other width": "24 numbers a token, this one has 16",
    "other reward": "another text embedding of the same width",
    "too long": "9 learned tokens, and the reward reads 16 in all; take 8 at most",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_fit_is_one_line_before_and_at_reading(
    kind: str, reward: ClipReward, clip_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "broken.safetensors"
    broken(kind, file, reward)
    for act in (
        lambda: check_phrases(
            ["Photo", str(file)], "clip", clip_folder, "method.control_phrases.positive"
        ),
        lambda: reward.encode_text([f"{file}. a star"]),
    ):
        with pytest.raises(DirectAlignError, match=BROKEN[kind]) as refused:
            act()
        assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_without_weights_here_kind_and_file_are_checked(reward: ClipReward, tmp_path: Path) -> None:
    write_tokens(
        tmp_path / "wide.safetensors",
        ControlTokens(torch.ones(2, 24), "clip", "0" * 16, "table", "by a test"),
    )
    check_phrases([str(tmp_path / "wide.safetensors")], "clip", None, "words")
    with pytest.raises(
        DirectAlignError, match="fitted to a reward of kind clip, and this is siglip"
    ):
        check_phrases([str(tmp_path / "wide.safetensors")], "siglip", None, "words")


def test_a_check_of_the_recipe_finds_it_for_the_method_and_for_members(
    tmp_path: Path, reward: ClipReward
) -> None:
    write_tokens(
        tmp_path / "a.safetensors",
        reward.soft_prompts.made(torch.ones(2, 16), "for another reward"),
    )
    words = (
        f"method.control_phrases={{positive: [{tmp_path / 'a.safetensors'}], negative: [Anime]}}"
    )
    with pytest.raises(
        DirectAlignError,
        match=r"method\.control_phrases\.positive: .*a\.safetensors: fitted to another clip reward \(16 numbers a token, this one has 64",  # noqa: E501
    ):
        check_method(load_run(RECIPE, [words]))
    clip = "{name: clip, path: 'world:reward'}"
    member = f"{{label: a, reward: {clip}, control_phrases: {{positive: [{tmp_path}/none.safetensors], negative: [Anime]}}}}"  # noqa: E501
    with pytest.raises(
        DirectAlignError,
        match=r"reward\.members\.0\.control_phrases\.positive: .*none\.safetensors: no such file",
    ):
        check_method(
            load_run(
                RECIPE, [f"reward={{name: mix, members: [{member}, {{label: b, reward: {clip}}}]}}"]
            )
        )
