"""Fit control tokens to a reward with a text tower: from wanted and unwanted images, or as the mean of given phrases.

Textual inversion (arXiv 2208.01618) for a relative reward: the two sets of vectors are fitted together, for what `token_objective` says,
and nothing else of the reward changes. A quarter of the captions is held out with all their images: the vectors that are best there are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import config
from ..interfaces import Reward
from ..order import permutation
from ..rewards.soft_prompts import ControlTokens, Vectors, check_length
from ..types import DirectAlignError
from .examples import Examples
from .token_objective import Gaps, Readable, Seen, Separation, Side, loss_of, see, separation_of, unit_of

POSITIVE, NEGATIVE = "learned positive.safetensors", "learned negative.safetensors"
"""What stands before the prompt while the vectors are fitted and lie in no file yet."""
LENGTH = 2
FEWEST = 4
HELD_OUT = 0.25


@dataclass(frozen=True)
class Fitting:
    """How tokens are fitted.

    `length`: tokens a side, None for those of the longest phrase. `content`, `bias`: weights beside the style's 1. `rate`: of Adam, in
    spreads of the embedding table, which is also the unit of `stay`, the weight of the squared distance from the start.
    """

    length: int | None = None
    content: float = 0.15
    bias: float = 0.15
    stay: float = 0.0
    num_steps: int = 300
    batch_size: int = 32
    rate: float = 0.3
    check_every: int = 10
    patience: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """The tokens of both sides, and what pos − neg does on held-out captions with the words (None without words) and with the tokens."""

    positive: ControlTokens
    negative: ControlTokens
    words: Separation | None
    learned: Separation
    held_out: int
    best_step: int


def fit_tokens(reward: Reward, examples: Examples, words: config.ControlPhrases, fitting: Fitting) -> Fitted:
    """Tokens that tell wanted from unwanted images; words are where they start and what they are measured against.

    Without words both sides start from the mean of the embedding table and a little seeded noise. The same arguments give the same tokens.

    Raises: DirectAlignError for a reward without a text tower of its own, words of one side alone, too few captions, too many tokens.
    """
    readable = require_readable(reward)
    if bool(words.positive) != bool(words.negative):
        raise DirectAlignError("--words, --against: words of one side only; give some of both, or none")
    learn, held = _split(see(readable, examples), fitting.seed)
    start = starts(readable, words, fitting)
    best, best_step = _fit(readable, start, learn, held, fitting)
    scale = float(getattr(reward, "scale", 1.0))
    before = separation_of(_gaps_of(readable, words.positive, words.negative), held, scale) if words.positive else None
    with _held(readable, best):
        after = separation_of(_gaps_of(readable, [POSITIVE], [NEGATIVE]), held, scale)
    how = f"fitted to {len(examples.wanted)} wanted and {len(examples.unwanted)} unwanted images, seed {fitting.seed}, from {_named(words)}"
    positive, negative = (readable.soft_prompts.made(each, how) for each in best)
    return Fitted(positive, negative, before, after, len(held.wanted.captions), best_step)


def mean_of_words(reward: Reward, phrases: Sequence[str], length: int | None = None) -> ControlTokens:
    """Tokens from words alone: the mean of the phrases' own vectors, place by place, each phrase stretched to `length`.

    One phrase at its own length gives that phrase again.
    """
    soft_prompts = require_readable(reward).soft_prompts
    vectors = [soft_prompts.embedding_of(phrase) for phrase in phrases]
    length = length or max(map(len, vectors))
    check_length(length, soft_prompts.longest, "--length")
    return soft_prompts.made(torch.stack([_stretched(each, length) for each in vectors]).mean(0), f"mean of the words {', '.join(phrases)}")


def require_readable(reward: Reward) -> Readable:
    """The reward as one that tokens can be fitted to.

    Raises: DirectAlignError for one without a text tower of its own.
    """
    if not isinstance(reward, Readable):
        raise DirectAlignError(f"reward.name: {reward.name} has no text tower of its own, into which tokens could be put; take clip or siglip")
    return reward


def starts(reward: Readable, words: config.ControlPhrases, fitting: Fitting) -> tuple[Vectors, Vectors]:
    """Where the fit begins, on each side: the mean of its phrases; without phrases the mean of the table, and a little noise."""
    table = reward.soft_prompts.table.weight.detach()
    if words.positive:
        length = fitting.length or max(len(reward.soft_prompts.embedding_of(phrase)) for phrase in (*words.positive, *words.negative))
        positive, negative = (mean_of_words(reward, phrases, length).tokens for phrases in (words.positive, words.negative))  # type: ignore[arg-type]
        return positive.to(table), negative.to(table)
    length = fitting.length or LENGTH
    check_length(length, reward.soft_prompts.longest, "--length")
    noise = torch.randn(2, length, table.shape[1], generator=torch.Generator().manual_seed(fitting.seed)).to(table)
    positive, negative = table.mean(0) + table.std() * noise
    return positive, negative


# --- the fit ------------------------------------------------------------------------------------------------------------


def _fit(reward: Readable, start: tuple[Vectors, Vectors], learn: Seen, held: Seen, fitting: Fitting) -> tuple[tuple[Vectors, Vectors], int]:
    """The vectors that are best on held-out captions, and the step that they are of."""
    spread, unit = reward.soft_prompts.table.weight.detach().std(), unit_of(reward, learn)
    moves = [nn.Parameter(torch.zeros_like(each)) for each in start]
    optimizer = torch.optim.Adam(moves, lr=fitting.rate)
    gaps = _gaps_of(reward, [POSITIVE], [NEGATIVE])

    def vectors() -> tuple[Tensor, Tensor]:
        positive, negative = (each + spread * move for each, move in zip(start, moves, strict=True))
        return positive, negative

    def loss(seen: Seen) -> Tensor:
        with _held(reward, vectors()):
            return loss_of(gaps, seen, unit, fitting.content, fitting.bias)

    best, least, best_step = start, float("inf"), 0
    for step in range(fitting.num_steps + 1):
        if step % fitting.check_every == 0:
            with torch.no_grad():
                now = float(loss(held))
            if now < least:
                best, least, best_step = vectors(), now, step
            elif step - best_step >= fitting.patience * fitting.check_every:
                break
        stay = fitting.stay * torch.stack([move.square().mean() for move in moves]).mean()
        optimizer.zero_grad()
        (loss(_batch(learn, step, fitting)) + stay).backward()
        optimizer.step()
    return (best[0].detach(), best[1].detach()), best_step


def _gaps_of(reward: Readable, positive: Sequence[str], negative: Sequence[str]) -> Gaps:
    """pos − neg in text features, means over the phrases of a side."""

    def side(phrases: Sequence[str], captions: Sequence[str]) -> Tensor:
        return torch.stack([reward.encode_text([f"{phrase}. {caption}" for caption in captions]) for phrase in phrases]).mean(0)

    return lambda captions: side(positive, captions) - side(negative, captions)


@contextmanager
def _held(reward: Readable, vectors: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Inside, the two names stand for these vectors."""
    held = reward.soft_prompts.held
    held.update(zip((POSITIVE, NEGATIVE), vectors, strict=True))
    try:
        yield
    finally:
        del held[POSITIVE], held[NEGATIVE]


def _split(seen: Seen, seed: int) -> tuple[Seen, Seen]:
    """(to learn from, held out), by captions, so that no caption is on both."""
    captions = sorted({*seen.wanted.captions, *seen.unwanted.captions})
    fewest = min(len(set(side.captions)) for side in (seen.wanted, seen.unwanted))
    if fewest < FEWEST:
        raise DirectAlignError(f"--images: {fewest} different captions on a side; {FEWEST} are needed, 16 or more are better")
    kept = max(2, round(HELD_OUT * len(captions)))
    held = {captions[i] for i in permutation(len(captions), seed, 0, "held out for tokens")[:kept]}

    def part(side: Side, inside: bool) -> Side:
        return side.of([i for i, caption in enumerate(side.captions) if (caption in held) == inside])

    parts = [Seen(part(seen.wanted, inside), part(seen.unwanted, inside), seen.paired) for inside in (False, True)]
    if any(len(set(side.captions)) < 2 for each in parts for side in (each.wanted, each.unwanted)):
        raise DirectAlignError("--images: too few captions occur on both sides to hold some out; give both sides the same captions, or more images")
    return parts[0], parts[1]


def _batch(seen: Seen, step: int, fitting: Fitting) -> Seen:
    """Images of one step: all, or a seeded draw of `batch_size` a side; pairs stay pairs."""

    def drawn(side: Side, of: str) -> Side:
        return side.of(permutation(len(side.captions), fitting.seed, step, of)[: fitting.batch_size])

    return Seen(drawn(seen.wanted, "pairs"), drawn(seen.unwanted, "pairs" if seen.paired else "unwanted"), seen.paired)


def _stretched(vectors: Vectors, length: int) -> Float[Tensor, "length d"]:
    """The vectors repeated or left out, evenly, so that there are `length`."""
    return vectors[torch.arange(length, device=vectors.device) * len(vectors) // length]


def _named(words: config.ControlPhrases) -> str:
    return f"the words {', '.join(words.positive)} against {', '.join(words.negative)}" if words.positive else "the mean of the table"
