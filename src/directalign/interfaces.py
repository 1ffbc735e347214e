"""The contracts between the parts of a training: Model, Reward, Method; ProcessGroup and Judge.

They are protocols: pyright checks each implementation, no inheritance is needed.
model.encode_prompt -> rollout -> noise -> model.predict -> recover -> model.decode -> reward ->
method.losses
"""

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
    """A text-to-image model of one architecture, loaded from a checkpoint; see `models.common`."""

    path: PathName
    prediction: PredictionName
    pipeline: str
    """Name of the diffusers pipeline class, as in model_index.json."""
    part: str
    """Name of the denoiser in that pipeline: transformer or unet."""
    denoiser: nn.Module
    """The only module that is trained: all its weights, or LoRA adapters on it."""
    lora_targets: tuple[str, ...]
    """Names of the layers that LoRA adapts by default."""
    default_size: tuple[int, int]
    """(height, width) in pixels the checkpoint was made for."""

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Embed prompts, and the unconditional one, with the frozen text encoders, no gradient."""
        ...

    def encode_image(self, images: Images) -> Latents:
        """Images in [0, 1] to clean latents x0, the posterior's mode, without gradient."""
        ...

    def decode(self, x0: Latents) -> Images:
        """Clean latents to images around [0, 1], *not* clamped, gradient intact.

        With gradient checkpointing, activations are recomputed in the backward pass.
        """
        ...

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """The network's prediction at noise level `sigma` in [0, 1] (best in float64), in float32.

        One network call; two if `cond.cfg_scale` is not 1.
        """
        ...

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """Sampling grid of the checkpoint's scheduler: (num_inference_steps + 1,), falling to 0."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w) of an image's latents.

        Raises DirectAlignError, naming the multiple, for a size that does not fit.
        """
        ...

    def call_arguments(self, rollout: RolloutConfig) -> dict[str, Any]:
        """Arguments of the diffusers pipeline's call that sample as `rollout` does.

        Prompt, size, steps and generator are not among them.
        """
        ...

    def save(self, folder: FilePath) -> None:
        """Write the trained weights: `lora.safetensors`, or `transformer/` or `unet/`."""
        ...


@runtime_checkable
class EditingModel(Model, Protocol):
    """A model that edits a source image as the prompt says."""

    edits_images: bool

    def encode_prompt(self, prompts: Sequence[str], sources: Images | None = None) -> Conditioning:
        """As a `Model`, with the source image of each prompt, in [0, 1], of the size to make."""
        ...


@runtime_checkable
class ProcessGroup(Protocol):
    """The processes of a training, seen from one of them; `SINGLE_PROCESS` is a group of one."""

    @property
    def rank(self) -> int:
        """Counted from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks of tensors of one shape."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """Tensors of one shape from all ranks, concatenated along their first dimension by rank."""
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
    """A frozen reward model that training maximizes.

    Two calls: a relative reward scores the same image features under two prompts. One with an
    attribute `reads_sources` that is True gets the images that were edited too:
    `encode(images, sources)`, with a `types.Sources`.
    """

    sees: str
    """What `encode` gets: "pixels", or "latents", clean ones as the denoiser has them, which are
    then not decoded."""

    name: str
    reads_prompt: bool
    """False for a reward of the pixels only, from which no relative reward can be formed."""
    differentiable: bool
    """False for a black box, which only a policy gradient method can use."""

    def encode(self, images: Images | Latents) -> Any:
        """Image features, gradient intact; images are in [0, 1], or what `sees` says."""
        ...

    def score(self, features: Any, prompts: Sequence[str]) -> PerSample:
        """One score per image, larger is better, gradient intact."""
        ...


@runtime_checkable
class Method(Protocol):
    """One paper: a batch to losses, one per branch, each backpropagated before the next is made."""

    def losses(self, batch: Batch) -> Iterator[LossTerm]: ...

    def state_dict(self) -> Mapping[str, Any]:
        """State that a resumed run needs, in tensors and plain values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Judge(Protocol):
    """Measurements per image, for evaluation only: {"photo_rate": (b,), "content": (b,), ...}."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Mapping[str, PerSample]: ...
