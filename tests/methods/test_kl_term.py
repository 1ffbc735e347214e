"""The KL term of the methods without an injected call, against its formula in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from directalign.diffusion.rng import KL_NOISE, draw_noise, generator_for
from directalign.types import Batch, Conditioning
from methods import by_hand
from methods.by_hand import CASES, GUIDANCE, PHRASES, PROMPTS, make, read
from methods.toy import ToyDenoiser, ToyFamily, ToyReward

NAMES = ["refl", "draft", "alignprop", "drtune", "leapalign", "flowbp"]
BATCH = Batch(2, PROMPTS, seed=7)
KL_BETA = 0.7
SHIFT = {"Photo": 0.3, "Real": -0.2, "Render": 0.7}


class Watching(ToyFamily):
    """The first word of a prompt shifts the prediction; decoded and noised latents are kept."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.decoded: list[Tensor] = []
        self.noised: list[Tensor] = []

    def encode_prompt(self, prompts):
        shift = [SHIFT.get(prompt.partition(". ")[0], 0.0) for prompt in prompts]
        return Conditioning(tuple(prompts), {"shift": torch.tensor(shift, dtype=torch.float64)})

    def predict(self, x_t, sigma, cond):
        self.noised.append(x_t)
        return super().predict(x_t, sigma, cond) + cond.tensors["shift"][:, None, None, None]

    def decode(self, x0):
        self.decoded.append(x0.detach())
        return super().decode(x0)


def moved(family: ToyFamily) -> ToyFamily:
    """After some training, from the same base."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for weights in family.denoiser.parameters():
            drawn = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
            weights += 0.1 * drawn
    return family


def losses(name: str, family: ToyFamily, **settings: Any) -> list[tuple[Any, Tensor]]:
    """Each loss and its gradient."""
    made = make(name, family, ToyReward(), control_phrases=PHRASES, **settings)
    moved(family)
    return [
        (loss, by_hand.gradient(family, loss.value) if loss.value.requires_grad else None)
        for loss in read(made.losses(BATCH))
    ]


@pytest.mark.parametrize("path", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_the_term_is_the_distance_of_predictions_at_the_noised_final_image(name, path):
    family = Watching(*path)
    plain = losses(name, Watching(*path))
    *rewards, (term, gradient) = losses(name, family, kl_beta=KL_BETA)
    for (ours, its), (theirs, other) in zip(rewards, plain, strict=True):  # unchanged to the bit
        assert torch.equal(ours.value, theirs.value) and torch.equal(its, other)
    assert term.branch == "kl" and term.levels.keys() == {"sigma", "kl"}

    sigma = torch.tensor(term.levels["sigma"], dtype=torch.float64)
    assert len(set(sigma.tolist())) == 2 and 0.04 <= sigma.min() <= sigma.max() <= 0.98
    drawn = draw_noise((2, 4, 4, 4), generator_for(7, KL_NOISE, 2, 0, 0, 0)).double()
    alpha = 1 - sigma if path[0] == "flow" else (1 - sigma**2).sqrt()
    wide = (slice(None), None, None, None)
    x_t = alpha[wide] * family.decoded[-1] + sigma[wide] * drawn
    assert all(torch.allclose(each, x_t, atol=1e-6) for each in family.noised[-2:])
    x_t = family.noised[-1]
    base, own = ToyDenoiser()(x_t, sigma, GUIDANCE), family.denoiser(x_t, sigma, GUIDANCE)
    kl = (own - base.detach()).square().mean((1, 2, 3))
    assert term.levels["kl"] == pytest.approx(kl.tolist(), rel=1e-12)
    assert float(term.value) == pytest.approx(KL_BETA * float(kl.mean()), rel=1e-12)
    expected = by_hand.gradient(family, KL_BETA * kl.mean())
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_its_centre_may_be_the_base_asked_with_the_positive_phrases(name):
    settings = {"kl_beta": KL_BETA, "kl_to": "base_with_phrases", "asked": {"guidance": 2.0}}
    family = Watching()
    term, _ = losses(name, family, **settings)[-1]
    sigma, x_t = torch.tensor(term.levels["sigma"], dtype=torch.float64), family.noised[-1]
    target = ToyDenoiser()(x_t, sigma, GUIDANCE) + 2 * SHIFT["Photo"]
    own = family.denoiser(x_t, sigma, GUIDANCE)
    assert term.metrics["kl"] == pytest.approx(float((own - target).square().mean()), rel=1e-12)
