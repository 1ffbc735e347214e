"""ImageReward in its makers' layout: equal to the original's recorded answers, differentiable, frozen, refused by name where it is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from directalign import config
from directalign.interfaces import Reward
from directalign.rewards import check_reward, load_reward
from directalign.rewards.common import Preprocessing
from directalign.rewards.image_reward import CLIP_MEAN, CLIP_STD, ImageReward
from directalign.rewards.soft_prompts import write_tokens
from directalign.types import DirectAlignError
from finite_differences import differs_from_slope
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
    return config.ImageRewardConfig.model_validate({"path": str(files[0]), "processor": str(files[1])} | changed)


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
        torch.testing.assert_close(reward.model.encode_image(kept["pixels"]), kept["tokens"], atol=1e-5, rtol=1e-5)

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

    def test_one_image_in_a_batch_scores_as_alone(self, reward: ImageReward) -> None:
        features = reward.encode(images_drawn(2, 40, 36, 0))
        together = reward.score(features, PROMPTS)
        alone = torch.cat([reward.score(features[number : number + 1], [PROMPTS[number]]) for number in range(2)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)

    def test_what_the_file_holds_beside_is_left_unread(self, files: tuple[Path, Path], copied: tuple[Path, Path], reward: ImageReward) -> None:
        more = {"blip.visual_encoder_m.cls_token": torch.zeros(1), "blip.temp": torch.zeros(())}
        torch.save({"state_dict": image_reward_weights() | more}, copied[0])
        features = reward.encode(images_drawn(2, 32, 32, 1))
        again = load_reward(section(copied))
        assert torch.equal(again.score(again.encode(images_drawn(2, 32, 32, 1)), PROMPTS), reward.score(features, PROMPTS))

    def test_without_med_config_heads_are_64_wide(self, copied: tuple[Path, Path]) -> None:
        (copied[0].parent / "med_config.json").unlink()
        assert "embeddings.word_embeddings.weight is 48 wide, no multiple of the 64" in refused(copied)


class TestContract:
    def test_it_is_a_reward_that_reads_prompts(self, reward: ImageReward) -> None:
        assert isinstance(reward, Reward) and reward.reads_prompt and reward.differentiable
        features = reward.encode(images_drawn(2, 50, 40, 2))
        assert features.shape == (2, 17, 128)
        assert (reward.score(features, PROMPTS) - reward.score(features, ["a green square", "a cg render"])).abs().min() > 1e-4

    def test_scale_multiplies(self, files: tuple[Path, Path], reward: ImageReward) -> None:
        features = reward.encode(images_drawn(2, 32, 32, 3))
        thrice = load_reward(section(files, scale=3.0))
        torch.testing.assert_close(thrice.score(features, PROMPTS), 3 * reward.score(features, PROMPTS))

    def test_each_phrase_is_tokenised_once_and_the_image_encoded_once(self, files: tuple[Path, Path]) -> None:
        reward, seen, read = load_reward(section(files)), [], []
        reward.model.vision.register_forward_pre_hook(lambda *_: seen.append(1))
        tokenize = reward._prompts.encode
        reward._prompts.encode = lambda texts: read.extend(texts) or tokenize(texts)
        features = reward.encode(images_drawn(2, 32, 32, 4))
        for prompts in (PROMPTS, PROMPTS[::-1], ["a red star"] * 2):
            reward.score(features, prompts)
        assert len(seen) == 1 and read == PROMPTS

    def test_learned_tokens_that_are_the_vectors_of_words_score_as_the_words(self, reward: ImageReward, tmp_path: Path) -> None:
        tokens = tmp_path / "tokens.safetensors"
        write_tokens(tokens, reward.soft_prompts.made(reward.soft_prompts.embedding_of("realistic photo"), "from words"))
        features = reward.encode(images_drawn(2, 32, 32, 8))
        by_tokens = reward.score(features, [f"{tokens}. a red star", "a blue ring"])
        torch.testing.assert_close(by_tokens, reward.score(features, ["realistic photo. a red star", "a blue ring"]), atol=1e-6, rtol=1e-6)
        assert (by_tokens - reward.score(features, ["a red star", "a blue ring"])).abs()[0] > 1e-4

    def test_weights_stay_as_they_are(self, files: tuple[Path, Path]) -> None:
        reward = load_reward(section(files))
        before = {name: tensor.clone() for name, tensor in reward.model.state_dict().items()}
        images = images_drawn(2, 40, 40, 5).requires_grad_()
        reward.score(reward.encode(images), PROMPTS).sum().backward()
        assert images.grad is not None and images.grad.abs().max() > 0
        assert all(torch.equal(before[name], tensor) for name, tensor in reward.model.state_dict().items())
        assert all(not parameter.requires_grad and parameter.grad is None for parameter in reward.model.parameters())

    def test_gradient_to_the_pixels_is_the_slope(self, files: tuple[Path, Path]) -> None:
        reward = load_reward(section(files))
        reward.model.double()
        images = images_drawn(2, 40, 36, 6).double()
        assert differs_from_slope(lambda x: reward.score(reward.encode(x), PROMPTS).sum(), images) < 1e-6

    def test_recomputing_gives_the_same_gradient(self, files: tuple[Path, Path], reward: ImageReward) -> None:
        frugal, calls, gradients = load_reward(section(files, gradient_checkpointing=True)), [], []
        frugal.model.vision.encoder.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append("vision"))
        frugal.model.text.encoder.layer[0].output.register_forward_pre_hook(lambda *_: calls.append("text"))
        for each in (reward, frugal):
            images = images_drawn(2, 40, 40, 7).requires_grad_()
            each.score(each.encode(images), PROMPTS).sum().backward()
            assert images.grad is not None
            gradients.append(images.grad)
        assert sorted(calls) == ["text", "text", "vision", "vision"]
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (224, 224), (300, 227), (231, 400), (150, 180), (512, 770)])
def test_preprocessing_follows_the_8_bit_original(height: int, width: int) -> None:
    levels = (images_drawn(1, height, width, height)[0] * 255).round().byte()
    shorter = 224 / min(height, width)
    size = tuple(224 if side == min(height, width) else int(side * shorter) for side in (width, height))
    theirs = Image.fromarray(levels.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - 224) / 2) for side in size)
    theirs = torch.from_numpy(np.array(theirs.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1) / 255
    ours = Preprocessing(224, (224, 224), CLIP_MEAN, CLIP_STD, rounded_centre=True)(levels[None].float() / 255)[0]
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    assert (ours * std + mean - theirs).abs().max() < 2e-2


class TestRefusals:
    def test_cut_short(self, copied: tuple[Path, Path]) -> None:
        copied[0].write_bytes(copied[0].read_bytes()[:5000])
        assert refused(copied) == f"rewards.held.path: {copied[0]}: not a complete file of weights (cut short, or of another kind): fetch it again"

    def test_pickled_objects(self, copied: tuple[Path, Path]) -> None:
        torch.save(torch.nn.Linear(2, 2), copied[0])
        assert f"rewards.held.path: {copied[0]}: holds pickled objects, which are never run" in refused(copied)

    @pytest.mark.parametrize(
        "name",
        [
            "blip.visual_encoder.pos_embed",
            "blip.visual_encoder.blocks.1.attn.qkv.bias",
            "blip.text_encoder.encoder.layer.0.crossattention.self.key.weight",
            "blip.text_encoder.embeddings.word_embeddings.weight",
            "mlp.layers.4.weight",
            "mlp.layers.7.bias",
        ],
    )
    def test_a_missing_tensor_is_named(self, copied: tuple[Path, Path], name: str) -> None:
        torch.save({key: tensor for key, tensor in image_reward_weights().items() if key != name}, copied[0])
        assert f"rewards.held.path: {copied[0]}: lacks {name}" in refused(copied)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("blip.visual_encoder.norm.weight", (7,)),
            ("blip.text_encoder.encoder.layer.1.crossattention.self.value.weight", (48, 64)),
            ("mlp.layers.0.weight", (1024, 32)),
            ("blip.visual_encoder.patch_embed.proj.weight", (128,)),
        ],
    )
    def test_a_misshapen_tensor_is_named(self, copied: tuple[Path, Path], name: str, shape: tuple[int, ...]) -> None:
        torch.save(image_reward_weights() | {name: torch.zeros(shape)}, copied[0])
        assert f"has in another shape {name}" in refused(copied)

    def test_an_unknown_tensor_is_named(self, copied: tuple[Path, Path]) -> None:
        torch.save(image_reward_weights() | {"mlp.layers.9.weight": torch.zeros(1, 1)}, copied[0])
        assert "has the unknown mlp.layers.9.weight" in refused(copied)

    def test_patches_that_fill_no_square(self, copied: tuple[Path, Path]) -> None:
        torch.save(image_reward_weights() | {"blip.visual_encoder.pos_embed": torch.zeros(1, 16, 128)}, copied[0])
        assert "has 15 patches, which fill no square" in refused(copied)

    @pytest.mark.parametrize(
        ("changed", "told"),
        [({"hidden_size": 768}, "hidden_size 768"), ({"num_attention_heads": 7}, "num_attention_heads 7"), ({"hidden_act": "sharp"}, "hidden_act sharp")],
    )
    def test_another_models_med_config(self, copied: tuple[Path, Path], changed: dict[str, object], told: str) -> None:
        file = copied[0].parent / "med_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
        assert f"{file}: {told} does not fit the weights in ImageReward.pt" in refused(copied)

    def test_an_unreadable_med_config(self, copied: tuple[Path, Path]) -> None:
        (copied[0].parent / "med_config.json").write_text("{")
        assert "med_config.json: cannot be read (JSONDecodeError" in refused(copied)

    def test_a_tokenizer_with_more_words(self, copied: tuple[Path, Path]) -> None:
        (copied[1] / "tokenizer.json").unlink()
        (copied[1] / "vocab.txt").write_text((copied[1] / "vocab.txt").read_text() + "more\n")
        known = recorded("image_reward")[0]["med_config"]["vocab_size"]
        assert f"rewards.held.processor: {copied[1]}: has {known + 1} tokens, two of them BLIP's, and the model knows {known}" in refused(copied)

    def test_no_tokenizer_and_another_kind(self, copied: tuple[Path, Path], clip_folder: Path) -> None:
        assert "no BERT tokenizer" in refused(copied, processor=str(clip_folder))
        shutil.rmtree(copied[1])
        assert f"rewards.held.processor: {copied[1]}: no such folder" in refused(copied)

    def test_a_folder_in_place_of_the_file(self, copied: tuple[Path, Path]) -> None:
        assert "no file of weights; give ImageReward.pt" in refused(copied, path=str(copied[1]))
        assert f"rewards.held.path: {copied[1]}/none.pt: no such file" in refused(copied, path=f"{copied[1]}/none.pt")
