"""Learned tokens against words: read off at equal content loss on planted runs, told from rows, and the study in its quick size."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import run

from directalign.rewards.soft_prompts import read_tokens
from directalign.studies import STUDIES, control_tokens, run_study
from directalign.studies.control_tokens import FORMS, WANTED, arm_of
from directalign.studies.control_tokens_story import best_within, forms_of, tell
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import Row, read_rows

RECIPES = Path(__file__).parents[2] / "recipes"


def planted(arm: str, photo: list[float], content: list[float]) -> list[Row]:
    rows = [row for seed in (0, 1, 2) for row in run(arm, seed, photo, 100)]
    return [
        row | {"content": content[row["step"] // 10], "title": arm.replace("_", ", ")}
        for row in rows
    ]


def fit(arm: str, seed: int) -> Row:
    return {
        "kind": "fit",
        "arm": arm,
        "title": arm,
        "seed": seed,
        "fit": "tokens",
        "style": 0.1,
        "separated": 1.0,
        "content": 0.3,
        "bias": 0.2,
    }


ROWS = [
    *planted("words_relative", [0.1, 0.6, 0.9], [1.0, 0.97, 0.5]),
    *planted("tokens_relative", [0.1, 0.5, 0.8], [1.0, 0.99, 0.96]),
    *(fit(arm, seed) for seed in (0, 1, 2) for arm in ("words", "tokens")),
]


def test_the_best_photo_rate_within_a_content_loss() -> None:
    rows = planted("words_relative", [0.1, 0.6, 0.9], [0.9, 0.88, 0.5])[:3]
    read = [best_within(rows, loss) for loss in (0.0, 0.01, 0.05, 0.5)]
    assert read == pytest.approx([0.1, 0.1 + 0.5 * 0.009 / 0.02, 0.6 + 0.3 * 0.025 / 0.38, 0.9])


def test_the_text_says_who_reaches_more_where() -> None:
    text = tell(ROWS)
    assert (
        "reach at least the words' photo rate on average within 2 %, 5 %, 10 % (tokens minus words: +0.17 (0.17–0.17) within 2 %"
        in text
    )
    assert (
        "| words, relative | 0.43 (0.43–0.43) | 0.61 (0.61–0.61) |" in text
        and "| tokens | 0.100" in text
    )
    negative = [row | {"content": -0.1 * (1 + row["seed"])} for row in ROWS[-6:]]
    assert "−0.200 (−0.448 to 0.048)" in tell([*ROWS[:-6], *negative])
    assert forms_of(planted("words_anchored", [0.1], [1.0]) + ROWS[:3]) == ["anchored", "relative"]
    worse = [
        *planted("words_relative", [0.1, 0.6], [1.0, 1.0]),
        *planted("tokens_relative", [0.1, 0.5], [1.0, 1.0]),
        *ROWS[-6:],
    ]
    assert "reach less than the words' photo rate at every loss" in tell(worse)


def test_arms_differ_in_what_is_asked_alone(tmp_path: Path) -> None:
    settings = {
        each.name: settings_of(arm_of(each, "relative", 1, tmp_path), 1, RECIPES) for each in WANTED
    }
    method = settings["words"].method
    assert method.form == "relative" and method.words.positive == [
        "Realistic photo",
        "Natural lighting",
    ]
    assert settings["tokens"].method.words.negative == [
        str(tmp_path / "tokens/tokens-seed1.negative.safetensors")
    ]
    same = {
        name: each.model_copy(
            update={"method": each.method.model_copy(update={"words": method.words})}
        )
        for name, each in settings.items()
    }
    assert same["tokens"] == same["style_tokens"] == settings["words"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study(
        "control_tokens", tmp_path_factory.mktemp("control_tokens"), quick=True, recipes=RECIPES
    ).parent


def test_the_quick_study_leaves_rows_a_text_figures_and_tokens(shown: Path) -> None:
    rows = read_rows(shown / "results.jsonl")
    assert {row["arm"] for row in rows if "kind" not in row} == {
        f"{each.name}_{form}" for each in WANTED for form in FORMS
    }
    assert {file.name for file in shown.glob("*.png")} == {
        f"control_tokens_{form}.png" for form in FORMS
    }
    assert (
        "## Relative reward" in (shown / "README.md").read_text(encoding="utf-8")
        and STUDIES["control_tokens"] == control_tokens.TITLE
    )
    assert read_tokens(
        shown / "tokens/tokens-seed0.positive.safetensors", "words"
    ).tokens.shape == (2, 64)
