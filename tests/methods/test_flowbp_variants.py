"""FlowBP-Bridge and -Lagrange against their surrogates, differentiated numerically in float64."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from directalign import config
from directalign.diffusion import sampling
from directalign.methods.flowbp import quadrature
from directalign.types import Batch, DirectAlignError
from methods import by_hand
from methods.by_hand import CASES, GUIDANCE, PROMPTS, make, predict, read, take
from methods.toy import ToyFamily, ToyReward

COUNT = 8
ROLLOUT = config.RolloutConfig(num_inference_steps=COUNT, embedded_guidance=GUIDANCE)
BATCHES = [Batch(step, PROMPTS, seed=7) for step in range(2000)]


@pytest.fixture(autouse=True)
def float64_noise(monkeypatch):
    drawn = sampling.batch_noise
    monkeypatch.setattr(sampling, "batch_noise", lambda *given: drawn(*given).double())


@torch.no_grad()
def path_of(family: ToyFamily, batch: Batch) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """(levels, states, predictions) of the rollout."""
    sigmas, states, cached = by_hand.levels(family, COUNT), [by_hand.batch_noise(batch)], []
    for high, low in pairwise(sigmas):
        cached.append(predict(family, states[-1], high))
        states.append(take(family, states[-1], cached[-1], high, low))
    return sigmas, states, cached


def lengths(family: ToyFamily) -> list[float]:
    """|d x0 / d pred| of each step with held inputs, by moving one prediction."""
    sigmas, found = by_hand.levels(family, COUNT), []
    for place in range(COUNT):
        ends = []
        for shift in (0.0, 1.0):
            x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
            for index in range(COUNT):
                pred = torch.full_like(x, shift if index == place else 0.0)
                x = take(family, x, pred, sigmas[index], sigmas[index + 1])
            ends.append(float(x))
        found.append(abs(ends[1] - ends[0]))
    return found


@pytest.mark.parametrize("path", CASES)
@pytest.mark.parametrize(("rescale", "nested"), [(0.0, 0.0), (1.0, 0.1), (0.5, 1.0)])
def test_the_bridge_passes_gradient_along_the_path_and_into_the_call_at_it(path, rescale, nested):
    family, reward = ToyFamily(*path), ToyReward()
    settings = {"variant": "bridge", "trained_steps": 4, "rescale": rescale}
    made = make("flowbp", family, reward, ROLLOUT, nested_scale=nested, **settings)

    def draw(batch: Batch) -> tuple[list[int], list[int]]:
        steps, bridge = made.bridges(batch)
        return steps.tolist(), bridge.tolist()

    alike = (each for each in BATCHES if draw(each)[0][0] == draw(each)[0][1])
    batch = next(each for each in alike if draw(each)[1][0] == draw(each)[1][1])
    (trained, _), (j, _) = draw(batch)
    sigmas, states, cached = path_of(family, batch)
    length = lengths(family)
    factor = 1 + rescale * (sum(length) / sum(length[index] for index in trained) - 1)

    def surrogate() -> Tensor:
        x = states[0]
        for index in range(COUNT):
            pred = cached[index]
            if index in trained:
                shift = nested * (x - states[j]) if index == j else 0.0
                own = predict(family, states[index] + shift, sigmas[index])
                pred = pred + factor * (own - pred)
            x = take(family, x, pred, sigmas[index], sigmas[index + 1])
        return by_hand.absolute_loss(family, x)

    graphs = by_hand.watch_gradients(family)
    (found,) = by_hand.gradients(made, batch)
    assert graphs == [False] * COUNT + [True] * 4
    image = by_hand.images_of(family, states[-1])
    torch.testing.assert_close(reward.images[0], image, rtol=1e-12, atol=1e-12)
    expected = by_hand.numerical_gradient(family, surrogate)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_both_sides_of_the_bridge_train_by_their_lengths_and_the_bridge_always():
    made = make("flowbp", None, None, ROLLOUT, variant="bridge", trained_steps=4, late_bias=0.0)
    bridges, before = Counter[int](), Counter[tuple[int, int]]()
    for batch in BATCHES:
        steps, bridge = made.bridges(batch)
        trained, j = steps[1].tolist(), int(bridge[1])
        assert trained == sorted(set(trained)) and len(trained) == 4 and j in trained
        bridges[j] += 1
        before[j, sum(index < j for index in trained)] += 1
    assert set(bridges) == set(range(1, COUNT)) and bridges[7] > 5 * bridges[1] > 0
    halves = {j: min(max(round(4 * j / COUNT), 1, 4 - (COUNT - j)), 3, j) for j in range(1, COUNT)}
    assert set(before) == set(halves.items())


def basis(levels: list[float], low: float, high: float) -> list[float]:
    """Integrals of the Lagrange polynomials from `high` down to `low`."""
    found = []
    for place, level in enumerate(levels):
        others = [each for index, each in enumerate(levels) if index != place]
        polynomial = Polynomial.fromroots(others) if others else Polynomial([1.0])
        whole = polynomial.integ() / polynomial(level)
        found.append(float(whole(low) - whole(high)))
    return found


@pytest.mark.parametrize(("rescale", "nested"), [(0.0, 0.0), (0.5, 0.1), (1.0, 1.0)])
def test_the_quadratures_are_those_of_the_polynomial_through_their_points(rescale, nested):
    family = ToyFamily()
    settings: dict[str, Any] = {"variant": "lagrange", "rescale": rescale, "nested_scale": nested}
    made = make("flowbp", family, ToyReward(), ROLLOUT, **settings)
    alike = (each for each in BATCHES if len(set(made.intervals(each))) == 1)
    batch = next(each for each in alike if made.intervals(each)[0][1] > 3)
    k, j = made.intervals(batch)[0]
    sigmas, states, cached = path_of(family, batch)
    parts, far = [], []
    for start, end in ((k, j), (j, COUNT)):
        spread = np.linspace(start, end - 1, min(3, end - start))
        points = sorted({round(float(each)) for each in spread})
        whole = basis([sigmas[each] for each in points], sigmas[end], sigmas[start])
        active = whole[:2]
        factor = 1 + rescale * (sum(map(abs, whole)) / sum(map(abs, active)) - 1)
        scaled = [factor * each * by for each, by in zip(active, (1, 0.25), strict=False)]
        parts.append(list(zip(points, scaled, strict=False)))
        ended = sum(weight * cached[each] for each, weight in zip(points, whole, strict=True))
        far.append((states[start] + ended - states[end]).abs().mean((1, 2, 3)))
    weight = 1 / (far[0].clamp(min=0.2) + far[1].clamp(min=0.2))

    def surrogate() -> Tensor:
        change = sum(w * (predict(family, states[i], sigmas[i]) - cached[i]) for i, w in parts[0])
        gained = change
        for index, w in parts[1]:
            shift = nested * change if index == j else 0.0
            gained = gained + w * (
                predict(family, states[index] + shift, sigmas[index]) - cached[index]
            )
        image = by_hand.images_of(family, states[-1] + gained)
        return -(weight * ToyReward().score(image.mean((2, 3)), PROMPTS)).mean()

    (loss,) = read(made.losses(batch))
    assert float(loss.value.detach()) == pytest.approx(float(surrogate().detach()), rel=1e-9)
    assert loss.metrics["distance_0"] == pytest.approx(float(far[1].mean()), rel=1e-9)
    found = by_hand.gradient(family, loss.value)
    expected = by_hand.numerical_gradient(family, surrogate)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_quadrature_is_exact_for_parabolas_and_a_euler_step_over_one_interval():
    sigmas = torch.linspace(1, 0, 9, dtype=torch.float64) ** 1.5
    for start, end in ((0, 3), (1, 8), (2, 7)):
        of = quadrature(sigmas, start, end)
        values = 2 - 3 * sigmas + 5 * sigmas**2
        low, high = float(sigmas[start]), float(sigmas[end])
        whole = Polynomial([2, -3, 5]).integ()
        assert of.points[0] == start and len(of.points) == 3
        found = float((of.weights * values[of.points]).sum())
        assert found == pytest.approx(float(whole(high) - whole(low)), rel=1e-10)
    one = quadrature(sigmas, 4, 5)
    assert one.points == [4] and float(one.weights) == pytest.approx(float(sigmas[5] - sigmas[4]))


def test_its_intervals_fit_the_rollout_and_leave_a_wide_gap():
    drawn = []
    for count in (3, 4, COUNT, 25):
        rollout = config.RolloutConfig(num_inference_steps=count)
        made = make("flowbp", None, None, rollout, variant="lagrange")
        drawn = [made.intervals(batch)[1] for batch in BATCHES]
        assert all(0 <= k < j < count for k, j in drawn)
    gap = sum(j - k for k, j in drawn) / len(drawn) / 25
    assert gap == pytest.approx(6 / 10.5, abs=0.03)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="trains on both sides of a state; give at least 2"):
        make("flowbp", variant="bridge", trained_steps=1)
    for path, steps, message in ((CASES[1], 8, "rectified flow"), (CASES[0], 2, "at least 3")):
        rollout = config.RolloutConfig(num_inference_steps=steps)
        with pytest.raises(DirectAlignError, match=message):
            made = {"variant": "lagrange", "trained_steps": 2}
            make("flowbp", ToyFamily(*path), ToyReward(), rollout, **made)
