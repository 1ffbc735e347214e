"""GenEval's rules on planted boxes: every tag, margins, ties; the texts of facts; adherence."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from directalign.evaluation.adherence.geneval import (
    Found,
    Judged,
    Limits,
    Verdict,
    facts_of,
    judge,
    most_certain,
    numbers,
    overlap,
    relations,
)
from directalign.evaluation.eval_prompts import checked_facts

LIMITS = Limits(threshold=0.3, counting=0.9)
SQUARE, EMPTY = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 0.0, 0.0)
Row = dict[str, Any]


def metadata(tag: str, *include: Row, exclude: Sequence[Row] = ()) -> Row:
    objects = [{"count": 1, **entry} for entry in include]
    return checked_facts({"tag": tag, "include": objects, "exclude": list(exclude)}, "here")


def at(thing: str, x: float, y: float = 0.0, score: float = 0.95) -> Found:
    """A square thing of 10 pixels around a centre."""
    return Found(thing, score, (x - 5.0, y - 5.0, x + 5.0, y + 5.0))


def judged_by(facts: Row, *found: Found, colors: dict[float, str] | None = None) -> Judged:
    """`colors` by the left edge of a box."""
    known = colors or {}
    return judge(facts, found, LIMITS, lambda things, _: [known[thing.box[0]] for thing in things])


BENCH = metadata("single_object", {"class": "bench"})
CLOCKS = metadata(
    "counting", {"class": "clock", "count": 2}, exclude=[{"class": "clock", "count": 3}]
)
DOG_NO_CAT = metadata("single_object", {"class": "dog"}, exclude=[{"class": "cat", "count": 1}])
TWO = metadata("two_object", {"class": "bench"}, {"class": "cat"})


@pytest.mark.parametrize(
    ("facts", "found", "right"),
    [
        (BENCH, [at("bench", 0, score=0.31)], [True]),
        (BENCH, [at("bench", 0, score=0.3)], [False]),  # not above the threshold
        (BENCH, [at("dog", 0)], [False]),
        (BENCH, [at("dog", 0), at("bench", 3), at("bench", 9)], [True]),  # more is no fault
        (TWO, [at("bench", 0), at("cat", 3)], [True, True]),
        (TWO, [at("bench", 0)], [True, False]),
        (CLOCKS, [at("clock", 0)], [False]),
        (CLOCKS, [at("clock", 0), at("clock", 20)], [True]),
        (CLOCKS, [at("clock", 0), at("clock", 20), at("clock", 40)], [False]),
        (CLOCKS, [at("clock", 0), at("clock", 20), at("clock", 40, score=0.9)], [True]),
        (DOG_NO_CAT, [at("dog", 0)], [True, True]),
        (DOG_NO_CAT, [at("dog", 0), at("cat", 9)], [True, False]),
    ],
)
def test_things_are_counted_above_the_threshold(facts, found, right):
    judged = judged_by(facts, *found)
    assert [verdict.right for verdict in judged.verdicts] == right
    assert judged.right == all(right)


def test_the_most_certain_things_have_the_color():
    facts = metadata("colors", {"class": "apple", "count": 2, "color": "red"})
    apples = at("apple", 5, score=0.9), at("apple", 25, score=0.8), at("apple", 45, score=0.7)
    assert judged_by(facts, *apples, colors={0.0: "red", 20.0: "red", 40.0: "green"}).right
    wrong = judged_by(facts, *reversed(apples), colors={0.0: "red", 20.0: "green", 40.0: "red"})
    assert wrong.verdicts[1] == Verdict("two red apples", False, "red, green")
    few = judged_by(facts, apples[0]).verdicts[1]
    assert few == Verdict("two red apples", False, "too few found")
    one = metadata("colors", {"class": "dog", "color": "red"})  # ties keep the detector's order
    assert judged_by(one, at("dog", 5), at("dog", 25), colors={0.0: "red"}).right


def test_colors_belong_to_their_own_things():
    objects = {"class": "car", "color": "red"}, {"class": "bus", "color": "blue"}
    facts, found = metadata("color_attr", *objects), (at("car", 5), at("bus", 25))
    assert judged_by(facts, *found, colors={0.0: "red", 20.0: "blue"}).right
    assert not judged_by(facts, *found, colors={0.0: "blue", 20.0: "red"}).right


@pytest.mark.parametrize(
    ("relation", "x", "y"),
    [("left of", -20, 0), ("right of", 20, 0), ("above", 0, -20), ("below", 0, 20)],
)
def test_each_relation_holds_on_its_own_side_only(relation, x, y):
    facts = metadata("position", {"class": "dog"}, {"class": "cat", "position": [relation, 0]})
    assert judged_by(facts, at("dog", 0), at("cat", x, y)).right
    assert not judged_by(facts, at("dog", 0), at("cat", -x, -y)).right
    assert not judged_by(facts, at("dog", 0), at("cat", y, x)).right
    assert judged_by(facts, at("cat", x, y)).verdicts[-1].saw == "too few found"


def test_relations_need_a_distance_beyond_the_margin():
    def side(x: float, y: float = 0.0) -> frozenset[str]:
        return relations((x, y, x + 10, y + 10), SQUARE)

    assert side(0.0) == side(2.0) == frozenset()  # a tenth of both lengths
    assert side(3.9) == frozenset()  # the rest is not half of the distance
    assert side(4.1) == {"right of"} and side(-4.1) == {"left of"}
    assert side(40.0, 40.0) == {"right of", "below"}
    assert side(-50.0, 20.0) == {"left of"}  # 24 degrees off the axis
    assert side(12.0) == {"right of"}
    assert relations((12.0, 0.0, 22.0, 10.0), (-50.0, -50.0, 60.0, 60.0)) == frozenset()


def test_overlapping_boxes_of_one_thing():
    assert overlap(SQUARE, SQUARE) == 1
    assert overlap(SQUARE, (5.0, 0.0, 15.0, 10.0)) == pytest.approx(1 / 3)
    assert overlap(SQUARE, (10.0, 0.0, 20.0, 10.0)) == overlap(EMPTY, EMPTY) == 0
    found = [at("dog", x, score=score) for x, score in ((0, 0.8), (1, 0.9), (30, 0.7))]
    found.append(at("cat", 0, score=0.99))
    assert [each.score for each in most_certain(found, "dog", 0.3)] == [0.9, 0.8, 0.7]
    assert [each.score for each in most_certain(found, "dog", 0.3, max_overlap=0.5)] == [0.9, 0.7]


FACTS: list[tuple[list[Row], list[Row], list[str]]] = [
    ([{"class": "apple"}], [], ["an apple"]),
    ([{"class": "dog", "count": 3}], [], ["at least three dogs"]),
    ([{"class": "bus"}], [{"class": "bus", "count": 2}], ["exactly one bus"]),
    (
        [{"class": "person", "count": 4}],
        [{"class": "person", "count": 7}],
        ["at least four people, and fewer than seven people"],
    ),
    (
        [{"class": "wine glass", "count": 2, "color": "orange"}],
        [],
        ["at least two wine glasses", "two orange wine glasses"],
    ),
    ([{"class": "cow", "color": "orange"}], [], ["a cow", "an orange cow"]),
    ([{"class": "knife", "count": 12}], [], ["at least 12 knives"]),
    (
        [{"class": "cat"}, {"class": "toy", "count": 2, "position": ["right of", 0]}],
        [],
        ["a cat", "at least two toys", "two toys to the right of a cat"],
    ),
    (
        [{"class": "cat"}, {"class": "fly", "position": ["above", 0]}],
        [{"class": "bee", "count": 3}],
        ["a cat", "a fly", "a fly above a cat", "fewer than three bees"],
    ),
]


@pytest.mark.parametrize(("include", "exclude", "texts"), FACTS)
def test_texts_of_facts(include, exclude, texts):
    facts = facts_of(metadata("x", *include, exclude=exclude))
    assert [fact.text for fact in facts] == texts


def test_adherence_by_tag_is_nan_for_other_tags():
    right, wrong = Verdict("a dog", True, ""), Verdict("a cat", False, "")
    judged = [Judged("colors", (right,)), Judged("counting", (right, wrong))]
    judged += [Judged(None, (right,)), Judged("colors", (wrong,))]
    nan = float("nan")
    expected = {
        "adherence": [1, 0, 1, 0],
        "adherence_colors": [1, nan, nan, 0],
        "adherence_counting": [nan, 0, nan, nan],
    }
    found = numbers(judged)
    assert list(found) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values).float(), equal_nan=True)
