"""Denoisers with frozen weights in 4 or 8 bits, for LoRA on top (QLoRA, arXiv 2305.14314).

4bit is NF4 in blocks of 64 with quantized scales: bitsandbytes' layers, the same numbers as
diffusers' quantizer. 8bit is integers with one scale per row. Both compute, forward and backward,
as a plain network with the rounded weights, and save no activations for the backward pass. Layers
are rounded one by one on the device, so that it never stores the whole network. Embedders, output
layers, convolutions and norms keep their dtype: they are small.

Left out: diffusers' quantizers, which need a GPU; LLM.int8, which rounds the activations too and
saves each layer's input; torchao's int8 weights, which autograd keeps in full until the backward
pass; diffusers' layerwise casting to fp8: its gradient is that of the rounded weights, but it
rounds four times as coarsely as 8bit at the same size.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ..io import bitsandbytes
from ..types import DirectAlignError

SMALLEST = 4096
"""Smaller weights are not quantized: it would save nothing."""
NF4_TABLES = 4 * (16 + 256 + 1)
"""Bytes of the two code books and the offset of each NF4 layer."""


def quantize(
    denoiser: Any, quantization: str, device: torch.device, home: torch.device | None = None
) -> None:
    """Replace the linear layers of the repeated blocks by rounded ones, in place.

    They are rounded on `device`, then moved to `home` (None: not moved).
    Raises DirectAlignError if there are none.
    """
    layers = list(quantized_layers(denoiser))
    if not layers:
        raise DirectAlignError(
            f"model.quantization {quantization}: no layer of this model has {SMALLEST} weights or "
            "more: leave the key out"
        )
    rounded = {"8bit": Linear8bit, "4bit": _linear_4bit}[quantization]
    for name, layer in layers:
        parent, _, own = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), own, rounded(layer, device).to(home or device))
    denoiser.is_loaded_in_4bit = quantization == "4bit"  # selects peft's layers for bitsandbytes


def check_quantization(quantization: str) -> None:
    """Raise DirectAlignError if the library that rounds is not installed; 8bit needs none."""
    if quantization == "4bit":
        bitsandbytes.show()
        try:
            import bitsandbytes as _  # noqa: F401
        except ImportError:
            raise DirectAlignError(
                "model.quantization: 4bit needs bitsandbytes: pip install 'bitsandbytes>=0.46', "
                "or set 8bit, which does not"
            ) from None


def is_quantized(layer: str, shape: Sequence[int]) -> bool:
    """Whether a layer is quantized: a matrix of a repeated block, such as `blocks.3.attn.to_q`."""
    return (
        len(shape) == 2
        and math.prod(shape) >= SMALLEST
        and any(piece.isdigit() for piece in layer.split("."))
    )


def stored_bytes(shape: Sequence[int], quantization: str) -> int:
    """Bytes of a rounded weight with its scales: about 1.001 per number in 8 bits, 0.516 in 4."""
    numbers = math.prod(shape)
    if quantization == "8bit":
        return numbers + 2 * shape[0]
    blocks = math.ceil(numbers / 64)
    return math.ceil(numbers / 2) + blocks + 4 * math.ceil(blocks / 256) + NF4_TABLES


def quantized_layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Name and layer of everything that `quantize` replaces."""
    for name, layer in denoiser.named_modules():
        if isinstance(layer, nn.Linear) and is_quantized(name, layer.weight.shape):
            yield name, layer


@cache
def _linear_4bit_class() -> Any:
    """bitsandbytes' NF4 layer; its output has autocast's dtype, as that of a plain layer has."""
    import bitsandbytes as bnb
    from bitsandbytes.functional import dequantize_4bit

    class Linear4bit(bnb.nn.Linear4bit):
        def forward(self, x: Tensor) -> Tensor:
            return Product.apply(_in_autocast_dtype(x), self.weight, super().forward)

    class Product(torch.autograd.Function):
        """The library's own keeps the weight where gradient checkpointing cannot drop it."""

        @staticmethod
        def forward(ctx: Any, input: Tensor, weight: Any, product: Any) -> Tensor:
            ctx.save_for_backward(weight)
            ctx.state = weight.quant_state
            return product(input)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
            (gradient,), (weight,) = gradients, ctx.saved_tensors
            dequantized = dequantize_4bit(weight.data, ctx.state)
            return gradient @ dequantized.to(gradient.dtype), None, None

    return Linear4bit


def _in_autocast_dtype(input: Tensor) -> Tensor:
    """Autocast does not know these layers: a norm's float32 output would stay float32."""
    device = input.device.type
    enabled = torch.is_autocast_enabled(device)
    return input.to(torch.get_autocast_dtype(device)) if enabled else input


def _linear_4bit(layer: nn.Linear, device: torch.device) -> nn.Module:
    check_quantization("4bit")
    import bitsandbytes as bnb

    settings: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    sizes = layer.in_features, layer.out_features, layer.bias is not None
    with torch.device("meta"):
        rounded: Any = _linear_4bit_class()(*sizes, layer.weight.dtype, **settings)
    settings["module"] = rounded
    weight: Any = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, **settings)
    rounded.weight = weight.to(device)  # rounds it
    rounded.bias = _frozen(layer.bias, device)
    rounded.support_avx512bf16_for_cpu = False  # a layout for inference only
    return rounded.eval()


class Linear8bit(nn.Linear):
    """A frozen linear layer: weight ≈ integers in [-127, 127] times one bfloat16 scale per row.

    The scale is the largest |weight| of the row / 127.
    """

    scale: Tensor

    def __init__(self, layer: nn.Linear, device: torch.device) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = layer.weight.data.to(device).float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        scale = scale.clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
        rounded = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = _frozen(layer.bias, device)
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out) in the input's dtype, or in autocast's."""
        input = _in_autocast_dtype(input)
        output = _RowScaledProduct.apply(input, self.weight, self.scale)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _RowScaledProduct(torch.autograd.Function):
    """input @ weightᵀ; the weight is dequantized for each product; only its 8 bits are saved."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(input, _dequantized(weight, scale, input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (weight, scale) = gradients, ctx.saved_tensors
        return gradient @ _dequantized(weight, scale, gradient.dtype), None, None


def _dequantized(
    weight: Int8[Tensor, "out in"], scale: Float[Tensor, "out 1"], dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    return weight.to(dtype).mul_(scale.to(dtype))  # both factors are exact in bfloat16


def _frozen(bias: nn.Parameter | None, device: torch.device) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.data.to(device), requires_grad=False)
