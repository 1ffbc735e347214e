"""The trust region of SRPO on a family of a few numbers, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from directalign.config import RolloutConfig
from directalign.config import SRPOConfig as Settings
from directalign.methods.srpo import SRPO
from directalign.types import Batch, Conditioning, Latents, LossTerm, PerSample
from methods.toy import ToyDenoiser, ToyFamily, ToyReward

WORDS = {"positive": ["Photo"], "negative": ["Render"]}
PROMPTS = ("a red star", "a blue ring")
FORMS = ("absolute", "relative", "anchored")
WEIGHT = 0.7


def method(family: ToyFamily, weight: float | None = WEIGHT, **settings: Any) -> SRPO:
    chosen = {
        "control_phrases": WORDS,
        "noise": {"source": "fresh"},
        "kl_beta": weight or 0.0,
        **settings,
    }
    return SRPO(
        family,
        ToyReward(),
        Settings.model_validate(chosen),
        RolloutConfig(num_inference_steps=3, embedded_guidance=1.0),
    )


def images() -> Tensor:
    """Real ones: their latents do not depend on the weights, as those of a rollout do."""
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def moved(family: ToyFamily) -> None:
    """As if it had been trained for a while."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in family.denoiser.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )


def losses(srpo: SRPO, step: int = 0) -> list[LossTerm]:
    return list(srpo.losses(Batch(step, PROMPTS, images(), seed=3)))


def gradient(family: ToyFamily, found: list[LossTerm]) -> list[Tensor]:
    return list(
        torch.autograd.grad(sum(loss.value for loss in found), list(family.denoiser.parameters()))
    )


@pytest.mark.parametrize("form", FORMS)
def test_it_is_nothing_at_the_base_weights(form: str) -> None:
    family = ToyFamily()
    held, free = losses(method(family, form=form)), losses(method(family, None, form=form))
    assert all(loss.metrics["kl"] == 0 and loss.levels["kl"] == [0, 0] for loss in held)
    assert [loss.value.item() for loss in held] == [loss.value.item() for loss in free]
    for ours, theirs in zip(gradient(family, held), gradient(family, free), strict=True):
        assert ours.equal(theirs)


class Watching(ToyFamily):
    """Keeps what the network was shown under whatever weights."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[Tensor, Tensor, bool]] = []

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        pred = super().predict(x_t, sigma, cond)
        self.shown.append((x_t.detach(), sigma, pred.requires_grad))
        return pred


@pytest.mark.parametrize("form", FORMS)
def test_it_adds_weight_times_the_mean_square_to_every_loss(form: str) -> None:
    """Two branches of two injections, each at its own x_t and truncated level; the discount is on
    the reward alone."""
    settings = {
        "form": form,
        "branches": "both",
        "injections": 2,
        "discount_shift": 3.0,
        "truncate_timestep": 100,
        "embedded_guidance": 3.5,
    }
    family = Watching()
    srpo, free = method(family, **settings), method(family, None, **settings)
    moved(family)
    found = losses(srpo)
    shown = family.shown.copy()
    assert [with_gradient for _, _, with_gradient in shown] == [False, True] * 4
    base = ToyDenoiser()
    for loss, plain, (x_t, sigma, _), (at, level, _) in zip(
        found, losses(free), shown[::2], shown[1::2], strict=True
    ):
        assert x_t.equal(at) and sigma.equal(level)
        away = [network(x_t.double(), sigma, 3.5).detach() for network in (family.denoiser, base)]
        by_hand = (away[0] - away[1]).square().flatten(1).mean(1)
        assert loss.levels["kl"] == pytest.approx(by_hand.tolist()) and loss.metrics[
            "kl"
        ] == pytest.approx(float(by_hand.mean()))
        assert (loss.value - plain.value).item() == pytest.approx(
            WEIGHT * float(by_hand.mean()) / 2
        )
        assert (
            loss.metrics["reward"] == plain.metrics["reward"]
            and loss.levels["reward"] == plain.levels["reward"]
        )


def test_its_gradient_is_the_slope() -> None:
    family = ToyFamily()
    srpo = method(family, form="absolute", branches="both")
    moved(family)
    parameters = list(family.denoiser.parameters())
    ours = gradient(family, losses(srpo))
    generator, step = torch.Generator().manual_seed(0), 1e-6
    for _ in range(3):
        along = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        ends = []
        for stride in (step, -2 * step):
            shift(parameters, along, stride)
            ends.append(sum(float(loss.value.detach()) for loss in losses(srpo)))
        shift(parameters, along, step)
        expected = sum(float((g * a).sum()) for g, a in zip(ours, along, strict=True))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def shift(parameters: list[Tensor], along: list[Tensor], stride: float) -> None:
    for parameter, direction in zip(parameters, along, strict=True):
        parameter += stride * direction


def test_it_pulls_back_what_the_reward_does_not_ask_for() -> None:
    """The weight outdoes the reward: the prediction goes back to the base model's."""
    family = ToyFamily()
    srpo = method(family, 1e3, form="absolute", control_phrases={})
    moved(family)
    optimizer = torch.optim.SGD(family.denoiser.parameters(), lr=1e-4)
    away = []
    for step in range(20):
        optimizer.zero_grad()
        found = losses(srpo, step)
        for loss in found:
            loss.value.backward()
        optimizer.step()
        away.append(found[0].metrics["kl"])
    assert away[-1] < away[0] / 4


def test_a_rollout_is_still_paid_once_and_the_base_is_asked_once_for_each_loss() -> None:
    family = ToyFamily()
    list(method(family, branches="both", injections=2).losses(Batch(0, PROMPTS)))
    assert len(family.calls) == 3 + 2 * 4


@pytest.mark.parametrize(("weight", "kept"), [(None, False), (0.5, True)])
def test_a_base_is_kept_only_if_it_is_asked(weight: float | None, kept: bool) -> None:
    assert (method(ToyFamily(), weight).base is not None) == kept


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Settings.model_validate({"form": "absolute", "kl_beta": -1})
