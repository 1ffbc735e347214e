"""FlowBP (arXiv 2606.11075): the gradient of the sampled image to a few repeated steps.

The paper: sample without gradient and store the states; call the network again, with gradient, at
a few of them; write x0 as a sum over steps, with new predictions there and cached ones elsewhere,
pinned to the sampled x0; scale the gradient by the length of all steps over that of the drawn ones.
Sparse draws K steps, later ones more often. Bridge draws a state x_j and steps on both its sides,
j always among them; the call at j receives a part of the gradient through its input. Lagrange
crosses from x_k to x_j and from there to x0 in one quadrature each, over the polynomial through
three cached predictions, of which the first two are repeated; a sample counts by how close both
came to the path.

Values are those of its released FLUX.1 configurations. Here: Sparse and Bridge for every path and
prediction type, a step's length being the size of d x0 / d pred along the chain (on a flow
|sigma_to − sigma_from|, the paper's), one draw per sample. Left out: Lagrange on other paths than
a flow, the other rules for drawing j and k, other quadratures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..config import FlowBPConfig, RolloutConfig
from ..device import to_device
from ..diffusion.path import expand_like
from ..diffusion.rng import STEPS, draw_rows, update_generator
from ..diffusion.sampling import (
    chain_coefficients,
    predict,
    sample_trajectory,
    states_at,
    step_coefficients,
)
from ..interfaces import Model, Reward
from ..types import Batch, DirectAlignError, Latents, LossTerm
from .objective import ObjectiveMethod
from .objective_math import hinge, similarity_weight

SHARES = (2.5, 6.0, 2.0)
"""Lagrange: Dirichlet weights of the lengths after j, from k to j and before k."""
ORDER, SECOND_SCALE, SIMILARITY_FLOOR = 3, 0.25, 0.2
"""Lagrange: points of a quadrature, the gradient's factor at the second one, and tau."""


@dataclass(frozen=True)
class Repeated:
    """The repeated steps (b, c) of each sample, rising, with d x0 / d pred, rescaled.

    `bridge` (b,) is the step that receives gradient through its input, −1 for none. `quadratures`
    are those of Lagrange, of both intervals of each sample.
    """

    steps: Int64[Tensor, "b c"]
    weights: Float[Tensor, "b c"]
    bridge: Int64[Tensor, " b"]
    quadratures: Sequence[tuple["Quadrature", "Quadrature"]] = ()


@dataclass(frozen=True)
class Quadrature:
    """∫ pred dsigma from step `start` to `end` as Σ weight·pred over `points`, the start first."""

    start: int
    end: int
    points: list[int]
    weights: Float[Tensor, " points"]


class FlowBP(ObjectiveMethod):
    """`losses(batch)` yields one loss, with the gradient of the repeated calls.

    Raises DirectAlignError for a rollout that the variant does not fit.
    """

    def __init__(
        self, model: Model, reward: Reward, settings: FlowBPConfig, rollout: RolloutConfig
    ) -> None:
        self.check(settings, rollout, model.path)
        super().__init__(model, reward, settings, rollout)

    @staticmethod
    def check(settings: FlowBPConfig, rollout: RolloutConfig, path: str) -> None:
        """Refuse a rollout too short to be divided, and quadratures off a flow."""
        fewest = {"sparse": 1, "bridge": 2, "lagrange": 3}[settings.variant]
        if rollout.num_inference_steps < fewest:
            raise DirectAlignError(
                f"rollout.num_inference_steps {rollout.num_inference_steps}: method.variant "
                f"{settings.variant} divides the rollout; give at least {fewest}"
            )
        if settings.variant == "lagrange" and path != "flow":
            raise DirectAlignError(
                "method.variant: lagrange integrates over sigma on rectified flow, and this model "
                "follows a DDPM schedule: set method.variant: sparse or bridge"
            )

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0 and all states before it; predict again at the drawn ones; reward; yield."""
        start = self.start(batch)
        repeated = self.repeated(batch, start.sigmas)
        states = sample_trajectory(self.model, start)
        x0, bridge, device = states[-1], repeated.bridge, states[-1].device
        onwards = self._onwards(start.sigmas)[bridge.clamp(min=0)]
        carried = torch.zeros_like(x0)  # zero, with the gradient that x_j carries
        for index, weight in zip(repeated.steps.T, repeated.weights.T, strict=True):
            # x0 keeps its value and gains the gradient of each prediction
            x_t, sigma = states_at(states, index), to_device(start.sigmas[index], device)
            if bool((index == bridge).any()):
                x_t = x_t + self.settings.nested_scale * _rows(carried, index == bridge)
            pred = predict(self.model, start.cond, x_t, sigma)
            gained = expand_like(weight, x0) * (pred - pred.detach())
            if bool((index < bridge).any()):
                carried = carried + _rows(gained / expand_like(onwards, x0), index < bridge)
            x0 = x0 + gained
        if repeated.quadratures:
            yield self._weighted_loss(x0, states, start.sigmas, repeated, batch)
        else:
            yield self.image_loss(x0, batch, "repeated_steps")
        yield from self.kl_losses(batch, x0, start.cond)

    def repeated(self, batch: Batch, sigmas: Float[Tensor, " levels"]) -> Repeated:
        """The draws of a batch."""
        if self.settings.variant == "lagrange":
            return self._quadratures(batch, sigmas)
        if self.settings.variant == "bridge":
            steps, bridge = self.bridges(batch)
        else:
            steps = self.steps(batch)
            bridge = torch.full((len(steps),), -1)
        return Repeated(steps, self.weights(sigmas, steps), bridge)

    def steps(self, batch: Batch) -> Int64[Tensor, "b k"]:
        """K different steps of each sample, rising; step i (0: from pure noise) has weight (i +
        1)^late_bias."""
        count = torch.arange(1, self.rollout.num_inference_steps + 1, dtype=torch.float64)
        weights, generator = count**self.settings.late_bias, update_generator(batch, STEPS)
        k = self.settings.trained_steps
        drawn = draw_rows(
            batch, lambda n: torch.multinomial(weights.expand(n, -1), k, generator=generator)
        )
        return drawn.sort(1).values

    def bridges(self, batch: Batch) -> tuple[Int64[Tensor, "b k"], Int64[Tensor, " b"]]:
        """(steps, j) of each sample: j is the later of two steps drawn uniformly; K steps, divided
        by the lengths of both sides, j among them, the others as in `steps` on each side."""
        count, generator = self.rollout.num_inference_steps, update_generator(batch, STEPS)
        draws = draw_rows(
            batch, lambda n: torch.rand((n, 2 * count), generator=generator, dtype=torch.float64)
        )
        bridge = draws[:, :count].argsort(1)[:, :2].amax(1)
        rows, total = [], min(self.settings.trained_steps, count)
        for j, draw in zip(bridge.tolist(), draws[:, count:], strict=True):
            least, most = max(1, total - (count - j)), min(j, total - 1)
            early = min(max(round(total * j / count), least), most)
            before = self._late(draw[:j], early)
            after = [j + 1 + each for each in self._late(draw[j + 1 :], total - early - 1)]
            rows.append([*before, j, *after])
        return torch.tensor(rows), bridge

    def _late(self, draws: Float[Tensor, " steps"], count: int) -> list[int]:
        """`count` different places, rising, as of successive draws with weights (i + 1)^bias."""
        weights = torch.arange(1, len(draws) + 1, dtype=torch.float64) ** self.settings.late_bias
        return sorted((-draws.log() / weights).argsort()[:count].tolist())

    def weights(
        self, sigmas: Float[Tensor, " levels"], trained: Int64[Tensor, "b k"]
    ) -> Float[Tensor, "b k"]:
        """d x0 / d pred of each trained step, rescaled."""
        each = chain_coefficients(self.model.path, self.model.prediction, sigmas)
        drawn = each[trained]
        scale = each.abs().sum() / drawn.abs().sum(1, keepdim=True)
        return drawn * (1 + self.settings.rescale * (scale - 1))

    def _onwards(self, sigmas: Float[Tensor, " levels"]) -> Float[Tensor, " steps"]:
        """d x0 / d x_j of each step with held predictions: 1 on a flow."""
        a, _ = step_coefficients(self.model.path, self.model.prediction, sigmas[:-1], sigmas[1:])
        return a.flip(0).cumprod(0).flip(0)

    # Lagrange

    def _quadratures(self, batch: Batch, sigmas: Float[Tensor, " levels"]) -> Repeated:
        """Of each sample both intervals, and their first two points as the repeated steps."""
        count, steps, weights, pairs = self.rollout.num_inference_steps, [], [], []
        for k, j in self.intervals(batch):
            pair = quadrature(sigmas, k, j), quadrature(sigmas, j, count)
            pairs.append(pair)
            both = [self._active(each) for each in pair]
            steps.append([index for active in both for index, _ in active])
            weights.append([weight for active in both for _, weight in active])
        bridge = torch.tensor([second.start for _, second in pairs])
        return Repeated(
            torch.tensor(steps), torch.tensor(weights, dtype=torch.float64), bridge, pairs
        )

    def intervals(self, batch: Batch) -> list[tuple[int, int]]:
        """(k, j) of each sample, 0 <= k < j < steps; the three lengths that they leave are a
        Dirichlet draw of `SHARES`, rounded, each at least 1 in steps + 1 places."""
        count, generator = self.rollout.num_inference_steps, update_generator(batch, STEPS)
        shares = torch.tensor(SHARES, dtype=torch.float64)
        gammas = draw_rows(
            batch, lambda n: torch._standard_gamma(shares.expand(n, -1), generator=generator)
        )
        found = []
        for row in gammas:
            lengths = (row / row.sum() * count).round().clamp(min=1).long()
            lengths[lengths.argmax()] += count - lengths.sum()
            _, gap, before = lengths.tolist()
            found.append((before - 1, before + gap - 1))
        return found

    def _active(self, of: Quadrature) -> list[tuple[int, float]]:
        """(step, weight) of the first two points, rescaled; a second one that is missing has no
        weight."""
        drawn = of.weights[:2]
        scale = of.weights.abs().sum() / drawn.abs().sum()
        first, *second = (drawn * (1 + self.settings.rescale * (scale - 1))).tolist()
        if not second:
            return [(of.start, first), (of.start, 0.0)]
        return [(of.start, first), (of.points[1], SECOND_SCALE * second[0])]

    def _weighted_loss(
        self,
        x0: Latents,
        states: list[Latents],
        sigmas: Float[Tensor, " levels"],
        repeated: Repeated,
        batch: Batch,
    ) -> LossTerm:
        """The loss with each sample's weight by the distances of its quadratures from the path."""
        far = [
            torch.stack([self._distance(row, each, states, sigmas) for each in pair])
            for row, pair in enumerate(repeated.quadratures)
        ]
        to_j, to_0 = torch.stack(far).T
        weight = similarity_weight(to_j, to_0, SIMILARITY_FLOOR)
        output = self.objective(self.seen(x0), batch)
        loss = weight.to(output.reward) * hinge(output.reward, 1.0, self.settings.margin)
        named = {"distance_j": to_j, "distance_0": to_0, "leap_weight": weight}
        means = {name: value.mean() for name, value in named.items()}
        return LossTerm(loss.mean(), "repeated_steps", {**output.metrics, **means})

    @staticmethod
    def _distance(
        row: int, of: Quadrature, states: list[Latents], sigmas: Float[Tensor, " levels"]
    ) -> Tensor:
        """Mean absolute distance per latent value between a quadrature's end and the path."""
        ended = states[of.start][row]
        for index, weight in zip(of.points, of.weights.tolist(), strict=True):
            step = float(sigmas[index + 1] - sigmas[index])
            ended = ended + weight * (states[index + 1][row] - states[index][row]) / step
        return (ended - states[of.end][row]).abs().mean()


def _rows(values: Latents, rows: Bool[Tensor, " b"]) -> Latents:
    """`values` in these rows, 0 in the others."""
    return torch.where(to_device(rows, values.device)[:, None, None, None], values, 0.0)


def quadrature(sigmas: Float[Tensor, " levels"], start: int, end: int) -> Quadrature:
    """Exact for polynomials through at most `ORDER` evenly chosen steps of [start, end)."""
    count = min(ORDER, end - start)
    places = torch.linspace(start, end - 1, count, dtype=torch.float64).round().long()
    levels, powers = sigmas[places].double(), torch.arange(count)
    low, high = sigmas[start].double(), sigmas[end].double()
    # Σ weight·level^p is the integral of sigma^p
    integrals = (high ** (powers + 1) - low ** (powers + 1)) / (powers + 1)
    weights = torch.linalg.solve((levels[:, None] ** powers).T, integrals)
    return Quadrature(start, end, places.tolist(), weights)
