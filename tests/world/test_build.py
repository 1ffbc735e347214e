"""Trainings of the assets at two steps each: they run, resume exactly and write what is shipped."""

import copy
import runpy
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from directalign.toyworld.worlds import WORLDS
from directalign.types import DirectAlignError
from tiny_world import short
from tools import build_toyworld as build
from tools.build_toyworld import autoencoder, denoisers, few_step, session, tokenizers
from tools.build_toyworld.spec import SPECS

STILL = session.Budget(steps=1, batch=4, learning_rate=0.0, weight_decay=0.0)


@pytest.fixture(scope="module", params=SPECS)
def spec(request):
    return short(request.param)


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
    flux = denoisers.train_flux(pool, tmp_path, spec, next(iter(spec.flux)))
    assert not equal(fresh, flux["transformer"].parameters())
    for name in spec.sd:
        for part in flux:
            flux[part].save_pretrained(tmp_path / name / part)
    epsilon = denoisers.train_sd(dict.fromkeys(spec.sd, pool), 0.1, tmp_path, spec)
    v = denoisers.train_sd_v(pool, 0.1, epsilon, tmp_path, spec)
    assert equal(epsilon["text_encoder"].parameters(), v["text_encoder"].parameters())
    assert not equal(epsilon["unet"].parameters(), v["unet"].parameters())


def test_image_and_noise_that_a_flux_expects_make_the_same_noised_latents(pool, spec, tmp_path):
    flux = denoisers.train_flux(pool, tmp_path, spec, next(iter(spec.flux)))
    tokens = tokenizers.clip_tokenizer(spec), tokenizers.t5_tokenizer(spec)
    generator = torch.Generator().manual_seed(0)
    x0, captions = pool.draw(3, generator)
    noise, alpha = torch.randn(x0.shape, generator=generator), torch.tensor([0.07, 0.5, 0.99])
    found = denoisers._expected(flux, tokens, x0, noise, alpha, captions)
    beta = (1 - alpha**2).sqrt()
    a, b = (each.view(3, 1, 1, 1) for each in (alpha, beta))
    assert torch.allclose(a * found[0] + b * found[1], a * x0 + b * noise, atol=1e-5)
    x_t, sigma = (a * x0 + b * noise) / (a + b), beta / (alpha + beta)
    packed = denoisers._velocity(flux, tokens, x_t, sigma, torch.ones(3), captions)
    velocity = denoisers._unpack(packed, x0.shape)
    assert torch.allclose(found[1] - found[0], velocity, atol=1e-5)


def test_a_few_step_lora_is_the_base_model_until_it_is_trained(tmp_path):
    spec = replace(short("world"), few_step=replace(STILL, steps=0))
    modules = {"transformer": denoisers.flux_transformer(spec)}
    clip, t5 = tokenizers.clip_tokenizer(spec), tokenizers.t5_tokenizer(spec)
    modules["text_encoder"] = denoisers.clip_text_encoder(clip)
    modules["text_encoder_2"] = denoisers.t5_text_encoder(t5)
    for name, steps in {"still": 0, "trained": 2}.items():
        base = torch.nn.ModuleDict(copy.deepcopy(modules))
        budget = replace(STILL, steps=steps, learning_rate=1e-3)
        few_step.train_few_step(base, tmp_path / name, replace(spec, few_step=budget))
        (file,) = (tmp_path / name / few_step.NAME).glob("*.safetensors")
        up = [each for key, each in load_file(file).items() if key.endswith("lora_B.weight")]
        assert up and any(bool(each.any()) for each in up) is (steps > 0)


def equal(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_autoencoder_trains_and_scales_its_latents(spec, tmp_path, monkeypatch):
    few = autoencoder.image_pool(spec)[:128]
    monkeypatch.setattr(autoencoder, "image_pool", lambda spec: few)
    vae = autoencoder.train_autoencoder(tmp_path, spec)
    with torch.no_grad():
        latents = vae.encode(few.float() / 127.5 - 1).latent_dist.mean
    scaled = (latents - vae.config["shift_factor"]) * vae.config["scaling_factor"]
    assert abs(scaled.mean()) < 0.1 and abs(scaled.std() - 1) < 0.1


def test_tokenizers_are_the_same_at_every_build_and_as_shipped(spec):
    first, second = tokenizers.clip_tokenizer(spec), tokenizers.clip_tokenizer(spec)
    assert first.get_vocab() == second.get_vocab()
    kept = spec.world.assets / "clip_tokenizer"
    shipped = type(first).from_pretrained(kept) if kept.exists() else second
    assert first.get_vocab() == shipped.get_vocab()
    for phrase in tokenizers.phrases(spec):
        assert len(first(phrase).input_ids) <= tokenizers.MAX_TOKENS
        assert first(phrase).input_ids == shipped(phrase).input_ids


def test_only_true_words_say_what_is_drawn():
    world = WORLDS["world2"]
    for name, is_true in {"flux_promptable": True, "flux": False}.items():
        captioned = replace(SPECS["world2"].flux[name][0], count=512)
        images, captions = denoisers._scenes(
            world, captioned, 512, torch.Generator().manual_seed(1)
        )
        assert captions.count("") / 512 == pytest.approx(0.1, abs=0.04)
        named = [i for i, text in enumerate(captions) if ". " in text]
        assert len(named) / 512 == pytest.approx(captioned.words, abs=0.06)
        photos = [i for i in named if captions[i].startswith(world.scenes.STYLE_WORDS["photo"])]
        muted = images[photos].std(1).mean((1, 2)) < images.std(1).mean()
        assert (float(muted.float().mean()) > 0.8) is is_true


def test_each_flux_training_continues_the_one_before(tmp_path):
    spec, pool = short("world2"), denoisers.LatentPool(torch.randn(8, 8, 16, 16), ["a fox"] * 8)
    first = denoisers.train_flux(pool, tmp_path, spec, "flux_promptable")
    still = replace(spec, flux={"flux": (spec.flux["flux"][0], STILL)})
    second = denoisers.train_flux(pool, tmp_path, still, "flux", first)
    assert equal(first.parameters(), second.parameters())


def test_words_are_unlearned_by_the_text_encoders_alone(tmp_path):
    spec = short("world2")
    flux = denoisers.LatentPool(torch.randn(8, 8, 16, 16), ["a fox"] * 8)
    first = denoisers.train_flux(flux, tmp_path, spec, "flux_promptable")
    last = denoisers.train_flux(flux, tmp_path, spec, "flux", first)
    assert equal(first["transformer"].parameters(), last["transformer"].parameters())
    for name in ("text_encoder", "text_encoder_2"):
        assert not equal(first[name].parameters(), last[name].parameters())


def test_the_command_builds_the_whole_second_world_and_a_second_call_trains_nothing(
    tiny_assets, tmp_path, monkeypatch, capsys
):
    state = tiny_assets.parent / "state"
    monkeypatch.setitem(
        SPECS, "world2", replace(short("world2"), world=replace(WORLDS["world2"], assets=tmp_path))
    )
    monkeypatch.setattr(sys, "argv", ["build_toyworld", str(state), "--world", "world2"])
    runpy.run_module("tools.build_toyworld", run_name="__main__")
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(
        path.relative_to(tiny_assets) for path in tiny_assets.rglob("*") if path.is_file()
    )
    assert all(
        (tmp_path / file).read_bytes() == (tiny_assets / file).read_bytes() for file in files
    )
    assert "step" not in capsys.readouterr().out.replace("continues at step 2 of 2", "")


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(DirectAlignError, match="'vae'"):
        build.build_world(tmp_path, only=["vae"])
