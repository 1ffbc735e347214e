"""The result page and its tables: complete, escaped, self-contained."""

from __future__ import annotations

import csv
import io
import math
import re
from html.parser import HTMLParser

import pytest
from panels import MODELS, planted_ratings, planted_votes

from directalign.arena import results as text
from directalign.arena.records import Rating, Vote
from directalign.arena.results import (
    RATING_COLUMNS,
    SUMMARY_COLUMNS,
    VOTE_COLUMNS,
    VOTES,
    Results,
    csv_table,
    escaped,
    gather,
    ratings_csv,
    render_results,
    strength_rows,
    summary_csv,
    votes_csv,
)
from directalign.arena.statistics import SCALES, rank_models

LABELS = {"base": "Base model", "srpo": "SRPO", "refl": "ReFL"}
QUALITY = {"base": -0.5, "srpo": 0.7, "refl": 0.0}
HOSTILE = "</style><script>alert(1)</script>\"'&{{ 7 * 7 }}"


def planted(items: int = 24, annotators: int = 3, seed: int = 0) -> Results:
    return gather(
        planted_ratings(QUALITY, items, annotators, seed, at=1e9),
        planted_votes(QUALITY, items, annotators, seed, 0.3, 0.1),
        LABELS,
    )


class Tags(HTMLParser):
    """Start tags with their attributes, and whether every opened one is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# --- statistics ---


def test_everything_is_counted_once() -> None:
    results = planted()
    assert (results.ratings, results.votes, results.items, results.annotators) == (
        24 * 3 * 3 * 4,
        24 * 3 * 3,
        24,
        3,
    )
    assert set(results.shares) == set(SCALES) and set(results.comparisons) == set(
        results.agreement
    ) == {VOTES, *SCALES}
    assert (
        results.comparisons[VOTES].ranking.order()[0] == "srpo"
        and results.incomplete == 0
        and results.unequal == []
    )


def test_answers_given_twice_count_once() -> None:
    ratings, votes = planted_ratings(QUALITY, 5, 2, 0), planted_votes(QUALITY, 5, 2, 0)
    once, twice = gather(ratings, votes, LABELS), gather(ratings + ratings, votes + votes, LABELS)
    assert (once.ratings, once.votes, once.shares, once.raters, once.voters) == (
        twice.ratings,
        twice.votes,
        twice.shares,
        twice.raters,
        twice.voters,
    )


def test_models_that_are_not_asked_for_are_left_out() -> None:
    results = gather(
        planted_ratings(QUALITY, 5, 2, 0),
        planted_votes(QUALITY, 5, 2, 0),
        {"base": "Base", "srpo": "SRPO"},
    )
    assert (
        results.ratings == 5 * 2 * 2 * 4
        and results.votes == 5 * 2
        and results.comparisons[VOTES].ranking.models == ("base", "srpo")
    )


# --- sentences ---


def test_a_planted_difference_is_claimed_with_its_numbers() -> None:
    claims = text.claims(planted(items=40))
    sentence = next(
        lock for lock in claims if lock.startswith("SRPO is preferred to Base model in votes")
    )
    assert re.search(
        r"it wins \d+\s% \(95\s% interval \d+–\d+\s%, 40 items, "
        r"p < 0\.001 corrected for all pairs\)",
        sentence,
    )
    assert not any("Base model is preferred" in lock for lock in claims)


def test_no_difference_is_claimed_of_equals() -> None:
    wrong = 0
    for seed in range(20):
        results = gather(
            [], planted_votes(dict.fromkeys(MODELS, 0.0), 20, 3, seed, alike=0.6), LABELS
        )
        wrong += any("preferred" in lock for lock in text.claims(results))
    assert wrong <= 2


def test_little_data_says_so_and_claims_nothing() -> None:
    results = gather([], [Vote("ann", item, "base", "srpo", "srpo") for item in range(4)], LABELS)
    (lock,) = text.claims(results)
    caveats = " ".join(text.caveats(results))
    assert lock.startswith("In votes, no pair of models differs")
    assert (
        "Only 4 items" in caveats
        and "One annotator" in caveats
        and "ReFL: no answer yet" in caveats
    )
    assert "between SRPO and Base model" in caveats and "1 artificial tie added" in caveats


def test_models_never_compared_are_named() -> None:
    votes = planted_votes(QUALITY, 20, 2, 0, pairs=(("base", "srpo"), ("srpo", "refl")))
    assert any(
        "never compared directly: Base model with ReFL" in caveat
        for caveat in text.caveats(gather([], votes, LABELS))
    )


def test_models_rated_on_other_items_are_named() -> None:
    ratings = [
        one for one in planted_ratings(QUALITY, 20, 2, 0) if one.model != "refl" or one.item < 10
    ]
    assert any(
        caveat.startswith("ReFL: rated on other items")
        for caveat in text.caveats(gather(ratings, [], LABELS))
    )


def test_a_side_that_wins_and_people_who_disagree_are_told() -> None:
    left = [
        Vote(name, item, *pair, pair[0])
        for item in range(40)
        for name, pair in (("ann", ("base", "srpo")), ("bob", ("srpo", "base")))
    ]
    results = gather([], left, LABELS)
    caveats = " ".join(text.caveats(results))
    assert "The image on the left won more often" in caveats and "votes −" in caveats
    assert "agrees with the others" not in caveats  # of two who disagree nobody knows who is right
    assert text.read_alpha(results.agreement[VOTES]) == "not distinguishable from chance"


def test_one_who_answers_unlike_the_rest_is_named() -> None:
    votes = [
        Vote(name, item, "base", "srpo", "srpo" if item % 3 else "base")
        for item in range(30)
        for name in ("ann", "bob", "cid")
    ]
    contrary = [
        Vote("dan", item, "base", "srpo", "base" if item % 3 else "srpo") for item in range(30)
    ]
    odd = [
        caveat
        for caveat in text.caveats(gather([], votes + contrary, LABELS))
        if "agrees with the others" in caveat
    ]
    assert len(odd) == 1 and odd[0].startswith("dan")


def test_good_data_need_no_caveat() -> None:
    ratings = planted_ratings(QUALITY, 60, 3, 1, noise=0.05)
    assert text.caveats(gather(ratings, [], LABELS)) == []


def test_numbers_as_words() -> None:
    assert (text.percent(0.3894, 2500), text.percent(0.3894, 40)) == ("38.9\u00a0%", "39\u00a0%")
    assert (text.signed(-0.5), text.signed(-1e-9), text.signed(-math.inf)) == (
        "−0.50",
        "+0.00",
        "−∞",
    )
    assert (text.p_value(0.0001), text.p_value(0.034), text.p_value(0.5)) == (
        "p < 0.001",
        "p = 0.034",
        "p = 0.50",
    )
    assert (text.joined(["a"]), text.joined(["a", "b", "c"])) == ("a", "a, b and c")


# --- page ---


def test_the_page_is_whole_and_fetches_nothing() -> None:
    html = render_results(planted(), "Thirty prompts", [("Answers", "results/answers.csv")])
    tags = Tags(html)
    assert len(html) < 300_000 and not any(
        tag in ("script", "img", "iframe") for tag, _ in tags.found
    )
    assert not re.search(r"(src|href)=\"(https?:)?//|url\(|@import", html)
    assert [attributes["href"] for tag, attributes in tags.found if tag == "a"] == [
        "results/answers.csv"
    ]
    assert (
        sum(tag == "figure" for tag, _ in tags.found) == 5
        and sum(attributes.get("class") == "matrix" for _, attributes in tags.found) == 6
    )
    assert all(label in html for label in LABELS.values()) and "annotator 2" in html


def test_bars_fill_their_width() -> None:
    tags = Tags(render_results(planted(), "Bars"))
    widths = [
        float(str(attributes["style"]).removeprefix("width: ").removesuffix("%"))
        for _, attributes in tags.found
        if "width:" in (attributes.get("style") or "")
    ]
    assert sum(widths) == pytest.approx(100 * 5 * 3, abs=0.1)


def test_names_cannot_break_out() -> None:
    ratings = [
        Rating(HOSTILE, item, model, "realism", "good")
        for item in range(3)
        for model in ("base", "srpo")
    ]
    votes = [Vote(HOSTILE, item, "base", "srpo", None) for item in range(3)]
    html = render_results(
        gather(ratings, votes, {"base": HOSTILE, "srpo": "SRPO"}), HOSTILE, [(HOSTILE, "x.csv")]
    )
    assert (
        "<script" not in html
        and "49" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S)
        and html.count("&lt;script&gt;") >= 5
    )
    Tags(html)


@pytest.mark.parametrize(
    ("ratings", "votes"),
    [
        ([], []),
        ([Rating("ann", 0, "base", "realism", "good")], []),
        ([], [Vote("ann", 0, "base", "srpo", None)]),
        (planted_ratings(QUALITY, 2, 1, 0)[:7], planted_votes(QUALITY, 1, 2, 0)),
    ],
)
def test_thin_data_still_make_a_page(ratings: list[Rating], votes: list[Vote]) -> None:
    html = render_results(gather(ratings, votes, LABELS), "Thin")
    Tags(html)
    assert not re.search(
        r"\bnan\b|\binf\b|None", re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    )


def test_whiskers_lie_on_the_track() -> None:
    ranking = rank_models(planted_votes(QUALITY, 30, 2, 0), MODELS)
    rows, ticks = strength_rows(ranking, LABELS)
    assert [row.label for row in rows] == [LABELS[model] for model in ranking.order()]
    assert all(0 <= row.low < row.at < row.high <= 100 for row in rows) and all(
        0 <= place <= 100 for place, _ in ticks
    )
    assert 2 <= len(ticks) <= 7 and "0" in [mark for _, mark in ticks]
    one_item = strength_rows(rank_models(planted_votes(QUALITY, 1, 3, 0), MODELS), LABELS)[0]
    assert all((row.low, row.high) == (0, 100) for row in one_item)


# --- tables ---


def rows_of(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table, newline="")))


def armed(cell: str) -> str:
    return cell.removeprefix("'")


def test_ratings_and_votes_come_back_from_their_tables() -> None:
    name = '=HYPERLINK("http://x","a, b")\n\'quoted\''
    ratings = [
        Rating(name, 3, "-base", "realism", "good", 1.5),
        Rating("'ann", 4, "base", "detail", "fail"),
    ]
    votes = [Vote(name, 1, "@base", "srpo", None, 2.25), Vote("ann", 2, "@base", "srpo", "@base")]
    back = [
        Rating(
            armed(row["annotator"]),
            int(row["item"]),
            armed(row["model"]),
            row["axis"],
            row["level"],
            float(row["at"]) if row["at"] else None,
        )  # type: ignore[arg-type]
        for row in rows_of(ratings_csv(ratings))
    ]
    assert back == ratings
    voted = [
        Vote(
            armed(row["annotator"]),
            int(row["item"]),
            armed(row["left"]),
            row["right"],
            armed(row["winner"]) or None,
            float(row["at"]) if row["at"] else None,
        )
        for row in rows_of(votes_csv(votes))
    ]
    assert voted == votes
    assert ratings_csv([]).split() == [",".join(RATING_COLUMNS)] and votes_csv([]).split() == [
        ",".join(VOTE_COLUMNS)
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "'"])
def test_formulas_are_escaped(start: str) -> None:
    assert escaped(f"{start}1+1") == f"'{start}1+1" and escaped(f"a{start}") == f"a{start}"
    assert rows_of(csv_table(["a", "b"], [(f"{start}x", -1)])) == [{"a": f"'{start}x", "b": "-1"}]


def test_the_summary_has_every_number_of_the_page() -> None:
    results = planted()
    rows = rows_of(summary_csv(results))
    assert tuple(rows[0]) == SUMMARY_COLUMNS
    counts = {
        what: sum(row["what"] == what for row in rows)
        for what in ("share", "wins", "strength", "elo", "alpha")
    }
    assert counts == {
        "share": 5 * 3 * 4,
        "wins": 6 * 3,
        "strength": 6 * 3,
        "elo": 6 * 3,
        "alpha": 6 * 3,
    }
    for scale in SCALES:
        for model in MODELS:
            found = [
                float(row["value"])
                for row in rows
                if (row["what"], row["of"], row["a"]) == ("share", scale, model)
            ]
            assert sum(found) == pytest.approx(1, abs=1e-12)
