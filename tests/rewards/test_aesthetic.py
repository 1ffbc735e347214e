"""Aesthetic heads as published: scores, gradients and preprocessing equal the originals'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from directalign import config
from directalign.rewards import load_reward
from directalign.rewards.aesthetic import AestheticReward
from published_layouts import images_drawn
from recorded_rewards import aesthetic_head, recorded, write_aesthetic

HEADS = ["linear", "improved", "v2_5"]
Files = dict[str, tuple[Path, Path]]
IGNORED = ["ignored"] * 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("aesthetic")
    return {name: write_aesthetic(folder, name) for name in HEADS}


def section(head: Path, backbone: Path, **changed: object) -> config.AestheticConfig:
    return config.AestheticConfig.model_validate(
        {"path": str(head), "backbone": str(backbone)} | changed
    )


def loaded(files: Files, name: str, **changed: object) -> AestheticReward:
    return load_reward(section(*files[name], **changed))


@pytest.mark.parametrize("name", HEADS)
class TestEachHead:
    def test_score_and_gradient_are_the_originals(self, files: Files, name: str) -> None:
        _, kept = recorded("aesthetic")
        reward, pixels = loaded(files, name), kept["pixels"].requires_grad_()
        score = reward.score(reward.model.encode_image(pixels), IGNORED)
        score.sum().backward()
        assert (score - kept[f"{name}.score"]).abs().max() < 1e-5
        assert pixels.grad is not None
        torch.testing.assert_close(pixels.grad, kept[f"{name}.gradient"], atol=1e-5, rtol=1e-4)

    def test_features_are_unit_and_the_head_is_affine(self, files: Files, name: str) -> None:
        reward = loaded(files, name)
        features = reward.encode(images_drawn(3, 40, 50, 0))
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
        middle = reward.score((features[:1] + features[1:2]) / 2, IGNORED[:1])
        torch.testing.assert_close(
            middle,
            reward.score(features[:2], IGNORED[:2]).mean(0, keepdim=True),
            atol=1e-6,
            rtol=1e-5,
        )

    def test_preprocessing_follows_the_8_bit_original(self, files: Files, name: str) -> None:
        preprocessing = loaded(files, name).preprocessing
        mean, std = (
            torch.tensor(values)[:, None, None]
            for values in (preprocessing.mean, preprocessing.std)
        )
        for number, (height, width) in enumerate(
            [(64, 64), (40, 57), (33, 120), (49, 32), (90, 91)]
        ):
            levels = (images_drawn(1, height, width, number)[0] * 255).round().byte()
            theirs = shown_by_pillow(levels, squashed=name == "v2_5")
            assert (
                preprocessing(levels[None].float() / 255)[0] * std + mean - theirs
            ).abs().max() < 2e-2

    def test_a_head_in_16_bits_and_wrapped(self, files: Files, tmp_path: Path, name: str) -> None:
        torch.save(
            {
                "state_dict": {
                    key: tensor.bfloat16() for key, tensor in aesthetic_head(name).items()
                }
            },
            tmp_path / "head.pt",
        )
        reward = load_reward(section(tmp_path / "head.pt", files[name][1]))
        features = reward.encode(images_drawn(2, 32, 32, 5))
        torch.testing.assert_close(
            reward.score(features, IGNORED[:2]),
            loaded(files, name).score(features, IGNORED[:2]),
            atol=2e-2,
            rtol=0,
        )
        assert {parameter.dtype for parameter in reward.model.parameters()} == {torch.float32}


def shown_by_pillow(levels: torch.Tensor, squashed: bool, side: int = 32) -> torch.Tensor:
    """8-bit pixels resized bicubically: to the square, or its short side and cut as torchvision
    cuts."""
    height, width = levels.shape[1:]
    short = min(height, width)
    size = (
        (side, side)
        if squashed
        else tuple(side if each == short else int(side * each / short) for each in (width, height))
    )
    image = Image.fromarray(levels.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((each - side) / 2) for each in size)
    return (
        torch.from_numpy(np.array(image.crop((left, top, left + side, top + side)))).permute(
            2, 0, 1
        )
        / 255
    )
