"""The part of a reward that learns to listen, and the rest of it, which stays frozen to the bit.

A CLIP learns in its text tower and text projection (`text`; image features stay as they are, so they are computed once), or by
low-rank adapters on the attention and the feed-forward layers of both towers (`lora`), which are merged into its weights at the end.
A VLM learns by such adapters in its language model; its vision tower stays as it is.
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
from ..rewards.clip import ClipReward
from ..rewards.qwen_vl import VlmReward
from ..types import DirectAlignError, Images, PerSample

Part = Literal["text", "lora"]
RANK = 8
CLIP_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LANGUAGE_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Student:
    """A reward whose answers carry the gradient to `parameters` (`interfaces.Reward`), made of `look` and `answer`.

    `sees_alike`: no parameter changes what it sees in an image. `settle` folds what was learned into the weights, freezes them, and
    gives the reward to be measured and saved. Text is read once between two calls of `forget`, which each step ends with.
    """

    name: str
    look: Callable[[Images], Any]
    answer: Callable[[Any, Sequence[str]], PerSample]
    parameters: list[nn.Parameter]
    sees_alike: bool
    forget: Callable[[], None]
    settle: Callable[[], Reward]
    reads_prompt: bool = True
    differentiable: bool = True

    def encode(self, images: Images) -> Any:
        """Image features, with the gradient to those parameters that change them."""
        return self.look(images)

    def score(self, features: Any, prompts: Sequence[str]) -> PerSample:
        """One score per image, with the gradient to the parameters."""
        return self.answer(features, prompts)


def part_of(reward: Reward, part: Part | None) -> Part:
    """The part that learns where none is asked for: the text side of a CLIP, adapters in a VLM.

    Raises: DirectAlignError for a kind that cannot be taught, and for the text side of a VLM, whose language model reads both.
    """
    parts: tuple[Part, ...] = getattr(reward, "finetune_parts", ())
    if not parts:
        raise DirectAlignError(f"--reward: {reward.name} cannot be taught to listen; give a CLIP (reward.name: clip) or a VLM (reward.name: vlm)")
    if part is not None and part not in parts:
        raise DirectAlignError("--part text: a VLM reads image and words in one language model; leave --part out, or take lora")
    return part or parts[0]


def learner_of(reward: Reward) -> Reward:
    """The reward as its lessons see it: a VLM by its log-odds, since a sure one's probability lets no gradient through."""
    if not isinstance(reward, VlmReward):
        return reward
    return VlmReward(reward.model, reward.chat, reward.pixels, reward.settings.model_copy(update={"answer": "log_odds"}), reward.answers)


def student_of(reward: Reward, part: Part, seed: int) -> Student:
    """Open the part of a reward that learns (see `part_of`); adapters begin from `seed`."""
    if isinstance(reward, VlmReward):
        return _vlm_student(reward, seed)
    assert isinstance(reward, ClipReward)
    return _clip_student(reward, part, seed)


def _clip_student(reward: ClipReward, part: Part, seed: int) -> Student:
    model = reward.model
    opened = [model.text_model, model.text_projection] if part == "text" else []
    parameters = [each.requires_grad_() for module in opened for each in module.parameters()] or adapt(model, CLIP_LAYERS, seed)
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


def _vlm_student(reward: VlmReward, seed: int) -> Student:
    parameters = adapt(reward.model.model.language_model, LANGUAGE_LAYERS, seed)

    def settle() -> VlmReward:
        merge(reward.model.model.language_model)
        return reward

    return Student("vlm", torch.no_grad()(reward.encode), learner_of(reward).score, parameters, True, lambda: None, settle)


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
