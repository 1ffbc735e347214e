"""Biases that phrases cancel, most hacked images, rankings, and readings of single runs."""

import pytest
import torch

from directalign.rewards.clip import ClipReward
from directalign.toyworld.scenes import STYLES, caption
from experiments import anchor, timesteps
from experiments.control_phrases import PHRASES, Phrases, facts_of, renders_for, text_cosine


@pytest.fixture(scope="module")
def reward():
    return ClipReward.load("world:reward")


class PlantedReward:
    """Redness counts fully under every prompt; "Warm" adds half of it again."""

    name, sees, reads_prompt, differentiable = "planted", "pixels", True, True

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))

    def score(self, features: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        factors = [1.5 if prompt.startswith("Warm") else 1.0 for prompt in prompts]
        return features * torch.tensor(factors)


@pytest.mark.parametrize(("positive", "share"), [("Photo", 1.0), ("Warm", 2 / 3)])
def test_facts_find_a_planted_bias(positive, share):
    phrases = Phrases("planted", "planted", None, (positive,), ("Plain",))
    facts = facts_of(phrases, PlantedReward(), renders_for(PlantedReward()))
    assert facts["cancelled"] == pytest.approx(share, abs=1e-5) and facts["tint_pos"] > 0.1


def test_facts_of_the_embedded_reward(reward):
    facts = facts_of(PHRASES[0], reward, renders_for(reward))
    gaps = {style: facts[f"gap_{style}"] for style in STYLES}
    assert facts["cancelled"] > 0.9 and gaps["photo"] == max(gaps.values()) > 0
    same = Phrases("", "", None, ("Photo",), ("Photo",))
    assert text_cosine(same, reward) == pytest.approx(1, abs=1e-5)
    narrow, recipe, wide = (text_cosine(gap, reward) for gap in anchor.GAPS)
    assert narrow > recipe > wide
    captions = [caption(c, "triangle", b) for c in ("purple", "orange") for b in ("white", "olive")]
    longest, limit = max(captions, key=len), reward.model.text_model.config.max_position_embeddings
    for phrase in (phrase for each in PHRASES for phrase in (*each.positive, *each.negative)):
        assert len(reward.tokenizer(f"{phrase}. {longest}")["input_ids"]) <= limit


def test_lost_content_counts_before_any_drift_and_ties_are_split():
    lost = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    drifted = torch.tensor([[0.0, 0.1, 0.2, 0.2], [9.0, 0.3, 0.2, 0.3], [9.0, 0.2, 0.1, 5.0]])
    wanted = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(timesteps.most_hacked(lost, drifted), wanted)
