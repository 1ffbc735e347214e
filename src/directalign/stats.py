"""Intervals, tests and the bootstrap, in numpy and scipy, without torch.

All intervals are 95 %. Images of one prompt, and answers on one item, are correlated, so whole
groups (prompts, items) are resampled, not single images. The seed is fixed: equal data, equal
intervals.
"""

import functools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.special import betainc, ndtr, stdtr, stdtrit

Z_95 = 1.959963984540054
RESAMPLES = 2000
DEFINED = 0.95
"""Share of resamples on which a number must be finite for its interval to be given."""
FEW_HITS = 20
"""Clusters with (and without) a hit below which their scatter does not fully set the interval."""
SMALLEST = 1e-9
"""Spread below which values count as equal."""
PRIOR_TIES = 1.0
"""Ties added between every two models where the Bradley-Terry maximum does not exist."""
TOLERANCE, MAX_NEWTON_STEPS = 1e-10, 200


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval, from `n` samples."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """{"value", "low", "high", "n", ...}: its form in JSON records."""
        return asdict(self)


# --- closed forms ---------------------------------------------------------------------------------


def wilson_interval(rate: float, n: int | float, z: float = Z_95) -> Interval:
    """Wilson's score interval of a rate in [0, 1] from n > 0 samples (Wilson 1927).

    `n` need not be whole (an effective number of samples), and is rounded in the result.
    Raises: ValueError for a rate outside [0, 1] or n ≤ 0.
    """
    if n <= 0 or not 0 <= rate <= 1:
        raise ValueError(f"a rate in [0, 1] from n > 0 is needed: got rate {rate} from n {n}")
    scale = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low, high = max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))
    return Interval(rate, low, high, round(n))


def rate_interval(answers: ArrayLike, groups: Sequence[Hashable] = ()) -> Interval:
    """Wilson's interval of the mean of answers in [0, 1], shape (n,), independent between `groups`
    (prompts, one per answer; by default, and where all are of one, between answers)."""
    values = np.asarray(answers, dtype=float)
    if 1 < len(set(groups)) < len(groups):
        return clustered_rate(values, np.ones(len(values)), [groups])[0]
    return wilson_interval(min(1.0, max(0.0, float(values.mean()))), len(values))


@functools.cache
def t_quantile(freedom: int, confidence: float = 0.95) -> float:
    """t with P(|T| ≤ t) = `confidence`, T with `freedom` ≥ 1 degrees of freedom."""
    return float(stdtrit(freedom, (1 + confidence) / 2))


@dataclass(frozen=True)
class Effect:
    """A difference of means with its normal 95 % interval; `size` is `value` over a spread."""

    value: float
    low: float
    high: float
    size: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def effect(a: ArrayLike, b: ArrayLike, paired: bool, spread: float | None = None) -> Effect:
    """mean(a) − mean(b), at least two values each, shapes (n,) and (m,), n = m for pairs.

    `spread` is the unit of `size`: by default the standard deviation of the pairs' differences, or
    the pooled one of both sides (Cohen's d).
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    value = float(a.mean() - b.mean())
    if paired:
        own = float((a - b).std(ddof=1))
        error = own / math.sqrt(len(a))
    else:
        own = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    size = value / max(own if spread is None else spread, SMALLEST)
    return Effect(value, value - Z_95 * error, value + Z_95 * error, size)


# --- bootstrap over groups ------------------------------------------------------------------------


@dataclass(frozen=True)
class Resamples:
    """Groups drawn with replacement: their counts in each resample, and each sample's group."""

    counts: Float[np.ndarray, "r g"]
    group_of: Int[np.ndarray, " n"]

    @property
    def groups(self) -> int:
        return self.counts.shape[1]

    def means(self, values: ArrayLike) -> Float[np.ndarray, " r"]:
        """Mean over the samples (n,) of each resample."""
        values = np.asarray(values, dtype=float)
        sums = np.bincount(self.group_of, weights=values, minlength=self.groups)
        sizes = np.bincount(self.group_of, minlength=self.groups).astype(float)
        return (self.counts @ sums) / (self.counts @ sizes)


@functools.lru_cache(maxsize=8)
def resample_counts(groups: int, resamples: int = RESAMPLES) -> Float[np.ndarray, "r g"]:
    """How often each group is drawn in each resample of that many groups; read-only, fixed seed."""
    # Mersenne Twister, seed 0, modulo: the draws of torch.randint with a generator of seed 0
    draws = np.random.RandomState(0).randint(0, 2**32, (resamples, groups), dtype=np.uint32)
    cells = draws % groups + groups * np.arange(resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=resamples * groups).astype(float)
    counts = counts.reshape(resamples, groups)
    counts.flags.writeable = False
    return counts


def resample_groups(groups: Sequence[Hashable], resamples: int = RESAMPLES) -> Resamples:
    """Resamples of the groups (prompts, items) that the samples belong to, one name per sample.

    Samples of one single group are resampled one by one: there is no other group to draw.
    """
    is_single = len(set(groups)) == 1
    places = np.arange(len(groups)) if is_single else numbered(groups)
    return Resamples(resample_counts(int(places.max()) + 1, resamples), places)


def bootstrap_interval(values: ArrayLike, resamples: Resamples) -> Interval:
    """Mean of the values (n,) with the expanded percentile interval of its resamples.

    The percentiles are P(Z < −t·sqrt(g/(g−1))), the t quantile of g − 1 degrees of freedom
    for g groups (Hesterberg 2015): the plain 2.5 % and 97.5 % are too narrow for few groups.
    """
    values, g = np.asarray(values, dtype=float), resamples.groups
    tail = 0.025 if g < 2 else float(ndtr(-t_quantile(g - 1) * math.sqrt(g / (g - 1))))
    low, high = np.quantile(resamples.means(values), [tail, 1 - tail]).tolist()
    return Interval(float(values.mean()), low, high, len(values))


def grouped_mean(values: ArrayLike, groups: Sequence[Hashable], is_answer: bool = True) -> Interval:
    """Mean of the values (n,), of which those of one group (prompt) are alike, with its bootstrap
    interval; `bootstrap_rate_interval` where all are 0 or 1, unless they are no answers."""
    values = np.asarray(values, dtype=float)
    is_binary = is_answer and np.isin(values, (0, 1)).all()
    interval = bootstrap_rate_interval if is_binary else bootstrap_interval
    return interval(values, resample_groups(groups))


def bootstrap_rate_interval(answers: ArrayLike, resamples: Resamples) -> Interval:
    """`bootstrap_interval` of answers in [0, 1]; Wilson's over the groups where nothing varies."""
    found = bootstrap_interval(answers, resamples)
    if found.low < found.high:
        return found
    rate = min(1.0, max(0.0, found.value))
    return replace(wilson_interval(rate, resamples.groups), n=found.n)


def percentile_interval(value: float, drawn: Float[np.ndarray, " r"], n: int) -> Interval | None:
    """Percentile bootstrap of a statistic; None where it is nan on more than 5 % of resamples."""
    known = drawn[np.isfinite(drawn)]
    if len(known) < DEFINED * len(drawn):
        return None
    low, high = np.quantile(known, [0.025, 0.975]).tolist()
    return Interval(value, low, high, n)


Clusters = Sequence[Hashable]
"""The cluster (person, prompt) of each answer, (n,)."""


def person_weights(people: Clusters) -> Float[np.ndarray, " n"]:
    """Weights of answers, of mean 1, with which every person counts equally."""
    given = Counter(people)
    return np.array([len(people) / len(given) / given[person] for person in people])


def clustered_rate(
    answers: ArrayLike, weights: ArrayLike, clusterings: Sequence[Clusters]
) -> tuple[Interval, float]:
    """Weighted mean of n ≥ 1 answers in [0, 1] with its interval, and p of the mean being 1/2.

    Answers may be alike within a cluster of any of the clusterings (by person, by prompt). Score
    interval and test (Wilson 1927) for as many independent answers as have the variance clustered
    in several ways (Cameron, Gelbach and Miller 2011), with the t quantile of the smallest number
    of clusters less one. A clustering with few clusters that hold (or lack) a hit does not show how
    alike they are; the variance then moves towards that of one answer per cluster. From 0 to 1 with
    p = 1 if all answers are in one cluster.
    """
    x, weight = np.asarray(answers, dtype=float), np.asarray(weights, dtype=float)
    n, rate = len(x), float((weight * x).sum() / weight.sum())
    weight = weight / weight.sum()
    numbers = [numbered(each) for each in clusterings]
    sizes = [int(each.max()) + 1 for each in numbers]
    freedom = min(sizes) - 1
    if freedom == 0:
        return Interval(rate, 0.0, 1.0, n), 1.0
    shared = float(np.square(weight).sum())  # variance of the mean in units of a single answer's
    if 0 < rate < 1:
        scores = weight * (x - rate)
        decided = min(1.0, float((x != 0.5).sum()) / FEW_HITS)  # ties are no certainty
        single, unit = float(np.square(scores).sum()), rate * (1 - rate)
        scatter = float(clustered_scatter(scores[:, None], numbers)[0, 0])
        shared = max(decided * single / unit + (1 - decided) * shared, scatter / unit)
    for each, size in zip(numbers, sizes, strict=True):
        hits, given = np.bincount(each, x), np.bincount(each)
        known = min(int((hits > 0).sum()), int((hits < given).sum())) / min(FEW_HITS, size)
        known = min(1.0, known)
        shared = known * shared + (1 - known) * max(shared, 1 / size)
    found = wilson_interval(rate, 1 / shared, t_quantile(freedom))
    p = 2 * float(stdtr(freedom, -abs(rate - 0.5) / math.sqrt(shared / 4)))
    return replace(found, n=n), p


def numbered(cluster_of: Clusters) -> Int[np.ndarray, " n"]:
    """The clusters as numbers from 0."""
    known = {cluster: place for place, cluster in enumerate(dict.fromkeys(cluster_of))}
    return np.array([known[cluster] for cluster in cluster_of], dtype=int)


def clustered_scatter(
    scores: Float[np.ndarray, "n k"], clusterings: Sequence[Int[np.ndarray, " n"]]
) -> Float[np.ndarray, "k k"]:
    """Covariance (k, k) of the sum of scores that are alike within clusters of one or two kinds.

    Each kind: g/(g−1) times the scatter of the sums of its g clusters. Of two kinds, the scatter
    over their intersections and what that of each kind exceeds it by: the sum of both less the one
    over the intersections (Cameron, Gelbach and Miller 2011), without negative parts.
    """

    def scatter(cluster_of: Int[np.ndarray, " n"]) -> Float[np.ndarray, "k k"]:
        size = int(cluster_of.max()) + 1
        sums = np.zeros((size, scores.shape[1]))
        np.add.at(sums, cluster_of, scores)
        return sums.T @ sums * (size / (size - 1) if size > 1 else 1.0)

    if len(clusterings) == 1:
        return scatter(clusterings[0])
    first, second = clusterings
    both = scatter(np.unique(first * (second.max() + 1) + second, return_inverse=True)[1])
    found = both
    for each in clusterings:
        effects, axes = np.linalg.eigh(scatter(each) - both)
        found = found + (axes * np.maximum(effects, 0.0)) @ axes.T
    return found


# --- tests and win rates --------------------------------------------------------------------------


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test without ties: twice the smaller tail of Binomial(n, 1/2).

    1 without any win or loss. Raises: ValueError for a negative count.
    """
    n, fewer = wins + losses, min(wins, losses)
    if fewer < 0:
        raise ValueError(f"counts are needed: got {wins} wins and {losses} losses")
    # P(X ≤ k) for X of Binomial(n, p) is the regularised incomplete beta I_{1−p}(n − k, k + 1)
    return 1.0 if n == 2 * fewer else min(1.0, 2 * float(betainc(n - fewer, fewer + 1, 0.5)))


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for the number of tests (Holm 1979), in the order given."""
    order, adjusted = np.argsort(ps, kind="stable"), np.zeros(len(ps))
    larger = np.arange(len(ps), 0, -1) * np.asarray(ps)[order]
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(larger))
    return adjusted.tolist()


@dataclass(frozen=True)
class WinRate(Interval):
    """The share of pairs the second won, a tie half a win; `p` of the sign test over groups."""

    wins: int
    losses: int
    ties: int
    p: float


def win_rate(
    a: ArrayLike, b: ArrayLike, groups: Sequence[Hashable], resamples: Resamples
) -> WinRate:
    """How often `b` is larger than `a` on the same pair, shapes (n,); `groups` names each's prompt.

    In the sign test a prompt votes once, for the side that won most of its images: counting every
    image would take the likeness of a prompt's images for evidence.
    """
    signs = np.sign(np.asarray(b, dtype=float) - np.asarray(a, dtype=float))
    wins, losses, ties = (int((signs == side).sum()) for side in (1, -1, 0))
    votes: dict[Hashable, float] = {}
    for group, sign in zip(groups, signs.tolist(), strict=True):
        votes[group] = votes.get(group, 0.0) + sign
    p = sign_test(sum(vote > 0 for vote in votes.values()), sum(v < 0 for v in votes.values()))
    rate = bootstrap_rate_interval((signs + 1) / 2, resamples)
    return WinRate(**asdict(rate), wins=wins, losses=losses, ties=ties, p=p)


# --- Bradley-Terry --------------------------------------------------------------------------------

Strengths = Float[np.ndarray, " k"]
Square = Float[np.ndarray, "k k"]


@dataclass(frozen=True)
class Ranking:
    """Bradley-Terry strengths in log-odds, mean 0, and the covariance (k, k) of their errors.

    `groups` are the models among which a path of wins leads from each to each. With more than one
    the maximum does not exist; `prior_ties` were then added between every two models (else 0).
    `freedom` are the degrees of freedom of the intervals.
    """

    models: tuple[str, ...]
    strengths: Strengths
    covariance: Square
    groups: tuple[tuple[str, ...], ...]
    prior_ties: float
    freedom: int
    votes: int

    def interval(self, model: str) -> Interval:
        """A model's strength against the mean of all, in log-odds."""
        one = self.models.index(model)
        return self._around(self.strengths[one], self.covariance[one, one])

    def difference(self, a: str, b: str) -> Interval:
        """Strength of b minus that of a, in log-odds: above 0 where b is preferred."""
        i, j = self.models.index(a), self.models.index(b)
        covariance = self.covariance
        variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        return self._around(self.strengths[j] - self.strengths[i], variance)

    def order(self) -> list[str]:
        """The models, the strongest first."""
        return [self.models[place] for place in np.argsort(-self.strengths, kind="stable")]

    def _around(self, value: float, variance: float) -> Interval:
        error = math.sqrt(max(0.0, float(variance)))
        half = t_quantile(self.freedom) * error if self.freedom else math.inf
        return Interval(float(value), float(value) - half, float(value) + half, self.votes)


def bradley_terry(
    pairs: Int[np.ndarray, "n 2"],
    won: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    clusterings: Sequence[Clusters],
    models: Sequence[str],
) -> Ranking:
    """Maximum likelihood of P(i beats j) = 1 / (1 + exp(θ_j − θ_i)) (Bradley and Terry 1952).

    `pairs` are places in `models`; `won` is 1 if the first won, 1/2 for a tie, else 0; so a
    difference of strengths is the log-odds of the win rate (Davidson's 1970 model of ties has one
    more parameter and another scale). The covariance is a sandwich, valid for votes that are alike
    within clusters. The maximum exists only if the models cannot be split in two groups of which
    one never wins against the other (Ford 1957); see `Ranking.prior_ties`.
    """
    n, (first, second) = len(pairs), pairs.T
    total = np.zeros((len(models), len(models)))
    np.add.at(total, (first, second), weights * won)
    np.add.at(total, (second, first), weights * (1 - won))
    groups = strong_groups(total, models)
    prior = PRIOR_TIES if len(groups) > 1 else 0.0
    prior_wins = prior / 2 * (1 - np.eye(len(models)))
    strengths = fit_strengths(total + prior_wins)
    bread = np.linalg.pinv(_curvature(total + prior_wins, strengths), hermitian=True)
    slopes = np.zeros((n, len(models)))
    slopes[np.arange(n), first] = weights * (won - win_probabilities(strengths)[first, second])
    slopes[np.arange(n), second] = -slopes[np.arange(n), first]
    numbers = [numbered(each) for each in clusterings]
    covariance = _sandwich(clustered_scatter(slopes, numbers), bread) + (bread if prior else 0.0)
    freedom = min(int(each.max()) for each in numbers)
    return Ranking(tuple(models), strengths, covariance, groups, prior, freedom, n)


def fit_strengths(wins: Square) -> Strengths:
    """Strengths of mean 0 by damped Newton steps; the comparisons must be strongly connected."""
    wins = wins - np.diag(np.diag(wins))
    strengths = np.zeros(len(wins))

    def likelihood(at: Strengths) -> float:
        return -float((wins * np.logaddexp(0, at[None, :] - at[:, None])).sum())

    for _ in range(MAX_NEWTON_STEPS):
        slope = (wins - (wins + wins.T) * win_probabilities(strengths)).sum(1)
        if np.abs(slope).max() <= TOLERANCE * wins.sum():
            return strengths - strengths.mean()
        step = np.linalg.pinv(_curvature(wins, strengths), hermitian=True) @ slope
        start, size = likelihood(strengths), 1.0
        while likelihood(strengths + size * step) < start - 1e-12 * abs(start) and size > 1e-9:
            size /= 2
        strengths = strengths + size * step
    raise AssertionError(f"no maximum after {MAX_NEWTON_STEPS} steps: not strongly connected?")


def win_probabilities(strengths: Strengths) -> Square:
    """P(row is preferred to column)."""
    return 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))


def strong_groups(wins: Square, models: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Strongly connected models under "has won against"; a group that beats another comes first."""
    reach = (wins > 0) | np.eye(len(wins), dtype=bool)
    for via in range(len(wins)):  # Warshall's closure
        reach |= reach[:, via : via + 1] & reach[via : via + 1, :]
    mutual = reach & reach.T
    firsts = [row for row in range(len(wins)) if not mutual[row, :row].any()]
    firsts.sort(key=lambda row: -int(reach[row].sum()))
    return tuple(
        tuple(m for m, same in zip(models, mutual[row], strict=True) if same) for row in firsts
    )


def _curvature(wins: Square, strengths: Strengths) -> Square:
    chance = win_probabilities(strengths)
    weights = (wins + wins.T) * chance * (1 - chance)
    return np.diag(weights.sum(1)) - weights


def _sandwich(scatter: Square, bread: Square) -> Square:
    """bread · scatter of the slopes · bread.

    Along directions without scatter, as between models that only tie, the variance is that of as
    many independent votes (`bread`): a few ties in a row are no certainty.
    """
    values, axes = np.linalg.eigh(bread)
    root = (axes * np.sqrt(np.maximum(values, 0.0))) @ axes.T
    effects, axes = np.linalg.eigh(root @ scatter @ root)
    return root @ (axes * np.where(effects > SMALLEST, effects, 1.0)) @ axes.T @ root
