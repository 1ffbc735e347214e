"""Results of an arena: statistics of all answers, as one HTML page and CSV tables.

Ratings are also compared as votes, on every scale. A preference is claimed only of enough people,
after correction for the number of pairs; with few, what is clear is said of these annotators only.
All other findings are caveats: few data, disagreement, quantities that could not be computed. The
page shows the prompts on which people preferred a model most, and least: the database remembers
where its images were; without them, or if they have changed, the page has none and says so.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import combinations
from pathlib import Path

from markupsafe import Markup

from ..io.atomic import write_text
from ..io.text import isolated
from ..report.charts import IntervalAxis
from ..report.images import BUDGET, fitted, read_image
from ..report.page import environment
from ..stats import Interval, Ranking, WinRate
from . import statistics
from .records import LEVELS, ArenaError, Rating, Vote, latest, prompt_of
from .sources import UNREADABLE, Item, read_sources
from .statistics import SCALES, Agreement, Annotator, Scale, Shares, Wins, elo
from .store import Store

SHOWN = 3
"""Prompts of each kind."""
MAX_MODELS = 6


@dataclass(frozen=True)
class Picture:
    """The image of a model: a data URI, and how many `votes` of those on it at this prompt it
    `won` (ties count half)."""

    model: str
    uri: str
    won: float
    votes: int


@dataclass(frozen=True)
class Pictured:
    """A prompt with the images of all models, and whether `model` won or lost there."""

    prompt: str
    seed: int | None
    has_won: bool
    pictures: Sequence[Picture]


def pictured(
    store: Store, votes: Sequence[Vote], models: Sequence[str]
) -> tuple[list[Pictured], str]:
    """The prompts on which the first of the `models` won and lost most clearly, and why there is
    none: "" if there are some, or no votes."""
    if not votes or not store.sources:
        return [], ""
    chosen = _chosen(votes, models[0])
    try:
        items = read_sources(store.sources).items
        for index in chosen:
            if index not in items or items[index].digest() != store.items()[index][2]:
                raise ArenaError(f"those of item {index} have changed")
        shown = models[:MAX_MODELS]
        images = [read_image(items[index].files[key]) for index in chosen for key in shown]
    except (ArenaError, *UNREADABLE) as error:
        return [], f"The page has no pictures: the images cannot be read ({error})."
    uris = iter(fitted(images, BUDGET))
    found = []
    for index, has_won in chosen.items():
        own = {key: next(uris) for key in shown}
        found.append(_pictured(items[index], votes, own, has_won))
    return found, ""


def _chosen(votes: Sequence[Vote], best: str) -> dict[int, bool]:
    """Items by whether the model won there, the clearest of both kinds."""
    margins = Counter[int]()
    for vote in votes:
        if best in (vote.left, vote.right):
            margins[vote.item] += (vote.winner == best) - (vote.winner not in (best, None))
    ranked = margins.most_common()
    won = [item for item, margin in ranked if margin > 0][:SHOWN]
    lost = [item for item, margin in reversed(ranked) if margin < 0][:SHOWN]
    return dict.fromkeys(won, True) | dict.fromkeys(lost, False)


def _pictured(
    item: Item, votes: Sequence[Vote], uris: Mapping[str, str], has_won: bool
) -> Pictured:
    here = [vote for vote in votes if vote.item == item.index]
    pictures = []
    for model, uri in uris.items():
        own = [vote for vote in here if model in (vote.left, vote.right)]
        won = sum((vote.winner == model) + (vote.winner is None) / 2 for vote in own)
        pictures.append(Picture(model, uri, won, len(own)))
    return Pictured(item.prompt, item.seed, has_won, pictures)


VOTES = "votes"
ALPHA_LEVEL = 0.05
FEW_PROMPTS, FEW_ANNOTATORS = 20, 6
"""Below so many annotators nothing is claimed about other people."""
RELIABLE, TENTATIVE = 0.8, 0.667
"""Thresholds on Krippendorff's alpha (Krippendorff 2004): for conclusions, for tentative ones."""
ODD_MIN_ANSWERS, ODD_MIN_ALPHA = 20, 0.2
"""An annotator is called unusual from this many answers on, if the others agree this well."""
OPEN = (
    "Anyone with the link could join, under any name: one person on two devices may count as two. "
    "With --annotators, each name has a link of its own."
)
DECIMAL_FROM = 500
"""Number of answers from which percentages get a decimal."""
TEMPLATES = Path(__file__).parent / "templates"
STYLES = (TEMPLATES.parents[1] / "report/templates/style.css", TEMPLATES / "results.css")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")

HISTORY_COLUMNS = ["answer", "annotator", "request", "item", "model", "other", "axis", "said", "at"]
SUMMARY_COLUMNS = ["what", "of", "a", "b", "value", "low", "high", "n", "p", "p_of_all"]

CsvCell = str | int | float | None


@dataclass(frozen=True)
class Comparison:
    """Win rates of all pairs, and strengths of the models."""

    wins: Sequence[Wins]
    ranking: Ranking

    def of(self, model: str, other: str) -> Wins | None:
        """The result of a model against another one, None if they were not compared."""
        for one in self.wins:
            if {one.a, one.b} == {model, other}:
                return one if one.b == model else one.turned()
        return None


@dataclass(frozen=True)
class Results:
    """Statistics of all answers.

    `labels` are {key: label} of all models, in display order. `shares` is keyed by scale;
    `comparisons` and `agreement` by scale or `VOTES`; scales without answers are left out.
    `unseen` are models without an answer, `unequal` those rated on other items than the rest.
    """

    labels: Mapping[str, str]
    ratings: int
    votes: int
    items: int
    prompts: int
    annotators: int
    incomplete: int
    unseen: Sequence[str]
    unequal: Sequence[str]
    shares: Mapping[Scale, Sequence[Shares]]
    comparisons: Mapping[str, Comparison]
    agreement: Mapping[str, Agreement]
    raters: Sequence[Annotator]
    voters: Sequence[Annotator]
    side: WinRate | None

    @property
    def largest(self) -> dict[str, Annotator]:
        """The annotator with the most answers of each kind, "ratings" and "votes"."""
        kinds = {"ratings": self.raters, "votes": self.voters}
        return {kind: max(each, key=lambda one: one.share) for kind, each in kinds.items() if each}


def gather(ratings: Sequence[Rating], votes: Sequence[Vote], labels: Mapping[str, str]) -> Results:
    """Compute everything for the models in `labels`; answers about other models are ignored."""
    ratings = [one for one in latest(ratings) if one.model in labels]
    votes = [one for one in latest(votes) if one.left in labels and one.right in labels]
    models, answers = list(labels), [*ratings, *votes]
    sources, panels = {VOTES: votes}, {VOTES: statistics.voted(votes)}
    shares: dict[Scale, list[Shares]] = {}
    for scale in SCALES:
        sources[scale] = statistics.implied_votes(ratings, scale)
        panels[scale] = statistics.rated(ratings, scale)
        shares[scale] = statistics.shares(ratings, scale, models)
    items = {model: {one.item for one in ratings if one.model == model} for model in models}
    most = max(items.values(), key=len, default=set())
    voted = {model for vote in votes for model in (vote.left, vote.right)}
    return Results(
        labels={key: isolated(" ".join(label.split())) for key, label in labels.items()},
        ratings=len(ratings),
        votes=len(votes),
        items=len({one.item for one in answers}),
        prompts=len({prompt_of(one) for one in answers}),
        annotators=len({one.annotator for one in answers}),
        incomplete=statistics.incomplete(ratings),
        unseen=[model for model, own in items.items() if not own and model not in voted],
        unequal=[model for model, own in items.items() if own and own != most],
        shares={scale: found for scale, found in shares.items() if found},
        comparisons={key: _compare(found, models) for key, found in sources.items() if found},
        agreement={key: statistics.agreement(one) for key, one in panels.items() if one.annotators},
        raters=statistics.rating_annotators(ratings),
        voters=statistics.voting_annotators(votes),
        side=statistics.side_bias(votes),
    )


def _compare(votes: Sequence[Vote], models: Sequence[str]) -> Comparison:
    seen = {model for vote in votes for model in (vote.left, vote.right)}
    ranking = statistics.rank_models(votes, [model for model in models if model in seen])
    return Comparison(statistics.win_rates(votes, models), ranking)


def percent(value: float, n: int) -> str:
    """A share in percent, with a decimal from `DECIMAL_FROM` answers on."""
    return f"{100 * value:.{1 if n >= DECIMAL_FROM else 0}f}\u00a0%"


def span(interval: Interval) -> str:
    """Both ends of a share's interval in percent."""
    digits = 1 if interval.n >= DECIMAL_FROM else 0
    return f"{100 * interval.low:.{digits}f}–{100 * interval.high:.{digits}f}\u00a0%"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign; infinity as ∞."""
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:+.{digits}f}".replace("-", "−").replace("inf", "∞")


def joined(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def is_clear(wins: Wins) -> bool:
    """Whether people prefer one of two models, beyond chance and corrected for all pairs."""
    return wins.p_of_all < ALPHA_LEVEL and wins.annotators >= FEW_ANNOTATORS


def is_clear_here(wins: Wins) -> bool:
    """Whether the few annotators prefer one of two models, whatever others prefer."""
    return wins.p_panel < ALPHA_LEVEL and wins.annotators < FEW_ANNOTATORS


def main_comparison(results: Results) -> tuple[str, Comparison] | None:
    """That of the votes, else of the overall ratings, with its key; None without either."""
    keys = [key for key in (VOTES, "overall") if key in results.comparisons]
    return (keys[0], results.comparisons[keys[0]]) if keys else None


def verdict(results: Results) -> str:
    """What came out in one plain sentence; "" without answers."""
    found = main_comparison(results)
    if found is None:
        return ""
    labels, comparison = results.labels, found[1]
    best, *rest = comparison.ranking.order()
    against = [(model, wins) for model in rest if (wins := comparison.of(best, model))]
    beaten = [labels[model] for model, wins in against if is_clear(wins) and wins.rate.value > 0.5]
    if beaten and len(beaten) == len(rest):
        others = "every other model" if len(rest) > 1 else beaten[0]
        return f"People prefer {labels[best]} to {others}."
    if beaten:
        return f"People prefer {labels[best]} to {joined(beaten)}; no other difference is certain."
    here = [labels[m] for m, w in against if w.panel.value > 0.5 and is_clear_here(w)]
    if here:
        who = "this annotator" if results.annotators == 1 else f"these {results.annotators} people"
        verb = "prefers" if results.annotators == 1 else "prefer"
        sentence = f"{who} {verb} {labels[best]} to {joined(here)}; whether others do is not known."
        return sentence[0].upper() + sentence[1:]
    clear = any(map(is_clear, comparison.wins))
    return (
        "Some models are preferred to others, but no model is to the second best."
        if clear
        else "The answers so far do not show that people prefer any model."
    )


def claims(results: Results) -> list[str]:
    """Significant differences; else a sentence that there is none and how large it may be."""
    return _sentences("claims.txt.j2", results)


def caveats(results: Results) -> list[str]:
    """Limits of the data, the most important first."""
    return _sentences("caveats.txt.j2", results)


def _sentences(template: str, results: Results) -> list[str]:
    """The lines of a template, as HTML."""
    text = PAGES.get_template(template).render(results=results, labels=results.labels)
    return [Markup(line) for line in text.split("\n") if line.strip()]


def _is_odd(one: Annotator) -> bool:
    """Whether an annotator agrees with the others by chance at most, while they agree."""
    others, without = one.against_others, one.without or 0.0
    is_alone = others is not None and others <= 0 and without >= ODD_MIN_ALPHA
    return is_alone and one.answers >= ODD_MIN_ANSWERS


def _never_compared(comparison: Comparison, labels: Mapping[str, str]) -> list[str]:
    return [
        f"{labels[a]} with {labels[b]}"
        for a, b in combinations(comparison.ranking.models, 2)
        if comparison.of(a, b) is None
    ]


def strength_axis(ranking: Ranking) -> IntervalAxis:
    """A common axis of all strengths and their mean."""
    found = map(ranking.interval, ranking.models)
    ends = [end for one in found for end in (one.value, one.low, one.high, 0.0)]
    return IntervalAxis.around([end for end in ends if math.isfinite(end)])


PAGES = environment(TEMPLATES)
"""All templates of the arena."""
PAGES.globals |= {"few_prompts": FEW_PROMPTS, "few_annotators": FEW_ANNOTATORS, "levels": LEVELS}
PAGES.globals |= {"reliable": RELIABLE, "tentative": TENTATIVE, "alpha_level": ALPHA_LEVEL}
PAGES.globals["shares_axis"] = IntervalAxis()
PAGES.filters |= {"percent": percent, "span": span, "signed": signed, "joined": joined, "elo": elo}
PAGES.filters |= {"strength_axis": strength_axis, "never_compared": _never_compared}
PAGES.filters |= {
    "label": lambda model, labels: labels[model],
    "beats_average": lambda strength: 1 / (1 + math.exp(-strength)),
    "reach": lambda rate: max(rate.high - rate.value, rate.value - rate.low),
}
PAGES.tests |= {"clear": is_clear, "odd": _is_odd}
PAGES.tests["clear_here"] = is_clear_here


def render_results(
    results: Results,
    title: str,
    links: Sequence[tuple[str, str]] = (),
    further_caveats: Sequence[str] = (),
    pictures: Sequence[Pictured] = (),
) -> str:
    """The results as one HTML page without script; `links` are (text, URL) of downloads."""
    return PAGES.get_template("results.html.j2").render(
        style=Markup("".join(file.read_text(encoding="utf-8") for file in STYLES)),
        title=title,
        links=links,
        labels=results.labels,
        results=results,
        verdict=verdict(results),
        claims=claims(results),
        pictures=pictures,
        caveats=[*caveats(results), *further_caveats],
    )


def csv_table(columns: Sequence[str], rows: Iterable[Sequence[CsvCell]]) -> str:
    """A table as in RFC 4180; None is an empty cell.

    A text that a spreadsheet might take for a formula gets an apostrophe in front.
    """

    def escaped(cell: CsvCell) -> CsvCell:
        is_formula = isinstance(cell, str) and cell.startswith(FORMULA_STARTS)
        return f"'{cell}" if is_formula else cell

    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([columns, *(map(escaped, row) for row in rows)])
    return stream.getvalue()


def answers_csv(kind: type[Rating] | type[Vote], answers: Sequence[Rating | Vote]) -> str:
    """One row per answer of one kind; a tie has no winner."""
    return csv_table([field.name for field in fields(kind)], [astuple(one) for one in answers])


def summary_csv(results: Results) -> str:
    """One row per number of the page.

    `what` is share (of model `a` on the scale `of`, at level `b`), wins (of `b` against `a`; `of`
    is votes, or the scale of the ratings), strength (of `a`, log-odds), elo, or alpha (`b` is its
    metric). `panel` is wins for these annotators only, `answers` the share of an annotator, `a`,
    among the answers of a kind, `of`. `low` and `high` are the ends of the 95 % interval.
    """
    rows: list[Sequence[CsvCell]] = [
        ("share", one.scale, one.model, level, *astuple(share), None, None)
        for found in results.shares.values()
        for one in found
        for level, share in one.shares.items()
    ]
    for source, comparison in results.comparisons.items():
        for wins in comparison.wins:
            pair = source, wins.a, wins.b
            rows.append(("wins", *pair, *astuple(wins.rate), wins.p, wins.p_of_all))
            rows.append(("panel", *pair, *astuple(wins.panel), None, wins.p_panel))
        for model in comparison.ranking.order():
            strength = comparison.ranking.interval(model)
            points = [elo(end) for end in (strength.value, strength.low, strength.high)]
            rows.append(("strength", source, model, None, *astuple(strength), None, None))
            rows.append(("elo", source, model, None, *points, strength.n, None, None))
    for source, found in results.agreement.items():
        for metric, value in found.alpha.items():
            ends = found.interval if metric == "ordinal" else None
            low, high = (ends.low, ends.high) if ends else (None, None)
            rows.append(("alpha", source, None, metric, value, low, high, found.units, None, None))
    for kind, people in (("ratings", results.raters), ("votes", results.voters)):
        for one in people:
            share = one.share, None, None, one.answers
            rows.append(("answers", kind, one.name, None, *share, None, None))
    return csv_table(SUMMARY_COLUMNS, rows)


def _answers(store: Store) -> str:
    rate = store.mode == "rate"
    return answers_csv(Rating, store.ratings()) if rate else answers_csv(Vote, store.votes())


def _gather(store: Store) -> Results:
    return gather(store.ratings(), store.votes(), store.models())


TABLES: dict[str, tuple[str, Callable[[Store], str]]] = {
    "answers.csv": ("Answers that count", _answers),
    "history.csv": (
        "All answers ever given",
        lambda store: csv_table(HISTORY_COLUMNS, map(tuple, store.history())),
    ),
    "items.csv": (
        "Prompts",
        lambda store: csv_table(
            ("item", "prompt", "seed"), [(item, *own[:2]) for item, own in store.items().items()]
        ),
    ),
    "numbers.csv": ("Numbers on this page", lambda store: summary_csv(_gather(store))),
}
"""Tables that can be downloaded: {file: (link text, content)}."""


def render_store(store: Store, folder: str) -> str:
    """The result page of a database; its links lead to the tables in `folder`."""
    links = [(text, f"{folder}{name}") for name, (text, _) in TABLES.items()]
    open_to_all = store.invited() is None and len(store.annotators()) > 1
    results = _gather(store)
    found = main_comparison(results)
    order = found[1].ranking.order() if found else []
    if store.mode == "vote":
        votes = latest(store.votes())
    else:
        votes = statistics.implied_votes(latest(store.ratings()), "overall")
    pictures, reason = pictured(store, votes, order)
    notes = [*([OPEN] if open_to_all else []), *filter(None, [reason])]
    return render_results(results, store.title, links, notes, pictures)


def write_results(database: Path, out: Path) -> list[Path]:
    """Write results.html and the tables into `out`; safe while the arena runs."""
    store = Store(database)
    contents = {"results.html": render_store(store, "")}
    contents |= {name: table(store) for name, (_, table) in TABLES.items()}
    store.close()
    out.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        write_text(out / name, text)
    return [out / name for name in contents]
