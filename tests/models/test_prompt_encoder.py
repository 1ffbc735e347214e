"""Where the text encoders are between uses, and what is stored before they are freed."""

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

PROMPTS = ["a red star", "a blue circle on a sandy background", ""]


class Words(nn.Module):
    """One row per word, as an encoder without padding gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(997, 4)

    def forward(self, prompt: str) -> Tensor:
        tokens = [sum(map(ord, word)) % 997 for word in prompt.split()[:50]]
        return self.table(torch.tensor([tokens], dtype=torch.long))


def encoder_of_words(seed: int = 0) -> PromptEncoder:
    torch.manual_seed(seed)
    modules: dict[str, nn.Module] = {"text_encoder": Words()}
    made: list[PromptEncoder] = []

    def embed(prompts: list[str]) -> dict[str, Tensor]:
        rows = [made[0].modules["text_encoder"](prompt) for prompt in prompts]
        masks = [torch.ones(row.shape[:2], dtype=torch.bool) for row in rows]
        return {"sequence": padded(rows), "mask": padded(masks)}

    made.append(PromptEncoder(modules, embed, torch.device("cpu"), "free"))
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

    def embed(prompts: list[str]) -> dict[str, Tensor]:
        if "fail" in prompts:
            raise RuntimeError("out of memory")
        return {"sequence": module(torch.ones(len(prompts), 2))}

    encoder = PromptEncoder({"one": module}, embed, torch.device("cuda"), mode)
    tensors = encoder(["a", "b"])["sequence"]
    assert tensors.shape == (2, 2) and not tensors.requires_grad
    with pytest.raises(RuntimeError, match="memory"):
        encoder(["fail"])
    assert places == (["cuda"] if mode == "keep" else ["cpu", "cuda", "cpu", "cuda", "cpu"])


def test_what_is_stored_is_what_was_encoded_whatever_the_batch(tmp_path):
    encoder = encoder_of_words()
    fresh = encoder(PROMPTS)
    assert encoder.store(PROMPTS, tmp_path) == []
    assert encoder.cache is not None
    path = encoder.cache.path_of(PROMPTS[0])
    path.write_bytes(path.read_bytes()[:-3])
    (fault,) = encoder.store(PROMPTS, tmp_path)
    assert path.name in fault and "truncated" in fault
    encoder.free()
    assert same(encoder(PROMPTS), fresh)
    assert fresh["sequence"].shape == (3, 7, 4)
    assert encoder(PROMPTS[:1])["sequence"].shape == (1, 3, 4)
    with pytest.raises(DirectAlignError, match="no embedding of 'a green circle"):
        encoder(["a green circle"])


def test_only_what_is_missing_is_encoded_and_once(tmp_path):
    encoder, encoded = encoder_of_words(), []

    def record(prompts: list[str]) -> list[str]:
        encoded.extend(prompts)
        return prompts

    encoder.store([*PROMPTS[:2], PROMPTS[0]], tmp_path, record)
    encoder.store(PROMPTS, tmp_path, record)
    encoder_of_words().store(PROMPTS, tmp_path, record)
    assert encoded == PROMPTS
    other = encoder_of_words(seed=1)
    expected = other(PROMPTS)
    other.store(PROMPTS, tmp_path, record)
    other.free()
    assert encoded == 2 * PROMPTS and same(other(PROMPTS), expected)


@pytest.mark.parametrize(("name", "dtype"), [("flux", "bfloat16"), ("sd", "float32")])
def test_a_model_is_conditioned_alike_and_its_encoders_are_gone(name, dtype, tmp_path, request):
    folder = request.getfixturevalue(f"tiny_{name}")
    given = {"path": str(folder), "dtype": dtype, "text_encoders": "free"}
    model = load_model(ModelConfig(architecture=name, **given), "cpu")
    fresh = [model.encode_prompt([prompt]) for prompt in PROMPTS]
    modules = model.prompts.modules.values()
    gone = [weakref.ref(parameter) for module in modules for parameter in module.parameters()]
    model.prompts.store(PROMPTS, tmp_path)
    if name == "flux":  # another length of tokens is another embedding
        model.max_sequence_length = 9
        model.prompts.store(PROMPTS, tmp_path)
        assert len(list(tmp_path.glob("*/*/*.safetensors"))) == 2 * len(PROMPTS)
        model.max_sequence_length = 12
        model.prompts.store(PROMPTS, tmp_path)
    model.prompts.free()
    del modules
    gc.collect()
    assert gone and not any(reference() is not None for reference in gone)
    for prompt, wanted in zip(PROMPTS, fresh, strict=True):
        found = model.encode_prompt([prompt])
        assert same(found.tensors, wanted.tensors)
        assert same(found.unconditional, wanted.unconditional)
