"""The device to use here, numbers on it and back: Apple's GPU (MPS) has no float64."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def default_device() -> torch.device:
    """CUDA's current GPU, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Noise levels or other numbers on a device, float64 where it has it, without a wait."""
    dtype = widest(device) if numbers.dtype == torch.float64 else numbers.dtype
    # CUDA takes the host's numbers before the call returns; Apple's GPU reads them later, when they
    # may be gone, as numbers on the host may be read before they have come
    waits = device.type == "mps" or numbers.device.type != "cpu"
    return numbers.to(device, dtype, non_blocking=not waits)


def to_like(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers in the dtype and on the device of `like`, without a wait."""
    return to_device(numbers, like.device).to(like.dtype)


def to_host(numbers: Any) -> Any:
    """Nested dicts, lists and tuples, with numbers and lists of numbers in place of tensors.

    One transfer from each device, and so one wait for it.
    """
    leaves, layout = tree_flatten(numbers)
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            by_device[leaf.device].append(place)
    for device, places in by_device.items():
        own = [leaves[place].detach() for place in places]
        read = torch.cat([each.flatten().to(widest(device)) for each in own]).cpu()
        parts = read.split([each.numel() for each in own])
        for place, tensor, part in zip(places, own, parts, strict=True):
            leaves[place] = part.view(tensor.shape).tolist()
    return tree_unflatten(leaves, layout)
