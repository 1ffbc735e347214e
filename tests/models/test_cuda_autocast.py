"""CUDA's autocast emulated on the CPU: norms and softmax return float32 there, and not here.

The linear layers must return bfloat16 under it in every architecture, or activations would take
twice the predicted memory on a GPU; 8-bit and 4-bit layers too, which cast their own inputs.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from directalign.models import quantization
from models.cases import CASES, PLAIN

F = torch.nn.functional
FLOAT32 = {
    *(F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.softmax, torch.softmax),
    *(torch.Tensor.softmax, F.cosine_similarity, torch.exp, torch.log, torch.pow, torch.rsqrt),
    *(torch.Tensor.pow, torch.Tensor.rsqrt, torch.Tensor.exp, torch.Tensor.log, torch.sum),
    *(torch.Tensor.sum, torch.Tensor.cumsum, torch.cumsum, F.normalize, torch.Tensor.norm),
}
"""Functions of CUDA's float32 list that diffusion models call (documentation of torch.amp)."""
ARCHITECTURES = ["sd35_medium" if name == "sd3" else name for name in PLAIN]
PROMPTS = ["a red star", "a blue circle"]


class CudaAutocast(TorchFunctionMode):
    """Casts the inputs of these functions to float32 while autocast is on."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = [_float32(each) for each in args]
            kwargs = {name: _float32(each) for name, each in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _float32(value: Any) -> Any:
    is_low = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_low else value


def test_the_emulation_returns_float32_where_cuda_does():
    low = torch.ones(2, 4, dtype=torch.bfloat16)
    with CudaAutocast(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.layer_norm(low, (4,)).dtype == low.softmax(-1).dtype == torch.float32
        assert F.linear(F.layer_norm(low, (4,)), low).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("architecture", "bits"),
    [(name, None) for name in ARCHITECTURES]
    + [(name, bits) for name in ("flux", "sdxl") for bits in ("8bit", "4bit")],
)
def test_linear_layers_return_bfloat16(architecture, bits, tmp_path, monkeypatch):
    if bits == "4bit" and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    monkeypatch.setattr(quantization, "SMALLEST", 64)
    case = CASES[architecture]
    settings = {"tune": "lora", "dtype": "bfloat16", "quantization": bits}
    model = case.load(case.folder(tmp_path), **settings)
    found: dict[str, torch.dtype] = {}
    for name, layer in model.denoiser.named_modules():
        if isinstance(layer, nn.Linear) and any(piece.isdigit() for piece in name.split(".")):
            layer.register_forward_hook(
                lambda _, inputs, output, name=name: found.update({name: output.dtype})
            )
    x_t = torch.randn(2, *model.latent_shape(*model.default_size))
    cond = case.encode(model, PROMPTS, *model.default_size).guided(case.embedded, 1.0)
    with CudaAutocast():
        model.predict(x_t, torch.full((2,), 0.5, dtype=torch.float64), cond)
    float32 = {name for name, dtype in found.items() if dtype != torch.bfloat16}
    assert found and not float32, sorted(float32)[:5]
