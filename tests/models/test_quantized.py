"""A quantized base is a plain network with rounded weights, and so is its LoRA gradient."""

import sys
from importlib.util import find_spec

import pytest
import torch
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel
from torch import Tensor, nn

from directalign.config import LoRAConfig, ModelConfig
from directalign.models import lora, quantization
from directalign.types import DirectAlignError

CPU = torch.device("cpu")
HAS_BITSANDBYTES = find_spec("bitsandbytes") is not None
NEEDS_BITSANDBYTES = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs bitsandbytes")
BITS = ["8bit", pytest.param("4bit", marks=NEEDS_BITSANDBYTES)]
ERRORS = {"8bit": 0.012, "4bit": 0.11}
"""Relative error of a rounded normal matrix, in norm; an even grid of 255 steps over ±3.2
deviations has 0.007, NF4 0.09.
"""
TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")


def flux(dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    """Wide enough to be worth rounding: matrices of 64 by 64 and more."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16, joint_attention_dim=32, pooled_projection_dim=32, num_layers=1,
        num_single_layers=1, attention_head_dim=16, num_attention_heads=4, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return model.to(dtype=dtype).requires_grad_(False).eval()


def quantized(network, bits):
    quantization.quantize(network, bits, CPU)
    return network


def recipe(bits: str | None) -> ModelConfig:
    return ModelConfig(
        architecture="flux", path="unused", quantization=bits, lora=LoRAConfig(rank=2, alpha=2)
    )


def rounded_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and type(layer) is not nn.Linear and "lora" not in name
    }


def plain_weight(layer: nn.Linear) -> Tensor:
    """What the layer multiplies by: its answers to the unit vectors."""
    answers = layer(torch.eye(layer.in_features))
    return (answers if layer.bias is None else answers - layer.bias).T.contiguous()


def call(model: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Image tokens that want a gradient, and the answer to them."""
    draw = torch.Generator().manual_seed(1)
    tokens, text, pooled = (
        torch.randn(shape, generator=draw).to(dtype) for shape in ((2, 16, 16), (2, 8, 32), (2, 32))
    )
    given = {
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": torch.tensor([0.3, 0.7]),
        "txt_ids": torch.zeros(8, 3),
        "img_ids": torch.randn(16, 3, generator=draw),
    }
    return tokens, model(hidden_states=tokens.requires_grad_(), return_dict=False, **given)[0]


def with_adapters(model: nn.Module) -> nn.Module:
    """Adapters whose second factor is not 0, so that both factors get a gradient."""
    lora.make_trainable(model, recipe(None), TARGETS, seed=3)
    for place, parameter in enumerate(lora.trained(model).values()):
        parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(place))
    return model


def gradients(model: nn.Module) -> tuple[Tensor, ...]:
    """Of the image tokens and of every trained weight."""
    tokens, answer = call(model)
    return torch.autograd.grad(answer.square().sum(), [tokens, *lora.trained(model).values()])


@pytest.mark.parametrize("bits", BITS)
def test_only_the_matrices_of_the_repeated_blocks_are_rounded(bits):
    plain, model = flux(), quantized(flux(), bits)
    rounded = {name.split(".")[0] for name in rounded_layers(model)}
    assert rounded == {"transformer_blocks", "single_transformer_blocks"}
    assert "transformer_blocks.0.norm1.linear" in rounded_layers(model)
    now = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if name.rpartition(".")[0] not in rounded_layers(model):
            assert torch.equal(parameter, now[name]), name


@pytest.mark.parametrize("bits", BITS)
def test_the_rounding_error_is_that_of_the_bits_and_zeros_stay_zeros(bits):
    torch.manual_seed(0)
    layer = nn.Linear(256, 96)
    weight = torch.randn(96, 256).index_fill(0, torch.tensor([3]), 0.0)
    layer.weight.data = weight.clone()
    found = plain_weight(quantized(nn.ModuleList([layer]), bits)[0])
    assert ERRORS[bits] / 3 < (found - weight).norm() / weight.norm() < ERRORS[bits]
    assert not found[3].any()


@pytest.mark.parametrize("bits", BITS)
def test_adapters_on_a_rounded_base_get_the_gradient_of_a_plain_base_with_those_weights(bits):
    model, same = quantized(flux(), bits), flux()
    for name, layer in rounded_layers(model).items():
        same.get_submodule(name).weight.data = plain_weight(layer).detach()
    found, wanted = gradients(with_adapters(model)), gradients(with_adapters(same))
    assert len(found) == len(wanted) == 1 + 2 * (3 + 4)
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_fresh_adapters_change_nothing_and_only_they_are_trained(bits):
    model = quantized(flux(), bits)
    with torch.no_grad():
        before = call(model)[1]
    lora.make_trainable(model, recipe(bits), TARGETS, seed=0)
    assert torch.equal(call(model)[1], before)
    assert lora.trained(model) and all("lora_" in name for name in lora.trained(model))


@pytest.mark.parametrize("bits", BITS)
def test_bfloat16_under_autocast_follows_the_float32_answer(bits):
    model = with_adapters(quantized(flux(torch.bfloat16), bits))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens, answer = call(model, torch.bfloat16)
    answer.float().square().sum().backward()
    exact = call(with_adapters(flux()))[1]
    assert answer.dtype == torch.bfloat16 and tokens.grad is not None
    assert torch.cosine_similarity(answer.float().flatten(), exact.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("bits", BITS)
def test_nothing_but_the_bits_waits_for_the_backward_pass(bits):
    layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(8)]).requires_grad_(False)
    quantization.quantize(layers, bits, CPU)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor
    ):
        x = torch.randn(3, 64, requires_grad=True)
        for layer in layers:
            x = layer(x)
    assert not [tensor for tensor in kept if tensor.is_floating_point() and tensor.numel() > 64]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(64, 64), (96, 192), (70, 60)])
def test_stored_bytes_are_those_of_the_tensors(bits, shape):
    layer = quantized(nn.ModuleList([nn.Linear(shape[1], shape[0], bias=False)]), bits)[0]
    more = [layer.scale] if bits == "8bit" else four_bit_tables(layer.weight.quant_state)
    stored = sum(tensor.nbytes for tensor in (layer.weight, *more))
    assert stored == quantization.stored_bytes(shape, bits)
    for name, per_number in (("8bit", 1.0), ("4bit", 0.516)):
        found = quantization.stored_bytes((3072, 12288), name) / (3072 * 12288)
        assert found == pytest.approx(per_number, abs=2e-3)


def four_bit_tables(state) -> list[Tensor]:
    return [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]


@NEEDS_BITSANDBYTES
def test_four_bits_are_those_of_the_library(tmp_path, monkeypatch):
    """diffusers' own quantiser, whose demand for a GPU is lifted: bitsandbytes rounds on a CPU
    too."""
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer

    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda *_, **__: None)
    flux().save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = FluxTransformer2DModel.from_pretrained(
        tmp_path, torch_dtype=torch.float32, quantization_config=settings, device_map={"": "cpu"}
    )
    ours = rounded_layers(quantized(flux(), "4bit"))
    for name, layer in ours.items():
        other = theirs.get_submodule(name)
        assert torch.equal(layer.weight, other.weight) and isinstance(layer, type(other))
        pair = (four_bit_tables(each.weight.quant_state) for each in (layer, other))
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


@NEEDS_BITSANDBYTES
def test_the_librarys_lora_layers_take_the_four_bit_ones():
    from peft.tuners.lora.bnb import Linear4bit

    model = with_adapters(quantized(flux(), "4bit"))
    assert isinstance(model.get_submodule("transformer_blocks.0.attn.to_q"), Linear4bit)


def test_a_model_too_small_and_a_missing_library_are_refused(monkeypatch):
    small, large = (nn.ModuleList([nn.Linear(size, size)]) for size in (8, 64))
    with pytest.raises(DirectAlignError, match=r"quantization 8bit: no layer .* leave the key out"):
        quantized(small, "8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(DirectAlignError, match=r"pip install 'bitsandbytes"):
        quantized(large, "4bit")


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA device: the kernels there are others than a CPU's",
)
@pytest.mark.parametrize("bits", BITS)
def test_a_gpu_holds_the_bits_alone_and_answers_as_the_cpu(bits):
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    layers = nn.ModuleList(
        [nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16) for _ in range(16)]
    ).requires_grad_(False)
    whole = sum(layer.weight.numel() * 2 for layer in layers)
    expected = [layer(torch.eye(1024, dtype=torch.bfloat16)) for layer in layers]
    quantization.quantize(layers, bits, torch.device("cuda"))
    assert torch.cuda.max_memory_allocated() - start < whole * {"8bit": 0.85, "4bit": 0.6}[bits]
    for layer, answer in zip(layers, expected, strict=True):
        found = layer(torch.eye(1024, dtype=torch.bfloat16, device="cuda")).cpu()
        assert (found - answer).float().norm() / answer.float().norm() < ERRORS[bits]
