"""What every family owes its pipeline, for the families whose tests give the raw network and the library's call: images, gradients, an update, LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from directalign.config import LoRAConfig, ModelConfig, RolloutConfig
from directalign.diffusion.sampling import sample
from directalign.interfaces import Model
from directalign.methods.srpo import SRPO
from directalign.models import load_model, load_trained, trainable
from directalign.models.text_encoder import padded
from directalign.types import Conditioning
from methods.toy import ToyReward
from models.srpo_by_hand import BATCH, PROMPTS, SETTINGS, known_noise, losses_by_hand
from tiny import SIZE

STEPS = 4
LIBRARY_CALL = {"num_inference_steps": STEPS, "output_type": "pt"}


def load(family: str, folder: Path, **settings: Any) -> Any:
    return load_model(
        ModelConfig(architecture=family, path=str(folder), **{"tune": "full"} | settings), "cpu"
    )


def noise_for(family: Model, width: int = SIZE, seed: int = 3) -> Tensor:
    return torch.randn(
        2, *family.latent_shape(SIZE, width), generator=torch.Generator().manual_seed(seed)
    )


def noisy(family: Model) -> tuple[Tensor, Tensor, Conditioning]:
    """Latents, their levels and the two prompts, of different length."""
    return (
        noise_for(family, seed=0),
        torch.tensor([0.9, 0.3], dtype=torch.float64),
        family.encode_prompt(PROMPTS),
    )


@torch.no_grad()
def image_of_ours(
    family: Model, noise: Tensor, rollout: RolloutConfig, width: int = SIZE
) -> Tensor:
    cond = family.encode_prompt(PROMPTS).guided(None, rollout.cfg_scale)
    return family.decode(sample(family, cond, noise, family.sigmas(STEPS, SIZE, width))).clamp(0, 1)


def check_gradient(family: Model, network: torch.nn.Module, pred: Tensor, expected: Tensor) -> None:
    """Of every trained weight, by backward passes through our prediction and through the raw network's."""
    assert torch.equal(pred, expected) or (pred - expected).abs().max() <= 1e-6
    weights = torch.randn(pred.shape, generator=torch.Generator().manual_seed(1))
    theirs = dict(network.named_parameters())
    names, own = zip(*trainable(family).items(), strict=True)
    found = torch.autograd.grad((pred * weights).sum(), own, allow_unused=True)
    wanted = torch.autograd.grad(
        (expected * weights).sum(), [theirs[name] for name in names], allow_unused=True
    )
    for name, our, their in zip(names, found, wanted, strict=True):
        assert (our is None) == (their is None), name
        if our is not None:
            torch.testing.assert_close(
                our, their, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


def check_srpo_update(
    family: Model,
    network: torch.nn.Module,
    sample_by_library: Callable[[Tensor, float], Tensor],
    predict: Callable[[Tensor, Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
) -> None:
    """`sample_by_library(noise, cfg_scale)` gives x0, `predict(x_t, sigma)` is the raw network in two passes, `decode` the VAE before its clamp."""
    ours = list(
        SRPO(
            family,
            ToyReward(),
            SETTINGS,
            RolloutConfig(num_inference_steps=STEPS, height=SIZE, width=SIZE, cfg_scale=3.0),
        ).losses(BATCH)
    )
    noise = known_noise(family.latent_shape(SIZE, SIZE))
    theirs = losses_by_hand(
        path="flow", predict=predict, decode=decode, x0=sample_by_library(noise, 3.0), noise=noise
    )
    assert [loss.branch for loss in ours] == ["denoise", "inversion"]
    for our, their in zip(ours, theirs, strict=True):
        assert their > 0
        torch.testing.assert_close(our.value, their, atol=1e-5, rtol=1e-5)
    parameters = dict(network.named_parameters())
    names, weights = zip(*trainable(family).items(), strict=True)
    found = torch.autograd.grad(sum(loss.value for loss in ours), weights, allow_unused=True)
    wanted = torch.autograd.grad(
        sum(theirs), [parameters[name] for name in names], allow_unused=True
    )
    assert max(gradient.abs().max() for gradient in wanted if gradient is not None) > 1e-4
    for name, our, their in zip(names, found, wanted, strict=True):
        assert (our is None) == (their is None), name
        if our is not None:
            torch.testing.assert_close(
                our, their, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
            )


def check_lora(
    family: str,
    folder: Path,
    pipeline: Any,
    image_of_pipeline: Callable[[Any, Any, Tensor, RolloutConfig], Tensor],
    file: Path,
) -> None:
    """Trained adapters give the same images here, in the library's pipeline that loads them, and in a new family of ours."""
    settings = {"tune": "lora", "lora": LoRAConfig(rank=2, alpha=3)}
    ours, rollout = load(family, folder, **settings), RolloutConfig(cfg_scale=2.0)
    noise, generator = noise_for(ours), torch.Generator().manual_seed(1)
    for parameter in trainable(ours).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    ours.save(file)
    image = image_of_ours(ours, noise, rollout)
    assert (image - image_of_pipeline(pipeline, ours, noise, rollout)).abs().max() > 1e-2

    pipeline.load_lora_weights(file, weight_name="lora.safetensors")
    torch.testing.assert_close(
        image, image_of_pipeline(pipeline, ours, noise, rollout), atol=1e-4, rtol=0
    )
    again = load_model(
        ModelConfig(architecture=family, path=str(folder), **settings), "cpu", seed=9
    )
    load_trained(again, file)
    torch.testing.assert_close(image_of_ours(again, noise, rollout), image, atol=1e-5, rtol=0)


def check_recomputing(family: str, folder: Path) -> None:
    """Gradient checkpointing gives the same gradients, and the decoder's first block is computed again in the backward pass."""
    gradients, calls = [], []
    for gradient_checkpointing in (False, True):
        ours = load(family, folder, gradient_checkpointing=gradient_checkpointing)
        ours.vae.decoder.up_blocks[0].register_forward_pre_hook(
            lambda *_, on=gradient_checkpointing: calls.append(on)
        )
        x_t, sigma, cond = noisy(ours)
        ours.decode(ours.predict(x_t, sigma, cond)).square().sum().backward()
        gradients.append(
            {
                name: parameter.grad
                for name, parameter in trainable(ours).items()
                if parameter.grad is not None
            }
        )
    assert calls == [False, True, True]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


def check_bfloat16(family: str, folder: Path) -> None:
    """A bfloat16 network answers in float32, close to the exact one, and its adapters get a gradient."""
    exact, rounded = (
        load(family, folder, tune="lora", dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    x_t, sigma, cond = noisy(exact)
    pred = rounded.predict(x_t, sigma, rounded.encode_prompt(PROMPTS))
    assert pred.dtype == torch.float32
    torch.testing.assert_close(pred, exact.predict(x_t, sigma, cond), atol=0.1, rtol=0.1)
    rounded.decode(pred).mean().backward()
    assert (
        max(
            parameter.grad.abs().max()
            for parameter in trainable(rounded).values()
            if parameter.grad is not None
        )
        > 0
    )


def check_eight_bits(family: str, folder: Path) -> None:
    """A denoiser held in 8 bits answers nearly as the plain one does, and its adapters get a gradient."""
    plain, rounded = (
        load(family, folder, tune="lora", quantization=quantization)
        for quantization in (None, "8bit")
    )
    x_t, sigma, cond = noisy(plain)
    pred, expected = rounded.predict(x_t, sigma, cond), plain.predict(x_t, sigma, cond)
    assert 0 < (pred - expected).abs().max() < 0.05 * expected.abs().max()
    pred.sum().backward()
    assert (
        max(
            parameter.grad.abs().max()
            for parameter in trainable(rounded).values()
            if parameter.grad is not None
        )
        > 0
    )


def check_rows_of_a_cache(family: Any) -> None:
    """Prompts encoded one by one and joined are prompts encoded together."""
    rows, together = [family.prompts([prompt]) for prompt in PROMPTS], family.prompts(PROMPTS)
    for key, tensor in together.items():
        joined = padded([row[key] for row in rows])
        assert joined.dtype == tensor.dtype
        torch.testing.assert_close(joined, tensor, atol=1e-6, rtol=0)
