"""Embeddings on disk: found by content, whole or refused by name, one fingerprint per encoder."""

from shutil import disk_usage

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from directalign.models import text_encoder
from directalign.models.text_encoder import EmbeddingCache, default_folder, fingerprint_of
from directalign.types import DirectAlignError

TENSORS = {
    "sequence": torch.arange(6.0).reshape(1, 3, 2).bfloat16(),
    "mask": torch.tensor([[True, True, False]]),
    "pooled": torch.rand(1, 4),
}
PROBE = {"sequence": torch.ones(1, 2)}


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path, "f" * 64)


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key])
        for key in wanted
    )


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
