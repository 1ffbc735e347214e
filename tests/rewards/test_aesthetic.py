"""Aesthetic heads as published: equal to the originals' recorded answers, differentiable, frozen, refused by name where they do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from directalign import config
from directalign.interfaces import Reward
from directalign.methods.objective import require_prompt_reader
from directalign.rewards import check_reward, load_reward
from directalign.rewards.aesthetic import AestheticReward
from directalign.types import DirectAlignError
from finite_differences import differs_from_slope
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
    return config.AestheticConfig.model_validate({"path": str(head), "backbone": str(backbone)} | changed)


def loaded(files: Files, name: str, **changed: object) -> AestheticReward:
    return load_reward(section(*files[name], **changed))


def refused(head: Path, backbone: Path, **changed: object) -> str:
    """The one line with which loading refuses; checking must find the same."""
    with pytest.raises(DirectAlignError) as loading:
        load_reward(section(head, backbone, **changed), key="rewards.held")
    with pytest.raises(DirectAlignError) as checking:
        check_reward(section(head, backbone, **changed), key="rewards.held")
    assert str(loading.value) == str(checking.value) and "\n" not in str(loading.value)
    return str(loading.value)


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
        torch.testing.assert_close(middle, reward.score(features[:2], IGNORED[:2]).mean(0, keepdim=True), atol=1e-6, rtol=1e-5)

    def test_it_is_a_reward_blind_to_prompts(self, files: Files, name: str) -> None:
        reward = loaded(files, name, scale=2.0)
        assert isinstance(reward, Reward) and reward.differentiable
        features = reward.encode(images_drawn(2, 32, 32, 1))
        assert torch.equal(reward.score(features, ["a", "b"]), reward.score(features, ["c", "d"]))
        torch.testing.assert_close(reward.score(features, ["a", "b"]), 2 * loaded(files, name).score(features, ["a", "b"]))
        require_prompt_reader(reward, "absolute")
        with pytest.raises(DirectAlignError, match="aesthetic ignores prompts"):
            require_prompt_reader(reward, "relative")

    def test_gradient_to_the_pixels_is_the_slope(self, files: Files, name: str) -> None:
        reward = loaded(files, name)
        reward.model.double()
        assert differs_from_slope(lambda x: reward.score(reward.encode(x), IGNORED[:2]).sum(), images_drawn(2, 40, 36, 2).double()) < 1e-6

    def test_weights_stay_as_they_are(self, files: Files, name: str) -> None:
        reward = loaded(files, name)
        before = {key: tensor.clone() for key, tensor in reward.model.state_dict().items()}
        images = images_drawn(2, 40, 40, 3).requires_grad_()
        reward.score(reward.encode(images), IGNORED[:2]).sum().backward()
        assert images.grad is not None and images.grad.abs().max() > 0
        assert all(torch.equal(before[key], tensor) for key, tensor in reward.model.state_dict().items())
        assert all(not parameter.requires_grad and parameter.grad is None for parameter in reward.model.parameters())

    def test_recomputing_gives_the_same_gradient(self, files: Files, name: str) -> None:
        gradients, calls = [], []
        for frugal in (False, True):
            reward = loaded(files, name, gradient_checkpointing=frugal)
            layer = next(module for key, module in reward.model.tower.named_modules() if key.endswith("layers.0.mlp"))
            layer.register_forward_pre_hook(lambda *_, frugal=frugal: calls.append(frugal))
            images = images_drawn(2, 40, 40, 4).requires_grad_()
            reward.score(reward.encode(images), IGNORED[:2]).sum().backward()
            assert images.grad is not None
            gradients.append(images.grad)
        assert calls == [False, True, True]
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-8, rtol=1e-5)

    def test_preprocessing_follows_the_8_bit_original(self, files: Files, name: str) -> None:
        preprocessing = loaded(files, name).preprocessing
        mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
        for number, (height, width) in enumerate([(64, 64), (40, 57), (33, 120), (49, 32), (90, 91)]):
            levels = (images_drawn(1, height, width, number)[0] * 255).round().byte()
            theirs = shown_by_pillow(levels, squashed=name == "v2_5")
            assert (preprocessing(levels[None].float() / 255)[0] * std + mean - theirs).abs().max() < 2e-2

    def test_a_head_in_16_bits_and_wrapped(self, files: Files, tmp_path: Path, name: str) -> None:
        torch.save({"state_dict": {key: tensor.bfloat16() for key, tensor in aesthetic_head(name).items()}}, tmp_path / "head.pt")
        reward = load_reward(section(tmp_path / "head.pt", files[name][1]))
        features = reward.encode(images_drawn(2, 32, 32, 5))
        torch.testing.assert_close(reward.score(features, IGNORED[:2]), loaded(files, name).score(features, IGNORED[:2]), atol=2e-2, rtol=0)
        assert {parameter.dtype for parameter in reward.model.parameters()} == {torch.float32}

    def test_a_missing_a_misshapen_and_an_unknown_tensor(self, files: Files, tmp_path: Path, name: str) -> None:
        head, file = aesthetic_head(name), tmp_path / "head.pth"
        for key in head:
            torch.save({other: tensor for other, tensor in head.items() if other != key}, file)
            assert f"rewards.held.path: {file}: lacks {key}" in refused(file, files[name][1])
        bias = next(key for key in head if key.endswith("bias"))
        torch.save(head | {bias: torch.zeros(3, 5)}, file)
        assert f"has in another shape {bias}" in refused(file, files[name][1])
        torch.save(head | {"more": torch.zeros(1)}, file)
        assert "has the unknown more" in refused(file, files[name][1])

    def test_cut_short_and_pickled(self, files: Files, tmp_path: Path, name: str) -> None:
        whole, file = files[name][0].read_bytes(), tmp_path / "head.pth"
        file.write_bytes(whole[: len(whole) // 2])
        assert f"{file}: not a complete file of weights" in refused(file, files[name][1])
        torch.save(torch.nn.Linear(3, 1), file)
        assert f"{file}: holds pickled objects, which are never run" in refused(file, files[name][1])


def shown_by_pillow(levels: torch.Tensor, squashed: bool, side: int = 32) -> torch.Tensor:
    """8-bit pixels resized bicubically: to the square, or its short side and cut as torchvision cuts."""
    height, width = levels.shape[1:]
    short = min(height, width)
    size = (side, side) if squashed else tuple(side if each == short else int(side * each / short) for each in (width, height))
    image = Image.fromarray(levels.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((each - side) / 2) for each in size)
    return torch.from_numpy(np.array(image.crop((left, top, left + side, top + side)))).permute(2, 0, 1) / 255


class TestWrongPairs:
    def test_another_width(self, files: Files, tmp_path: Path) -> None:
        file, backbone = tmp_path / "wide.pth", files["linear"][1]
        torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, file)
        told = refused(file, backbone)
        assert told.startswith(f"rewards.held.backbone: {backbone}: gives 24 features, and {file}, a LAION linear aesthetic head, reads 768; name the backbone")
        assert told.endswith("openai/clip-vit-large-patch14")

    def test_another_architecture(self, files: Files) -> None:
        assert "rewards.held.backbone" in refused(files["v2_5"][0], files["linear"][1])
        assert "a model of type siglip; give the folder of a transformers CLIPModel" in refused(files["improved"][0], files["v2_5"][1])

    def test_no_head_at_all(self, files: Files, tmp_path: Path) -> None:
        torch.save({"logit_scale": torch.zeros(())}, tmp_path / "other.pth")
        assert "no aesthetic head (it holds logit_scale)" in refused(tmp_path / "other.pth", files["linear"][1])
        assert "no file of weights; give the head's own file" in refused(files["linear"][1], files["linear"][1])
        assert "no such file" in refused(tmp_path / "none.pth", files["linear"][1])

    def test_image_settings_of_another_model(self, files: Files, tmp_path: Path) -> None:
        backbone = tmp_path / "backbone"
        shutil.copytree(files["improved"][1], backbone)
        settings = backbone / "preprocessor_config.json"
        settings.write_text(settings.read_text().replace("32", "64"))
        assert "its images are 64 x 64 and the model reads 32 x 32" in refused(files["improved"][0], backbone)
        settings.unlink()
        assert f"{backbone}: preprocessor_config.json is missing" in refused(files["improved"][0], backbone)
        assert load_reward(section(files["improved"][0], backbone, processor=str(files["improved"][1]))).name == "aesthetic"

    def test_a_backbone_cut_short_or_absent(self, files: Files, tmp_path: Path) -> None:
        backbone = tmp_path / "backbone"
        shutil.copytree(files["v2_5"][1], backbone)
        weights = backbone / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:3000])
        assert f"rewards.held.backbone: {weights}: not a complete safetensors file" in refused(files["v2_5"][0], backbone)
        weights.unlink()
        assert f"rewards.held.backbone: {backbone}: model.safetensors is missing" in refused(files["v2_5"][0], backbone)
        assert "rewards.held.backbone" in refused(files["v2_5"][0], tmp_path / "none")
