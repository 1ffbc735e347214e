"""The study of suggested words and ramps: its arms differ in what they should alone, its text says what its rows say, its quick size runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from directalign.methods.objective_math import absolute_relative
from directalign.studies import STUDIES, control_words, control_words_story, run_study
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import Row, read_rows
from directalign.toyworld.scenes import STYLE_WORDS

RECIPES = Path(__file__).parents[2] / "recipes"


def test_the_suggested_ramp_changes_nothing_but_the_ramps():
    official, suggested, anchored = (settings_of(arm, 0, RECIPES) for arm in control_words.arms(RECIPES))
    ramps = {"denoise", "inversion"}
    assert official.model_dump(exclude={"method"}) == suggested.model_dump(exclude={"method"})
    assert official.method.model_dump(exclude=ramps) == suggested.method.model_dump(exclude=ramps)
    assert official.method.branches == suggested.method.branches == "both"
    for branch in (suggested.method.denoise, suggested.method.inversion):
        low, high = (absolute_relative(getattr(branch.k_pos, end), getattr(branch.k_neg, end)) for end in ("low_noise", "high_noise"))
        assert low == pytest.approx((0, 1)) and high[1] == pytest.approx(1) and 0.4 < high[0] < 0.9
    assert anchored.method.form == "anchored" and 0.02 <= anchored.method.anchor.tolerance <= 0.05
    assert STUDIES[control_words.NAME] == control_words.TITLE


def test_a_part_of_a_styles_word_is_that_styles():
    named = {phrase: control_words.named_by(phrase) for phrase in ("Render", "CG render", "photo", "Glossy", "Neon", "Real")}
    assert named == {"Render": "cg", "CG render": "cg", "photo": "photo", "Glossy": "cg", "Neon": "", "Real": ""}


def ranking(style: str, order: list[str]) -> list[Row]:
    named = {"study": "control_words", "kind": "ranked", "arm": style, "title": style, "seed": 0, "size": 1.0}
    return [{**named, "phrase": phrase, "place": place, "names": control_words.named_by(phrase)} for place, phrase in enumerate(order, start=1)]


def test_places_are_read_off_a_ranking():
    others = [word for style in ("cg", "painting", "anime") for word in STYLE_WORDS[style]]
    good = ranking("photo", [*STYLE_WORDS["photo"], "Neon", *others])
    assert control_words_story.own_words(good, "photo") == [1, 2] and control_words_story.unwanted_among_last(good, "photo") == (6, 6)
    bad = ranking("photo", ["Neon", *others, *STYLE_WORDS["photo"]])
    assert control_words_story.own_words(bad, "photo") == [8, 9] and control_words_story.unwanted_among_last(bad, "photo") == (4, 6)


def planted(arm: str, seed: int, step: int, photo: float, content: float, drift: float) -> Row:
    named = {"study": "control_words", "arm": arm, "title": arm, "seed": seed, "step": step}
    return {**named, "photo_rate": photo, "content": content, "color_drift": drift, "call_equivalents": step * 10, "seconds": step * 1.0}


def test_the_verdict_names_what_is_better_and_what_is_worse():
    rows = [planted(arm, seed, 0, 0.1, 1.0, 0.03) for arm in ("official", "suggested", "anchored") for seed in (0, 1, 2)]
    for seed in (0, 1, 2):
        rows.append(planted("official", seed, 10, 0.96, 0.50 + 0.01 * seed, 0.01))
        rows.append(planted("suggested", seed, 10, 0.96, 0.90 + 0.011 * seed, 0.02 + 0.0001 * seed))
        rows.append(planted("anchored", seed, 10, 0.96, 0.50 + 0.01 * seed, 0.01))
    told = control_words_story.tell(rows + ranking("photo", [*STYLE_WORDS["photo"], "Neon"]))
    ours, anchored = told.split("against the official ramps")[1:]
    assert "Better beyond the interval in: content after 10 updates" in ours and "Worse beyond the interval in: colour drift after 10 updates" in ours
    assert "Better beyond the interval in: nothing. Worse beyond the interval in: nothing." in anchored
    assert "for 1 of 1 styles: photo" in told


def test_the_quick_size_runs(tmp_path):
    page = run_study("control_words", tmp_path / "study", quick=True, recipes=RECIPES)
    rows = read_rows(tmp_path / "study" / "results.jsonl")
    assert {row["arm"] for row in rows if "kind" not in row} == {"official", "suggested"}
    assert len([row for row in rows if row.get("kind") == "ranked"]) == len(control_words.COMMON)
    assert "Quick size" in page.read_text() and (tmp_path / "study" / "control_words_curves.png").exists()
