"""GenEval's rules on planted boxes: every tag, margins, ties; the words of facts; the numbers that
verdicts become."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from directalign.evaluation.adherence import Judged, Verdict, numbers
from directalign.evaluation.adherence.geneval import (
    Box,
    Found,
    Limits,
    facts_of,
    judge,
    most_certain,
    overlap,
    relations,
)
from directalign.evaluation.eval_prompts import checked_facts

LIMITS = Limits(threshold=0.3, counting=0.9)
SQUARE = (0.0, 0.0, 10.0, 10.0)


def metadata(
    tag: str, *include: dict[str, Any], exclude: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    return checked_facts(
        {
            "tag": tag,
            "include": [{"count": 1, **entry} for entry in include],
            "exclude": list(exclude),
        },
        "here",
    )


def at(thing: str, x: float, y: float = 0.0, score: float = 0.95, side: float = 10.0) -> Found:
    """A square thing around a centre."""
    return Found(thing, score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


def judged_by(
    facts: dict[str, Any], *found: Found, colors: dict[float, str] | None = None
) -> Judged:
    """`colors` by the left edge of a box."""
    return judge(
        facts, found, LIMITS, lambda things, _: [(colors or {})[thing.box[0]] for thing in things]
    )


def test_one_thing_is_there_or_not() -> None:
    facts = metadata("single_object", {"class": "bench"})
    assert judged_by(facts, at("bench", 0, score=0.31)).right
    assert not judged_by(facts, at("bench", 0, score=0.3)).right  # not above the threshold
    assert not judged_by(facts, at("dog", 0)).right
    assert judged_by(
        facts, at("dog", 0), at("bench", 3), at("bench", 9)
    ).right  # more than one is no fault unless excluded


def test_both_of_two_things_must_be_there() -> None:
    facts = metadata("two_object", {"class": "bench"}, {"class": "cat"})
    assert judged_by(facts, at("bench", 0), at("cat", 3)).right
    half = judged_by(facts, at("bench", 0))
    assert [verdict.right for verdict in half.verdicts] == [True, False]
    assert not half.right


@pytest.mark.parametrize(("there", "right"), [(1, False), (2, True), (3, False)])
def test_counts_are_exact_where_one_more_is_excluded(there: int, right: bool) -> None:
    facts = metadata(
        "counting", {"class": "clock", "count": 2}, exclude=[{"class": "clock", "count": 3}]
    )
    judged = judged_by(facts, *(at("clock", 20.0 * place) for place in range(there)))
    assert judged.verdicts == (Verdict("exactly two clocks", right, f"{there} found"),)


def test_counting_wants_surer_boxes() -> None:
    facts = metadata(
        "counting", {"class": "clock", "count": 2}, exclude=[{"class": "clock", "count": 3}]
    )
    assert judged_by(facts, at("clock", 0), at("clock", 20), at("clock", 40, score=0.9)).right


def test_an_exclusion_of_another_thing_is_a_fact_of_its_own() -> None:
    facts = metadata("single_object", {"class": "dog"}, exclude=[{"class": "cat", "count": 1}])
    assert judged_by(facts, at("dog", 0)).right
    judged = judged_by(facts, at("dog", 0), at("cat", 9))
    assert judged.verdicts[1] == Verdict("no cat", False, "1 found")


def test_all_of_the_surest_so_many_have_the_color() -> None:
    facts = metadata("colors", {"class": "apple", "count": 2, "color": "red"})
    apples = at("apple", 5, score=0.9), at("apple", 25, score=0.8), at("apple", 45, score=0.7)
    assert judged_by(facts, *apples, colors={0.0: "red", 20.0: "red", 40.0: "green"}).right
    wrong = judged_by(facts, *reversed(apples), colors={0.0: "red", 20.0: "green", 40.0: "red"})
    assert wrong.verdicts[1] == Verdict("two red apples", False, "red, green")
    assert judged_by(facts, apples[0]).verdicts[1] == Verdict(
        "two red apples", False, "too few found"
    )


def test_colors_belong_to_their_own_things() -> None:
    facts = metadata(
        "color_attr", {"class": "car", "color": "red"}, {"class": "bus", "color": "blue"}
    )
    assert judged_by(facts, at("car", 5), at("bus", 25), colors={0.0: "red", 20.0: "blue"}).right
    assert not judged_by(
        facts, at("car", 5), at("bus", 25), colors={0.0: "blue", 20.0: "red"}
    ).right


@pytest.mark.parametrize(
    ("relation", "x", "y"),
    [("left of", -20, 0), ("right of", 20, 0), ("above", 0, -20), ("below", 0, 20)],
)
def test_each_relation_holds_on_its_own_side_alone(relation: str, x: float, y: float) -> None:
    facts = metadata("position", {"class": "dog"}, {"class": "cat", "position": [relation, 0]})
    assert judged_by(facts, at("dog", 0), at("cat", x, y)).right
    assert not judged_by(facts, at("dog", 0), at("cat", -x, -y)).right
    assert not judged_by(facts, at("dog", 0), at("cat", y, x)).right
    assert judged_by(facts, at("cat", x, y)).verdicts[-1].saw == "too few found"


def test_every_one_stands_in_the_relation_to_every_other() -> None:
    facts = metadata(
        "position", {"class": "dog", "count": 2}, {"class": "cat", "position": ["left of", 0]}
    )
    assert judged_by(facts, at("dog", 0), at("dog", 40), at("cat", -20)).right
    between = judged_by(facts, at("dog", 0), at("dog", 40), at("cat", 20))
    assert between.verdicts[-1] == Verdict(
        "a cat to the left of two dogs", False, "right of, left of"
    )
    assert (
        judged_by(
            facts, at("dog", 0), at("dog", 40, score=0.5), at("dog", 60, score=0.9), at("cat", 55)
        )
        .verdicts[-1]
        .saw
        == "right of, left of"
    )


def test_centres_that_are_hardly_apart_have_no_relation() -> None:
    def side(x: float) -> frozenset[str]:
        return relations((x, 0.0, x + 10, 10.0), SQUARE)

    assert side(0.0) == side(2.0) == frozenset()  # a tenth of both lengths
    assert side(3.9) == frozenset()  # what is left is not half of the distance
    assert side(4.1) == {"right of"}
    assert side(-4.1) == {"left of"}


def test_the_margin_grows_with_both_boxes() -> None:
    assert relations((12.0, 0.0, 22.0, 10.0), (0.0, 0.0, 10.0, 10.0)) == {"right of"}
    assert relations((12.0, 0.0, 22.0, 10.0), (-50.0, -50.0, 60.0, 60.0)) == frozenset()


def test_a_diagonal_is_both() -> None:
    assert relations((40.0, 40.0, 50.0, 50.0), SQUARE) == {"right of", "below"}
    assert relations((-50.0, 20.0, -40.0, 30.0), SQUARE) == {"left of"}  # 24 degrees off the axis


def test_relations_turn_round_with_the_boxes() -> None:
    turned = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    generator = torch.Generator().manual_seed(0)
    for corners in (100 * torch.rand(200, 8, generator=generator)).tolist():
        a, b = (box_of(corners[:4]), box_of(corners[4:]))
        assert relations(b, a) == {turned[name] for name in relations(a, b)}


def box_of(corners: Sequence[float]) -> Box:
    return (
        min(corners[0], corners[2]),
        min(corners[1], corners[3]),
        max(corners[0], corners[2]),
        max(corners[1], corners[3]),
    )


def test_overlap_is_intersection_over_union() -> None:
    assert overlap(SQUARE, SQUARE) == 1
    assert overlap(SQUARE, (5.0, 0.0, 15.0, 10.0)) == pytest.approx(1 / 3)
    assert overlap(SQUARE, (10.0, 0.0, 20.0, 10.0)) == 0
    assert overlap((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)) == 0


def test_a_box_within_a_surer_one_is_dropped_where_that_is_asked() -> None:
    twice = [
        at("dog", 0, score=0.8),
        at("dog", 1, score=0.9),
        at("dog", 30, score=0.7),
        at("cat", 0, score=0.99),
    ]
    assert [each.score for each in most_certain(twice, "dog", 0.3)] == [0.9, 0.8, 0.7]
    assert [each.score for each in most_certain(twice, "dog", 0.3, max_overlap=0.5)] == [0.9, 0.7]


def test_equally_sure_things_stay_in_the_detectors_order() -> None:
    facts = metadata("colors", {"class": "dog", "color": "red"})
    assert judged_by(facts, at("dog", 5), at("dog", 25), colors={0.0: "red"}).right


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (metadata("x", {"class": "apple"}), ["an apple"]),
        (metadata("x", {"class": "dog", "count": 3}), ["at least three dogs"]),
        (
            metadata("x", {"class": "bus"}, exclude=[{"class": "bus", "count": 2}]),
            ["exactly one bus"],
        ),
        (
            metadata(
                "x", {"class": "person", "count": 4}, exclude=[{"class": "person", "count": 7}]
            ),
            ["at least four people, and fewer than seven people"],
        ),
        (
            metadata("x", {"class": "wine glass", "count": 2, "color": "orange"}),
            ["at least two wine glasses", "two orange wine glasses"],
        ),
        (metadata("x", {"class": "cow", "color": "orange"}), ["a cow", "an orange cow"]),
        (metadata("x", {"class": "knife", "count": 12}), ["at least 12 knives"]),
        (
            metadata(
                "x", {"class": "cat"}, {"class": "toy", "count": 2, "position": ["right of", 0]}
            ),
            ["a cat", "at least two toys", "two toys to the right of a cat"],
        ),
        (
            metadata("x", {"class": "cat"}, {"class": "fly", "position": ["above", 0]}),
            ["a cat", "a fly", "a fly above a cat"],
        ),
        (
            metadata("x", {"class": "cat"}, exclude=[{"class": "fly", "count": 3}]),
            ["a cat", "fewer than three flies"],
        ),
    ],
)
def test_facts_say_themselves_in_words(facts: dict[str, Any], words: list[str]) -> None:
    assert [fact.text for fact in facts_of(facts)] == words


def test_numbers_by_tag_are_nan_for_other_tags() -> None:
    right, wrong = Verdict("a dog", True, ""), Verdict("a cat", False, "")
    found = numbers(
        [
            Judged("colors", (right,)),
            Judged("counting", (right, wrong)),
            Judged(None, (right,)),
            Judged("colors", (wrong,)),
        ]
    )
    assert list(found) == ["adherence", "adherence_colors", "adherence_counting"]
    assert found["adherence"].tolist() == [1, 0, 1, 0]
    assert [
        None if math.isnan(value) else value for value in found["adherence_colors"].tolist()
    ] == [1, None, None, 0]
    assert (
        found["adherence_counting"][1] == 0 and int(found["adherence_counting"].isnan().sum()) == 3
    )


def test_verdicts_go_into_a_line_of_results() -> None:
    record = judged_by(metadata("single_object", {"class": "bench"}), at("bench", 0)).record()
    assert json.loads(json.dumps(record)) == [{"fact": "a bench", "right": True, "saw": "1 found"}]
