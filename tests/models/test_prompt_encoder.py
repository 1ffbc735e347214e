"""Where the text encoders are between uses, and what is stored before they are freed.

Embeddings on disk are found by content, whole or refused by name, one fingerprint per encoder.
"""

import gc
import weakref
from collections.abc import Mapping
from shutil import disk_usage

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from directalign.config import ModelConfig
from directalign.models import load_model, text_encoder
from directalign.models.text_encoder import (
    EmbeddingCache,
    PromptEncoder,
    default_folder,
    fingerprint_of,
    padded,
)
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


# --- embeddings on disk ---------------------------------------------------------------------------

TENSORS = {
    "sequence": torch.arange(6.0).reshape(1, 3, 2).bfloat16(),
    "mask": torch.tensor([[True, True, False]]),
    "pooled": torch.rand(1, 4),
}
PROBE = {"sequence": torch.ones(1, 2)}


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path, "f" * 64)


def test_what_was_written_is_read_bit_for_bit(cache, tmp_path):
    for prompt in ("a red star", "", "ein Stern, ☆\n"):
        assert not cache.has(prompt)
        cache.write(prompt, TENSORS)
        assert cache.has(prompt) and cache.fault(prompt) is None
        assert same(cache.read(prompt), TENSORS)
    cache.write("view", {"sequence": torch.arange(12.0).reshape(2, 6)[:1, ::2]})
    assert cache.read("view")["sequence"].tolist() == [[0.0, 2.0, 4.0]]
    assert not cache.has("a red star ") and not EmbeddingCache(tmp_path, "e" * 64).has("")
    missing = r"no embedding of 'a blue star' in .* set model\.text_encoders: offload"
    with pytest.raises(DirectAlignError, match=missing):
        cache.read("a blue star")


def test_a_damaged_file_is_refused_by_name(cache):
    for prompt in ("a", "b"):
        cache.write(prompt, TENSORS)
    path, whole = cache.path_of("b"), cache.path_of("b").read_bytes()
    damage = {left: (whole[:left], "truncated .* was deleted") for left in (0, -1)}
    altered = whole[:-1] + bytes([whole[-1] ^ 1])
    damage["other prompt"] = cache.path_of("a").read_bytes(), "not the embedding of this prompt"
    damage["altered"] = altered, "its numbers were altered"
    damage["other maker"] = save({"sequence": torch.ones(1)}), "not the embedding of this prompt"
    for content, message in damage.values():
        path.write_bytes(content)
        with pytest.raises(DirectAlignError, match=rf"{path.name}: {message}"):
            cache.read("b")
        assert not cache.has("b")


def test_a_failed_write_leaves_the_file_of_before_and_nothing_else(cache, monkeypatch):
    cache.write("a", TENSORS)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_encoder, "save_file", full)
    with pytest.raises(DirectAlignError, match="no space"):
        cache.write("a", {"sequence": torch.zeros(1, 1)})
    assert same(load_file(cache.path_of("a")), TENSORS)
    assert len(list(cache.path_of("a").parent.iterdir())) == 1


def test_a_disk_too_small_for_the_rest_is_refused_early(cache, tmp_path):
    cache.write("a", TENSORS)
    size = cache.path_of("a").stat().st_size
    cache.check_room("a", 1)
    message = r"more prompts need .* GB are free: .*DIRECTALIGN_CACHE"
    with pytest.raises(DirectAlignError, match=message):
        cache.check_room("a", 2 * disk_usage(tmp_path).free // size)


def linear(**changes: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(40, 40)
    layer.load_state_dict(layer.state_dict() | changes)
    return layer


def test_the_fingerprint_differs_between_encoders_and_is_reproducible():
    first = fingerprint_of({"text_encoder": linear()}, PROBE)
    assert fingerprint_of({"text_encoder": linear()}, PROBE) == first
    others = [
        fingerprint_of({"text_encoder": linear(weight=torch.ones(40, 40))}, PROBE),
        fingerprint_of({"text_encoder": linear().bfloat16()}, PROBE),
        fingerprint_of({"text_encoder_2": linear()}, PROBE),
        fingerprint_of({"text_encoder": linear()}, {"sequence": torch.ones(1, 3)}),
        fingerprint_of({"text_encoder": linear()}, {"pooled": torch.ones(1, 2)}),
    ]
    assert len({first, *others}) == 6


def test_the_folder_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DIRECTALIGN_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "embeddings"
    monkeypatch.delenv("DIRECTALIGN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "directalign" / "embeddings"
