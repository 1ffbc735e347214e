"""One step: accumulation equals a big batch, clipping, and no change if a number is not finite."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from directalign.training.distributed import TorchProcessGroup
from directalign.training.step import NFECounter, TrainStep, levels_by_sigma
from directalign.types import Batch, LossTerm, NonFiniteError


class StubMethod:
    """A method with a given `losses`."""

    def __init__(self, losses: Callable[[Batch], Iterator[LossTerm]]) -> None:
        self._losses = losses

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        return self._losses(batch)

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def regression(weight: nn.Parameter, factor: float = 1.0) -> StubMethod:
    """The loss is a mean over the prompts, which are numbers."""

    def losses(batch: Batch) -> Iterator[LossTerm]:
        x = torch.tensor([float(prompt) for prompt in batch.prompts])
        value = (weight * x - 1).square().mean() * factor
        levels = {"sigma": [0.8123] * len(x), "gain": x.tolist()}
        yield LossTerm(value, "denoise", {"reward": float(x.mean())}, levels)

    return StubMethod(losses)


def step_of(
    method: StubMethod,
    weight: nn.Parameter,
    max_grad_norm: float = 1e9,
    network: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> TrainStep:
    optimizer = optimizer or torch.optim.SGD([weight], lr=0.1)
    counter = NFECounter(network or nn.Identity())
    return TrainStep(method, [weight], optimizer, max_grad_norm, TorchProcessGroup(), counter)


def make(factor: float = 1.0, max_grad_norm: float = 1e9) -> tuple[nn.Parameter, TrainStep]:
    weight = nn.Parameter(torch.tensor([0.3]))
    return weight, step_of(regression(weight, factor), weight, max_grad_norm)


def batch(*prompts: float) -> Batch:
    return Batch(0, tuple(str(p) for p in prompts))


def test_accumulated_batches_equal_one_big_batch():
    (small, accumulated), (big, whole) = make(), make()
    first = accumulated(1, [batch(1, 2), batch(3, 5)])
    second = whole(1, [batch(1, 2, 3, 5)])
    assert torch.allclose(small, big, atol=1e-7)
    assert first["loss"] == pytest.approx(second["loss"])
    assert first["reward"] == second["reward"] == 2.75
    assert first["grad_norm"] == pytest.approx(second["grad_norm"])


def test_gradients_beyond_max_grad_norm_are_scaled_down():
    weight, step = make(factor=1000.0, max_grad_norm=0.5)
    assert step(1, [batch(1, 2)])["grad_norm"] > 100
    assert float((weight.detach() - 0.3).abs()) == pytest.approx(0.1 * 0.5, rel=1e-4)
    weight, step = make(max_grad_norm=100.0)
    step(1, [batch(1)])
    assert float(weight.detach()) == pytest.approx(0.3 - 0.1 * 2 * (0.3 - 1))


@pytest.mark.parametrize(("factor", "what"), [(math.inf, "-?inf"), (math.nan, "nan")])
def test_a_loss_that_is_not_finite_names_step_branch_and_sigma(factor, what):
    weight, step = make(factor=factor)
    message = rf"step 7: the loss is {what} \(branch denoise, sigma 0\.8123\)"
    with pytest.raises(NonFiniteError, match=message):
        step(7, [batch(1)])
    assert float(weight.detach()) == pytest.approx(0.3)


class Explosive(torch.autograd.Function):
    """Identity with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * math.inf


def test_a_gradient_that_is_not_finite_changes_nothing():
    weight = nn.Parameter(torch.tensor([0.3]))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    step_of(regression(weight), weight, optimizer=optimizer)(1, [batch(1)])
    before, state = weight.detach().clone(), copy.deepcopy(optimizer.state_dict())

    def losses(batch: Batch) -> Iterator[LossTerm]:
        yield LossTerm((weight * 2).sum(), "denoise", {}, {"sigma": [0.9]})
        value = Explosive.apply(weight * 2).sum()
        yield LossTerm(value, "inversion", {}, {"sigma": [0.75, 0.8]})

    message = "step 2: the norm of the gradient over all ranks is (inf|nan); the optimizer was not"
    with pytest.raises(NonFiniteError, match=message):
        step_of(StubMethod(losses), weight, optimizer=optimizer)(2, [batch(1)])
    after = optimizer.state_dict()["state"][0]
    assert torch.equal(weight, before)
    assert all(torch.equal(after[key], value) for key, value in state["state"][0].items())


def test_levels_are_means_by_branch_and_bin_of_sigma():
    zero, first = torch.tensor(0.0), {"sigma": [0.81, 0.84, 1.0], "gain": [0.2, 0.4, 1.0]}
    second = {"sigma": [0.0], "gain": [-0.1]}
    levels = (("denoise", first), ("inversion", second), ("without", {}))
    losses = [LossTerm(zero, branch, {}, each) for branch, each in levels]
    assert levels_by_sigma(losses, TorchProcessGroup()) == {
        "inversion": [{"n": 1, "gain": pytest.approx(-0.1), "sigma": 0.0}],
        "denoise": [
            {"n": 2, "gain": pytest.approx(0.3), "sigma": pytest.approx(0.825)},
            {"n": 1, "gain": 1.0, "sigma": 1.0},
        ],
    }


def test_nfe_counts_samples_with_and_without_gradient_within_the_step():
    network = nn.Linear(3, 3)

    def losses(batch: Batch) -> Iterator[LossTerm]:
        with torch.no_grad():
            network(torch.ones(5, 3))
        yield LossTerm(network(torch.ones(2, 3)).mean(), "denoise")

    step = step_of(StubMethod(losses), network.weight, network=network)
    network(torch.ones(7, 3))  # an evaluation between two steps does not count
    assert step(1, [batch(1), batch(2)])["nfe"] == {"forward": 14, "backward": 4}


def test_nfe_of_a_network_that_returns_a_list_of_samples():
    class Listed(nn.Linear):
        def forward(self, x: Tensor) -> tuple[list[Tensor]]:
            return (list(super().forward(x)),)

    counter = NFECounter(network := Listed(3, 3))
    torch.stack(network(torch.ones(2, 3))[0]).sum().backward()
    assert counter.take() == (2, 2)


def test_a_recomputed_call_counts_twice_forward_and_once_backward():
    network = nn.Linear(3, 3)

    def losses(batch: Batch) -> Iterator[LossTerm]:
        def call(x: Tensor) -> Tensor:
            return network(x) * x

        once = checkpoint(call, torch.ones(2, 3, requires_grad=True), use_reentrant=False)
        yield LossTerm(checkpoint(call, once, use_reentrant=False).mean(), "chain")

    step = step_of(StubMethod(losses), network.weight, network=network)
    assert step(1, [batch(1)])["nfe"] == {"forward": 8, "backward": 4}
