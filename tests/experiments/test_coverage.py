"""The planted truth is what it says, and simulated comparisons give the numbers of a real one."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import Image

from directalign.diffusion.rng import generator_for
from directalign.evaluation.compare import Request, compare
from directalign.evaluation.results import summarise
from directalign.metrics import JUDGED
from directalign.toyworld.scenes import all_captions, render, scenes_of
from experiments import coverage
from experiments.coverage import (
    KEYS,
    NUMBERS,
    Bank,
    Electorate,
    Planted,
    bits,
    covered,
    lines_of,
    power,
    preferred,
    rendered_bank,
    significant,
    simulated,
    simulated_votes,
    votes_of,
)
from experiments.rows import Row

MANY = Planted("many", "many", (0.3, 0.8), (0.9, 0.6), prompts=20_000, likeness=0.5)
CLEAR = torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]])
"""Judges without fault: [photo?, right?, number]."""


@pytest.fixture
def bank() -> Bank:
    return Bank(["x", "y"], CLEAR[None, :, :, None, :].expand(2, 2, 2, 3, 2))


def test_rates_are_those_planted_and_images_of_a_prompt_are_alike() -> None:
    drawn = bits(MANY.photo, MANY, generator_for(0)).double()
    assert drawn.shape == (2, 40_000)
    assert torch.allclose(drawn.mean(1), torch.tensor(MANY.photo, dtype=torch.float64), atol=0.01)
    first, second = drawn[:, ::2], drawn[:, 1::2]
    within = torch.corrcoef(torch.stack([first[1], second[1]]))[0, 1]
    between = torch.corrcoef(torch.stack([first[0], first[1]]))[0, 1]
    strangers = torch.corrcoef(torch.stack([first[1, :-1], second[1, 1:]]))[0, 1]
    assert within > between + 0.05 > 0.1 and abs(strangers) < 0.02


def test_pairs_are_won_as_often_as_the_formula_says() -> None:
    before, after = bits(MANY.photo, MANY, generator_for(1)).double()
    won = ((after > before).double() + (after == before) / 2).mean()
    assert won == pytest.approx((1 + 0.8 - 0.3) / 2, abs=0.01)


def test_lines_carry_the_answers_of_renders_drawn_as_planted(bank: Bank) -> None:
    planted = Planted("p", "p", (0.0, 1.0), (1.0, 0.0), prompts=3, seeds=2)
    lines = lines_of(planted, bank, generator_for(0))
    assert [line["numbers"] for line in lines] == [{"photo_rate": 0.0, "content": 1.0}] * 6 + [
        {"photo_rate": 1.0, "content": 0.0}
    ] * 6
    assert [line["prompt"] for line in lines[:6]] == ["0", "0", "1", "1", "2", "2"]
    by_image = lines_of(
        Planted("p", "p", (0.0, 1.0), (1.0, 0.0), prompts=3, by_image=True), bank, generator_for(0)
    )
    assert len({line["prompt"] for line in by_image}) == 6
    assert lines == lines_of(planted, bank, generator_for(0))


def test_intervals_are_counted_where_they_hold_the_truth_and_tests_where_they_speak(
    bank: Bank,
) -> None:
    planted = Planted("p", "p", (0.0, 1.0), (0.5, 0.5), prompts=20)
    found = summarise(
        KEYS,
        lines_of(planted, bank, generator_for(0)),
        {number: JUDGED[number] for number in NUMBERS},
    )
    assert {("rate", "photo_rate"), ("difference", "photo_rate")} <= set(covered(found, planted))
    assert ("test", "photo_rate") in set(significant(found)) and ("test", "all") in set(
        significant(found)
    )
    wrong = Planted("w", "w", (0.0, 0.5), (0.5, 0.5), prompts=20)
    assert not {("rate", "photo_rate"), ("difference", "photo_rate"), ("win", "photo_rate")} & set(
        covered(found, wrong)
    )


def test_simulations_hold_the_truth_mostly_and_counting_images_does_not(bank: Bank) -> None:
    alike = {"prompts": 20, "seeds": 8, "likeness": 0.8}
    honest, naive = (
        Planted("p", "p", (0.5, 0.5), (0.5, 0.5), by_image=by_image, **alike)
        for by_image in (False, True)
    )
    found = {
        planted.by_image: sum(
            row["covered"] for row in simulated(planted, bank, 40) if row["kind"] == "coverage"
        )
        for planted in (honest, naive)
    }
    assert found[False] > 0.88 * 240 and found[True] < 0.75 * 240


def test_power_grows_with_the_effect_and_is_little_where_there_is_none() -> None:
    found = [power(effect, 60, 30)["spoke"] for effect in (0.0, 0.2, 0.5)]
    assert found[0] <= 4 < found[1] < found[2] == 30


def test_the_judges_see_what_the_renderer_drew() -> None:
    rows = list(rendered_bank(6, 2).rows())
    assert [(row["arm"], row["renders"]) for row in rows] == [
        ("photo_rate_0", 24),
        ("photo_rate_1", 24),
        ("content_0", 24),
        ("content_1", 24),
    ]
    assert sum(row["seen"] for row in rows if row["drawn"] == 0) <= 1
    assert all(row["seen"] >= 23 for row in rows if row["drawn"] == 1)


def test_a_whole_comparison_of_renders_says_what_the_statistics_say_of_their_truth(
    tmp_path: Path,
) -> None:
    """Models made of renders, through files, judge and summary: the very numbers that the renderer's own answers give."""
    planted, captions = Planted("p", "p", (0.3, 0.8), (0.9, 0.7), prompts=8), all_captions()
    perfect = Bank(captions, CLEAR[None, :, :, None, :].expand(240, 2, 2, 1, 2))
    lines = lines_of(planted, perfect, generator_for(3))
    prompts = [captions[17 * (line["index"] // 2)] for line in lines]
    for key in KEYS:
        write_renders(
            tmp_path / key,
            [
                (prompt, line)
                for prompt, line in zip(prompts, lines, strict=True)
                if line["model"] == key
            ],
        )
    out = compare(
        Request(tuple(str(tmp_path / key) for key in KEYS), tmp_path / "out", judge="world")
    )
    told = json.loads((out / "summary.json").read_text())
    known = summarise(
        KEYS,
        [{**line, "prompt": prompt} for line, prompt in zip(lines, prompts, strict=True)],
        {name: JUDGED[name] for name in NUMBERS},
    )
    for name in NUMBERS:
        assert [told["models"][key][name] for key in KEYS] == [
            known["models"][key][name] for key in KEYS
        ]
        for table in ("differences", "wins"):
            ours, theirs = (
                [each for each in found[table] if each["name"] == name] for found in (told, known)
            )
            assert [{**each, "p_holm": 0} for each in ours] == [
                {**each, "p_holm": 0} for each in theirs
            ]


def write_renders(folder: Path, asked: list[tuple[str, Row]]) -> None:
    """One render a line: a photo or not, of the prompt or of another caption."""
    folder.mkdir()
    record = []
    for prompt, line in asked:
        shown = prompt if line["numbers"]["content"] else "a pink ring on a gray background"
        image = render(
            scenes_of([shown], "photo" if line["numbers"]["photo_rate"] else "cg"),
            generator_for(line["index"]),
        )[0]
        levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(folder / f"{line['index']}.png")
        record.append(
            json.dumps({"file": f"{line['index']}.png", "prompt": prompt, "seed": line["index"]})
            + "\n"
        )
    (folder / "images.jsonl").write_text("".join(record))


# --- votes ------------------------------------------------------------------------------------------------------------


def test_votes_fall_as_strengths_say_and_annotators_agree() -> None:
    electorate = Electorate("e", "e", (0.8, 0.0, -0.8), items=4000, annotators=2, likeness=0.6)
    votes = votes_of(electorate, generator_for(0))
    assert len(votes) == 4000 * 3 * 2
    for (i, a), (j, b) in combinations(enumerate(electorate.models), 2):
        pair = [vote for vote in votes if {vote.left, vote.right} == {a, b}]
        wanted = preferred(electorate.strengths[i], electorate.strengths[j])
        assert sum(vote.winner == a for vote in pair) / len(pair) == pytest.approx(wanted, abs=0.02)
        agreed = sum(
            one.winner == other.winner for one, other in zip(pair[::2], pair[1::2], strict=True)
        ) / (len(pair) / 2)
        assert agreed > wanted**2 + (1 - wanted) ** 2 + 0.1


def test_strengths_and_wins_mostly_hold_the_truth() -> None:
    rows = list(simulated_votes(Electorate("e", "e", (0.5, 0.0, -0.5), items=30), 25))
    assert {row["of"]: row["covered"] >= 20 for row in rows if row["kind"] == "votes"} == {
        "strength": True,
        "strength difference": True,
        "win": True,
    }
    equal = {
        row["number"]: row["spoke"]
        for row in simulated_votes(Electorate("n", "n", (0.0, 0.0, 0.0), items=20), 25)
        if row["kind"] == "votes test"
    }
    assert equal["pair"] <= 5 and equal["all"] <= 5


def test_planted_rates_are_rates_and_strengths_add_up_to_nothing() -> None:
    assert all(0 < rate < 1 for each in coverage.PLANTED for rate in (*each.photo, *each.content))
    assert all(abs(sum(each.strengths)) < 1e-9 for each in coverage.ELECTORATES)
