"""How sure a number is: Wilson intervals for rates of single images, a bootstrap over prompts for means and for differences of pairs.

Every interval is 95 % and travels as {"value", "low", "high", "n"}, the form that summaries and the page use. Images of one prompt
resemble each other, so where a prompt was sampled several times whole prompts are resampled, never single images.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

Z_95 = 1.959963984540054
RESAMPLES = 2000


class Interval(TypedDict):
    """A number between the two ends of its 95 % interval, from n samples."""

    value: float
    low: float
    high: float
    n: int


def wilson(rate: float, n: int, z: float = Z_95) -> Interval:
    """Wilson's score interval of a rate in [0, 1] seen on n samples (Wilson 1927): honest at 0, at 1 and for small n."""
    if n < 1 or not 0 <= rate <= 1:
        raise ValueError(f"a rate in [0, 1] from at least one sample is needed: got rate {rate} from n {n}")
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(value=rate, low=max(0.0, min(rate, centre - half)), high=min(1.0, max(rate, centre + half)), n=n)


def rate(answers: Float[Tensor, " n"]) -> Interval:
    """Interval of the mean of answers in [0, 1], one per image."""
    return wilson(min(1.0, max(0.0, answers.double().mean().item())), len(answers))


@dataclass(frozen=True)
class Resamples:
    """Whole clusters drawn with replacement: `counts` says how often each is in each resample, `places` which one a sample belongs to."""

    counts: Float[Tensor, "r c"]
    places: Int[Tensor, " n"]

    @property
    def clusters(self) -> int:
        return self.counts.shape[1]

    def means(self, values: Float[Tensor, " n"]) -> Float[Tensor, " r"]:
        """The mean over samples in each resample, float64."""
        values = values.double().cpu()
        sums, sizes = (torch.zeros(self.clusters, dtype=torch.float64).index_add_(0, self.places, each) for each in (values, torch.ones_like(values)))
        return (self.counts @ sums) / (self.counts @ sizes)


def resamples_of(groups: Sequence[Hashable], resamples: int = RESAMPLES) -> Resamples:
    """Draws of the clusters that `groups` names, sample by sample, with a fixed seed: the same data, the same answer.

    Samples of one single cluster stand for themselves: nothing is known of other clusters.
    """
    known = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    places = list(range(len(groups))) if len(known) == 1 else [known[group] for group in groups]
    clusters = max(places) + 1
    picks = torch.randint(clusters, (resamples, clusters), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(resamples, clusters, dtype=torch.float64).scatter_add_(1, picks, torch.ones(1, dtype=torch.float64).expand(picks.shape))
    return Resamples(counts, torch.tensor(places))


def bootstrap(values: Float[Tensor, " n"], drawn: Resamples) -> Interval:
    """Mean of the values, with the percentile interval of its resamples.

    The percentiles are those at which the interval is as wide as Student's for so many clusters (expanded percentile interval,
    Hesterberg 2015): the plain 2.5 % and 97.5 % are too narrow for few clusters.
    """
    tail = _tail(drawn.clusters)
    low, high = drawn.means(values).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value=values.double().mean().item(), low=low, high=high, n=len(values))


def bootstrap_rate(answers: Float[Tensor, " n"], drawn: Resamples) -> Interval:
    """`bootstrap` of answers in [0, 1]; where all clusters say alike resampling knows no spread, and Wilson's interval over the clusters stands in."""
    found = bootstrap(answers, drawn)
    if found["low"] < found["high"]:
        return found
    return {**wilson(min(1.0, max(0.0, found["value"])), drawn.clusters), "n": len(answers)}


def _tail(clusters: int) -> float:
    """The share of resamples to leave out at each end: P(Z < −t·sqrt(c/(c−1))), t the 97.5 % point of Student's t with c − 1 degrees of freedom."""
    if clusters < 2:
        return 0.025
    student = _student(clusters - 1)
    return 0.5 * math.erfc(student * math.sqrt(clusters / (clusters - 1)) / math.sqrt(2))


def _student(freedom: int, z: float = Z_95) -> float:
    """The 97.5 % point of Student's t by its expansion in 1/freedom (Abramowitz and Stegun 26.7.5): to a thousandth from 4 degrees on."""
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
