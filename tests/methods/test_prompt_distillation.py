"""The base model's asked prediction as a target, on a model of a few numbers, in float64."""

import pytest
import torch

from directalign.config import PromptDistillationConfig, RolloutConfig, SRPOConfig
from directalign.methods.base_target import BaseTarget
from directalign.methods.prompt_distillation import PromptDistillation
from directalign.methods.srpo import SRPO
from directalign.types import Batch, Conditioning
from methods.by_hand import CASES, PROMPTS, read
from methods.toy import ToyFamily, ToyReward

PHRASES = {"positive": ["Photo", "Real"], "negative": ["Render"]}
ROLLOUT = RolloutConfig(num_inference_steps=2)
GUIDED = {"guidance": 3.0, "against": "negative", "guidance_below": 0.6}
SHIFT = {"Photo": 0.3, "Real": -0.2, "Render": 0.7}


class Obedient(ToyFamily):
    """The first word of a prompt shifts the prediction."""

    def encode_prompt(self, prompts):
        shift = [SHIFT.get(prompt.partition(". ")[0], 0.0) for prompt in prompts]
        return Conditioning(tuple(prompts), {"shift": torch.tensor(shift, dtype=torch.float64)})

    def predict(self, x_t, sigma, cond):
        return super().predict(x_t, sigma, cond) + cond.tensors["shift"][:, None, None, None]


def distillation(family, **settings):
    given = {"control_phrases": PHRASES, **settings}
    chosen = PromptDistillationConfig.model_validate(given)
    return PromptDistillation(family, ToyReward(differentiable=False), chosen, ROLLOUT)


@pytest.mark.parametrize(("order", "step", "expected"), [
    ("cycle", 0, 0.3), ("cycle", 1, -0.2), ("fixed", 1, 0.3), ("average", 5, 0.05),
])  # fmt: skip
def test_the_target_is_the_asked_prediction_guided_at_low_noise(order, step, expected):
    settings = {"control_phrases": PHRASES | {"order": order}, "asked": GUIDED}
    family, chosen = Obedient(), PromptDistillationConfig.model_validate(settings)
    target = BaseTarget(family, chosen.control_phrases, chosen.asked)
    x_t, sigma = torch.ones(2, 4, 4, 4, dtype=torch.float64), torch.tensor([0.5, 0.9]).double()
    cond = family.encode_prompt(PROMPTS)
    with torch.no_grad():
        plain = family.predict(x_t, sigma, cond)
        family.denoiser.bias += 1.0  # training moves the model, not the target
    found = target(step, cond, x_t, sigma) - plain
    assert (found[0] - (expected + 2 * (expected - 0.7))).abs().max() < 1e-12
    assert (found[1] - expected).abs().max() < 1e-12


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_the_loss_falls_to_zero_where_the_network_does_unasked_what_its_base_does(path, prediction):
    family = Obedient(path, prediction)
    method = distillation(family, control_phrases={"positive": ["Photo"]})
    (first,) = read(method.losses(Batch(0, PROMPTS)))
    assert float(first.value) == pytest.approx(0.3**2) and first.branch == "distillation"
    SHIFT[PROMPTS[0]] = 0.3  # as trained, for one of the two prompts
    try:
        (second,) = read(method.losses(Batch(0, PROMPTS)))
    finally:
        del SHIFT[PROMPTS[0]]
    assert second.levels["kl"] == [pytest.approx(0, abs=1e-20), pytest.approx(0.3**2)]


def test_the_kl_of_another_method_may_have_this_centre():
    values = []
    for kl in ({}, {"kl_beta": 0.5}, {"kl_beta": 0.5, "kl_to": "base_with_phrases"}):
        settings = {"control_phrases": PHRASES, "branches": "denoise", **kl}
        srpo = SRPO(Obedient(), ToyReward(), SRPOConfig.model_validate(settings), ROLLOUT)
        (loss,) = read(srpo.losses(Batch(0, PROMPTS)))
        values.append(float(loss.value))
    assert values[1] == values[0] and values[2] == pytest.approx(values[0] + 0.5 * 0.3**2)


@pytest.mark.parametrize(("settings", "message"), [
    ({"control_phrases": {}}, "control_phrases.positive: the base model is asked with them"),
    ({"asked": GUIDED, "control_phrases": {"positive": ["a"]}}, "control_phrases.negative"),
    ({"control_phrases": {"positive": ["a.safetensors"]}}, "cannot read it: give text"),
    ({"margin": 0.5}, "margin belongs to a hinge"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        distillation(Obedient(), **settings)
    with pytest.raises(ValueError, match="asked is for kl_to: base_with_phrases"):
        SRPOConfig.model_validate({"control_phrases": PHRASES, "asked": GUIDED})
