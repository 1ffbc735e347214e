"""What comes and goes in each phase: the traced pieces of an update put in their order.

A loss is made of the denoiser's call, the decoder with the reward, and back: what the call keeps is still there while images
are judged. Of a method that differentiates several calls, all but one are kept while that one runs backward.
"""

from __future__ import annotations

import torch

from .. import config
from .calls import Shape
from .geometry import encoder_tokens, image_size, largest_size, prompt_tokens
from .held import Subject, asks_base, vae_width
from .judges import Judge
from .judging import Judged, judging
from .live import Piece
from .place import binary
from .traces import denoiser_call, encoding_images, encoding_prompts

GRID = 8
"""Images of a sample grid, where the recipe names no prompts of its own."""


def passing(subject: Subject) -> dict[str, int]:
    """Bytes at most, by phase, beyond what is held."""
    run = subject.run
    samples, size = samples_of(run), largest_size(run, subject.geometry)
    measured = _measured_at_once(run)
    smaller = image_size(run, subject.geometry)
    return {
        "encode": _encode(subject, run.data.batch_size),
        "rollout": _rollout(subject, samples, size),
        "train": _train(subject, samples, size),
        "update": 0,
        "measure": max(
            _call(subject, measured, smaller, False).forward, *_measure(subject, measured, smaller)
        ),
    }


def _measure(subject: Subject, measured: int, size: tuple[int, int]) -> list[int]:
    """The reward, and held-out ones after it, asked without gradient."""
    asked = [subject.panel.trained_on, *((judge,) for judge in subject.panel.held_out)]
    return [_judge(subject, measured, size, False, judges).forward for judges in asked]


def _encode(subject: Subject, b: int) -> int:
    run, dtype = subject.run.model, getattr(torch, subject.run.model.dtype)
    told = [
        (subject.model.parts[part], encoder_tokens(run.family, subject.model, part))
        for part in subject.text_parts
    ]
    return max(
        (encoding_prompts(part, dtype, b, tokens).forward for part, tokens in told), default=0
    )


def _rollout(subject: Subject, samples: int, size: tuple[int, int]) -> int:
    """Sampling, or real images encoded; a policy gradient has its samples judged here."""
    run, dtype = subject.run, torch.float32 if vae_width(subject) == 4 else torch.bfloat16
    online = _call(subject, samples, size, False).forward if run.data.prompts is not None else 0
    offline = (
        encoding_images(subject.model.parts["vae"], dtype, (samples, 3, *size)).forward
        if run.data.images is not None
        else 0
    )
    judged = (
        _judge(subject, samples, size, False).forward
        if isinstance(run.method, config.FlowGRPOConfig)
        else 0
    )
    return max(online, offline, judged)


def says(subject: Subject) -> str:
    """What the traced bytes of a training call are made of."""
    run = subject.run
    samples, size = samples_of(run), largest_size(run, subject.geometry)
    call = _call(subject, samples, size, True)
    kept = f"train: {kept_calls(run)} x {binary(call.kept)} kept by the denoiser"
    if asks_base(run.method) is not None:
        kept = f"train: {binary(_call(subject, samples, size, False).forward)} for the base model's call, given back; {kept.removeprefix('train: ')}"
    if isinstance(run.method, config.FlowGRPOConfig):
        return kept
    judge = _judge(subject, samples, size, True)
    return f"{kept}, then {binary(max(judge.forward, judge.backward))} for decoder and reward"


def samples_of(run: config.RunConfig) -> int:
    """Images that train at once on a rank: a group for each prompt where samples are compared."""
    return run.data.batch_size * (
        run.method.group_size if isinstance(run.method, config.FlowGRPOConfig) else 1
    )


def _train(subject: Subject, samples: int, size: tuple[int, int]) -> int:
    run, calls = subject.run, kept_calls(subject.run)
    call = _call(subject, samples, size, True)
    judge = (
        Piece(0, 0, 0)
        if isinstance(run.method, config.FlowGRPOConfig)
        else _judge(subject, samples, size, True)
    )
    base = (
        Piece(0, 0, 0) if asks_base(run.method) is None else _call(subject, samples, size, False)
    )  # of its call the answer alone stays
    before = (calls - 1) * call.kept + base.kept
    return max(
        base.forward,
        before + call.forward,
        before + call.kept + max(judge.forward, judge.backward),
        before + call.backward,
    )


def kept_calls(run: config.RunConfig) -> int:
    """Calls of the denoiser whose activations one loss keeps at once, two for each where guidance takes two passes.

    AlignProp recomputes all of its but one.
    """
    method, calls = run.method, 1
    if isinstance(method, config.DRaFTConfig):
        calls = method.grad_steps
    elif isinstance(method, config.DRTuneConfig | config.FlowBPConfig):
        calls = method.trained_steps
    elif isinstance(method, config.LeapAlignConfig):
        calls = 2
    cfg_scale = method.cfg_scale if isinstance(method, config.SRPOConfig) else run.rollout.cfg_scale
    return calls if cfg_scale == 1.0 else 2 * calls


def _call(subject: Subject, samples: int, size: tuple[int, int], with_gradient: bool) -> Piece:
    _, _, h, w = subject.geometry.latents(samples, size)
    tokens = prompt_tokens(subject.run.model.architecture, subject.model)
    return denoiser_call(
        subject.denoiser,
        Shape(samples, h, w, tokens, getattr(torch, subject.run.model.dtype)),
        with_gradient,
    )


def _judge(
    subject: Subject,
    samples: int,
    size: tuple[int, int],
    with_gradient: bool,
    judges: tuple[Judge, ...] | None = None,
) -> Piece:
    """Decoding and the rewards, by default those that are trained on."""
    run = subject.run
    latents = subject.geometry.latents(samples, size)
    if run.model.architecture == "flux2_klein":  # 2x2 blocks of latents are channels
        latents = (latents[0], 4 * latents[1], latents[2] // 2, latents[3] // 2)
    judged = Judged(
        vae=subject.model.parts["vae"],
        dtype=torch.float32 if vae_width(subject) == 4 else torch.bfloat16,
        recompute=run.model.gradient_checkpointing,
        judges=subject.panel.trained_on if judges is None else judges,
        one_by_one=isinstance(run.reward, config.MixtureConfig)
        and run.reward.gradient_normalization == "gradient",
        size=size,
    )
    return judging(judged, latents, with_gradient)


def _measured_at_once(run: config.RunConfig) -> int:
    """Images in the largest batch of a sample grid or measurement."""
    grid = len(run.train.sample_prompts) if run.train.sample_prompts is not None else GRID
    return min(run.evaluate.batch_size, max(grid, run.evaluate.num_samples))
