"""The part of a reward that learns to listen, and the rest of it, which stays frozen to the bit.

A CLIP learns in its text tower and text projection (`text`; image features stay as they are, so they are computed once), or by
low-rank adapters on the attention and the feed-forward layers of both towers (`lora`), which are merged into its weights at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..interfaces import Reward
from ..rewards import ClipReward
from ..types import DirectAlignError, Images, PerSample

Part = Literal["text", "lora"]
RANK = 8
ADAPTED = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class Student:
    """A reward whose answers carry the gradient to `parameters`; the shape of `interfaces.Reward`.

    `sees_alike`: no parameter changes what it sees in an image. `settle` folds what was learned into the weights, freezes them, and
    gives the reward to be measured and saved. Text is read once between two calls of `forget`, which each step ends with.
    """

    name: str
    encode: Callable[[Images], Any]
    score: Callable[[Any, Sequence[str]], PerSample]
    parameters: list[nn.Parameter]
    sees_alike: bool
    forget: Callable[[], None]
    settle: Callable[[], Reward]
    reads_prompt: bool = True
    differentiable: bool = True


def student_of(reward: Reward, part: Part, seed: int) -> Student:
    """Open the part of a reward that learns; adapters begin from `seed`.

    Raises: DirectAlignError for a reward of a kind that cannot be tuned here.
    """
    if isinstance(reward, ClipReward):
        return _clip_student(reward, part, seed)
    raise DirectAlignError(f"--reward: {reward.name} cannot be taught to listen; give a CLIP (reward.name: clip)")


def _clip_student(reward: ClipReward, part: Part, seed: int) -> Student:
    model = reward.model
    opened = [model.text_model, model.text_projection] if part == "text" else []
    parameters = [each.requires_grad_() for module in opened for each in module.parameters()] or adapt(model, ADAPTED, seed)
    read: dict[str, Tensor] = {}

    def score(features: Tensor, prompts: Sequence[str]) -> PerSample:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in read]
        if new:
            read.update(zip(new, reward.encode_text(new), strict=True))
        return reward.scale * (features * torch.stack([read[prompt] for prompt in prompts])).sum(-1)

    def settle() -> ClipReward:
        merge(model)
        settled = ClipReward(model, reward.tokenizer, reward.preprocessing, reward.scale)
        settled.directions = reward.directions
        return settled

    return Student("clip", reward.encode, score, parameters, part == "text", read.clear, settle)


# --- adapters -----------------------------------------------------------------------------------------------------------


def adapt(model: nn.Module, targets: Sequence[str], seed: int) -> list[nn.Parameter]:
    """Put fresh low-rank adapters (arXiv 2106.09685) on the layers of these names; returns their weights, which alone learn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(targets)), model)
    return [each for each in model.parameters() if each.requires_grad]


def merge(model: nn.Module) -> None:
    """Fold the adapters into the layers they sit on, and take them off; without adapters nothing happens."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    model.__dict__.pop("peft_config", None)
    model.requires_grad_(False)
