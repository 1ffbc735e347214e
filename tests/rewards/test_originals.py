"""Aesthetic heads, ImageReward and MPS: the scores and gradients that their originals gave."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from directalign.rewards import check_reward, load_reward, mps
from directalign.rewards.common import Preprocessing
from directalign.rewards.mps import MpsReward
from published_layouts import images_drawn
from recorded_rewards import FIXTURES, aesthetic_head, image_reward_weights, recorded
from rewards.cases import PROMPTS, refused, scores_of

Sections = Callable[[str], Any]


def score_and_gradient(reward: Any, pixels: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
    pixels = pixels.clone().requires_grad_()
    score = reward.score(reward.model.encode_image(pixels), [prompt] * len(pixels))
    return score.detach(), torch.autograd.grad(score.sum(), pixels)[0]


# --- aesthetic heads ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "improved", "v2_5"])
def test_an_aesthetic_head_on_its_backbone(name, sections, tmp_path):
    settings, kept = sections(name), recorded("aesthetic")[1]
    reward = load_reward(settings)
    score, gradient = score_and_gradient(reward, kept["pixels"], "ignored")
    assert (score - kept[f"{name}.score"]).abs().max() < 1e-5
    torch.testing.assert_close(gradient, kept[f"{name}.gradient"], atol=1e-5, rtol=1e-4)
    features = reward.encode(images_drawn(2, 40, 50, 0))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))
    half = {key: tensor.bfloat16() for key, tensor in aesthetic_head(name).items()}
    torch.save({"state_dict": half}, tmp_path / "head.pt")
    rounded = load_reward(settings.model_copy(update={"path": str(tmp_path / "head.pt")}))
    scores = [each.score(features, PROMPTS) for each in (rounded, reward)]
    torch.testing.assert_close(*scores, atol=2e-2, rtol=0)


# --- ImageReward ----------------------------------------------------------------------------------


def test_image_reward_tokens_score_and_gradient(sections):
    facts, kept = recorded("image_reward")
    reward: Any = load_reward(sections("image_reward"))
    tokens = reward.model.encode_image(kept["pixels"])
    torch.testing.assert_close(tokens, kept["tokens"], atol=1e-5, rtol=1e-5)
    for number, prompt in enumerate(facts["prompts"]):
        assert torch.equal(reward._tokenize([prompt])[0, 0], kept[f"ids.{number}"])
        score, gradient = score_and_gradient(reward, kept["pixels"], prompt)
        assert (score - kept[f"score.{number}"]).abs().max() < 1e-5
        torch.testing.assert_close(gradient, kept[f"gradient.{number}"], atol=1e-5, rtol=1e-4)


def test_image_reward_ignores_the_rest_of_its_file(sections, tmp_path):
    settings, images = sections("image_reward"), images_drawn(2, 32, 32, 1)
    shutil.copytree(Path(settings.path).parent, tmp_path, dirs_exist_ok=True)
    more = {"blip.visual_encoder_m.cls_token": torch.zeros(1), "blip.temp": torch.zeros(())}
    file = tmp_path / "ImageReward.pt"
    torch.save({"state_dict": image_reward_weights() | more}, file)
    copied = settings.model_copy(update={"path": str(file)})
    expected = scores_of(load_reward(settings), images)
    assert torch.equal(scores_of(load_reward(copied), images), expected)


def test_image_reward_refuses_another_tokenizer(sections, clip_folder, tmp_path):
    settings = sections("image_reward")
    reader = Path(shutil.copytree(settings.processor, tmp_path / "bert"))
    (reader / "tokenizer.json").unlink()
    (reader / "vocab.txt").write_text((reader / "vocab.txt").read_text() + "more\n")
    known = recorded("image_reward")[0]["med_config"]["vocab_size"]
    more = f"has {known + 1} tokens, two of them BLIP's, and the model knows {known}"
    for folder, complaint in ((reader, more), (clip_folder, "no BERT tokenizer")):
        changed = settings.model_copy(update={"processor": str(folder)})
        for act in (load_reward, check_reward):
            with refused(rf"held\.processor: {folder}: .*{complaint}"):
                act(changed, key="held")


# --- MPS ------------------------------------------------------------------------------------------


class SpelledIds:
    """A tokenizer of texts that are their own token ids."""

    def __call__(self, texts: list[str], **_: object) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([list(map(int, text.split())) for text in texts])}


def spelled(ids: Tensor) -> str:
    return " ".join(map(str, ids.tolist()))


@torch.no_grad()
def test_mps_scores(sections):
    folder = FIXTURES / "mps"
    file = folder / "mps.safetensors"
    weights, kept = load_file(file), load_file(folder / "answers.safetensors")
    described = mps._described(mps.files.shapes_of(weights), file, folder, "reward")
    reward: Any = MpsReward(
        mps.files.filled(described, weights),
        load_reward(sections("mps")).tokenizer,  # pyright: ignore[reportAttributeAccessIssue]
        Preprocessing(size=12, crop=(12, 12), mean=(0.0,) * 3, std=(1.0,) * 3),
        condition=spelled(kept["condition"]),
        scale=float(weights["model.logit_scale"].exp()),
    )
    reward.tokenizer = SpelledIds()
    prompts = list(map(spelled, kept["prompts"]))
    selected = torch.stack([each.selected for each in reward._prompts.read(prompts)])
    assert selected.any(1).all() and not selected.all(1).all()  # the condition's mask matters
    for rows in (slice(None), slice(2, None)):
        found = reward.score(reward.encode(kept["pixels"][rows]), prompts[rows])
        assert (found - kept["scores"][rows]).abs().max() < 1e-5


def test_the_condition_of_mps_selects_prompt_tokens(sections):
    settings = sections("mps")
    overall: Any = load_reward(settings)
    other: Any = load_reward(settings.model_copy(update={"condition": "ring"}))
    assert overall.condition.startswith("light, color") and overall.condition.endswith("things.")
    assert scores_of(overall, images_drawn(2, 48, 40, 0)).abs().max() <= 1
    tokens = [reward._prompts.read(PROMPTS) for reward in (overall, other)]
    assert any(not torch.equal(a.selected, b.selected) for a, b in zip(*tokens, strict=True))
