"""Block swap: frozen weights of a denoiser's blocks in main memory, on the device while they run.

A block's weights are copied to the device for its forward pass, and again when gradient
checkpointing repeats that in the backward pass; the next block's are copied meanwhile, on a GPU on
a stream of their own. Two blocks' weights at most are there. Adapters, buffers and the scales of
quantized weights stay on the device. Losses and gradients are the same to the digit.

Left out: diffusers' group offloading. It moves the adapters too, and under gradient checkpointing
it leaves every block on the device: a recomputation ends before the hook that moves a block away.
"""

from typing import Any

import torch
from torch import nn

from ..types import DirectAlignError


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The repeated blocks: of the classes that diffusers names, else those of the outer lists.

    Without the refiners of Lumina 2, which gradient checkpointing does not repeat.
    """
    names = getattr(denoiser, "_repeated_blocks", None)
    if names:
        return [each for each in denoiser.modules() if type(each).__name__ in names]
    return [
        block
        for name, blocks in denoiser.named_children()
        if isinstance(blocks, nn.ModuleList) and not name.endswith("_refiner")
        for block in blocks
    ]


def swapped_places(count: int, number: int) -> list[int]:
    """Places of the swapped blocks among all, evenly spread: the others' work hides the copies.

    Raises DirectAlignError if `number` is more than `count`.
    """
    if number > count:
        raise DirectAlignError(
            f"model.block_swap: {number}, and this model has {count} blocks: give {count} or less"
        )
    return [place * count // number for place in range(number)]


def frozen_weights(block: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """What is swapped of a block: the owner, name and value of each frozen parameter."""
    return [
        (owner, name, weight)
        for owner in block.modules()
        for name, weight in owner._parameters.items()
        if weight is not None and not weight.requires_grad
    ]


def swap_blocks(denoiser: Any, number: int, device: torch.device) -> None:
    """Move a denoiser on the CPU to `device` but for the frozen weights of `number` blocks.

    Raises DirectAlignError if it has fewer.
    """
    blocks = blocks_of(denoiser)
    swapped = [blocks[place] for place in swapped_places(len(blocks), number)]
    stored = {block: frozen_weights(block) for block in swapped}
    for owner, name, _ in (each for weights in stored.values() for each in weights):
        owner._parameters[name] = None
    denoiser.to(device)
    for owner, name, weight in (each for weights in stored.values() for each in weights):
        if device.type == "cuda":
            weight.data = weight.data.pin_memory()  # so that a copy need not be waited for
        if (scales := getattr(weight, "quant_state", None)) is not None:  # of bitsandbytes
            scales.to(device)
        owner._parameters[name] = weight
    swap = _BlockSwap(stored, device)
    for block in swapped:
        block.register_forward_pre_hook(swap.enter)
        block.register_forward_hook(swap.leave, always_call=True)  # a recomputation ends early


class _BlockSwap:
    """Gives blocks the copies of their weights on the device that they run with."""

    def __init__(self, stored: dict[nn.Module, Any], device: torch.device) -> None:
        self.stored, self.device = stored, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copies: dict[nn.Module, list[Any]] = {}
        self.order: list[nn.Module] = []
        """Blocks in the order of their first calls; a backward pass takes them from the end."""
        self.last = -1

    def enter(self, block: nn.Module, _: Any) -> None:
        self._copy(block)
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        for (owner, name, weight), copy in zip(self.stored[block], self.copies[block], strict=True):
            if (scales := getattr(weight, "quant_state", None)) is not None:
                copy.quant_state = scales
            owner._parameters[name] = copy
        if block not in self.order:
            self.order.append(block)
        place = self.order.index(block)
        following = place + (1 if place > self.last else -1)
        self.last = place
        if 0 <= following < len(self.order):
            self._copy(self.order[following])

    def leave(self, block: nn.Module, *_: Any) -> None:
        for owner, name, weight in self.stored[block]:
            owner._parameters[name] = weight
        self.copies.pop(block, None)

    def _copy(self, block: nn.Module) -> None:
        """Begin to copy a block's weights unless that is done.

        Their memory is that of the stream of the computation, which the copies wait for: it is free
        again for later work of that stream, and no later.
        """
        if block in self.copies:
            return
        weights = [weight.data for _, _, weight in self.stored[block]]
        copies = [torch.empty_like(weight, device=self.device) for weight in weights]
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for copy, weight in zip(copies, weights, strict=True):
                copy.copy_(weight, non_blocking=True)
        self.copies[block] = copies
