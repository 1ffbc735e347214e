"""How images are sampled, for training and for measurements."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import (
    Guidance,
    Moved,
    NonNegativeFloat,
    PathText,
    Pixels,
    Positive,
    PositiveFloat,
    Size,
    Steps,
    Strict,
)

Sizes = Annotated[list[Size], Field(min_length=1)]
TRAINING_ONLY = ("reuse", "training_steps", "lora", "cache", "sizes")
"""Keys of `rollout` that do not change how a trained model is sampled."""


class RolloutConfig(Strict):
    """How clean images are sampled, without gradient."""

    num_inference_steps: Steps = 25
    """Steps from pure noise."""
    solver: Literal["euler", "dpm_solver", "unipc"] = "euler"
    """euler: Euler, or DDIM on a DDPM schedule; dpm_solver (DPM-Solver++ 2M) and unipc: diffusers'
    multistep schedulers, closer to the limit of many steps in few; for methods that train on
    finished images (srpo, prompt_distillation, raft, diffusion_nft, awm, dpo)."""
    shift: PositiveFloat | None = None
    """Shift of the flow grid linspace(1, 0); none uses the checkpoint's own scheduler."""
    embedded_guidance: NonNegativeFloat | None = None
    """Guidance input of the network."""
    cfg_scale: Guidance = 1.0
    """Classifier-free guidance (two passes when not 1)."""
    truncate_timestep: Positive | None = None
    """n: the network gets int(n·sigma)/n instead of sigma (official: 1000)."""
    height: Pixels | None = None
    """Pixels; none uses the checkpoint's own size."""
    width: Pixels | None = None
    """Pixels; none uses the checkpoint's own size."""
    reuse: Positive = 1
    """Updates per rollout of srpo, prompt_distillation and raft, each with its own noise levels and
    fresh noise; the prompts change with the rollout."""
    training_steps: Steps | None = None
    """Steps of the rollouts that srpo, prompt_distillation and raft train on; none:
    num_inference_steps, which then applies only to samples and measurements."""
    lora: Annotated[PathText | None, Moved] = None
    """A LoRA that is active while images to train on are sampled, and nowhere else, such as a
    few-step adapter (Lightning, Hyper, Turbo) with a small training_steps; a file or folder as in
    model.lora.init, or world:flux_turbo. For srpo, prompt_distillation, raft, diffusion_nft and
    awm."""
    cache: PositiveFloat | None = None
    """Threshold of diffusers' First Block Cache while images to train on are sampled: a call skips
    the other blocks if the first one changes its input as in the last whole call, up to this
    relative difference (0.05 to 0.2 is usual); none computes all. For the methods of lora, with
    FLUX.1 and Qwen-Image."""
    sizes: Sizes | None = None
    """Several [height, width] for training, one drawn per update; height and width then apply to
    samples and measurements only."""
