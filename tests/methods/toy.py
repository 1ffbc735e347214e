"""A model and a reward of a few numbers each, in float64, for steps written out by hand."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from directalign.device import to_device
from directalign.types import Conditioning, Images, Latents, PathName, PerSample, PredictionName


class ToyDenoiser(nn.Module):
    """pred = weight·x_t + sigma·bias + guidance·0.01, per channel."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(
            torch.randn(4, 4, generator=generator, dtype=torch.float64) * 0.5
        )
        self.bias = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))

    def forward(self, x_t: Tensor, sigma: Tensor, guidance: float) -> Tensor:
        mixed = torch.einsum("oc,bchw->bohw", self.weight, x_t)
        shift = sigma[:, None, None, None] * self.bias[:, None, None]
        return torch.tanh(mixed) + shift + 0.01 * guidance


class ToyFamily:
    pipeline, part, lora_targets = "ToyPipeline", "transformer", ()
    default_size = (4, 4)

    def __init__(self, path: PathName = "flow", prediction: PredictionName = "velocity") -> None:
        self.path, self.prediction = path, prediction
        self.denoiser = ToyDenoiser()
        self.calls: list[tuple[Tensor, float | None]] = []
        generator = torch.Generator().manual_seed(4)
        self.to_rgb = 0.2 * torch.randn(3, 4, generator=generator, dtype=torch.float64)

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(tuple(prompts), {})

    def encode_image(self, images: Images) -> Latents:
        return torch.einsum("oc,bohw->bchw", self.to_rgb, images.double())

    def decode(self, x0: Latents) -> Images:
        return torch.einsum("oc,bchw->bohw", self.to_rgb, x0.double()) + 0.5

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        self.calls.append((sigma.detach().clone(), cond.embedded_guidance))
        return self.denoiser(x_t.double(), sigma.double(), cond.embedded_guidance or 0.0)

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        highest = 1.0 if self.path == "flow" else 0.99
        return torch.linspace(highest, 0, num_inference_steps + 1, dtype=torch.float64)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return (4, height, width)

    def call_arguments(self, rollout):
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        torch.save(self.denoiser.state_dict(), folder / "toy.pt")


class ToyReward:
    """Linear in the mean colour, with a direction for each text; stores its texts and images."""

    name, sees = "toy", "pixels"

    def __init__(self, reads_prompt: bool = True, differentiable: bool = True) -> None:
        self.reads_prompt, self.differentiable = reads_prompt, differentiable
        self.prompts: list[tuple[str, ...]] = []
        self.images: list[Tensor] = []

    def encode(self, images: Images) -> Tensor:
        self.images.append(images.detach())
        return images.mean((2, 3))

    def direction(self, prompt: str) -> Tensor:
        seed = sum(ord(c) * 31**i for i, c in enumerate(prompt)) % 2**31 if self.reads_prompt else 0
        return torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def score(self, features: Tensor, prompts: Sequence[str]) -> PerSample:
        self.prompts.append(tuple(prompts))
        directions = torch.stack([self.direction(prompt) for prompt in prompts])
        return (features * to_device(directions, features.device)).sum(1)
