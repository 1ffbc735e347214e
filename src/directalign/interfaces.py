"""The three contracts, on one page. Nobody inherits from them; pyright checks that each implementation fits.

model.encode_prompt -> rollout -> core -> model.predict -> model.decode -> reward.encode/score -> method.losses
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from .config import RolloutConfig
from .types import (
    Batch,
    Conditioning,
    Images,
    Latents,
    LossTerm,
    PathName,
    PerSample,
    PredictionName,
)


@runtime_checkable
class Model(Protocol):
    """One architecture behind one face. Whatever is peculiar to a checkpoint stays inside its implementation."""

    path: PathName
    prediction: PredictionName
    pipeline: str
    """Class of the library's pipeline, as model_index.json names it."""
    part: str
    """Name of the denoiser in that pipeline: transformer or unet."""
    denoiser: nn.Module
    """The only module that is ever trained; with LoRA its adapters carry the gradient."""
    lora_targets: tuple[str, ...]
    """Names of the linear layers that LoRA adapts by default."""
    default_size: tuple[int, int]
    """(height, width) in pixels the checkpoint was made for."""

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Text encoders, frozen, no gradient. Carries `unconditional` too where the model can use cfg."""
        ...

    def encode_image(self, images: Images) -> Latents:
        """Images in [0, 1] to clean latents x0 in the scale the denoiser works in (mode of the posterior)."""
        ...

    def decode(self, x0: Latents) -> Images:
        """Clean latents to images around [0, 1], *not* clamped, gradient intact; activations are recomputed in the
        backward pass when gradient checkpointing is on."""
        ...

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """One network call at noise level `sigma` in [0, 1], best in float64 (two calls when `cond.cfg_scale` is not 1); float32."""
        ...

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The sampling grid of the checkpoint's own scheduler: (num_inference_steps + 1,), falling, ends in 0."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents of an image; a size that does not fit is an error that names the multiple."""
        ...

    def call_arguments(self, rollout: RolloutConfig) -> dict[str, Any]:
        """Arguments of the library pipeline's call that sample as `rollout` says, beside prompt, size, steps and generator."""
        ...

    def save(self, folder: FilePath) -> None:
        """Write what was trained into `folder` in diffusers format: `lora.safetensors`, or `transformer/` or `unet/`."""
        ...


@runtime_checkable
class ProcessGroup(Protocol):
    """This process among those that train together; a single process is `ALONE`."""

    @property
    def rank(self) -> int:
        """Counted from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks of an equally shaped tensor."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """Equally shaped tensors of all ranks, joined along their first dimension in the order of ranks."""
        ...


class _SingleProcess:
    rank, size = 0, 1

    def sum(self, values: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> Tensor:
        return values


SINGLE_PROCESS: ProcessGroup = _SingleProcess()


@runtime_checkable
class Reward(Protocol):
    """A frozen judge that is trained on. Two calls, because the relative reward asks two questions of
    one image; text features are computed once per phrase and kept."""

    name: str
    reads_prompt: bool
    """False for a reward that sees only pixels: a relative reward cannot be formed from it."""
    differentiable: bool
    """False for a black box, from which a policy gradient alone can learn."""

    def encode(self, images: Images) -> Any:
        """Image features, gradient intact; images are in [0, 1]."""
        ...

    def score(self, features: Any, prompts: Sequence[str]) -> PerSample:
        """One score per image, larger is better, gradient intact."""
        ...


@runtime_checkable
class Method(Protocol):
    """One paper: from a batch to losses. The loop backs up each loss as it appears, so memory is one branch."""

    def losses(self, batch: Batch) -> Iterator[LossTerm]: ...

    def state_dict(self) -> Mapping[str, Any]:
        """What must survive a resume (e.g. running references); tensors and plain values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Judge(Protocol):
    """Measures, is never trained on: {"photo_rate": (b,), "content": (b,), ...}, each per image."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Mapping[str, PerSample]: ...
