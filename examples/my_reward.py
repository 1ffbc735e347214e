"""A template for your own reward: copy it, change `encode` and `score`, name it in a recipe:

    reward: {name: python, path: my_reward.py:MyReward, differentiable: true, args: {target: 0.5}}

`differentiable: true` uses the gradient with respect to the images (SRPO, ReFL, DRaFT, ...);
without it the reward is a black box for policy gradients (method.name: flow_grpo). A function of
images and prompts is enough where images need not be encoded apart: `path: my_reward.py:contrast`.
"""

from __future__ import annotations

import torch
from torch import Tensor


class MyReward:
    """Minus the squared distance of the mean brightness to `target`."""

    reads_prompt = False
    """False: the score depends on the image alone. Set True to use `prompts` in `score`."""

    def __init__(self, target: float = 0.5) -> None:
        """Arguments are the recipe's `args`. Load models here, frozen and in eval mode."""
        self.target = target

    def encode(self, images: Tensor) -> Tensor:
        """Images (b, 3, H, W) float32 in [0, 1] to features; called once per batch of images."""
        return images.mean((1, 2, 3))

    def score(self, features: Tensor, prompts: list[str]) -> Tensor:
        """One number per image (b,), larger is better; `prompts` start with the control phrase."""
        assert len(prompts) == len(features)
        return -((features - self.target) ** 2)


def contrast(images: Tensor, prompts: list[str]) -> Tensor:
    """The same as a function: standard deviation over pixels, (b,)."""
    assert len(prompts) == len(images)
    return images.flatten(1).std(1)


if __name__ == "__main__":
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    reward = MyReward()
    scores = reward.score(reward.encode(images), ["a red star", "a blue ring"])
    scores.sum().backward()
    print(scores.tolist(), float(images.grad.abs().max()))  # the gradient must not be 0
