"""Where the text encoders are while nobody encodes, what is stored before they are freed, and how rows of different length are joined."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from directalign.config import ModelConfig
from directalign.models import load_model
from directalign.models.text_encoder import PromptEncoder, padded
from directalign.types import DirectAlignError

CPU = torch.device("cpu")
PROMPTS = ["a red star", "a blue circle on a sandy background", ""]


class Words(nn.Module):
    """One row per word, as an encoder without padding gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(997, 4)

    def forward(self, prompt: str) -> Tensor:
        return self.table(
            torch.tensor(
                [[sum(map(ord, word)) % 997 for word in prompt.split()[:50]]], dtype=torch.long
            )
        )


def encoder_of_words(mode: str = "free", seed: int = 0) -> PromptEncoder:
    torch.manual_seed(seed)
    modules: dict[str, nn.Module] = {"text_encoder": Words()}
    made: list[PromptEncoder] = []

    def embed(prompts: list[str]) -> dict[str, Tensor]:
        rows = [made[0].modules["text_encoder"](prompt) for prompt in prompts]
        return {
            "sequence": padded(rows),
            "mask": padded([torch.ones(row.shape[:2], dtype=torch.bool) for row in rows]),
        }

    made.append(PromptEncoder(modules, embed, CPU, mode))
    return made[0]


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key])
        for key in wanted
    )


def test_rows_are_filled_up_with_zeros_at_the_end():
    joined = padded([torch.ones(1, 2, 3), torch.ones(1, 4, 3)])
    assert joined.shape == (2, 4, 3)
    assert bool((joined[0, 2:] == 0).all()) and bool((joined[1] == 1).all())
    assert padded([torch.ones(1, 5), torch.ones(1, 5)]).shape == (2, 5)


@pytest.mark.parametrize("mode", ["keep", "offload", "free"])
def test_encoders_are_moved_as_the_mode_says(mode, monkeypatch):
    module, places = nn.Linear(2, 2), []
    monkeypatch.setattr(module, "to", lambda device: places.append(device.type))
    encoder = PromptEncoder(
        {"one": module},
        lambda prompts: {"sequence": module(torch.ones(len(prompts), 2))},
        torch.device("cuda"),
        mode,
    )
    for _ in range(2):
        tensors = encoder(["a", "b"])["sequence"]
        assert tensors.shape == (2, 2) and not tensors.requires_grad
    assert places == (["cuda"] if mode == "keep" else ["cpu", "cuda", "cpu", "cuda", "cpu"])


def test_encoders_go_back_after_an_error(monkeypatch):
    module, places = nn.Linear(2, 2), []
    monkeypatch.setattr(module, "to", lambda device: places.append(device.type))

    def embed(prompts: list[str]) -> dict[str, Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="memory"):
        PromptEncoder({"one": module}, embed, torch.device("cuda"), "offload")(["a"])
    assert places == ["cpu", "cuda", "cpu"]


def test_what_is_stored_is_what_was_encoded_whatever_the_batch(tmp_path):
    encoder = encoder_of_words()
    fresh = encoder(PROMPTS)
    assert encoder.store(PROMPTS, tmp_path) == []
    encoder.free()
    assert same(encoder(PROMPTS), fresh)
    assert fresh["sequence"].shape == (3, 7, 4) and encoder(PROMPTS[:1])["sequence"].shape == (
        1,
        3,
        4,
    )


def test_only_what_is_missing_is_encoded_and_once(tmp_path):
    encoder, asked = encoder_of_words(), []

    def show(prompts: list[str]) -> list[str]:
        asked.extend(prompts)
        return prompts

    encoder.store([*PROMPTS[:2], PROMPTS[0]], tmp_path, show)
    encoder.store(PROMPTS, tmp_path, show)
    encoder_of_words().store(PROMPTS, tmp_path, show)
    assert asked == PROMPTS


def test_other_weights_do_not_find_these_embeddings(tmp_path):
    first, other = encoder_of_words(seed=0), encoder_of_words(seed=1)
    first.store(PROMPTS, tmp_path)
    other.store(PROMPTS, tmp_path)
    expected = other(PROMPTS)
    other.free()
    assert same(other(PROMPTS), expected)


def test_a_torn_file_is_made_again_and_told(tmp_path):
    encoder = encoder_of_words()
    fresh = encoder(PROMPTS)
    encoder.store(PROMPTS, tmp_path)
    assert encoder.cache is not None
    path = encoder.cache.path_of(PROMPTS[0])
    path.write_bytes(path.read_bytes()[:-3])
    faults = encoder.store(PROMPTS, tmp_path)
    assert len(faults) == 1 and path.name in faults[0] and "truncated" in faults[0]
    encoder.free()
    assert same(encoder(PROMPTS), fresh)


def test_a_prompt_that_was_not_stored_is_refused_once_the_encoders_are_gone(tmp_path):
    encoder = encoder_of_words()
    encoder.store(PROMPTS[:1], tmp_path)
    assert encoder(PROMPTS[1:2])["sequence"].shape == (1, 7, 4)
    encoder.free()
    with pytest.raises(DirectAlignError, match="no embedding of 'a blue circle"):
        encoder(PROMPTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["flux", "sd"])
def test_a_family_is_conditioned_alike_and_its_encoders_are_gone(name, dtype, tmp_path, request):
    folder = request.getfixturevalue(f"tiny_{name}")
    family = load_model(
        ModelConfig(architecture=name, path=str(folder), dtype=dtype, text_encoders="free"), "cpu"
    )
    fresh = [family.encode_prompt([prompt]) for prompt in PROMPTS]
    gone = [
        weakref.ref(parameter)
        for module in family.prompts.modules.values()
        for parameter in module.parameters()
    ]
    family.prompts.store(PROMPTS, tmp_path)
    family.prompts.free()
    gc.collect()
    assert gone and not any(reference() is not None for reference in gone)
    for prompt, wanted in zip(PROMPTS, fresh, strict=True):
        found = family.encode_prompt([prompt])
        assert same(found.tensors, wanted.tensors) and same(
            found.unconditional, wanted.unconditional
        )


def test_another_length_of_tokens_is_another_embedding(tiny_flux, tmp_path):
    families = [
        load_model(
            ModelConfig(architecture="flux", path=str(tiny_flux), text_encoders="free"), "cpu"
        )
        for _ in range(2)
    ]
    families[1].max_sequence_length = 9
    for family in families:
        family.prompts.store(PROMPTS, tmp_path)
        family.prompts.free()
    assert [family.encode_prompt(PROMPTS).tensors["sequence"].shape[1] for family in families] == [
        12,
        9,
    ]
