"""Control words: what cancels and what is suppressed, on planted numbers and on the embedded reward, and the study in its quick size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from directalign.config.load import load_run
from directalign.rewards.clip import ClipReward
from directalign.studies import STUDIES, run_study, words
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import Row, read_rows
from directalign.studies.wordings import TINT, WORDINGS, Wording, cancelled, facts_of, seen_by, text_cosine, tinted
from directalign.toyworld.scenes import STYLE_WORDS, STYLES, caption

RECIPES = Path(__file__).parents[2] / "recipes"
LONGEST = max((caption(c, s, b) for c in ("purple", "orange") for s in ("triangle",) for b in ("white", "olive")), key=len)


@pytest.fixture(scope="module")
def reward() -> ClipReward:
    return ClipReward.load("world:reward")


def by_name(name: str) -> Wording:
    return next(wording for wording in WORDINGS if wording.name == name)


def test_every_style_is_a_target_against_all_others() -> None:
    for style in STYLES:
        towards = by_name(f"to_{style}")
        assert towards.target == style and towards.positive == STYLE_WORDS[style]
        assert towards.negative == tuple(STYLE_WORDS[other][0] for other in STYLES if other != style)
    assert by_name("swapped").positive == by_name("to_photo").negative and by_name("swapped").negative == by_name("to_photo").positive
    assert STUDIES[words.NAME] == words.TITLE


def test_towards_photos_is_what_the_recipe_says() -> None:
    recipe = load_run(RECIPES / "world_srpo.yaml")
    assert settings_of(by_name("to_photo").arm, 0, RECIPES).method == recipe.method


@pytest.mark.parametrize("wording", WORDINGS, ids=lambda wording: wording.name)
def test_the_reward_reads_every_prompt_to_its_end(wording: Wording, reward: ClipReward) -> None:
    length = reward.model.text_model.config.max_position_embeddings
    for word in (*wording.positive, *wording.negative):
        assert len(reward.tokenizer(f"{word}. {LONGEST}")["input_ids"]) <= length, word


@pytest.mark.parametrize(("absolute", "relative", "share"), [(0.06, 0.0, 1.0), (0.06, 0.03, 0.5), (0.06, -0.03, 0.5), (0.06, 0.06, 0.0), (0.06, 0.12, -1.0)])
def test_the_share_that_cancels(absolute: float, relative: float, share: float) -> None:
    assert cancelled(absolute, relative) == pytest.approx(share)


def test_a_tint_is_red_of_its_strength() -> None:
    moved = tinted(torch.full((2, 3, 8, 8), 0.5)) - 0.5
    assert torch.allclose(moved.mean((0, 2, 3)), torch.tensor([TINT, -TINT / 2, -TINT / 2]))


class PlantedReward:
    """Redness counts fully under every prompt; "Warm" adds half of it again, "Photo" adds nothing."""

    name, reads_prompt, differentiable = "planted", True, True

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))

    def score(self, features: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return features * torch.tensor([1.5 if prompt.startswith("Warm") else 1.0 for prompt in prompts])


@pytest.mark.parametrize(("positive", "share"), [("Photo", 1.0), ("Warm", 2 / 3)])
def test_facts_find_a_planted_bias(positive: str, share: float) -> None:
    facts = facts_of(Wording("planted", "planted", None, (positive,), ("Plain",)), PlantedReward(), seen_by(PlantedReward()))
    assert facts["cancelled"] == pytest.approx(share, abs=1e-5)
    assert facts["tint_pos"] > 0.1 and set(facts) == {*(f"gap_{style}" for style in STYLES), "tint_pos", "tint_relative", "cancelled"}


def test_facts_of_the_embedded_reward(reward: ClipReward) -> None:
    photo = facts_of(by_name("to_photo"), reward, seen_by(reward))
    assert photo["cancelled"] > 0.9 and photo["tint_pos"] > 0.03
    assert photo["gap_photo"] == max(photo[f"gap_{style}"] for style in STYLES) > 0
    near = Wording("near", "near", "photo", ("Photo",), ("Render",))
    assert text_cosine(near, reward) > text_cosine(by_name("to_photo"), reward)
    assert text_cosine(Wording("same", "same", None, ("Photo",), ("Photo",)), reward) == pytest.approx(1, abs=1e-5)


def asked(arm: str, style: str, delivered: float) -> Row:
    return {"kind": "asked", "arm": arm, "title": arm, "seed": 0, "asked": style, "delivered": delivered}


def test_a_style_is_suppressed_when_it_is_delivered_less_than_before() -> None:
    rows = [asked("base", "anime", 0.8), asked("to_photo", "anime", 0.5), asked("to_cg", "anime", 0.75)]
    assert words.is_suppressed(rows, "to_photo", "anime") and not words.is_suppressed(rows, "to_cg", "anime")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study("words", tmp_path_factory.mktemp("words"), quick=True, recipes=RECIPES).parent


def test_the_quick_study_leaves_rows_a_text_and_figures(shown: Path) -> None:
    rows = read_rows(shown / "results.jsonl")
    assert {row["arm"] for row in rows if row.get("kind") == "asked"} == {"base", *words.QUICK_NAMES}
    ends = [row for row in rows if "kind" not in row and row["step"] == 2]
    assert len(ends) == 2 and all(sum(row[f"style_{style}"] for style in STYLES) == pytest.approx(1) for row in ends)
    assert {file.name for file in shown.glob("*.png")} == {"words_styles.png", "words_price.png", "words_asked.png"}
    text = (shown / "README.md").read_text(encoding="utf-8")
    assert "## What cancels?" in text and "| to anime | anime |" in text and "| base model |" in text
