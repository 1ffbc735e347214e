"""Control words measured on given images: what each phrase does to the score, and what is left in the difference of two.

A phrase is good where it raises the score of wanted images above that of unwanted ones (`lift`, beyond what the bare prompt does), alike
for all content (`lift.size`), and where the reward still tells captions apart under it (`content`). A pair is good where it tells wanted
from unwanted (`gap`), where what no word asks for cancels (`probes`), and where the two texts lie apart (`cosine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..interfaces import Reward
from ..stats import SMALLEST, Effect, effect
from .answers import Answers, Seen, answers, blend
from .bias_probes import PROBES
from .geometry import ReadsText, Texts, is_cut, text_limit, texts_of

OVERLAP = 0.97
"""Cosine of two texts above which less than a quarter of either pull is left in the difference (|pos − neg| < 0.25)."""
KEEPS = 0.75
"""Share of the bare prompt's margin between captions below which content counts as disturbed."""
PAYS = 0.25
"""Share of the gap above which a probe is paid for."""
FAINT = 0.05
"""Share of the gap below which there is no common bias whose cancelling could be measured."""


@dataclass(frozen=True)
class Word:
    """One phrase. `lift`: wanted minus unwanted, beyond the bare prompt; its size is over the spread between contents.

    `content`: own caption over other captions, as a share of what the bare prompt gives. `cosine`: with the bare prompt's text.
    `cut`: wanted prompts that are not read to their end.
    """

    phrase: str
    lift: Effect
    content: float | None
    cosine: float | None
    cut: int


@dataclass(frozen=True)
class Probe:
    """What one change to the pictures pays: under the mean of both sides (`absolute`), and in their difference (`relative`).

    `cancelled` is 1 − |relative| / |absolute|, None where the absolute is less than `FAINT` of the gap; `of_gap` is relative over |gap|.
    """

    absolute: float
    relative: float
    cancelled: float | None
    of_gap: float | None


@dataclass(frozen=True)
class Pair:
    """Positive against negative phrases, each side the mean of its scores.

    `gap`: pos − neg of wanted over unwanted images, its size over the spread between pairs (or of the two sides). `content`: what pos − neg
    gives the own caption over others, as a share of the bare prompt's; 0 holds no content, below 0 another caption is preferred.
    `apart`: length of the difference of the two unit texts. None where captions or text features are missing.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    gap: Effect
    content: float | None
    cosine: float | None
    apart: float | None
    probes: dict[str, Probe]


class Table:
    """The answers of a reward under every phrase that was asked, each asked once."""

    def __init__(self, reward: Reward, seen: Seen) -> None:
        self.reward, self.seen = reward, seen
        self.texts: Texts | None = texts_of(reward, seen)
        self.limit = text_limit(reward) if isinstance(reward, ReadsText) else None
        self._known: dict[str, Answers] = {}

    def of(self, phrase: str) -> Answers:
        """The answers under a phrase, "" for the bare prompt."""
        if phrase not in self._known:
            self._known[phrase] = answers(self.reward, self.seen, phrase)
        return self._known[phrase]

    def sides(self, positive: Sequence[str], negative: Sequence[str]) -> tuple[Answers, Answers]:
        """The blended answers of both sides."""
        return blend([self.of(phrase) for phrase in positive]), blend([self.of(phrase) for phrase in negative])

    def gap(self, positive: Sequence[str], negative: Sequence[str]) -> Effect:
        """How far pos − neg lies higher for wanted than for unwanted images."""
        pos, neg = self.sides(positive, negative)
        relative = pos.minus(neg)
        return effect(relative.wanted, relative.unwanted, self.seen.paired)

    def word(self, phrase: str) -> Word:
        """One phrase measured."""
        plain, under = self.of(""), self.of(phrase)
        beyond = under.minus(plain)
        lift = effect(beyond.wanted, beyond.unwanted, self.seen.paired, beyond.wanted.double().std().item())
        cosine = self.texts.cosine([phrase], [""]) if self.texts else None
        return Word(phrase, lift, _content(under, plain), cosine, is_cut(self.reward, self.seen, phrase))

    def pair(self, positive: Sequence[str], negative: Sequence[str]) -> Pair:
        """One pair, or several phrases a side, measured."""
        pos, neg = self.sides(positive, negative)
        relative, gap = pos.minus(neg), self.gap(positive, negative)
        moves = zip(PROBES, pos.moved, neg.moved, strict=True)
        probes = {name: _probe((a + b).mean().item() / 2, (a - b).mean().item(), gap.value) for name, a, b in moves}
        cosine, apart = (self.texts.cosine(positive, negative), self.texts.apart(positive, negative)) if self.texts else (None, None)
        return Pair(tuple(positive), tuple(negative), gap, _content(relative, self.of("")), cosine, apart, probes)


def _content(under: Answers, plain: Answers) -> float | None:
    own, whole = under.content, plain.content
    return None if own is None or whole is None else _share(own, whole)


def _probe(absolute: float, relative: float, gap: float) -> Probe:
    cancelled = 1 - abs(relative) / abs(absolute) if abs(absolute) > FAINT * abs(gap) else None
    return Probe(absolute, relative, cancelled, _share(relative, abs(gap)))


def _share(part: float, whole: float) -> float | None:
    return None if abs(whole) < SMALLEST else part / whole


# --- warnings -----------------------------------------------------------------------------------------------------------


def word_warnings(word: Word, limit: int | None, prompts: int) -> list[str]:
    """What speaks against a phrase, one sentence each."""
    found = []
    if word.cut:
        reads = f"the reward reads {limit} tokens, and " if limit else ""
        found.append(f"too long: {reads}{word.cut} of {prompts} prompts lose their end")
    if not word.lift.is_clear:
        found.append("says nothing here: its lift is not clear of 0")
    if word.content is not None and word.content < KEEPS:
        found.append(f"disturbs content: own captions lead by {100 * word.content:.0f} % of what they do without it")
    return found


def pair_warnings(pair: Pair) -> list[str]:
    """What speaks against a pair, one sentence each."""
    found = []
    if not pair.gap.is_clear:
        found.append("does not tell wanted from unwanted images: the gap is not clear of 0")
    elif pair.gap.value < 0:
        found.append("prefers the unwanted images: the signs are swapped")
    if pair.cosine is not None and pair.apart is not None and pair.cosine > OVERLAP:
        found.append(
            f"the two texts overlap (cosine {pair.cosine:.3f}): {100 * pair.apart:.0f} % of one pull is left, so noise and bias decide; styles collapse"
        )
    for name, probe in pair.probes.items():
        if probe.of_gap is not None and abs(probe.of_gap) > PAYS and (probe.cancelled is None or probe.cancelled < 1 - PAYS):
            found.append(f"{name} stays in the difference: {100 * probe.of_gap:+.0f} % of the gap, as a part of the style or as a bias")
    if pair.content is not None and pair.content < -(1 - KEEPS):
        found.append(f"prefers other content: own captions get {100 * pair.content:.0f} % of the bare prompt's margin")
    return found
