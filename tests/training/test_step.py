"""One update: accumulation is a big batch, the gradient is clipped, and nothing moves when a number is not finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from directalign.training.distributed import TorchProcessGroup
from directalign.training.step import NFECounter, SigmaHistogram, TrainStep
from directalign.types import Batch, LossTerm, NonFiniteError


class Regression:
    """A method whose loss is a mean over its prompts, which are numbers."""

    def __init__(self, weight: nn.Parameter, factor: float = 1.0) -> None:
        self.weight, self.factor = weight, factor

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        x = torch.tensor([float(prompt) for prompt in batch.prompts])
        value = (self.weight * x - 1).square().mean() * self.factor
        yield LossTerm(
            value,
            "denoise",
            {"reward": float(x.mean())},
            {"sigma": [0.8123] * len(x), "gain": x.tolist()},
        )

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def make(factor: float = 1.0, max_grad_norm: float = 1e9) -> tuple[nn.Parameter, TrainStep]:
    weight = nn.Parameter(torch.tensor([0.3]))
    return weight, TrainStep(
        Regression(weight, factor),
        [weight],
        torch.optim.SGD([weight], lr=0.1),
        max_grad_norm,
        TorchProcessGroup(),
        NFECounter(nn.Identity()),
    )


def batch(*prompts: float) -> Batch:
    return Batch(0, tuple(str(p) for p in prompts))


def test_accumulated_batches_equal_one_big_batch():
    (small, accumulated), (big, whole) = make(), make()
    first = accumulated(1, [batch(1, 2), batch(3, 5)])
    second = whole(1, [batch(1, 2, 3, 5)])
    assert torch.allclose(small, big, atol=1e-7)
    assert (
        first["loss"] == pytest.approx(second["loss"])
        and first["reward"] == second["reward"] == 2.75
    )
    assert first["grad_norm"] == pytest.approx(second["grad_norm"])


def test_gradients_beyond_the_clip_norm_are_scaled_down_to_it():
    weight, updater = make(factor=1000.0, max_grad_norm=0.5)
    assert updater(1, [batch(1, 2)])["grad_norm"] > 100
    assert float((weight.detach() - 0.3).abs()) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_gradients_below_the_clip_norm_are_left_alone():
    weight, updater = make(max_grad_norm=100.0)
    updater(1, [batch(1)])
    assert float(weight.detach()) == pytest.approx(0.3 - 0.1 * 2 * (0.3 - 1))


@pytest.mark.parametrize(
    ("factor", "what"), [(math.inf, "loss is -?inf"), (math.nan, "loss is nan")]
)
def test_a_loss_that_is_not_finite_names_update_branch_and_sigma(factor: float, what: str):
    weight, updater = make(factor=factor)
    with pytest.raises(
        NonFiniteError, match=rf"step 7: the {what} \(branch denoise, sigma 0\.8123\)"
    ):
        updater(7, [batch(1)])
    assert float(weight.detach()) == pytest.approx(0.3)


class Explosive(torch.autograd.Function):
    """Harmless forwards, infinite backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * math.inf


class SecondBranchExplodes(Regression):
    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        yield LossTerm((self.weight * 2).sum(), "denoise", {}, {"sigma": [0.9]})
        yield LossTerm(
            Explosive.apply(self.weight * 2).sum(), "inversion", {}, {"sigma": [0.75, 0.8]}
        )


def test_a_gradient_that_is_not_finite_names_its_branch_and_leaves_the_optimiser_as_it_was():
    weight = nn.Parameter(torch.tensor([0.3]))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    TrainStep(
        Regression(weight), [weight], optimizer, 1.0, TorchProcessGroup(), NFECounter(nn.Identity())
    )(1, [batch(1)])
    before, state = weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(
        NonFiniteError,
        match=r"step 2: the gradient is inf \(branch inversion, sigma 0\.7500, 0\.8000\); the optimizer was not stepped",
    ):
        TrainStep(
            SecondBranchExplodes(weight),
            [weight],
            optimizer,
            1.0,
            TorchProcessGroup(),
            NFECounter(nn.Identity()),
        )(2, [batch(1)])
    after = optimizer.state_dict()["state"][0]
    assert torch.equal(weight, before)
    assert all(torch.equal(after[key], value) for key, value in state["state"][0].items())


def test_levels_are_means_by_branch_and_bin_of_sigma():
    levels = SigmaHistogram()
    levels.add(
        LossTerm(
            torch.tensor(0.0), "denoise", {}, {"sigma": [0.81, 0.84, 1.0], "gain": [0.2, 0.4, 1.0]}
        )
    )
    levels.add(LossTerm(torch.tensor(0.0), "inversion", {}, {"sigma": [0.0], "gain": [-0.1]}))
    levels.add(LossTerm(torch.tensor(0.0), "silent"))
    found = levels.record(TorchProcessGroup())
    assert found["inversion"] == [{"n": 1, "gain": pytest.approx(-0.1), "sigma": 0.0}]
    assert found["denoise"] == [
        {"n": 2, "gain": pytest.approx(0.3), "sigma": pytest.approx(0.825)},
        {"n": 1, "gain": 1.0, "sigma": 1.0},
    ]
    assert "silent" not in found


def test_network_calls_are_counted_with_and_without_gradient_and_from_the_update_alone():
    network = nn.Linear(3, 3)

    class TwoCalls(Regression):
        def losses(self, batch: Batch) -> Iterator[LossTerm]:
            with torch.no_grad():
                network(torch.ones(5, 3))
            yield LossTerm(network(torch.ones(2, 3)).mean(), "denoise")

    updater = TrainStep(
        TwoCalls(network.weight),
        [network.weight],
        torch.optim.SGD([network.weight], lr=0.1),
        1.0,
        TorchProcessGroup(),
        NFECounter(network),
    )
    network(torch.ones(7, 3))  # a measurement between two updates does not count
    assert updater(1, [batch(1), batch(2)])["nfe"] == {"forward": 14, "backward": 4}


def test_a_network_that_returns_a_list_of_samples_is_counted_alike():
    class Listed(nn.Linear):
        def forward(self, x: Tensor) -> tuple[list[Tensor]]:
            return (list(super().forward(x)),)

    counter = NFECounter(network := Listed(3, 3))
    torch.stack(network(torch.ones(2, 3))[0]).sum().backward()
    with torch.no_grad():
        network(torch.ones(5, 3))
    assert counter.take() == (7, 2)


def test_a_recomputed_call_is_two_forward_and_one_backward():
    network = nn.Linear(3, 3)

    class Recomputed(Regression):
        def losses(self, batch: Batch) -> Iterator[LossTerm]:
            def step(x: Tensor) -> Tensor:
                return network(x) * x

            once = checkpoint(step, torch.ones(2, 3, requires_grad=True), use_reentrant=False)
            yield LossTerm(checkpoint(step, once, use_reentrant=False).mean(), "chain")

    updater = TrainStep(
        Recomputed(network.weight),
        [network.weight],
        torch.optim.SGD([network.weight], lr=0.1),
        1.0,
        TorchProcessGroup(),
        NFECounter(network),
    )
    assert updater(1, [batch(1)])["nfe"] == {"forward": 8, "backward": 4}
