"""A reward that recomputes its activations: the same gradient, and less kept for it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from directalign import config
from directalign.rewards import load_reward

PROMPT = ["a blue ring on an olive background"]


def kept_and_gradient(folder: Path, gradient_checkpointing: bool) -> tuple[int, Tensor, Tensor]:
    """Numbers that wait for the backward pass beside the weights, the score, and the gradient that reaches the pixels."""
    settings = config.ClipConfig(name="clip", path=str(folder), gradient_checkpointing=gradient_checkpointing)
    reward = load_reward(settings)
    weights = {parameter.data_ptr() for parameter in reward.model.parameters()}
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(0 if tensor.data_ptr() in weights else tensor.numel())
        return tensor

    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        score = reward.score(reward.encode(images), PROMPT)
    score.sum().backward()
    assert images.grad is not None and not any(parameter.requires_grad for parameter in reward.model.parameters())
    return sum(kept), score.detach(), images.grad


def test_the_gradient_is_the_same_and_less_is_kept_for_it(clip_folder):
    plain, recomputed = (kept_and_gradient(clip_folder, choice) for choice in (False, True))
    assert torch.equal(plain[1], recomputed[1])
    assert plain[2].abs().max() > 0
    torch.testing.assert_close(recomputed[2], plain[2], atol=1e-9, rtol=1e-6)
    assert recomputed[0] < 0.5 * plain[0]


def test_every_layer_runs_once_more_in_the_backward_pass(clip_folder):
    reward = load_reward(config.ClipConfig(name="clip", path=str(clip_folder), gradient_checkpointing=True))
    calls = []
    for layer in reward.model.vision_model.encoder.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    images = torch.rand(1, 3, 32, 32).requires_grad_()
    score = reward.score(reward.encode(images), PROMPT)
    assert len(calls) == 2
    score.sum().backward()
    assert len(calls) == 4
    with torch.no_grad():
        reward.encode(images)
    assert len(calls) == 6
