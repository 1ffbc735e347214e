"""The device to use here, and noise levels on it: Apple's GPU (MPS) has no float64."""

import torch
from torch import Tensor


def default_device() -> torch.device:
    """CUDA's current GPU, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(levels: Tensor, device: torch.device) -> Tensor:
    """Noise levels or other numbers on a device; float64 where it has it."""
    if levels.dtype == torch.float64:
        return levels.to(device, widest(device))
    return levels.to(device)
