"""Fake tensors take what real ones take, to the byte; passed blocks what the second one keeps."""

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor, nn

from directalign.models import common
from directalign.models.flux import Flux
from directalign.preflight.activation_memory import MemoryTracker, pass_repeated, trace_once
from directalign.preflight.fake_tensors import FAKE, fake, make_fake

BLOCKS = {
    "in_channels": 16, "num_layers": 5, "num_single_layers": 6, "attention_head_dim": 16,
    "num_attention_heads": 4, "joint_attention_dim": 16, "pooled_projection_dim": 16,
    "axes_dims_rope": [4, 6, 6],
}  # fmt: skip


def denoiser(on: str, lora: bool, checkpointing: bool, dtype: torch.dtype) -> Any:
    """A small FLUX with real weights, with fake ones, or with fake ones and passed blocks."""
    with torch.device("cpu" if on == "real" else "meta"):
        network: Any = FluxTransformer2DModel.from_config(BLOCKS)
    network.requires_grad_(not lora).eval().to(dtype)
    if lora:
        network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(Flux.lora_targets)))
    for parameter in network.parameters():
        if parameter.requires_grad and lora:
            parameter.data = parameter.data.float()
    if checkpointing:
        network.enable_gradient_checkpointing()
    if on != "real":
        make_fake(network)
    if on == "passed":
        pass_repeated(network)
        trace_once(network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    return network


def taken(network: Any, dtype: torch.dtype, with_gradient: bool) -> tuple[int, int, int]:
    """Peak of a call, bytes that it keeps, peak of its backward pass."""
    is_fake = type(next(network.parameters()).data).__name__ == "FakeTensor"

    def tensor(*shape: int) -> Tensor:
        return fake(shape, dtype) if is_fake else torch.randn(shape).to(dtype)

    given = {
        "hidden_states": tensor(2, 16, 16), "timestep": torch.ones(2), "guidance": None,
        "encoder_hidden_states": tensor(2, 12, 16), "pooled_projections": tensor(2, 16),
        "txt_ids": torch.zeros(12, 3),
        "img_ids": common.image_places(4, 4, torch.device("cpu"))[:, :3].float(),
    }  # fmt: skip
    with MemoryTracker() as tracker, torch.set_grad_enabled(with_gradient):
        tracker.phase = "forward"
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            answer = network(**given, return_dict=False)[0].float()
        kept, tracker.phase = tracker.now, "backward"
        tracker.reach(kept)
        if with_gradient:
            answer.backward(torch.empty_like(answer))
    return tracker.peaks["forward"], kept, tracker.peaks["backward"]


@pytest.mark.parametrize(
    ("lora", "dtype", "checkpointing", "with_gradient"),
    [
        (True, torch.float32, True, True),
        (True, torch.bfloat16, False, False),
        (True, torch.bfloat16, True, True),
        (False, torch.bfloat16, True, True),
    ],
    ids=str,
)
def test_a_call_on_fake_tensors_takes_what_a_real_one_takes(
    lora, dtype, checkpointing, with_gradient
):
    real = taken(denoiser("real", lora, checkpointing, dtype), dtype, with_gradient)
    assert taken(denoiser("fake", lora, checkpointing, dtype), dtype, with_gradient) == real
    network = denoiser("passed", lora, checkpointing, dtype)
    for _ in ("traced", "known"):
        assert taken(network, dtype, with_gradient) == pytest.approx(real, rel=0.03)


def test_the_peak_is_the_most_that_was_alive_and_what_was_there_before_does_not_count():
    before = torch.zeros(100)
    with MemoryTracker() as tracker:
        a = before.view(10, 10) + 1
        b = a * 2
        del a
        c = b[:5].exp()
    assert (tracker.now, tracker.peaks[""]) == (4 * 150, 4 * 200) and len(c) == 5


def test_tied_weights_stay_tied_and_numbers_can_be_read_off():
    network = nn.Sequential(nn.Linear(4, 4, device="meta"), nn.Linear(4, 4, device="meta"))
    network[1].weight = network[0].weight
    make_fake(network)
    assert network[0].weight is network[1].weight
    with MemoryTracker():
        assert float(network[0].bias.sum()) == 1.0 and bool(network[0].bias.isfinite().all())


def test_only_blocks_that_are_alike_are_passed():
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            alike = [nn.Linear(8, 8) for _ in range(9)]
            self.layers = nn.ModuleList([nn.Linear(8, 32), nn.Linear(32, 8), *alike])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    with torch.device("meta"):
        network = Chain()
    make_fake(network)
    pass_repeated(network)
    with MemoryTracker() as tracker, torch.no_grad(), FAKE:
        assert network(torch.empty(2, 8)).shape == (2, 8)
    assert tracker.peaks[""] == 4 * 2 * (8 + 32 + 8)


def test_a_network_that_keeps_a_part_of_what_its_blocks_return():
    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(9))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(torch.cat([x, torch.ones(5, 8)]))[:20]
            return x

    peaks = list[int]()
    for passed in (False, True):
        with torch.device("meta"):
            network = Joint()
        make_fake(network)
        if passed:
            pass_repeated(network)
        with MemoryTracker() as tracker:
            network(fake((20, 8), torch.float32)).sum().backward()
        peaks.append(tracker.peaks[""])
    assert peaks[1] == pytest.approx(peaks[0], rel=0.03)
