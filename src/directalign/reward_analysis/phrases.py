"""Measure candidate control phrases on example images and suggest phrases and settings.

A phrase is good if it raises the score of wanted images above that of unwanted ones (`lift`, beyond
the bare prompt), equally for all content (`lift.size`), and the reward still distinguishes captions
(`content`). A pair is good if it separates wanted from unwanted (`gap`), if biases cancel in the
difference (`probes`), and if the two text features differ (`cosine`).

Suggestion. Phrases: the pair with the best gap, then one more phrase at a time while the gap does
not shrink. Ramp: the absolute weight that preserves the bare prompt's score at the wanted images
(`preserving_ratio`), 0 at low noise, twice as much at high noise, where content is decided.
Tolerance: with that weight mu, the anchor rests mu·tolerance below its reference, which is set to
`AT_REST` of the content margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..interfaces import Reward
from ..rewards.common import Device, PromptCache, TextReader
from ..stats import SMALLEST, Effect, effect
from ..types import DirectAlignError
from .images import PROBES, Examples
from .responsiveness import Encoded, with_phrase
from .soft_prompts import TextTowerReward

OTHER_CAPTIONS = 4
"""Other captions that every wanted image is scored under."""
TEXT_PROMPTS = 48
"""Prompts at which text features are compared."""
LISTED_PAIRS = 24
"""Pairs listed, those with the largest gap size."""

MAX_COSINE = 0.97
"""Text cosine above which less than a quarter of either gradient remains: |pos − neg| < 0.25."""
MIN_CONTENT = 0.75
"""Share of the bare prompt's caption margin below which a phrase disturbs content."""
MAX_PROBE = 0.25
"""Share of the gap above which a probe counts as rewarded."""
MIN_PROBE = 0.05
"""Share of the gap below which a common bias is too small to measure its cancelling."""

AT_REST = 0.01
"""Calibrated on the toy world, where tolerances from 0.02 to 0.05 work: 0.01 gives 0.03 there."""
MIN_SIZE = 0.25
"""Minimum size of a phrase's lift, as a fraction of the best phrase's."""
KEEP_GAP = 0.98
"""Minimum gap size after adding a phrase, as a factor: more phrases cover more variation."""
MAX_PHRASES = 6
"""Phrases per side."""
Vectors = Float[Tensor, "b d"]


class PhraseScores(NamedTuple):
    """float64 scores under one phrase, a mean of phrases, or a difference: all are linear.

    `others`: scores of the wanted images under other captions. `probed`: change of the mixed
    images' scores by each probe.
    """

    wanted: Float[Tensor, " n"]
    unwanted: Float[Tensor, " m"]
    others: Float[Tensor, "k n"]
    probed: Float[Tensor, "probes b"]

    def __sub__(self, other: PhraseScores) -> PhraseScores:
        return PhraseScores(*(a - b for a, b in zip(self, other, strict=True)))

    @property
    def content(self) -> float | None:
        """Mean margin of the own caption over other captions; None if there is only one caption."""
        return (self.wanted - self.others).mean().item() if len(self.others) else None


def preserving_ratio(pos: Vectors, neg: Vectors, plain: Vectors, images: Vectors) -> float:
    """mu / nu ≥ 0 at which the bare prompt's score is stationary at the wanted images.

    With unit features a relative reward moves along mu·(pos + neg)/2 + nu·(pos − neg). Returns
    −⟨pos − neg, plain⟩ / ⟨(pos + neg)/2, plain⟩ in the tangent space at the unit `images`, means
    over prompts; 0 if negative. To first order this is what the anchor does.

    Raises: DirectAlignError if the phrases reduce the prompt's score, so that no weight preserves
    it.
    """
    across = plain - (plain * images).sum(-1, keepdim=True) * images
    relative = ((pos - neg) * across).sum(-1).mean()
    absolute = ((pos + neg) / 2 * across).sum(-1).mean()
    if absolute <= 0:
        raise DirectAlignError(
            "these phrases reduce the score of the prompt itself: choose phrases that add to a "
            "prompt"
        )
    return max(0.0, -(relative / absolute).item())


@dataclass(frozen=True)
class PhraseStats:
    """One phrase. `lift`: wanted minus unwanted, beyond the bare prompt; size over content spread.

    `content`: margin of the own caption as a share of the bare prompt's. `cosine`: with the bare
    prompt's text features. `cut`: wanted prompts that are truncated. `warnings`: one sentence per
    problem.
    """

    phrase: str
    lift: Effect
    content: float | None
    cosine: float | None
    cut: int
    warnings: list[str]


@dataclass(frozen=True)
class ProbeEffect:
    """Score change by one probe: mean of both sides (`absolute`) and in pos − neg (`relative`).

    `cancelled`: 1 − |relative| / |absolute|, None if the absolute change is below `MIN_PROBE` of
    the gap. `of_gap`: relative over |gap|.
    """

    absolute: float
    relative: float
    cancelled: float | None
    of_gap: float | None


@dataclass(frozen=True)
class PairStats:
    """Positive against negative phrases; each side is the mean of its scores.

    `gap`: pos − neg of wanted minus unwanted images, size over the spread between images.
    `content`: margin of the own caption in pos − neg as a share of the bare prompt's: 0 ignores
    content, below 0 prefers other captions. `distance`: length of the difference of the unit text
    features. None if captions or text features are missing.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    gap: Effect
    content: float | None
    cosine: float | None
    distance: float | None
    probes: dict[str, ProbeEffect]

    @property
    def warnings(self) -> list[str]:
        """One sentence per problem."""
        found = []
        if not self.gap.is_clear:
            found.append(
                "does not separate wanted from unwanted images: the gap interval contains 0"
            )
        elif self.gap.value < 0:
            found.append("prefers the unwanted images: swap the two sides")
        if self.cosine is not None and self.distance is not None and self.cosine > MAX_COSINE:
            found.append(
                f"text features overlap (cosine {self.cosine:.3f}): {100 * self.distance:.0f} % of "
                "one gradient remains, so noise and bias dominate"
            )
        for name, probe in self.probes.items():
            remains = probe.cancelled is None or probe.cancelled < 1 - MAX_PROBE
            if probe.of_gap is not None and abs(probe.of_gap) > MAX_PROBE and remains:
                found.append(
                    f"{name} remains in the difference: {100 * probe.of_gap:+.0f} % of the gap, as "
                    "a part of the style or as a bias"
                )
        if self.content is not None and self.content < -(1 - MIN_CONTENT):
            found.append(
                f"prefers other content: own captions get {100 * self.content:.0f} % of the bare "
                "prompt's margin"
            )
        return found


class PhraseTable:
    """Scores of a reward under every phrase, each computed once, on images encoded once.

    Raises: DirectAlignError for fewer than two images per side.
    """

    def __init__(self, reward: Reward, examples: Examples, device: Device = "cpu") -> None:
        if min(len(examples.wanted), len(examples.unwanted)) < 2:
            raise DirectAlignError(
                f"--images: {len(examples.wanted)} wanted and {len(examples.unwanted)} unwanted "
                "images; an interval needs at least two of each"
            )
        encode = partial(Encoded, reward, device=device)
        self.reward, self.paired, self.prompts = reward, examples.paired, examples.wanted_prompts
        self.wanted, self.unwanted = (encode(*side) for side in examples.sides)
        mixed = torch.cat([examples.wanted[::2], examples.unwanted[1::2]])
        captions = (*examples.wanted_prompts[::2], *examples.unwanted_prompts[1::2])
        self.mixed = encode(mixed, captions)
        self.probed = [encode(probe(mixed), captions) for probe in PROBES.values()]
        distinct = list(dict.fromkeys(self.prompts))
        following = [
            dict(zip(distinct, distinct[shift:] + distinct[:shift], strict=True))
            for shift in range(1, min(OTHER_CAPTIONS, len(distinct) - 1) + 1)
        ]
        self.others = [[after[prompt] for prompt in self.prompts] for after in following]
        self.text_reader: TextReader | None = getattr(reward, "text_reader", None)
        self.images: Vectors | None = None
        """Unit features of the first `TEXT_PROMPTS` wanted images; None if the reward has no
        separate text features (a VLM, ImageReward)."""
        if isinstance(reward, TextTowerReward):
            images = torch.cat(self.wanted.features).double().cpu()
            self.images = F.normalize(images[:TEXT_PROMPTS], dim=-1)
        self._scores = PromptCache(lambda phrases: [self._scored(each) for each in phrases])
        self._texts = PromptCache(lambda phrases: [self._encoded(each) for each in phrases])

    def _scored(self, phrase: str) -> PhraseScores:
        def score(encoded: Encoded, captions: Sequence[str] | None = None) -> Tensor:
            return encoded.score([phrase], captions).double().cpu()

        wanted, unwanted, mixed = map(score, (self.wanted, self.unwanted, self.mixed))
        others = [score(self.wanted, captions) for captions in self.others]
        probed = torch.stack([score(each) - mixed for each in self.probed])
        none = torch.zeros(0, len(wanted)).double()
        return PhraseScores(wanted, unwanted, torch.stack(others) if others else none, probed)

    @torch.no_grad()
    def _encoded(self, phrase: str) -> Vectors:
        """Unit text features of the phrase before the first `TEXT_PROMPTS` wanted prompts."""
        assert isinstance(self.reward, TextTowerReward)
        features = self.reward.encode_text(with_phrase(phrase, self.prompts[:TEXT_PROMPTS]))
        return F.normalize(features.double().cpu(), dim=-1)

    def text(self, phrases: Sequence[str]) -> Vectors:
        """Mean over phrases of their unit text features, float64; "" is the bare prompt."""
        return torch.stack(self._texts.read(phrases)).mean(0)

    def cosine(self, first: Sequence[str], second: Sequence[str]) -> float | None:
        """Mean cosine between the same prompts under two sets of phrases; None without texts."""
        if self.images is None:
            return None
        return F.cosine_similarity(self.text(first), self.text(second), dim=-1).mean().item()

    def scores(self, phrases: Sequence[str]) -> PhraseScores:
        """Mean over phrases, as with `control_phrases.order: average`; "" is the bare prompt."""
        columns = zip(*self._scores.read(phrases), strict=True)
        return PhraseScores(*(torch.stack(column).mean(0) for column in columns))

    def gap(self, positive: Sequence[str], negative: Sequence[str]) -> Effect:
        """pos − neg of wanted minus unwanted images."""
        relative = self.scores(positive) - self.scores(negative)
        return effect(relative.wanted, relative.unwanted, self.paired)

    def phrase(self, phrase: str) -> PhraseStats:
        """Measure one phrase."""
        plain, under = self.scores([""]), self.scores([phrase])
        beyond, content = under - plain, _share(under.content, plain.content)
        spread = beyond.wanted.std().item()
        lift = effect(beyond.wanted, beyond.unwanted, self.paired, spread)
        reader, warnings = self.text_reader, []
        cut = reader.cut(with_phrase(phrase, self.prompts)) if reader else 0
        if reader and cut:
            reads = f"the reward reads {reader.length} tokens, and {cut} of {len(self.prompts)}"
            warnings.append(f"too long: {reads} prompts are truncated")
        if not lift.is_clear:
            warnings.append("no effect: the interval of its lift contains 0")
        if content is not None and content < MIN_CONTENT:
            share = f"{100 * content:.0f} %"
            warnings.append(
                f"disturbs content: own captions have {share} of the bare prompt's margin"
            )
        return PhraseStats(phrase, lift, content, self.cosine([phrase], [""]), cut, warnings)

    def pair(self, positive: Sequence[str], negative: Sequence[str]) -> PairStats:
        """Measure one pair, or several phrases per side."""
        pos, neg = self.scores(positive), self.scores(negative)
        gap, probes = self.gap(positive, negative), {}
        for name, a, b in zip(PROBES, pos.probed, neg.probed, strict=True):
            absolute, relative = (a + b).mean().item() / 2, (a - b).mean().item()
            measurable = abs(absolute) > MIN_PROBE * abs(gap.value)
            cancelled = 1 - abs(relative) / abs(absolute) if measurable else None
            of_gap = _share(relative, abs(gap.value))
            probes[name] = ProbeEffect(absolute, relative, cancelled, of_gap)
        content = _share((pos - neg).content, self.scores([""]).content)
        cosine, distance = self.cosine(positive, negative), None
        if cosine is not None:
            distance = (self.text(positive) - self.text(negative)).norm(dim=-1).mean().item()
        return PairStats(tuple(positive), tuple(negative), gap, content, cosine, distance, probes)


@dataclass(frozen=True)
class Suggestion:
    """Suggested phrases and settings; None or {} without separate text features.

    `mu`: absolute weight per relative weight, mean over noise levels. `tolerance`: of the anchor,
    in score units. `probe_shares`: reward of each probe under that ramp, as a share of the reward
    of wanted over unwanted images.
    """

    pair: PairStats
    mu: float | None
    tolerance: float | None
    probe_shares: dict[str, float]

    @property
    def warnings(self) -> list[str]:
        """Problems of the pair and of the ramp."""
        return self.pair.warnings + [
            f"the ramp rewards {name} with {100 * value:.0f} % of the wanted style's reward: "
            "prefer the anchored form"
            for name, value in self.probe_shares.items()
            if value > MAX_PROBE
        ]


def settings_for(
    table: PhraseTable, positive: Sequence[str], negative: Sequence[str]
) -> Suggestion:
    """Ramp and tolerance for given phrases."""
    pair = table.pair(positive, negative)
    if table.images is None:
        return Suggestion(pair, None, None, {})
    first, second, plain = (table.text(side) for side in (positive, negative, [""]))
    mu = preserving_ratio(first, second, plain, table.images)
    pos, neg = table.scores(positive), table.scores(negative)
    wanted = pos.wanted.mean() + neg.wanted.mean()
    absolute = (wanted - pos.unwanted.mean() - neg.unwanted.mean()).item() / 2
    whole = mu * absolute + pair.gap.value
    shares = {n: (mu * p.absolute + p.relative) / whole for n, p in pair.probes.items()}
    return Suggestion(pair, mu, anchor_tolerance(table.scores([""]).content, mu), shares)


def usable_phrases(phrases: Sequence[PhraseStats], sign: int) -> list[str]:
    """Phrases by falling size that qualify for a side (`sign`).

    They have a clear lift of that sign, at least `MIN_SIZE` of the best one's, truncate no prompt
    and keep content.
    """
    clear = [
        each
        for each in phrases
        if each.lift.is_clear
        and sign * each.lift.value > 0
        and each.cut == 0
        and (each.content is None or each.content >= MIN_CONTENT)
    ]
    best = max((abs(each.lift.size) for each in clear), default=0.0)
    ordered = sorted(clear, key=lambda each: -abs(each.lift.size))
    return [each.phrase for each in ordered if abs(each.lift.size) >= MIN_SIZE * best]


def choose_phrases(
    table: PhraseTable, positive: Sequence[str], negative: Sequence[str]
) -> tuple[list[str], list[str]] | None:
    """Greedy: the non-overlapping pair with the largest gap, then phrases that keep it."""

    def size(pair: tuple[list[str], list[str]]) -> float:
        return table.gap(*pair).size

    pairs = [
        ([pos], [neg])
        for pos in positive
        for neg in negative
        if (table.cosine([pos], [neg]) or 0) <= MAX_COSINE  # without texts, any pair
    ]
    best = max(pairs, key=size, default=None)
    if best is None or table.gap(*best).low <= 0:
        return None
    while True:
        pos, neg = best
        more = [([*pos, p], neg) for p in positive if p not in pos and len(pos) < MAX_PHRASES]
        more += [(pos, [*neg, n]) for n in negative if n not in neg and len(neg) < MAX_PHRASES]
        better = max(more, key=size, default=None)
        if better is None or size(better) < KEEP_GAP * size(best):
            return best
        best = better


def anchor_tolerance(content: float | None, mu: float) -> float | None:
    """`AT_REST`·content / mu to two significant digits; None if content or mu is not positive."""
    if content is None or content <= 0 or mu <= 0:
        return None
    return float(f"{AT_REST * content / mu:.2g}")


@dataclass(frozen=True)
class PhraseReport:
    """Phrases by falling lift size, pairs by falling gap size, and the suggestion.

    `all_given`: all given phrases as one pair, if both sides were named. `gap_by_image`: pos − neg
    of each wanted and each unwanted image under the suggested phrases, else under the first pair.
    """

    phrases: tuple[PhraseStats, ...]
    pairs: tuple[PairStats, ...]
    all_given: PairStats | None
    suggestion: Suggestion | None
    limit: int | None
    prompts: int
    gap_by_image: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def warnings(self) -> list[str]:
        """Warnings of the suggestion, or that there is none."""
        if self.suggestion is None:
            return [
                "nothing to suggest: no usable phrases separate wanted from unwanted images; try "
                "other phrases"
            ]
        return self.suggestion.warnings


def analyze_phrases(
    table: PhraseTable, positive: Sequence[str], negative: Sequence[str]
) -> PhraseReport:
    """Measure all phrases and pairs and suggest settings; both lists may be the same.

    Raises: DirectAlignError for a reward that ignores the prompt.
    """
    if not table.reward.reads_prompt:
        raise DirectAlignError(
            f"--reward: {table.reward.name} ignores control phrases, so they have no effect; take "
            "a reward with a text side (reward.name: clip)"
        )
    stats = {each: table.phrase(each) for each in dict.fromkeys((*positive, *negative))}
    sides = [stats[each] for each in positive], [stats[each] for each in negative]
    usable = usable_phrases(sides[0], 1), usable_phrases(sides[1], -1)
    chosen = choose_phrases(table, *usable)
    suggestion = None if chosen is None else settings_for(table, *chosen)
    same = tuple(positive) == tuple(negative)
    firsts, seconds = usable if same else (positive, negative)
    candidates = [([pos], [neg]) for pos in firsts for neg in seconds if pos != neg]
    candidates.sort(key=lambda pair: -table.gap(*pair).size)
    pairs = tuple(table.pair(*pair) for pair in candidates[:LISTED_PAIRS])
    example = suggestion.pair if suggestion else pairs[0] if pairs else None
    by_image: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    if example is not None:
        relative = table.scores(example.positive) - table.scores(example.negative)
        by_image = tuple(relative.wanted.tolist()), tuple(relative.unwanted.tolist())
    return PhraseReport(
        tuple(sorted(stats.values(), key=lambda each: -each.lift.size)),
        pairs,
        None if same else table.pair(positive, negative),
        suggestion,
        table.text_reader and table.text_reader.length,
        len(table.prompts),
        by_image,
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None or abs(whole) < SMALLEST else part / whole
