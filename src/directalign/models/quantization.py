"""Denoisers whose frozen weights are held in 4 or 8 bits, for LoRA on top (QLoRA, arXiv 2305.14314).

4bit is NF4 in blocks of 64 with quantised scales: bitsandbytes' layers, the same numbers as diffusers' own quantiser makes.
8bit is whole numbers with one scale per row. In both the network computes as a plain one with the rounded weights would,
backward pass included, and keeps nothing of its own for that pass. Layers are rounded one by one on the device, which
never holds the network whole. Embedders, output layers, convolutions and norms keep their dtype: they are small.

Left out: diffusers' quantisers, which refuse to start without a GPU; LLM.int8, which rounds the activations too and keeps
each layer's input; torchao's int8 weights, of which autograd keeps every one in full until the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ..types import DirectAlignError

SMALLEST = 4096
"""Weights with fewer numbers are left as they are: they save nothing."""
NF4_TABLES = 4 * (16 + 256 + 1)
"""Bytes of the two code books and the offset that each NF4 layer brings along."""


def quantize(
    denoiser: Any, quantization: str, device: torch.device, home: torch.device | None = None
) -> None:
    """Puts rounded layers in the place of the linear layers of the repeated blocks: rounded on `device`, then moved to `home` (None: they stay).

    Raises DirectAlignError where there are none.
    """
    layers = list(_layers(denoiser))
    if not layers:
        raise DirectAlignError(
            f"model.quantization {quantization}: no layer of this model has {SMALLEST} weights or more: leave the key out"
        )
    rounded = {"8bit": Linear8bit, "4bit": _linear_4bit}[quantization]
    for name, layer in layers:
        parent, _, own = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), own, rounded(layer, device).to(home or device))
    denoiser.is_loaded_in_4bit = (
        quantization == "4bit"
    )  # tells peft to take its own layers for bitsandbytes


def check_quantization(quantization: str) -> None:
    """The library that rounds is installed; 8bit needs none."""
    if quantization == "4bit":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise DirectAlignError(
                "model.quantization: 4bit needs bitsandbytes: pip install 'bitsandbytes>=0.46', or set 8bit, which does not"
            ) from None


def is_quantized(layer: str, shape: Sequence[int]) -> bool:
    """Whether a layer of this name and weight shape is: a matrix of a repeated block, such as `blocks.3.attn.to_q`."""
    return (
        len(shape) == 2
        and math.prod(shape) >= SMALLEST
        and any(piece.isdigit() for piece in layer.split("."))
    )


def stored_bytes(shape: Sequence[int], quantization: str) -> int:
    """Bytes of one layer's rounded weight with its scales: about 1.001 a number in 8 bits, 0.516 in 4."""
    numbers = math.prod(shape)
    if quantization == "8bit":
        return numbers + 2 * shape[0]
    blocks = math.ceil(numbers / 64)
    return math.ceil(numbers / 2) + blocks + 4 * math.ceil(blocks / 256) + NF4_TABLES


def _layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, layer in denoiser.named_modules():
        if isinstance(layer, nn.Linear) and is_quantized(name, layer.weight.shape):
            yield name, layer


def _linear_4bit(layer: nn.Linear, device: torch.device) -> nn.Module:
    check_quantization("4bit")
    import bitsandbytes as bnb

    settings: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    with torch.device("meta"):
        rounded: Any = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            layer.weight.dtype,
            **settings,
        )
    settings["module"] = rounded
    weight: Any = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, **settings)
    rounded.weight = weight.to(device)  # which rounds it there
    rounded.bias = _frozen(layer.bias, device)
    rounded.support_avx512bf16_for_cpu = (
        False  # a CPU layout for inference, from which there is no way back to training
    )
    return rounded.eval()


class Linear8bit(nn.Linear):
    """A frozen linear layer, weight ≈ whole numbers in [-127, 127] times one bfloat16 scale per row: largest |weight| of the row / 127."""

    scale: Tensor

    def __init__(self, layer: nn.Linear, device: torch.device) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = layer.weight.data.to(device).float()
        scale = (
            (weight.abs().amax(1, keepdim=True) / 127)
            .clamp(min=torch.finfo(torch.bfloat16).tiny)
            .bfloat16()
        )
        self.weight = nn.Parameter(
            (weight / scale).round().clamp(-127, 127).to(torch.int8), requires_grad=False
        )
        self.register_buffer("scale", scale)
        self.bias = _frozen(layer.bias, device)
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out) in the input's dtype, or in that of autocast."""
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        output = _RowScaledProduct.apply(input, self.weight, self.scale)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _RowScaledProduct(torch.autograd.Function):
    """input @ weightᵀ; the weight is made whole for the product alone, forward and backward, and only its 8 bits are kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(input, _whole(weight, scale, input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (weight, scale) = gradients, ctx.saved_tensors
        return gradient @ _whole(weight, scale, gradient.dtype), None, None


def _whole(
    weight: Int8[Tensor, "out in"], scale: Float[Tensor, "out 1"], dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    return weight.to(dtype).mul_(scale.to(dtype))  # both factors are exact in bfloat16


def _frozen(bias: nn.Parameter | None, device: torch.device) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.data.to(device), requires_grad=False)
