"""ImageReward in the published layout: tokens, scores and gradients equal the original's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from directalign import config
from directalign.rewards import check_reward, load_reward
from directalign.rewards.common import Preprocessing
from directalign.rewards.image_reward import CLIP_MEAN, CLIP_STD, ImageReward
from directalign.rewards.soft_prompts import write_tokens
from directalign.types import DirectAlignError
from published_layouts import images_drawn
from recorded_rewards import image_reward_weights, recorded, write_image_reward

PROMPTS = ["a red star", "a blue ring in the background"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_image_reward(tmp_path_factory.mktemp("image_reward"))


@pytest.fixture(scope="module")
def reward(files: tuple[Path, Path]) -> ImageReward:
    return load_reward(section(files))


def section(files: tuple[Path, Path], **changed: object) -> config.ImageRewardConfig:
    return config.ImageRewardConfig.model_validate(
        {"path": str(files[0]), "processor": str(files[1])} | changed
    )


@pytest.fixture
def copied(files: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(files[0].parent, tmp_path / "copied")
    return tmp_path / "copied" / files[0].name, tmp_path / "copied" / files[1].name


def refused(files: tuple[Path, Path], **changed: object) -> str:
    """The one line with which loading refuses; checking must find the same."""
    with pytest.raises(DirectAlignError) as loading:
        load_reward(section(files, **changed), key="rewards.held")
    with pytest.raises(DirectAlignError) as checking:
        check_reward(section(files, **changed), key="rewards.held")
    assert str(loading.value) == str(checking.value) and "\n" not in str(loading.value)
    return str(loading.value)


class TestOriginal:
    def test_image_tokens(self, reward: ImageReward) -> None:
        _, kept = recorded("image_reward")
        torch.testing.assert_close(
            reward.model.encode_image(kept["pixels"]), kept["tokens"], atol=1e-5, rtol=1e-5
        )

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_token_ids_score_and_gradient(self, reward: ImageReward, number: int) -> None:
        told, kept = recorded("image_reward")
        prompt, pixels = told["prompts"][number], kept["pixels"].requires_grad_()
        assert torch.equal(reward._tokenize([prompt])[0, 0], kept[f"ids.{number}"])
        score = reward.score(reward.model.encode_image(pixels), [prompt] * 2)
        score.sum().backward()
        assert (score - kept[f"score.{number}"]).abs().max() < 1e-5
        assert pixels.grad is not None
        torch.testing.assert_close(pixels.grad, kept[f"gradient.{number}"], atol=1e-5, rtol=1e-4)

    def test_what_the_file_holds_beside_is_left_unread(
        self, files: tuple[Path, Path], copied: tuple[Path, Path], reward: ImageReward
    ) -> None:
        more = {"blip.visual_encoder_m.cls_token": torch.zeros(1), "blip.temp": torch.zeros(())}
        torch.save({"state_dict": image_reward_weights() | more}, copied[0])
        features = reward.encode(images_drawn(2, 32, 32, 1))
        again = load_reward(section(copied))
        assert torch.equal(
            again.score(again.encode(images_drawn(2, 32, 32, 1)), PROMPTS),
            reward.score(features, PROMPTS),
        )


class TestContract:
    def test_each_phrase_is_tokenised_once_and_the_image_encoded_once(
        self, files: tuple[Path, Path]
    ) -> None:
        reward, seen, read = load_reward(section(files)), [], []
        reward.model.vision.register_forward_pre_hook(lambda *_: seen.append(1))
        tokenize = reward._prompts.encode
        reward._prompts.encode = lambda texts: read.extend(texts) or tokenize(texts)
        features = reward.encode(images_drawn(2, 32, 32, 4))
        for prompts in (PROMPTS, PROMPTS[::-1], ["a red star"] * 2):
            reward.score(features, prompts)
        assert len(seen) == 1 and read == PROMPTS

    def test_learned_tokens_that_are_the_vectors_of_words_score_as_the_words(
        self, reward: ImageReward, tmp_path: Path
    ) -> None:
        tokens = tmp_path / "tokens.safetensors"
        write_tokens(
            tokens,
            reward.soft_prompts.made(
                reward.soft_prompts.embedding_of("realistic photo"), "from words"
            ),
        )
        features = reward.encode(images_drawn(2, 32, 32, 8))
        by_tokens = reward.score(features, [f"{tokens}. a red star", "a blue ring"])
        torch.testing.assert_close(
            by_tokens,
            reward.score(features, ["realistic photo. a red star", "a blue ring"]),
            atol=1e-6,
            rtol=1e-6,
        )
        assert (by_tokens - reward.score(features, ["a red star", "a blue ring"])).abs()[0] > 1e-4


@pytest.mark.parametrize(
    ("height", "width"), [(256, 256), (224, 224), (300, 227), (231, 400), (150, 180), (512, 770)]
)
def test_preprocessing_follows_the_8_bit_original(height: int, width: int) -> None:
    levels = (images_drawn(1, height, width, height)[0] * 255).round().byte()
    shorter = 224 / min(height, width)
    size = tuple(
        224 if side == min(height, width) else int(side * shorter) for side in (width, height)
    )
    theirs = Image.fromarray(levels.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - 224) / 2) for side in size)
    theirs = (
        torch.from_numpy(np.array(theirs.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)
        / 255
    )
    ours = Preprocessing(224, (224, 224), CLIP_MEAN, CLIP_STD, rounded_centre=True)(
        levels[None].float() / 255
    )[0]
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    assert (ours * std + mean - theirs).abs().max() < 2e-2


class TestRefusals:
    def test_a_tokenizer_with_more_words(self, copied: tuple[Path, Path]) -> None:
        (copied[1] / "tokenizer.json").unlink()
        (copied[1] / "vocab.txt").write_text((copied[1] / "vocab.txt").read_text() + "more\n")
        known = recorded("image_reward")[0]["med_config"]["vocab_size"]
        assert (
            f"rewards.held.processor: {copied[1]}: has {known + 1} tokens, two of them BLIP's, and "
            f"the model knows {known}" in refused(copied)
        )

    def test_no_tokenizer_and_another_kind(
        self, copied: tuple[Path, Path], clip_folder: Path
    ) -> None:
        assert "no BERT tokenizer" in refused(copied, processor=str(clip_folder))
        shutil.rmtree(copied[1])
        assert f"rewards.held.processor: {copied[1]}: no such folder" in refused(copied)
