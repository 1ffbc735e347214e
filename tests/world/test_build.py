"""Trainings of the assets at two steps each: they run, resume exactly and write what is shipped."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from directalign.toyworld import assets
from directalign.types import DirectAlignError
from tools import build_toyworld as build
from tools.build_toyworld import autoencoder, denoisers, session, tokenizers
from tools.build_toyworld.spec import SPECS, Spec

TWO_STEPS = session.Budget(steps=2, batch=4, learning_rate=1e-3, warmup=1)


def short(spec: Spec) -> Spec:
    """Every training in two steps."""
    names = ("autoencoder", "flux", "sd", "sd_v", "reward")
    judges = dict.fromkeys(spec.judges, TWO_STEPS)
    return replace(spec, latents=256, judges=judges, **dict.fromkeys(names, TWO_STEPS))


@pytest.fixture(scope="module", params=SPECS)
def spec(request):
    return short(SPECS[request.param])


@pytest.fixture(scope="module")
def pool(spec, tmp_path_factory):
    vae = autoencoder.new_autoencoder(spec)
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.1)
    return denoisers.latent_pool(vae, tmp_path_factory.mktemp("pool"), spec)


def test_a_broken_off_training_ends_at_the_same_bits(tmp_path, monkeypatch):
    budget = session.Budget(steps=6, batch=8, learning_rate=0.1, warmup=2)

    def train(folder: Path, stop_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Linear(3, 1)

        def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return net(torch.randn(8, 3, generator=generator)).square().mean()

        session.fit("line", net, loss_of, budget, folder, log=lambda _: None)
        return net.weight.detach().clone()

    whole = train(tmp_path / "whole")
    monkeypatch.setattr(session, "STATE_EVERY_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_at=4)
    assert torch.equal(train(tmp_path / "broken"), whole)


def test_the_denoisers_train(pool, spec, tmp_path):
    fresh = denoisers.flux_transformer(spec).parameters()
    flux = denoisers.train_flux(pool, tmp_path, spec)
    assert not equal(fresh, flux["transformer"].parameters())
    epsilon = denoisers.train_sd(pool, tmp_path, spec)
    v = denoisers.train_sd_v(pool, epsilon, tmp_path, spec)
    assert equal(epsilon["text_encoder"].parameters(), v["text_encoder"].parameters())
    assert not equal(epsilon["unet"].parameters(), v["unet"].parameters())


def equal(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_autoencoder_trains_and_scales_its_latents(spec, tmp_path, monkeypatch):
    few = autoencoder.image_pool(spec, 256)[:128]
    monkeypatch.setattr(autoencoder, "image_pool", lambda spec: few)
    vae = autoencoder.train_autoencoder(tmp_path, spec)
    with torch.no_grad():
        latents = vae.encode(few.float() / 127.5 - 1).latent_dist.mean
    scaled = (latents - vae.config["shift_factor"]) * vae.config["scaling_factor"]
    assert abs(scaled.mean()) < 0.1 and abs(scaled.std() - 1) < 0.1


def test_tokenizers_are_the_same_at_every_build_and_as_shipped(spec):
    first, second = tokenizers.clip_tokenizer(spec), tokenizers.clip_tokenizer(spec)
    shipped = type(first).from_pretrained(assets.file(spec.world, "clip_tokenizer"))
    assert first.get_vocab() == second.get_vocab() == shipped.get_vocab()
    for phrase in tokenizers.phrases(spec):
        assert len(first(phrase).input_ids) <= tokenizers.MAX_TOKENS
        assert first(phrase).input_ids == shipped(phrase).input_ids


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(DirectAlignError, match="'vae'"):
        build.build_world(tmp_path, only=["vae"])
