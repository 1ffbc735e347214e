"""The learning rate, AdamW in 32 and 8 bits with exact resume and sharding, and the EMA."""

from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from directalign.config import TrainConfig
from directalign.training.optim import (
    EMA,
    AdamW8bit,
    adamw,
    decode,
    encode,
    learning_rate,
    rounded,
    trained_parameters,
)
from directalign.types import DirectAlignError


def settings(**given: object) -> TrainConfig:
    return TrainConfig.model_validate({"num_steps": 10, "learning_rate": 2.0, **given})


def test_warm_up_rises_evenly_from_zero_to_the_peak():
    rates = [learning_rate(settings(warmup_steps=3), step) for step in range(5)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_linear_and_cosine_start_at_the_peak_and_end_at_zero():
    for kind, middle in (("linear", 1.0), ("cosine", 1.0)):
        chosen = settings(schedule=kind, warmup_steps=2)
        assert learning_rate(chosen, 2) == pytest.approx(2.0)
        assert learning_rate(chosen, 6) == pytest.approx(middle)
        assert learning_rate(chosen, 10) == pytest.approx(0.0, abs=1e-12)
        falling = [learning_rate(chosen, step) for step in range(2, 10)]
        assert all(a > b > 0 for a, b in pairwise(falling))


def test_only_weights_that_ask_for_a_gradient_are_trained():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert list(trained_parameters(layer)) == ["weight"]
    with pytest.raises(DirectAlignError, match=r"model\.lora\.targets"):
        trained_parameters(layer.requires_grad_(False))


def test_the_recipe_chooses_the_optimiser():
    weights = trained_parameters(nn.Linear(2, 2))
    assert type(adamw(weights, settings())) is torch.optim.AdamW
    chosen = adamw(
        weights, settings(optimizer="adamw8bit", betas=[0.5, 0.6], weight_decay=0.01), seed=7
    )
    group = chosen.param_groups[0]
    assert isinstance(chosen, AdamW8bit) and chosen.seed == 7
    assert (group["lr"], group["betas"], group["weight_decay"]) == (2.0, (0.5, 0.6), 0.01)


def test_the_average_follows_its_recurrence():
    weight = nn.Parameter(torch.zeros(1))
    average, expected = EMA({"w": weight}, decay=0.3), 0.0
    for update in range(1, 8):
        weight.data.fill_(float(update))
        average.update()
        decay = 0.0 if update == 1 else min(0.3, update / (9 + update))
        expected = decay * expected + (1 - decay) * update
        assert float(average.tensors()["w"]) == pytest.approx(expected)


def test_swapping_the_average_in_is_undone_even_by_an_error():
    weight = nn.Parameter(torch.zeros(2))
    average = EMA({"w": weight}, decay=0.9)
    weight.data.fill_(5.0)
    with pytest.raises(RuntimeError, match="inside"), average.ema_weights():
        assert weight.tolist() == [0.0, 0.0]
        raise RuntimeError("inside")
    assert weight.tolist() == [5.0, 5.0]


CPU = torch.device("cpu")
RATE = 5e-6
SETTINGS = {"lr": RATE, "betas": (0.9, 0.999), "weight_decay": 0.0}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)).to(dtype)


def fitted(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> float:
    """Loss after some updates on one fixed problem."""
    x, goal = torch.randn(64, 64, generator=draws(1)), torch.randn(64, 64, generator=draws(2))
    dtype, loss = next(net.parameters()).dtype, torch.zeros(())
    for _ in range(start, steps):
        optimizer.zero_grad()
        loss = (net(x.to(dtype)).float() - goal).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("signed", [True, False])
def test_a_stored_number_is_right_on_average(signed):
    values = torch.rand(1, 300, generator=draws()) - (0.5 if signed else 0)
    generator = draws(1)
    draws_of = [decode(*encode(values, signed, generator), signed) for _ in range(2000)]
    mean = torch.stack(draws_of).mean(0)
    # below the book's first number a signed value is cut off
    inner = values.abs() < 0.99 * values.abs().max()
    torch.testing.assert_close(mean[inner], values[inner], atol=3e-4, rtol=0)


def test_random_rounding_to_bfloat16_keeps_the_mean_and_exact_numbers():
    values = torch.randn(50, generator=draws())
    generator = draws(1)
    many = torch.stack([rounded(values, generator).float() for _ in range(4000)])
    step = values.abs() * 2**-7
    assert ((many - values).abs() <= step).all()
    assert ((many.mean(0) - values).abs() < 0.04 * step + 1e-9).all()
    assert torch.equal(rounded(values.bfloat16().float(), generator), values.bfloat16())


def test_at_a_small_rate_nearest_rounding_loses_every_update_and_random_rounding_none():
    start = torch.linspace(0.5, 2.0, 128 * 64).reshape(128, 64).bfloat16()
    moved = {}
    for name, make in {"nearest": torch.optim.AdamW, "random": AdamW8bit}.items():
        weight = nn.Parameter(start.clone())
        optimizer = make([weight], **SETTINGS)
        for _ in range(40):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[name] = weight.detach().float() - start.float()
    assert torch.equal(moved["nearest"], torch.zeros_like(start, dtype=torch.float32))
    assert float(moved["random"].mean()) == pytest.approx(-40 * RATE, rel=0.1)


def test_the_first_update_is_that_of_torch_and_later_ones_stay_near():
    nets, makes = [network(), network()], [torch.optim.AdamW, AdamW8bit]
    optimizers = [
        make(net.parameters(), **SETTINGS | {"lr": 1e-3, "weight_decay": 0.1})
        for make, net in zip(makes, nets, strict=True)
    ]
    first = [fitted(net, optimizer, 1) for net, optimizer in zip(nets, optimizers, strict=True)]
    assert first[0] == first[1]
    for mine, theirs in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-5)
    last = [fitted(net, optimizer, 150) for net, optimizer in zip(nets, optimizers, strict=True)]
    assert last[0] < 0.7 * first[0] and last[1] == pytest.approx(last[0], rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_bit_by_bit(dtype, tmp_path):
    whole, half = network(dtype), network(dtype)
    optimizers = [
        AdamW8bit(net.parameters(), **SETTINGS | {"lr": 1e-3}, seed=5) for net in (whole, half)
    ]
    fitted(whole, optimizers[0], 6)
    fitted(half, optimizers[1], 3)
    state = {"net": half.state_dict(), "optimizer": optimizers[1].state_dict()}
    torch.save(state, tmp_path / "state.pt")
    torch.rand(7)  # the global generator plays no part
    saved, again = torch.load(tmp_path / "state.pt", weights_only=True), network(dtype)
    again.load_state_dict(saved["net"])
    optimizer = AdamW8bit(again.parameters(), **SETTINGS | {"lr": 1e-3}, seed=5)
    optimizer.load_state_dict(saved["optimizer"])
    fitted(again, optimizer, 6, start=3)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )
    for a, b in zip(optimizers[0].state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.fixture
def single_process_group(tmp_path):
    """A process group of one process."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def test_split_weights_take_the_same_updates_and_their_state_is_split_alike(single_process_group):
    plain, split = network(torch.bfloat16), network(torch.bfloat16)
    fully_shard(split, mesh=init_device_mesh("cpu", (1,)))
    optimizers = [AdamW8bit(net.parameters(), **SETTINGS | {"lr": 1e-3}) for net in (plain, split)]
    losses = [
        fitted(net, optimizer, 5) for net, optimizer in zip((plain, split), optimizers, strict=True)
    ]
    assert losses[0] == losses[1]
    for mine, theirs in zip(split.parameters(), plain.parameters(), strict=True):
        assert isinstance(mine, DTensor) and torch.equal(mine.full_tensor(), theirs)
        state = {key: tensor for key, tensor in optimizers[1].state[mine].items() if key != "step"}
        for tensor in state.values():
            assert isinstance(tensor, DTensor) and tensor.placements == mine.placements
            assert len(tensor) == len(mine)
        other: dict[str, Tensor] = optimizers[0].state[theirs]
        assert all(torch.equal(tensor.full_tensor(), other[key]) for key, tensor in state.items())
