"""What may be said about the results in words, and what must be said with them; nothing here goes beyond the numbers.

A difference is claimed only where the sign test holds after correction for the number of pairs and the interval lies on one side of a
draw. Everything else is a caveat: what is thin, what does not agree, what could not be computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..stats import Interval, Ranking
from .agreement import Agreement
from .annotators import Annotator
from .results import VOTES, Comparison, Results
from .wins import Wins

SURE = 0.05
FEW_ITEMS = 20
RELIABLE, TENTATIVE = 0.8, 0.667
"""Krippendorff's own demands on alpha (2004): for conclusions, and for tentative ones."""
SHARED, OTHERS_AGREE = 20, 0.2
"""A single annotator is remarked on from so many answers on, and only where the others agree among themselves by so much alpha."""
DECIMAL_FROM = 500
"""Answers from which a percentage is worth a decimal."""
NAMES = {VOTES: "Votes", "overall": "Overall", "alignment": "Alignment", "realism": "Realism", "detail": "Detail", "aesthetics": "Aesthetics"}


def lead(results: Results) -> str:
    """How much was asked, in a sentence."""
    given = [count(amount, kind) for amount, kind in ((results.ratings, "rating"), (results.votes, "vote")) if amount]
    if not given:
        return "Nobody has answered yet."
    return f"{' and '.join(given)} by {count(results.annotators, 'annotator')} on {count(results.items, 'item')}, {count(len(results.labels), 'model')}."


def claims(results: Results) -> list[str]:
    """The differences that the records bear out; that there is none, and how large one may hide, is a sentence too."""
    return [sentence for source in (VOTES, "overall") if source in results.comparisons for sentence in _claims(results, source)]


def is_clear(wins: Wins) -> bool:
    """Whether b and a differ beyond chance, all pairs considered."""
    return wins.p_of_all < SURE and (wins.rate.low > 0.5 or wins.rate.high < 0.5)


def caveats(results: Results) -> list[str]:
    """What a reader should know before believing the page, most weighty first."""
    return [*_thin(results), *_unconnected(results), *_unequal(results), *_disagreement(results), *_sides(results), *_annotators(results)]


def read_alpha(agreement: Agreement) -> str:
    """What an alpha lets one conclude."""
    value, interval = agreement.alpha["ordinal"], agreement.interval
    if value is None:
        return "not known: needs two annotators on the same images"
    if interval is None or interval.low <= 0:
        return "not told apart from chance"
    if value >= RELIABLE:
        return "reliable" if interval.low >= RELIABLE else "reliable, though the interval reaches lower"
    if value >= TENTATIVE:
        return "enough for tentative conclusions"
    return "low: trust averages, not single answers"


def percent(value: float, n: int) -> str:
    """A share, with a decimal where enough answers bear it."""
    return f"{100 * value:.{1 if n >= DECIMAL_FROM else 0}f}\u00a0%"


def span(interval: Interval) -> str:
    """The ends of a share's interval."""
    digits = 1 if interval.n >= DECIMAL_FROM else 0
    return f"{100 * interval.low:.{digits}f}–{100 * interval.high:.{digits}f}\u00a0%"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a true minus, and ∞ for what has no end."""
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:+.{digits}f}".replace("-", "−").replace("inf", "∞")


def number(value: float) -> str:
    """A number with a true minus."""
    return f"{value:.2f}".replace("-", "−")


def chance(p: float) -> str:
    """A p value as people write it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count(amount: int, thing: str) -> str:
    """1 item, 2 items."""
    return f"{amount} {thing}{'' if amount == 1 else 's'}"


def named(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def made_finite(ranking: Ranking, labels: Mapping[str, str]) -> str:
    """Why strengths with made-up ties have them."""
    groups = named(["/".join(labels[model] for model in group) for group in ranking.groups])
    return (
        f"wins do not lead both ways between {groups}, so the strengths have no finite most likely value. They are shown with "
        f"{count(round(ranking.prior_ties), 'made-up tie')} added between every two models; how far these groups are apart is not known."
    )


# --- claims -----------------------------------------------------------------------------------------------------------


def _claims(results: Results, source: str) -> Iterator[str]:
    comparison, way = results.comparisons[source], "in votes" if source == VOTES else "by overall ratings"
    clear = [wins for wins in comparison.wins if is_clear(wins)]
    yield from (_preferred(wins, results.labels, way) for wins in clear)
    unclear = [wins for wins in comparison.wins if not is_clear(wins)]
    if unclear:
        half = max(max(wins.rate.high - wins.rate.value, wins.rate.value - wins.rate.low) for wins in unclear)
        pairs = "no other pair" if clear else "no pair"
        yield f"{way.capitalize()}, {pairs} of models is told apart beyond chance; these win rates may be off by {100 * half:.0f} points."


def _preferred(wins: Wins, labels: Mapping[str, str], way: str) -> str:
    rate, better, worse = wins.rate, wins.b, wins.a
    if rate.value < 0.5:
        rate, better, worse = Interval(1 - rate.value, 1 - rate.high, 1 - rate.low, rate.n), wins.a, wins.b
    won = percent(rate.value, rate.n)
    details = f"95\u00a0% interval {span(rate)}, {wins.items} items, {chance(wins.p_of_all)} of all pairs"
    return f"{labels[better]} is preferred to {labels[worse]} {way}: it wins {won} ({details})."


# --- caveats ----------------------------------------------------------------------------------------------------------


def _thin(results: Results) -> Iterator[str]:
    if not results.items:
        return
    if results.items < FEW_ITEMS:
        yield f"Only {count(results.items, 'item')}: intervals are rough below {FEW_ITEMS}, and a few odd prompts decide."
    if results.annotators == 1:
        yield "One annotator: this is one person's taste, and whether others agree is not known."
    silent = [label for key, label in results.labels.items() if not _is_seen(results, key)]
    if silent:
        yield f"{named(silent)}: no answer yet."
    if results.incomplete:
        yield f"{count(results.incomplete, 'image')} not rated on all four axes, and so without an overall level."


def _is_seen(results: Results, model: str) -> bool:
    rated = any(model == one.model for found in results.shares.values() for one in found)
    return rated or any(model in comparison.ranking.models for comparison in results.comparisons.values())


def _unconnected(results: Results) -> Iterator[str]:
    for source in (VOTES, "overall"):
        comparison = results.comparisons.get(source)
        if comparison is not None:
            yield from _not_compared(comparison, results.labels, NAMES[source])
            if comparison.ranking.prior_ties:
                yield f"{NAMES[source]}: {made_finite(comparison.ranking, results.labels)}"


def _not_compared(comparison: Comparison, labels: Mapping[str, str], source: str) -> Iterator[str]:
    models = comparison.ranking.models
    pairs = {frozenset((wins.a, wins.b)) for wins in comparison.wins}
    missing = [f"{labels[a]} with {labels[b]}" for place, a in enumerate(models) for b in models[place + 1 :] if frozenset((a, b)) not in pairs]
    if missing:
        yield f"{source}: never compared directly: {named(missing)}. Their strengths compare through other models alone."


def _unequal(results: Results) -> Iterator[str]:
    if results.unequal:
        names = named([results.labels[model] for model in results.unequal])
        yield f"{names}: rated on other items than the rest, so percentages do not compare like with like; win rates do, they use common items."


def _disagreement(results: Results) -> Iterator[str]:
    known = {NAMES[source]: agreement.alpha["ordinal"] for source, agreement in results.agreement.items()}
    low = [f"{name.lower()} {number(value)}" for name, value in known.items() if value is not None and value < TENTATIVE]
    if low:
        yield f"Annotators agree little (alpha below {TENTATIVE}): {named(low)}. Averages over many items may still differ clearly; single answers say little."


def _sides(results: Results) -> Iterator[str]:
    side = results.side
    if side is not None and side.p < SURE:
        where = "left" if side.left > side.right else "right"
        yield (
            f"The image on the {where} won more often than sides drawn at random explain: the left one won {percent(side.rate.value, side.rate.n)} "
            f"of {side.rate.n} decided votes, {chance(side.p)}. This pulls all win rates towards one half."
        )


def _annotators(results: Results) -> Iterator[str]:
    for one in {annotator.name: annotator for annotator in (*results.raters, *results.voters) if _is_odd(annotator)}.values():
        yield f"{one.name} agrees with the others no more than chance would, and they agree among themselves: a reason to look, not yet to leave them out."


def _is_odd(annotator: Annotator) -> bool:
    if annotator.against_others is None or annotator.without is None:
        return False
    return annotator.answers >= SHARED and annotator.against_others <= 0 and annotator.without >= OTHERS_AGREE
