"""RAFT's update by hand, in float64: the best of each prompt, and the pre-training loss on it."""

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

COUNT = 3
BATCH = Batch(1, PROMPTS, seed=7)
WIDE = (slice(None), None, None, None)


class Counting(ToyFamily):
    """Keeps how many images are decoded at once."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.decoded: list[int] = []

    def decode(self, x0):
        self.decoded.append(len(x0))
        return super().decode(x0)


def rewards(images: Tensor, form: str) -> Tensor:
    """Of update 1, whose positive phrase is the second one, of three images per prompt."""
    texts = [prompt for prompt in PROMPTS for _ in range(COUNT)]
    pos, neg, plain = (
        ToyReward().score(images.mean((2, 3)), [f"{phrase}{text}" for text in texts])
        for phrase in ("Real. ", "Render. ", "")
    )
    if form == "absolute":
        return pos
    return pos - neg - ((plain - plain.mean()) ** 2 / 0.1 if form == "anchored" else 0)


def best_by_hand(family: ToyFamily, form: str) -> tuple[Tensor, list[float]]:
    noise = draw_noise((6, 4, 4, 4), generator_for(7, NOISE, 1, 0, 0, 0)).double()
    with torch.no_grad():
        x0 = by_hand.walk(family, noise, by_hand.levels(family))
    found = rewards(by_hand.images_of(family, x0), form).tolist()
    kept = [max(range(row, row + COUNT), key=found.__getitem__) for row in (0, COUNT)]
    return torch.stack([x0[row] for row in kept]), [found[row] for row in kept]


def target_by_hand(path: tuple[str, str], x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    if path[1] == "velocity":
        return noise - x0
    alpha = (1 - sigma**2).sqrt()
    return noise if path[1] == "epsilon" else alpha[WIDE] * noise - sigma[WIDE] * x0


@pytest.mark.parametrize("form", ["absolute", "relative", "anchored"])
@pytest.mark.parametrize("path", CASES)
def test_it_fits_the_best_image_of_each_prompt_with_the_pretraining_loss(path, form):
    family = Counting(*path)
    settings = {"form": form, "control_phrases": PHRASES, "candidates": COUNT}
    reward = ToyReward(differentiable=False)
    (term,) = read(make("raft", family, reward, **settings).losses(BATCH))
    assert family.decoded == [2] * COUNT and {len(each) for each in reward.images} == {2}

    x0, best = best_by_hand(family, form)
    noise = draw_noise((2, 4, 4, 4), generator_for(7, FRESH_NOISE, 1, 0, 0, 0)).double()
    drawn = UniformSampler(0.96, 0.02, 0.02).draw(2, generator_for(7, NOISE_LEVEL, 1, 0, 0, 0))
    sigma = drawn + 0.02
    alpha = 1 - sigma if path[0] == "flow" else (1 - sigma**2).sqrt()
    pred = family.denoiser(alpha[WIDE] * x0 + sigma[WIDE] * noise, sigma, GUIDANCE)
    expected = (pred - target_by_hand(path, x0, noise, sigma)).square().mean()
    assert float(term.value) == pytest.approx(float(expected), rel=1e-7)  # noise in float32
    ours, theirs = (by_hand.gradient(family, value) for value in (term.value, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert term.levels["reward"] == pytest.approx(best, rel=1e-6)
    assert term.metrics["best_reward"] == pytest.approx(sum(best) / 2, rel=1e-6)
    assert term.metrics["best_reward"] > term.metrics["reward"]


def test_two_processes_take_the_halves_of_one():
    settings = {"form": "relative", "control_phrases": PHRASES, "candidates": COUNT}
    family = ToyFamily()
    whole, *halves = (
        by_hand.gradients(make("raft", family, **settings), batch)[0]
        for batch in (
            BATCH,
            Batch(1, PROMPTS[:1], seed=7, offset=0, global_size=2),
            Batch(1, PROMPTS[1:], seed=7, offset=1, global_size=2),
        )
    )
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-10, atol=1e-13)


def test_the_kl_is_that_of_the_same_call():
    settings = {"form": "relative", "control_phrases": PHRASES, "candidates": COUNT}
    family = ToyFamily()
    held = make("raft", family, kl_beta=0.5, **settings)
    with torch.no_grad():
        family.denoiser.bias += 0.1
    (plain,), (term,) = (
        read(method.losses(BATCH)) for method in (make("raft", family, **settings), held)
    )
    sigma = torch.tensor(term.levels["sigma"], dtype=torch.float64)
    x_t = torch.zeros(2, 4, 4, 4, dtype=torch.float64)  # the bias acts at every image alike
    moved = family.denoiser(x_t, sigma, GUIDANCE) - ToyDenoiser()(x_t, sigma, GUIDANCE)
    kl = moved.square().mean((1, 2, 3))
    assert term.levels["kl"] == pytest.approx(kl.tolist(), rel=1e-9)
    assert float(term.value) == pytest.approx(float(plain.value) + 0.5 * float(kl.mean()), rel=1e-9)


def test_a_reward_that_is_no_number_stops_the_run():
    class Broken(ToyReward):
        def score(self, features, prompts):
            return super().score(features, prompts) * torch.nan

    (term,) = make("raft", ToyFamily(), Broken()).losses(BATCH)
    assert not term.value.isfinite()


def test_what_cannot_rank_is_refused():
    for changes, message in (
        ({"candidates": 1}, "greater than or equal to 2"),
        ({"margin": 0.5}, "margin belongs to a hinge"),
    ):
        with pytest.raises(ValueError, match=message):
            make("raft", **changes)
