"""Stand-ins for layers held in 4 or 8 bits: what their products take for a moment, forward and backward, in shapes alone.

They make the weight whole, use it and drop it, as families/quantized.py does; the bytes they hold between calls are counted
there (`stored_bytes`), not here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..models.quantization import is_quantized


class Rounded(nn.Linear):
    """A frozen linear layer whose weight is made whole for each product; in 8 bits through a float32 product with the scales."""

    through_float32: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of autocast where that is on."""
        if torch.is_autocast_enabled("cpu"):
            input = input.to(torch.get_autocast_dtype("cpu"))
        output = _Product.apply(input, self.out_features, self.through_float32)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _Product(torch.autograd.Function):
    """input @ weightᵀ, of which nothing is kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, out_features: int, through_float32: bool) -> Tensor:
        ctx.shape, ctx.through_float32 = (out_features, input.shape[-1]), through_float32
        return input @ _whole(ctx, input.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ _whole(ctx, gradient.dtype), None, None


def _whole(ctx: Any, dtype: torch.dtype) -> Tensor:
    return (
        torch.empty(ctx.shape).to(dtype)
        if ctx.through_float32
        else torch.empty(ctx.shape, dtype=dtype)
    )


def round_layers(network: nn.Module, quantization: str) -> None:
    """Puts stand-ins in the place of the layers that a quantised base holds in fewer bits."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and is_quantized(name, layer.weight.shape):
            stand_in = Rounded(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                device="meta",
                dtype=layer.weight.dtype,
            )
            stand_in.through_float32 = quantization == "8bit"
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, stand_in.requires_grad_(False).eval())
