"""DiffusionNFT's update by hand, in float64: the old policy's samples, r, both squares in x0."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from directalign.diffusion.noise_levels import UniformSampler
from directalign.diffusion.rng import FRESH_NOISE, NOISE, NOISE_LEVEL, draw_noise, generator_for
from directalign.types import Batch
from methods import by_hand
from methods.by_hand import CASES, GUIDANCE, PHRASES, PROMPTS, make, read
from methods.toy import ToyDenoiser, ToyFamily, ToyReward

SIZE, BETA, CLIP, KL = 3, 0.4, 1.1, 0.5
SETTINGS: dict[str, Any] = {
    "control_phrases": PHRASES,
    "group_size": SIZE,
    "injections": 2,
    "beta": BETA,
    "advantage_clip": CLIP,
    "old_decay": 0.7,
    "old_decay_rise": 0.3,
    "kl_beta": KL,
}
WIDE = (slice(None), None, None, None)


def moved(family: ToyFamily, old: ToyDenoiser) -> None:
    """Train a bit; `old` follows as at update 1, by 0.7, its decay being 0.3."""
    with torch.no_grad():
        family.denoiser.weight.add_(0.05)
        family.denoiser.bias.sub_(0.1)
        for each, now in zip(old.parameters(), family.denoiser.parameters(), strict=True):
            each.requires_grad_(False).copy_(0.3 * each + 0.7 * now)


def advantages(images: Tensor, form: str) -> Tensor:
    """Clipped, of update 1, whose positive phrase is the second one."""
    texts = [prompt for prompt in PROMPTS for _ in range(SIZE)]
    pos, neg = (
        ToyReward().score(images.mean((2, 3)), [f"{phrase}{text}" for text in texts])
        for phrase in ("Real. ", "Render. ")
    )
    groups = (pos if form == "absolute" else pos - neg).view(2, SIZE)
    std = groups.std(1, correction=0, keepdim=True) + 1e-6  # as in GRPO, for equal rewards
    found = (groups - groups.mean(1, keepdim=True)) / std
    return found.flatten().clamp(-CLIP, CLIP)


def x0_of(path: tuple[str, str], pred: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
    if path[1] == "velocity":
        return x_t - sigma[WIDE] * pred
    alpha = (1 - sigma**2).sqrt()[WIDE]
    return (
        (x_t - sigma[WIDE] * pred) / alpha
        if path[1] == "epsilon"
        else (alpha * x_t - sigma[WIDE] * pred)
    )


def old_samples(family: ToyFamily, old: ToyDenoiser, form: str) -> tuple[Tensor, Tensor]:
    """x0 (6, c, h, w) that the old policy makes in update 1, and the advantages."""
    sampler = copy.copy(family)
    sampler.denoiser = old
    noise = draw_noise((6, 4, 4, 4), generator_for(7, NOISE, 1, 0, 0, 0)).double()
    with torch.no_grad():
        x0 = by_hand.walk(sampler, noise, by_hand.levels(family))
    return x0, advantages(by_hand.images_of(family, x0), form)


def injected(path: tuple[str, str], x0: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(noise, sigma, x_t) of both injections of update 1."""
    for index in range(2):
        noise = draw_noise((6, 4, 4, 4), generator_for(7, FRESH_NOISE, 1, 0, index, 0)).double()
        generator = generator_for(7, NOISE_LEVEL, 1, 0, index, 0)
        sigma = UniformSampler(0.96, 0.02, 0.02).draw(6, generator) + 0.02
        alpha = 1 - sigma if path[0] == "flow" else (1 - sigma**2).sqrt()
        yield noise, sigma, alpha[WIDE] * x0 + sigma[WIDE] * noise


def expected(family: ToyFamily, old: ToyDenoiser, path: tuple[str, str], form: str) -> Tensor:
    """The mean loss over 2 injections of 6 samples of update 1."""
    x0, advantage = old_samples(family, old, form)
    r, losses = 0.5 + advantage / CLIP / 2, []
    for _, sigma, x_t in injected(path, x0):
        v, v_old, base = (
            each(x_t, sigma, GUIDANCE) for each in (family.denoiser, old, ToyDenoiser())
        )
        policies = (1 - BETA) * v_old + BETA * v, (1 + BETA) * v_old - BETA * v
        squares = []
        for policy in policies:
            error = x0_of(path, policy, x_t, sigma) - x0
            squares.append((error**2).mean((1, 2, 3)) / error.abs().mean((1, 2, 3)).detach())
        loss = CLIP / BETA * (r * squares[0] + (1 - r) * squares[1])
        losses.append(loss + KL * ((v - base) ** 2).mean((1, 2, 3)))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("form", ["absolute", "relative"])
@pytest.mark.parametrize("path", CASES)
def test_it_contrasts_the_implicit_policies_around_the_old_one(path, form):
    family, reward = ToyFamily(*path), ToyReward(differentiable=False)
    made = make("diffusion_nft", family, reward, form=form, **SETTINGS)
    list(made.losses(Batch(0, PROMPTS, seed=7)))
    moved(family, old := ToyDenoiser())
    terms = list(read(made.losses(Batch(1, PROMPTS, seed=7))))
    assert len(terms) == 2 * SIZE and {len(each) for each in reward.images} == {2}
    wanted = expected(family, old, path, form)
    value = sum((term.value for term in terms), torch.zeros(()))
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)  # noise in float32
    ours, theirs = (by_hand.gradient(family, each) for each in (value, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_on_policy_the_gradient_weighs_by_the_advantage_whatever_beta_is():
    """v_old = v needs no copy; then r·(v − target)² − (1 − r)·(v − target)² is left."""
    found = []
    for beta in (0.1, 1.0):
        family = ToyFamily()
        settings = {**SETTINGS, "beta": beta, "old_decay": 0.0, "kl_beta": 0.0}
        made = make("diffusion_nft", family, **settings)
        assert not made.own_weights()
        found.append(sum(by_hand.gradients(made, Batch(0, PROMPTS, seed=7))))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert found[0].abs().max() > 0


def test_two_processes_take_the_halves_of_one():
    whole, *halves = (
        sum(by_hand.gradients(make("diffusion_nft", ToyFamily(), **SETTINGS), batch))
        for batch in (
            Batch(1, PROMPTS, seed=7),
            Batch(1, PROMPTS[:1], seed=7, offset=0, global_size=2),
            Batch(1, PROMPTS[1:], seed=7, offset=1, global_size=2),
        )
    )
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-10, atol=1e-13)


def test_the_old_policy_follows_once_per_update_and_after_a_failed_one():
    """Accumulated batches share an update; a state taken before a failure fits what it changed."""
    family = ToyFamily()
    made = make("diffusion_nft", family, **SETTINGS)
    halves = [Batch(1, PROMPTS[i : i + 1], None, 7, i, 2) for i in range(2)]
    list(made.losses(Batch(0, PROMPTS, seed=7)))
    moved(family, ToyDenoiser())
    before = dict(made.state_dict())
    values = [loss.value for half in halves for loss in made.losses(half)]
    made.load_state_dict(before)
    again = [loss.value for half in halves for loss in made.losses(half)]
    assert values and all(map(torch.equal, values, again))


def test_what_it_cannot_train_on_is_refused():
    class Broken(ToyReward):
        def score(self, features, prompts):
            return super().score(features, prompts) * torch.nan

    terms = make("diffusion_nft", ToyFamily(), Broken(), **SETTINGS).losses(Batch(0, PROMPTS))
    assert not any(term.value.isfinite() for term in terms)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"group_size": 1}, "greater than or equal to 2"),
        ({"margin": 0.5}, "margin belongs to a hinge"),
        ({"old_decay": 1.0}, "less than 1"),
    ]
    for changes, message in refused:
        with pytest.raises(ValueError, match=message):
            make("diffusion_nft", **changes)
