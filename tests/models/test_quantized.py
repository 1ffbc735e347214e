"""Quantised bases: the rounded network is a plain network with rounded weights, its LoRA gradient
too; bytes as promised.
"""

from __future__ import annotations

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
    sizes = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "axes_dims_rope": (4, 6, 6),
    }
    model = FluxTransformer2DModel(
        in_channels=16, joint_attention_dim=32, pooled_projection_dim=32, **sizes
    )
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
    tokens = torch.randn(2, 16, 16, generator=draw).to(dtype).requires_grad_()
    text, pooled = (
        torch.randn(2, 8, 32, generator=draw).to(dtype),
        torch.randn(2, 32, generator=draw).to(dtype),
    )
    ids = {"txt_ids": torch.zeros(8, 3), "img_ids": torch.randn(16, 3, generator=draw)}
    given = {
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": torch.tensor([0.3, 0.7]),
        **ids,
    }
    return tokens, model(hidden_states=tokens, return_dict=False, **given)[0]


def with_adapters(model: nn.Module) -> nn.Module:
    """Adapters whose second factor is not 0, so that both factors get a gradient."""
    lora.make_trainable(model, recipe(None), TARGETS, seed=3)
    for place, parameter in enumerate(lora.trained(model).values()):
        parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(place))
    return model


def gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    tokens, answer = call(model)
    answer.square().sum().backward()
    assert tokens.grad is not None
    return tokens.grad, {
        name: parameter.grad
        for name, parameter in lora.trained(model).items()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("bits", BITS)
def test_only_the_matrices_of_the_repeated_blocks_are_rounded(bits):
    plain, model = flux(), quantized(flux(), bits)
    rounded = set(rounded_layers(model))
    assert {
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.norm1.linear",
        "single_transformer_blocks.0.proj_out",
    } <= rounded
    assert not rounded & {
        "x_embedder",
        "context_embedder",
        "proj_out",
        "time_text_embed.timestep_embedder.linear_1",
    }
    kept = {
        name: parameter
        for name, parameter in plain.named_parameters()
        if name.rpartition(".")[0] not in rounded
    }
    now = dict(model.named_parameters())
    assert kept and all(torch.equal(parameter, now[name]) for name, parameter in kept.items())


@pytest.mark.parametrize("bits", BITS)
def test_the_rounding_error_is_that_of_the_bits(bits):
    torch.manual_seed(0)
    weight = torch.randn(96, 256)
    layer = nn.Linear(256, 96)
    layer.weight.data = weight.clone()
    blocks = nn.ModuleList([layer])
    quantization.quantize(blocks, bits, CPU)
    error = (plain_weight(blocks[0]) - weight).norm() / weight.norm()
    assert ERRORS[bits] / 3 < error < ERRORS[bits]


@pytest.mark.parametrize("bits", BITS)
def test_adapters_on_a_rounded_base_get_the_gradient_of_a_plain_base_with_those_weights(bits):
    model, same = quantized(flux(), bits), flux()
    for name, layer in rounded_layers(model).items():
        same.get_submodule(name).weight.data = plain_weight(layer).detach()
    found, wanted = gradients(with_adapters(model)), gradients(with_adapters(same))
    torch.testing.assert_close(found[0], wanted[0], atol=2e-5, rtol=1e-4)
    assert len(found[1]) == len(wanted[1]) == 2 * (3 + 4)
    for mine, theirs in zip(found[1].values(), wanted[1].values(), strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_fresh_adapters_change_nothing_and_are_trained_alone(bits):
    model = quantized(flux(), bits)
    before = call(model)[1]
    lora.make_trainable(model, recipe(bits), TARGETS, seed=0)
    assert torch.equal(call(model)[1], before)
    assert lora.trained(model) and all("lora_" in name for name in lora.trained(model))


@pytest.mark.parametrize("bits", BITS)
def test_a_rollout_before_the_training_call_leaves_its_gradient_alone(bits):
    model = with_adapters(quantized(flux(), bits))
    with torch.no_grad():
        free = call(model)[1]
    assert torch.equal(free, call(model)[1])
    assert gradients(model)[0].isfinite().all()


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
def test_bytes_are_as_told(bits, shape):
    blocks = nn.ModuleList([nn.Linear(shape[1], shape[0], bias=False)])
    quantization.quantize(blocks, bits, CPU)
    layer = blocks[0]
    tensors = (
        [layer.weight, layer.scale]
        if bits == "8bit"
        else [layer.weight, *four_bit_tables(layer.weight.quant_state)]
    )
    assert sum(
        tensor.numel() * tensor.element_size() for tensor in tensors
    ) == quantization.stored_bytes(shape, bits)


def four_bit_tables(state) -> list[Tensor]:
    return [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]


def test_a_flux_of_12_billion_shrinks_as_told():
    layer = (3072, 12288)
    numbers = layer[0] * layer[1]
    assert quantization.stored_bytes(layer, "8bit") / numbers == pytest.approx(1.0, abs=2e-3)
    assert quantization.stored_bytes(layer, "4bit") / numbers == pytest.approx(0.516, abs=1e-3)


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
        assert torch.equal(layer.weight, other.weight) and type(layer) is type(other)
        pairs = zip(
            four_bit_tables(layer.weight.quant_state),
            four_bit_tables(other.weight.quant_state),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pairs)


@NEEDS_BITSANDBYTES
def test_the_librarys_lora_layers_take_the_four_bit_ones():
    from peft.tuners.lora.bnb import Linear4bit

    model = with_adapters(quantized(flux(), "4bit"))
    assert isinstance(model.get_submodule("transformer_blocks.0.attn.to_q"), Linear4bit)


def test_a_model_too_small_to_round_is_refused():
    with pytest.raises(
        DirectAlignError, match=r"model\.quantization 8bit: no layer .* leave the key out"
    ):
        quantization.quantize(nn.ModuleList([nn.Linear(8, 8)]), "8bit", CPU)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(DirectAlignError, match=r"pip install 'bitsandbytes"):
        quantization.quantize(nn.ModuleList([nn.Linear(64, 64)]), "4bit", CPU)


def test_a_row_of_zeros_stays_zero():
    layer = nn.Linear(64, 64)
    layer.weight.data[3] = 0
    blocks = nn.ModuleList([layer])
    quantization.quantize(blocks, "8bit", CPU)
    assert torch.equal(plain_weight(blocks[0])[3], torch.zeros(64))


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
