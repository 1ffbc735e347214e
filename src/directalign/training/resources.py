"""What an update took of the machine: images per second, and memory. Not part of its result."""

import psutil
import torch

GIB = 2**30


def start_step(device: torch.device) -> None:
    """Call before a step: its peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def used(device: torch.device, images: int, seconds: float) -> dict[str, float]:
    """`images_per_second` over all ranks, and `peak_memory_gib` of this rank.

    The peak is that of tensors on a CUDA GPU during the step; on Apple's GPU and the CPU, what the
    driver or the process holds at its end.
    """
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    elif device.type == "mps":
        memory = torch.mps.driver_allocated_memory()
    else:
        memory = psutil.Process().memory_info().rss
    return {"images_per_second": images / seconds, "peak_memory_gib": memory / GIB}
