"""MPS: the original's recorded scores, the condition's mask, rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from directalign.rewards import check_reward, load_reward, mps
from directalign.rewards.common import Preprocessing
from directalign.rewards.mps import CrossModel, MpsReward, rotated, sizes_of
from published_layouts import images_drawn

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mps"
PROMPTS = ["a red star", "a blue ring on an olive background"]


class Spelled:
    """A tokenizer of texts that are their own token ids."""

    def __call__(self, texts: list[str], **_: object) -> dict[str, torch.Tensor]:
        return {
            "input_ids": torch.tensor([[int(token) for token in text.split()] for text in texts])
        }


def spelled(ids: torch.Tensor) -> str:
    return " ".join(str(int(token)) for token in ids)


def test_scores_are_those_of_the_original(sections: Callable[[str], Any]) -> None:
    reward = load_reward(sections("mps"))
    told, weights = (
        load_file(FIXTURES / "answers.safetensors"),
        load_file(FIXTURES / "mps.safetensors"),
    )
    used = mps._used(weights)
    described = mps._described(
        {name: tuple(tensor.shape) for name, tensor in used.items()},
        FIXTURES / "mps.safetensors",
        FIXTURES,
        "reward",
    )
    as_is = Preprocessing(size=12, crop=(12, 12), mean=(0.0,) * 3, std=(1.0,) * 3)
    ours = MpsReward(
        mps._filled(*described, used), reward.tokenizer, as_is, condition=spelled(told["condition"])
    )
    ours.tokenizer = Spelled()  # pyright: ignore[reportAttributeAccessIssue]
    prompts = [spelled(prompt) for prompt in told["prompts"]]
    selected = torch.stack([each.selected for each in ours._prompts.read(prompts)])
    assert (
        selected.any(1).all() and not selected.all(1).all()
    )  # the mask of the condition has something to do
    scale = weights["model.logit_scale"].exp()
    with torch.no_grad():
        assert (
            scale * ours.score(ours.encode(told["pixels"]), prompts) - told["scores"]
        ).abs().max() < 1e-5
        assert (
            scale * ours.score(ours.encode(told["pixels"][2:]), prompts[2:]) - told["scores"][2:]
        ).abs().max() < 1e-5


def test_condition_selects_prompt_tokens(sections: Callable[[str], Any]) -> None:
    settings = sections("mps")
    overall = load_reward(settings)
    other = load_reward(settings.model_copy(update={"condition": "ring", "scale": 100.0}))
    assert overall.condition.startswith("light, color") and overall.condition.endswith("things.")
    features = overall.encode(images_drawn(2, 48, 40, 0))
    assert overall.score(features, PROMPTS).abs().max() <= 1
    assert other.score(features, PROMPTS).abs().max() > 1
    selected = [
        torch.stack([each.selected for each in reward._prompts.read(PROMPTS)])
        for reward in (overall, other)
    ]
    assert not torch.equal(*selected)


def test_the_size_of_the_cross_model_is_read_from_its_weights() -> None:
    sizes = {"dim": 12, "layers": 3, "dim_head": 4, "heads": 5, "ff_mult": 2}
    shapes = {
        f"cross_model.{name}": tuple(tensor.shape)
        for name, tensor in CrossModel(**sizes).state_dict().items()
    }
    assert sizes_of(shapes, "cross_model.") == sizes


def test_rotary_positions_know_distance_alone() -> None:
    queries, keys = torch.randn(
        2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).expand(2, 6, 8)
    products = rotated(queries) @ rotated(keys).T
    for shift in range(-5, 6):
        along = products.diagonal(shift)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-6)
    assert not torch.allclose(products[0, 0], products[0, 3])


def test_half_precision_weights_in_a_torch_file(
    sections: Callable[[str], Any], tmp_path: Path
) -> None:
    settings, file = sections("mps"), tmp_path / "mps.pth"
    weights = load_file(settings.path).items()
    torch.save({name: w.half() if w.is_floating_point() else w for name, w in weights}, file)
    half = settings.model_copy(update={"path": str(file)})
    check_reward(half)
    images = images_drawn(2, 48, 40, 0)
    scores = [
        reward.score(reward.encode(images), PROMPTS)
        for reward in map(load_reward, (settings, half))
    ]
    torch.testing.assert_close(*scores, atol=2e-2, rtol=0)
