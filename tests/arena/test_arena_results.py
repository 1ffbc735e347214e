"""The result page and its tables: complete, escaped, self-contained."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from planted_answers import MODELS, cast, planted_ratings, planted_votes

from directalign.arena import results as output
from directalign.arena.records import Rating, Vote
from directalign.arena.statistics import SCALES

LABELS = {"base": "Base model", "srpo": "SRPO", "refl": "ReFL"}
QUALITY = {"base": -0.5, "srpo": 0.7, "refl": 0.0}
HOSTILE = "</style><script>alert(1)</script>\"'&{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def planted():
    """24 items, three models, three annotators, both kinds of answers."""
    ratings = planted_ratings(QUALITY, 24, 3, 0, at=1e9)
    return output.gather(ratings, planted_votes(QUALITY, 24, 3, 0, 0.3, 0.1), LABELS)


class Tags(HTMLParser):
    """Start tags with their attributes; fails unless every opened one is closed."""

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


def visible(html: str) -> str:
    return re.sub(r"<style>.*?</style>", "", html, flags=re.S)


def test_every_answer_counts_once(planted):
    counts = planted.ratings, planted.votes, planted.items, planted.annotators
    assert counts == (24 * 3 * 3 * 4, 24 * 3 * 3, 24, 3)
    assert set(planted.shares) == set(SCALES)
    assert set(planted.comparisons) == set(planted.agreement) == {output.VOTES, *SCALES}
    assert planted.comparisons[output.VOTES].ranking.order()[0] == "srpo"
    assert planted.incomplete == 0 and planted.unequal == []
    ratings, votes = planted_ratings(QUALITY, 2, 2, 0), planted_votes(QUALITY, 2, 2, 0)
    once, twice = (
        output.gather(ratings, votes, LABELS),
        output.gather(ratings * 2, votes * 2, LABELS),
    )
    for name in ("ratings", "votes", "shares", "raters", "voters"):
        assert getattr(once, name) == getattr(twice, name)
    two = output.gather([], votes, {"base": "Base", "srpo": "SRPO"})  # other models are ignored
    assert two.votes == 2 * 2 and two.comparisons[output.VOTES].ranking.models == ("base", "srpo")


def test_a_planted_difference_is_claimed_of_enough_people():
    found = [output.gather([], planted_votes(QUALITY, 40, n, 0, 0.3, 0.1), LABELS) for n in (8, 3)]
    many, few = (" ".join(output.claims(results)) for results in found)
    numbers = r"\d+\s% \(95\s% interval \d+–\d+\s%, 40 prompts, {} annotators, p &lt; \.001 "
    pattern = rf"SRPO is preferred to Base model in votes: it wins {numbers.format(8)}"
    assert re.search(pattern, many) and "Base model is preferred" not in many
    pattern = rf"For 3 annotators only, SRPO wins against Base model in votes: {numbers.format(3)}"
    assert re.search(pattern, few) and "preferred" not in few
    assert "Only 3 annotators" in " ".join(output.caveats(found[1]))
    assert "only these" in output.render_results(found[1], "Few")
    assert "only these:" not in output.render_results(found[0], "Many")


@pytest.mark.parametrize(
    ("votes", "sentence"),
    [
        (planted_votes(QUALITY, 40, 8, 0, 0.3, 0.1), "People prefer SRPO to every other model."),
        (cast("rrrrrrrrrrrl" * 3), "This annotator prefers SRPO to Base model; whether others do"),
        (cast("lr" * 20), "The answers so far do not show that people prefer any model."),
        ([], ""),
    ],
)
def test_the_verdict_is_one_plain_sentence(votes, sentence):
    results = output.gather([], votes, LABELS)
    assert output.verdict(results).startswith(sentence)
    html = output.render_results(results, "Title")
    assert ('class="big verdict"' in html) == bool(sentence)


LEFT = cast("l" * 40) + cast("l" * 40, "bob", "srpo", "base")
SIDES = (("base", "srpo"), ("srpo", "base")) * 10
ONE_SIDED = [Vote("lefty", item, *pair, pair[0]) for item, pair in enumerate(SIDES)]
DOMINATED = [*cast("lrr" * 33, "bob"), *(vote for name in "acde" for vote in cast("lr" * 5, name))]
CONTRARY = [one for name in ("ann", "bob", "cid") for one in cast("lrr" * 10, name)]
CONTRARY += cast("rll" * 10, "dan")
UNEQUAL = [one for one in planted_ratings(QUALITY, 8, 2, 0) if one.model != "refl" or one.item < 4]
CHAIN = planted_votes(QUALITY, 20, 2, 0, pairs=(("base", "srpo"), ("srpo", "refl")))


@pytest.mark.parametrize(
    ("answers", "present", "absent"),
    [
        (
            cast("rrrr"),
            "Only 4 prompts|One annotator|ReFL: no answer yet|between SRPO and Base model|"
            "1 artificial tie added",
            "agrees with the others",
        ),
        (CHAIN, "never compared directly: Base model with ReFL", "One annotator"),
        (UNEQUAL, "ReFL: rated on other items", "no answer yet"),
        # of two who disagree nobody knows who is right
        (LEFT, "The image on the left won more often|votes −", "agrees with the others"),
        (LEFT, "ann chose the image on the left in 40 of 40|bob chose", "gave"),
        (
            [*ONE_SIDED, *cast("lr" * 15)],
            "lefty chose the image on the left in 20 of 20",
            "ann chose",
        ),
        (DOMINATED, "bob gave 71\u00a0% of the votes", "ann gave"),
        (CONTRARY, "dan agrees with the others no more than by chance", "ann agrees"),
    ],
)
def test_caveats(answers, present, absent):
    ratings = [one for one in answers if isinstance(one, Rating)]
    results = output.gather(ratings, [one for one in answers if isinstance(one, Vote)], LABELS)
    caveats = " ".join(output.caveats(results))
    assert all(part in caveats for part in present.split("|")) and absent not in caveats
    if answers is LEFT:
        assert ">not distinguishable from chance<" in output.render_results(results, "Left")
    if len(answers) == 4:
        assert output.claims(results)[0].startswith("In votes, no pair of models differs")


def test_good_data_need_no_caveat():
    ratings = planted_ratings(QUALITY, 40, 6, 1, noise=0.05)
    assert output.caveats(output.gather(ratings, [], LABELS)) == []


def test_the_page_is_complete_and_fetches_nothing(planted):
    html = output.render_results(planted, "Thirty prompts", [("Answers", "results/answers.csv")])
    tags = Tags(html).found
    assert len(html) < 300_000
    assert not {"script", "img", "iframe"} & {tag for tag, _ in tags}
    assert not re.search(r"(src|href)=\"(https?:)?//|url\(|@import", html)
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links == ["results/answers.csv"]
    assert sum(tag == "figure" for tag, _ in tags) == 5
    assert sum(attributes.get("class") == "matrix" for _, attributes in tags) == 6
    assert all(label in html for label in LABELS.values()) and "annotator 2" in html
    styles = [attributes.get("style") or "" for _, attributes in tags]
    widths = [float(style[7:-1]) for style in styles if style.startswith("width: ")]
    assert sum(widths) == pytest.approx(100 * 5 * 3, abs=0.1)


def test_names_are_escaped():
    ratings = [Rating(HOSTILE, 0, model, "realism", "good") for model in ("base", "srpo")]
    results = output.gather(ratings, cast("ttt", HOSTILE), {"base": HOSTILE, "srpo": "SRPO"})
    html = output.render_results(results, HOSTILE, [(HOSTILE, "x.csv")])
    Tags(html)
    assert "<script" not in html and "49" not in visible(html)
    assert html.count("&lt;script&gt;") >= 5


def test_names_with_direction_marks_turn_no_number():
    name, label = "\u202eeno", "\u05d0\u202e"
    votes = [*cast("r" * 40, name), *(one for n in range(6) for one in cast("rr", f"ann {n}"))]
    html = output.render_results(output.gather([], votes, {"base": label, "srpo": "SRPO"}), label)
    for text in (name, label):
        assert text in html and html.count(text) == html.count(f"\u2068{text}\u2069")


@pytest.mark.parametrize(
    ("ratings", "votes"),
    [
        ([], []),
        ([Rating("ann", 0, "base", "realism", "good")], []),
        ([], cast("t")),
        (planted_ratings(QUALITY, 2, 1, 0)[:7], planted_votes(QUALITY, 1, 2, 0)),
    ],
)
def test_few_answers_make_a_page(ratings, votes):
    html = output.render_results(output.gather(ratings, votes, LABELS), "Few")
    Tags(html)
    assert not re.search(r"\bnan\b|\binf\b|None", visible(html))


def rows_of(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table, newline="")))


def test_answers_can_be_read_back_from_their_tables():
    name = '=HYPERLINK("http://x","a, b")\n\'quoted\''
    ratings = [
        Rating(name, 3, "-base", "realism", "good", 1.5),
        Rating("'ann", 4, "base", "detail", "fail"),
    ]
    votes = [Vote(name, 1, "@base", "srpo", None, 2.25), Vote("ann", 2, "@base", "srpo", "@base")]
    for kind, answers in ((Rating, ratings), (Vote, votes)):
        rows = [
            {key: cell.removeprefix("'") or None for key, cell in row.items()}
            for row in rows_of(output.answers_csv(kind, answers))
        ]
        numbers = [{"item": int(row["item"]), "at": row["at"] and float(row["at"])} for row in rows]
        assert [kind(**row | own) for row, own in zip(rows, numbers, strict=True)] == answers
    assert output.answers_csv(Vote, []).split() == ["annotator,item,left,right,winner,at,prompt"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "'"])
def test_formulas_are_escaped(start):
    table = output.csv_table(["a", "b", "c"], [(f"{start}x", -1, f"a{start}")])
    assert rows_of(table) == [{"a": f"'{start}x", "b": "-1", "c": f"a{start}"}]


def test_the_summary_has_every_number_of_the_page(planted):
    rows = rows_of(output.summary_csv(planted))
    assert list(rows[0]) == output.SUMMARY_COLUMNS
    kinds = ("share", "wins", "panel", "answers", "strength", "elo", "alpha")
    counts = [sum(row["what"] == kind for row in rows) for kind in kinds]
    assert counts == [5 * 3 * 4, 6 * 3, 6 * 3, 2 * 3, 6 * 3, 6 * 3, 6 * 3]
    sums = {(scale, model): 0.0 for scale in SCALES for model in MODELS}
    for row in rows:
        if row["what"] == "share":
            sums[row["of"], row["a"]] += float(row["value"])  # type: ignore[index]
    assert list(sums.values()) == pytest.approx([1.0] * 15, abs=1e-12)
