"""DPO's update by hand, in float64: how much less each image of a pair is denoised wrongly."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from directalign.diffusion.noise_levels import UniformSampler
from directalign.diffusion.rng import FRESH_NOISE, NOISE_LEVEL, draw_noise, generator_for
from directalign.types import Batch, DirectAlignError
from methods import by_hand
from methods.by_hand import CASES, GUIDANCE, PROMPTS, make, read
from methods.test_raft import WIDE, target_by_hand
from methods.toy import ToyDenoiser, ToyFamily, ToyReward

BETA = 30.0
IMAGES = torch.rand(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
BATCH = Batch(1, PROMPTS, IMAGES[0], 7, rejected=IMAGES[1])


def trained(family: ToyFamily, batch: Batch = BATCH):
    """The loss of a model that has moved since its method was made, and its gradient."""
    made = make("dpo", family, ToyReward(differentiable=False), beta=BETA)
    with torch.no_grad():
        family.denoiser.weight.add_(0.05)
        family.denoiser.bias.sub_(0.1)
    (term,) = read(made.losses(batch))
    return term, by_hand.gradient(family, term.value)


@pytest.mark.parametrize("path", CASES)
def test_it_lowers_the_error_of_the_chosen_image_against_the_base(path):
    family, base = ToyFamily(*path), ToyDenoiser().requires_grad_(False)
    term, ours = trained(family)
    noise = draw_noise((2, 4, 4, 4), generator_for(7, FRESH_NOISE, 1, 0, 0, 0)).double()
    drawn = UniformSampler(0.96, 0.02, 0.02).draw(2, generator_for(7, NOISE_LEVEL, 1, 0, 0, 0))
    sigma = drawn + 0.02
    alpha = 1 - sigma if path[0] == "flow" else (1 - sigma**2).sqrt()

    def change(images: Tensor) -> Tensor:
        x0 = family.encode_image(images)
        x_t, target = alpha[WIDE] * x0 + sigma[WIDE] * noise, target_by_hand(path, x0, noise, sigma)
        errors = [
            (network(x_t, sigma, GUIDANCE) - target).square().mean((1, 2, 3))
            for network in (family.denoiser, base)
        ]
        return errors[0] - errors[1]

    margin = -BETA / 2 * (change(IMAGES[0]) - change(IMAGES[1]))
    expected = -(1 / (1 + (-margin).exp())).log().mean()
    assert float(term.value) == pytest.approx(float(expected), rel=1e-6)  # noise in float32
    torch.testing.assert_close(ours, by_hand.gradient(family, expected), rtol=1e-4, atol=1e-6)
    assert term.levels["margin"] == pytest.approx(margin.tolist(), rel=1e-5)
    assert term.metrics["agreement"] == float((margin > 0).double().mean())


def test_two_processes_take_the_halves_of_one():
    halves = [
        Batch(1, PROMPTS[i : i + 1], IMAGES[0, i : i + 1], 7, i, 2, rejected=IMAGES[1, i : i + 1])
        for i in range(2)
    ]
    whole, *parts = (trained(ToyFamily(), batch)[1] for batch in (BATCH, *halves))
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-6, atol=1e-9)


def test_at_the_base_nothing_is_preferred_and_what_has_no_pairs_is_refused():
    made = make("dpo", ToyFamily(), beta=BETA)
    (term,) = read(made.losses(BATCH))
    assert float(term.value.detach()) == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-7)
    with pytest.raises(DirectAlignError, match=r"trains on preference pairs: set data\.pairs"):
        list(made.losses(replace(BATCH, rejected=None)))
    with pytest.raises(ValueError, match="margin belongs to a hinge"):
        make("dpo", margin=0.5)
