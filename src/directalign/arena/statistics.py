"""Statistics of the answers: levels, win rates, strengths, agreement and habits of annotators.

An image is excellent overall if it is excellent on every axis (SRPO, arXiv 2509.06942, human
evaluation). The paper leaves the other levels open; here the overall level is the lowest of the
axes. Ratings imply votes: of two images that one annotator rated, the better level wins.

Every annotator counts equally, however many answers he gave. Intervals and tests are about other
annotators and other prompts: answers of one person are alike, and so are those on one prompt,
whatever its seeds (`stats.clustered_rate`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, combinations, compress
from statistics import fmean, median
from typing import Literal, get_args

import krippendorff
import numpy as np
from jaxtyping import Float, Int

from .. import stats
from ..stats import Clusters, Interval, Ranking, WinRate
from .records import AXES, LEVELS, ArenaError, Axis, Level, Rating, Vote, latest, prompt_of

Scale = Literal["overall", Axis]
SCALES: tuple[Scale, ...] = ("overall", *AXES)
AlphaMetric = Literal["nominal", "ordinal", "interval"]
ALPHA_METRICS: tuple[AlphaMetric, ...] = get_args(AlphaMetric)
ELO_PER_LOG_ODDS, ELO_MEAN = 400 / math.log(10), 1000.0

RatedImage = tuple[str, int, str]
"""Annotator, item and model."""
Unit = tuple[int, str] | tuple[int, str, str]
"""What is answered: (item, model), or (item, model, model)."""
Answers = Float[np.ndarray, "u a"]
"""Units × annotators, nan without an answer."""


@dataclass(frozen=True)
class Shares:
    """Share of each level (best first, sum 1) among the judgements of a model on a scale."""

    model: str
    scale: Scale
    shares: Mapping[Level, Interval]
    counts: Mapping[Level, int]
    items: int
    annotators: int

    @property
    def n(self) -> int:
        """Number of judgements."""
        return sum(self.counts.values())


def judgements(ratings: Iterable[Rating], scale: Scale) -> dict[RatedImage, Level]:
    """The latest level of each annotator and image on a scale.

    The overall level is the lowest of the four; only images rated on all axes have one.
    """
    images = _by_image(ratings)
    if scale == "overall":
        rated = {image: levels for image, levels in images.items() if len(levels) == len(AXES)}
        return {image: max(levels.values(), key=LEVELS.index) for image, levels in rated.items()}
    return {image: levels[scale] for image, levels in images.items() if scale in levels}


def incomplete(ratings: Iterable[Rating]) -> int:
    """Number of images (per annotator) without a rating on some axis."""
    return sum(len(levels) < len(AXES) for levels in _by_image(ratings).values())


def _by_image(ratings: Iterable[Rating]) -> dict[RatedImage, dict[Axis, Level]]:
    images: dict[RatedImage, dict[Axis, Level]] = {}
    for one in latest(ratings):
        images.setdefault((one.annotator, one.item, one.model), {})[one.axis] = one.level
    return images


def shares(ratings: Sequence[Rating], scale: Scale, models: Sequence[str]) -> list[Shares]:
    """One `Shares` per model that was rated on the scale, in the order of `models`."""
    given, found = judgements(ratings, scale), []
    prompts = prompts_of(ratings)
    for model in models:
        own = {image: level for image, level in given.items() if image[2] == model}
        if own:
            people, items = [image[0] for image in own], [image[1] for image in own]
            weights, levels = stats.person_weights(people), [*own.values()]
            clusterings = _clusterings(people, [prompts[item] for item in items])
            rates, counts = {}, {}
            for level in LEVELS:
                is_level = [one == level for one in levels]
                rates[level], _ = stats.clustered_rate(is_level, weights, clusterings)
                counts[level] = sum(is_level)
            found.append(Shares(model, scale, rates, counts, len(set(items)), len(set(people))))
    return found


def prompts_of(answers: Iterable[Rating | Vote]) -> dict[int, Hashable]:
    """The prompt of each item."""
    return {one.item: prompt_of(one) for one in answers}


def _clusterings(people: Clusters, prompts: Clusters) -> list[Clusters]:
    """By person and prompt; of a single person by prompt, for that person only."""
    return [people, prompts] if len(set(people)) > 1 else [prompts]


@dataclass(frozen=True)
class Wins:
    """Result of model `b` against model `a`.

    `rate` is the mean over annotators of (wins + ties / 2) / votes, with the interval for people
    like them; `p` that it is 1/2, `p_of_all` corrected for the number of pairs (Holm). `panel` is
    the same rate for these annotators only, on other prompts, `p_panel` corrected too.
    """

    a: str
    b: str
    rate: Interval
    wins: int
    losses: int
    ties: int
    prompts: int
    annotators: int
    p: float
    p_of_all: float
    panel: Interval
    p_panel: float

    def turned(self) -> Wins:
        """The result of model `a` against model `b`."""
        rate, panel = (
            Interval(1 - one.value, 1 - one.high, 1 - one.low, one.n)
            for one in (self.rate, self.panel)
        )
        wins, losses = self.losses, self.wins
        return replace(self, a=self.b, b=self.a, rate=rate, panel=panel, wins=wins, losses=losses)


def implied_votes(ratings: Sequence[Rating], scale: Scale) -> list[Vote]:
    """A vote per two models that one annotator rated on an item; the sides have no meaning."""
    ranks: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for (annotator, item, model), level in judgements(ratings, scale).items():
        ranks.setdefault((annotator, item), []).append((model, LEVELS.index(level)))
    votes, prompts = [], {one.item: one.prompt for one in ratings}
    for (annotator, item), judged in ranks.items():
        for (left, rank_left), (right, rank_right) in combinations(sorted(judged), 2):
            better = left if rank_left < rank_right else right
            winner = None if rank_left == rank_right else better
            votes.append(Vote(annotator, item, left, right, winner, prompt=prompts[item]))
    return votes


def win_rates(votes: Iterable[Vote], models: Sequence[str]) -> list[Wins]:
    """One `Wins` per pair that was compared, `a` before `b` in the order of `models`."""
    votes, found = latest(votes), []
    for a, b in combinations(models, 2):
        pair = [vote for vote in votes if {vote.left, vote.right} == {a, b}]
        if pair:
            found.append(_wins(a, b, pair))
    of_all = stats.holm([one.p for one in found])
    of_panel = stats.holm([one.p_panel for one in found])
    return [
        replace(one, p_of_all=p, p_panel=p_panel)
        for one, p, p_panel in zip(found, of_all, of_panel, strict=True)
    ]


def _wins(a: str, b: str, votes: Sequence[Vote]) -> Wins:
    won = [0.5 if vote.winner is None else float(vote.winner == b) for vote in votes]
    people, prompts = [vote.annotator for vote in votes], [prompt_of(vote) for vote in votes]
    weights = stats.person_weights(people)
    rate, p = stats.clustered_rate(won, weights, _clusterings(people, prompts))
    panel, p_panel = stats.clustered_rate(won, weights, [prompts])
    sizes = len(set(prompts)), len(set(people))
    counts = won.count(1.0), won.count(0.0), won.count(0.5)
    return Wins(a, b, rate, *counts, *sizes, p, p, panel, p_panel)


def rank_models(votes: Iterable[Vote], models: Sequence[str]) -> Ranking:
    """Bradley-Terry strengths of all `models`, from the rates of `win_rates`: every annotator of a
    pair counts equally, and the covariance is clustered by annotator and prompt.

    Raises: ArenaError for a model without a vote.
    """
    place = {model: index for index, model in enumerate(models)}
    votes = [vote for vote in latest(votes) if vote.left in place and vote.right in place]
    pairs = np.array([(place[vote.left], place[vote.right]) for vote in votes], int).reshape(-1, 2)
    unseen = set(range(len(models))) - set(pairs.ravel().tolist())
    if unseen:
        raise ArenaError(f"no vote on {models[min(unseen)]}: leave it out")
    won = np.array([0.5 if v.winner is None else float(v.winner == v.left) for v in votes])
    by_pair: defaultdict[frozenset[str], list[int]] = defaultdict(list)
    for index, vote in enumerate(votes):
        by_pair[frozenset((vote.left, vote.right))].append(index)
    people, weights = [vote.annotator for vote in votes], np.empty(len(votes))
    for own in by_pair.values():
        weights[own] = stats.person_weights([people[index] for index in own])
    clusterings = _clusterings(people, [prompt_of(vote) for vote in votes])
    return stats.bradley_terry(pairs, won, weights, clusterings, models)


def elo(log_odds: float) -> float:
    """A strength on the Elo scale: 400 points are odds of ten to one, the mean is 1000."""
    return ELO_MEAN + ELO_PER_LOG_ODDS * log_odds


@dataclass(frozen=True)
class Reliability:
    """Answers of a panel; `prompts[u]` is the prompt of unit u."""

    answers: Answers
    prompts: tuple[Hashable, ...]
    annotators: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha (2011) by metric: 1 is full agreement, 0 chance.

    None if no unit has two answers, or all answers are equal. `interval` is for the ordinal alpha,
    by resampling prompts. `units` is the number of units with two or more answers.
    """

    alpha: Mapping[AlphaMetric, float | None]
    interval: Interval | None
    units: int
    annotators: int


def rated(ratings: Sequence[Rating], scale: Scale) -> Reliability:
    """Units are images (item × model); values 0 for the worst level to 3 for the best."""
    best = len(LEVELS) - 1.0
    found = [
        ((item, model), annotator, best - LEVELS.index(level))
        for (annotator, item, model), level in judgements(ratings, scale).items()
    ]
    return _reliability(found, prompts_of(ratings))


def voted(votes: Sequence[Vote]) -> Reliability:
    """Units are item × pair; values −1, 0 (tie) and 1 for the model whose name sorts second."""
    found = []
    for vote in latest(votes):
        first, second = sorted((vote.left, vote.right))
        value = float(vote.winner == second) - float(vote.winner == first)
        found.append(((vote.item, first, second), vote.annotator, value))
    return _reliability(found, prompts_of(votes))


def _reliability(
    found: Sequence[tuple[Unit, str, float]], prompts: Mapping[int, Hashable]
) -> Reliability:
    units = {unit: row for row, unit in enumerate(dict.fromkeys(unit for unit, _, _ in found))}
    names = sorted({name for _, name, _ in found})
    answers = np.full((len(units), len(names)), np.nan)
    for unit, name, value in found:
        answers[units[unit], names.index(name)] = value
    return Reliability(answers, tuple(prompts[unit[0]] for unit in units), tuple(names))


def agreement(panel: Reliability) -> Agreement:
    """Alpha under each metric, and an interval for the ordinal one."""
    counts, values = _counts(panel.answers)
    paired = counts.sum(1) >= 2
    known: dict[AlphaMetric, float | None] = {
        metric: alpha(panel.answers, metric) for metric in ALPHA_METRICS
    }
    prompts = stats.numbered(list(compress(panel.prompts, paired)))
    interval, ordinal, different = None, known["ordinal"], len(set(prompts.tolist()))
    if ordinal is not None and different > 1:
        drawn = [
            _alpha(np.repeat(counts[paired], times[prompts], axis=0), values, "ordinal")
            for times in stats.resample_counts(different).astype(int)
        ]
        interval = stats.percentile_interval(ordinal, np.array(drawn), int(paired.sum()))
    return Agreement(known, interval, units=int(paired.sum()), annotators=len(panel.annotators))


def alpha(answers: Answers, metric: AlphaMetric) -> float | None:
    """Krippendorff's alpha; None if units with two answers have fewer than two values."""
    found = _alpha(*_counts(answers), metric)
    return found if np.isfinite(found) else None


def _alpha(
    counts: Int[np.ndarray, "u v"], values: Float[np.ndarray, " v"], metric: AlphaMetric
) -> float:
    """Alpha of the counts of values per unit, nan where it is not defined."""
    if ((counts.sum(1, keepdims=True) >= 2) & (counts > 0)).any(0).sum() < 2:
        return np.nan
    return float(
        krippendorff.alpha(value_counts=counts, value_domain=values, level_of_measurement=metric)
    )


def _counts(answers: Answers) -> tuple[Int[np.ndarray, "u v"], Float[np.ndarray, " v"]]:
    """How often each value was given, per unit; and the values."""
    values = np.unique(answers[np.isfinite(answers)])
    return (answers[:, :, None] == values).sum(1), values


@dataclass(frozen=True)
class Annotator:
    """Habits of one annotator: hints for a check, not grounds for exclusion. None: not defined.

    `share` is of all answers, `seconds` the median time between completed items, `commonest` the
    share of the most frequent answer. `against_others` is alpha with only the disagreement of this
    annotator's pairs in its numerator, `without` alpha of the others. `ties`, `side` and `p_side`
    (corrected for the number of annotators) are for votes only.
    """

    name: str
    answers: int
    items: int
    share: float
    seconds: float | None
    commonest: float
    against_others: float | None
    without: float | None
    ties: float | None = None
    side: WinRate | None = None
    p_side: float = 1.0


def rating_annotators(ratings: Iterable[Rating]) -> list[Annotator]:
    """One `Annotator` per name, sorted; agreement is the mean over the axes."""
    by_name: dict[str, list[Rating]] = {}
    for one in latest(ratings):
        by_name.setdefault(one.annotator, []).append(one)
    panels = [rated([*chain(*by_name.values())], axis) for axis in AXES]
    found = []
    for name, own in sorted(by_name.items()):
        completed: dict[int, float | None] = {}
        for one in own:
            at = one.at
            completed[one.item] = at if at is None else max(at, completed.get(one.item) or at)
        habits = _habits(panels, name, [one.level for one in own], completed.values())
        share = len(own) / sum(map(len, by_name.values()))
        found.append(Annotator(name, len(own), len(completed), share, *habits))
    return found


def voting_annotators(votes: Iterable[Vote]) -> list[Annotator]:
    """One `Annotator` per name, sorted."""
    by_name: dict[str, list[Vote]] = {}
    for vote in latest(votes):
        by_name.setdefault(vote.annotator, []).append(vote)
    panels, found = [voted([*chain(*by_name.values())])], []
    for name, own in sorted(by_name.items()):
        answers = [{vote.left: "left", vote.right: "right"}.get(vote.winner or "") for vote in own]
        habits = _habits(panels, name, answers, [vote.at for vote in own])
        ties, items = answers.count(None) / len(own), len({vote.item for vote in own})
        share = len(own) / sum(map(len, by_name.values()))
        found.append(Annotator(name, len(own), items, share, *habits, ties, side_bias(own)))
    corrected = stats.holm([one.side.p if one.side else 1.0 for one in found])
    return [replace(one, p_side=p) for one, p in zip(found, corrected, strict=True)]


def _habits(
    panels: Sequence[Reliability],
    name: str,
    answers: Sequence[str | None],
    times: Iterable[float | None],
) -> tuple[float | None, float, float | None, float | None]:
    """`seconds`, `commonest`, `against_others` and `without` of an `Annotator`."""
    known = sorted(at for at in times if at is not None)
    seconds = median(np.diff(known)) if len(known) > 1 else None  # so that breaks hardly count
    commonest = Counter(answers).most_common(1)[0][1] / len(answers)
    means = []
    for measure in (against_others, without):
        found = [measure(panel, name) for panel in panels if name in panel.annotators]
        defined = [value for value in found if value is not None]
        means.append(fmean(defined) if defined else None)
    return seconds, commonest, means[0], means[1]


def side_bias(votes: Iterable[Vote]) -> WinRate | None:
    """How often the left image won, without ties, with `p` of the sign test (sides are random);
    None without a decided vote."""
    decided = [vote for vote in latest(votes) if vote.winner is not None]
    if not decided:
        return None
    left, n = sum(vote.winner == vote.left for vote in decided), len(decided)
    rate, p = stats.wilson_interval(left / n, n), stats.sign_test(left, n - left)
    return WinRate(**asdict(rate), wins=left, losses=n - left, ties=0, p=p)


def against_others(panel: Reliability, name: str) -> float | None:
    """Ordinal alpha between one annotator and the others; None without a shared unit."""
    column = panel.annotators.index(name)
    answered = np.isfinite(panel.answers)
    # the ordinal metric: how many answers, on units with two or more, lie between two values
    paired = panel.answers[answered.sum(1) >= 2]
    values, counts = np.unique(paired[np.isfinite(paired)], return_counts=True)
    others = np.delete(panel.answers, column, axis=1)
    own, other = np.nonzero(answered[:, column, None] & np.isfinite(others))
    if len(values) < 2 or not len(own):
        return None
    ranks = np.cumsum(counts) - counts / 2
    expected = counts @ (ranks[:, None] - ranks) ** 2 @ counts / (counts.sum() * (counts.sum() - 1))
    mine = ranks[np.searchsorted(values, panel.answers[own, column])]
    theirs = ranks[np.searchsorted(values, others[own, other])]
    return 1 - float(np.square(mine - theirs).mean() / expected)


def without(panel: Reliability, name: str) -> float | None:
    """Ordinal alpha of the others; None if it is not defined."""
    return alpha(np.delete(panel.answers, panel.annotators.index(name), axis=1), "ordinal")
