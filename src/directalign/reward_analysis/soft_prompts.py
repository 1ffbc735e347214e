"""Fit soft control tokens to a reward with a text tower, or take the mean of given phrases.

Textual inversion (arXiv 2208.01618) for a relative reward: the vectors of both sides are fitted
jointly; the reward is frozen. A quarter of the captions is held out, with all their images; the
result are the vectors with the lowest held-out loss. All loss terms use r(image, caption) = pos −
neg:

    style     r of wanted images above r of unwanted images, each under its own caption
    content   r of an image above r of the images of other captions
    bias      r is invariant to the changes of `images.PROBES`

The optimum of phrases ignores content, because their pos − neg does not depend on it; soft tokens
can represent it. Losses are in units of the reward's caption margin (`caption_margin`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import config
from ..config.load import is_recipe, load_text, recipe_mapping, recipe_path, with_value
from ..data.shuffle import permutation
from ..interfaces import Reward
from ..io.text import read_text
from ..io.yaml_text import dump_yaml
from ..rewards import reward_settings
from ..rewards.clip import ClipReward, SiglipReward
from ..rewards.soft_prompts import ControlTokens, check_length
from ..toyworld.worlds import world_of
from ..types import DirectAlignError
from .images import PROBES, Examples, split_by_caption
from .responsiveness import encode, with_phrase

POSITIVE, NEGATIVE = "learned positive.safetensors", "learned negative.safetensors"
"""Names that stand for the vectors during the fit, before any file exists."""
LENGTH = 2
TEMPERATURE = 1 / 16
"""Of the logistic terms, in caption margins: about the temperature of CLIP training."""
Features = Float[Tensor, "b d"]
BothVectors = Float[Tensor, "2 n d"]
RelativeText = Callable[[Sequence[str]], Features]
"""Captions to pos − neg of the text features (b, d); its product with image features is r."""
TextTowerReward = ClipReward | SiglipReward
"""A reward with its own text tower: score = scale · image features · text features."""


@dataclass(frozen=True)
class SoftPromptConfig:
    """Settings of the fit.

    `length`: tokens per side, None for those of the longest phrase. `content`, `bias`: loss weights
    relative to the style term's 1. `rate`: Adam learning rate in standard deviations of the
    embedding table.
    """

    length: int | None = None
    content: float = 0.15
    bias: float = 0.15
    num_steps: int = 300
    batch_size: int = 32
    rate: float = 0.3
    check_every: int = 10
    patience: int = 8
    seed: int = 0


@dataclass(frozen=True)
class SoftPromptResult:
    """Tokens of both sides; held-out measures of the given phrases, if any, and of the tokens."""

    positive: ControlTokens
    negative: ControlTokens
    start: Separation | None
    learned: Separation
    held_out: int
    best_step: int


def fit_soft_prompts(
    reward: Reward, examples: Examples, phrases: config.ControlPhrases, settings: SoftPromptConfig
) -> SoftPromptResult:
    """Fit tokens that separate wanted from unwanted images; deterministic given the arguments.

    The fit starts from `phrases`, or without them from the mean of the embedding table plus seeded
    noise.

    Raises: DirectAlignError for a reward without its own text tower, phrases of one side only, too
    few captions, or too many tokens.
    """
    tower = require_text_tower(reward)
    if bool(phrases.positive) != bool(phrases.negative):
        raise DirectAlignError("--positive, --negative: words of one side only; give both, or none")
    encoded = encode_examples(tower, examples)
    captions = encoded.wanted.captions, encoded.unwanted.captions
    train, held_out = (
        EncodedExamples(encoded.wanted.select(a), encoded.unwanted.select(b), encoded.paired)
        for a, b in split_by_caption(captions, settings.seed, "held out for tokens")
    )
    before, origin = None, "the mean of the table"
    if phrases.positive:
        text = _relative_text(tower, phrases.positive, phrases.negative)
        before = separation_of(text, held_out, tower.scale)
        sides = ", ".join(phrases.positive), ", ".join(phrases.negative)
        origin = f"the words {sides[0]} against {sides[1]}"
    start, held = initial_vectors(tower, phrases, settings), tower.soft_prompts.held
    learned = _relative_text(tower, [POSITIVE], [NEGATIVE])
    try:
        best, best_step = _fit(tower, start, train, held_out, settings)
        held |= {POSITIVE: best[0], NEGATIVE: best[1]}
        after = separation_of(learned, held_out, tower.scale)
    finally:
        for name in (POSITIVE, NEGATIVE):
            held.pop(name, None)
    how = (
        f"fitted to {len(examples.wanted)} wanted and {len(examples.unwanted)} unwanted images, "
        f"seed {settings.seed}, from {origin}"
    )
    positive, negative = (tower.soft_prompts.made(each, how) for each in best)
    count = len(held_out.wanted.captions)
    return SoftPromptResult(positive, negative, before, after, count, best_step)


def mean_of_phrases(
    reward: Reward, phrases: Sequence[str], length: int | None = None
) -> ControlTokens:
    """Mean of the phrases' embedding vectors by position, each phrase resampled to `length`.

    One phrase at its own length is reproduced exactly.
    """
    soft_prompts = require_text_tower(reward).soft_prompts
    vectors = [soft_prompts.embedding_of(phrase) for phrase in phrases]
    length = length or max(map(len, vectors))
    check_length(length, soft_prompts.longest, "--length")
    indices = torch.arange(length, device=vectors[0].device)
    mean = torch.stack([each[indices * len(each) // length] for each in vectors]).mean(0)
    return soft_prompts.made(mean, f"mean of the words {', '.join(phrases)}")


def recipe_of(reward: str, files: Sequence[str]) -> str:
    """YAML of a recipe that trains with the tokens in `files`: the positive, the negative if made.

    It is the recipe that `reward` names; for a reward alone, one of the package with this reward:
    of its toy world for `world:...`, else a LoRA of FLUX.1-dev.

    Raises: DirectAlignError as `load_text`.
    """
    base = reward
    if not is_recipe(reward):
        world = world_of(reward)
        base = "flux_srpo_lora_24gb" if world is None else f"{world.name}_srpo_lora"
    path = recipe_path(base)
    settings = recipe_mapping(read_text(path, "recipe"), str(path))
    if not is_recipe(reward):
        named = {"name": reward_settings(reward).name, "path": reward}
        settings = with_value(with_value(settings, "reward", None), "reward", named)
    for side, file in zip(("positive", "negative"), files, strict=False):
        settings = with_value(settings, f"method.control_phrases.{side}", [file])
    settings["name"] = f"{settings['name']}, with {Path(files[0]).stem}"
    text = f"# The recipe {base} with soft prompts (directalign reward soft-prompts).\n"
    if not is_recipe(reward):
        text += "# model.path is the model that is trained: another one may take its place.\n"
    text += dump_yaml(settings)
    load_text(text, base)
    return text


def require_text_tower(reward: Reward) -> TextTowerReward:
    """Narrow to a reward that tokens can be fitted to.

    Raises: DirectAlignError for one without its own text tower.
    """
    if not isinstance(reward, TextTowerReward):
        raise DirectAlignError(
            f"reward.name: {reward.name} has no text tower of its own for soft tokens; take clip "
            "or siglip"
        )
    return reward


def initial_vectors(
    reward: TextTowerReward, phrases: config.ControlPhrases, settings: SoftPromptConfig
) -> BothVectors:
    """Start of the fit per side: mean of its phrases, else mean of the table plus seeded noise."""
    soft_prompts, length = reward.soft_prompts, settings.length
    table, sides = soft_prompts.table.weight.detach(), (phrases.positive, phrases.negative)
    if phrases.positive:
        longest = max(len(soft_prompts.embedding_of(each)) for side in sides for each in side)
        means = [mean_of_phrases(reward, side, length or longest).tokens for side in sides]
        return torch.stack(means).to(table)
    length = length or LENGTH
    check_length(length, soft_prompts.longest, "--length")
    generator = torch.Generator().manual_seed(settings.seed)
    noise = torch.randn(2, length, table.shape[1], generator=generator).to(table)
    return table.mean(0) + table.std() * noise


def _fit(
    reward: TextTowerReward,
    start: BothVectors,
    train: EncodedExamples,
    held_out: EncodedExamples,
    settings: SoftPromptConfig,
) -> tuple[BothVectors, int]:
    """Vectors with the lowest held-out loss, and their step."""
    std, margin = reward.soft_prompts.table.weight.detach().std(), caption_margin(reward, train)
    offsets = nn.Parameter(torch.zeros_like(start))
    optimizer = torch.optim.Adam([offsets], lr=settings.rate)
    text = _relative_text(reward, [POSITIVE], [NEGATIVE])

    def loss(encoded: EncodedExamples) -> Tensor:
        positive, negative = start + std * offsets
        reward.soft_prompts.held |= {POSITIVE: positive, NEGATIVE: negative}
        return loss_of(text, encoded, margin, settings.content, settings.bias)

    best, lowest, best_step = start, float("inf"), 0
    for step in range(settings.num_steps + 1):
        if step % settings.check_every == 0:
            with torch.no_grad():
                current = float(loss(held_out))
            if current < lowest:
                best, lowest, best_step = start + std * offsets.detach(), current, step
            elif step - best_step >= settings.patience * settings.check_every:
                break
        optimizer.zero_grad()
        loss(_batch(train, step, settings)).backward()
        optimizer.step()
    return best, best_step


def _relative_text(
    reward: TextTowerReward, positive: Sequence[str], negative: Sequence[str]
) -> RelativeText:
    """pos − neg of text features, means over the phrases of a side."""

    def side(phrases: Sequence[str], captions: Sequence[str]) -> Tensor:
        each = [reward.encode_text(with_phrase(phrase, captions)) for phrase in phrases]
        return torch.stack(each).mean(0)

    return lambda captions: side(positive, captions) - side(negative, captions)


def _batch(encoded: EncodedExamples, step: int, settings: SoftPromptConfig) -> EncodedExamples:
    """Images of one step: all, or a seeded draw of `batch_size` per side; pairs stay pairs."""

    def draw(side: EncodedSide, stream: str) -> EncodedSide:
        order = permutation(len(side.captions), settings.seed, step, stream)
        return side.select(order[: settings.batch_size])

    unwanted = draw(encoded.unwanted, "pairs" if encoded.paired else "unwanted")
    return EncodedExamples(draw(encoded.wanted, "pairs"), unwanted, encoded.paired)


@dataclass(frozen=True)
class EncodedSide:
    """Image features of one side, captions, and the feature change by each probe (p, b, d)."""

    features: Features
    captions: tuple[str, ...]
    probed: Float[Tensor, "p b d"]

    def select(self, indices: Sequence[int]) -> EncodedSide:
        """A subset of the images."""
        chosen = torch.tensor(list(indices), device=self.features.device)
        captions = tuple(self.captions[i] for i in indices)
        return EncodedSide(self.features[chosen], captions, self.probed[:, chosen])


SideTables = list[tuple[EncodedSide, Tensor, Tensor]]
"""Each side, its features (c, d) under its captions, and their products (c, b) with its images."""


@dataclass(frozen=True)
class EncodedExamples:
    """Both sides; if `paired`, equal indices have equal content."""

    wanted: EncodedSide
    unwanted: EncodedSide
    paired: bool


@dataclass(frozen=True)
class Separation:
    """Measures of r = pos − neg; differences in score units.

    `style`: mean r of wanted minus unwanted images. `separated`: share of pairs (of equal content
    if paired, else all) with wanted above unwanted; 0.5 is chance. `content`: mean r of an image
    minus that of images of other captions. `bias`: RMS change by the probes over |`style`|.
    """

    style: float
    separated: float
    content: float
    bias: float


@torch.no_grad()
def encode_examples(reward: TextTowerReward, examples: Examples) -> EncodedExamples:
    """Encode the images of both sides, original and probed, once."""
    device, sides = reward.soft_prompts.table.weight.device, []
    for images, captions in examples.sides:
        plain, *probed = (
            torch.cat(encode(reward, probe(images), device))
            for probe in (Tensor.clone, *PROBES.values())
        )
        sides.append(EncodedSide(plain, captions, torch.stack(probed) - plain))
    return EncodedExamples(sides[0], sides[1], examples.paired)


@torch.no_grad()
def caption_margin(reward: TextTowerReward, encoded: EncodedExamples) -> float:
    """Mean score of an image under its bare caption minus that under other captions."""
    return float(_margin(_tables(reward.encode_text, encoded)))


def loss_of(
    text: RelativeText, encoded: EncodedExamples, margin: float, content: float, bias: float
) -> Tensor:
    """Weighted sum of style, content and bias; `margin` from `caption_margin`."""
    sides = _tables(text, encoded)
    tables = [table / margin for _, _, table in sides]
    style = F.softplus(-_style_gaps(tables, encoded.paired) / TEMPERATURE).mean()
    pairs = zip(tables, sides, strict=True)
    losses = [_contrastive(table, _differs(side)) for table, (side, _, _) in pairs]
    changes = [((side.probed * gaps).sum(-1) / margin).square().mean() for side, gaps, _ in sides]
    return (
        style
        + content * torch.stack(losses).mean()
        + bias * torch.stack(changes).mean() / TEMPERATURE**2
    )


@torch.no_grad()
def separation_of(text: RelativeText, encoded: EncodedExamples, scale: float = 1.0) -> Separation:
    """Measure pos − neg in score units; `scale` is the reward's."""
    sides = _tables(text, encoded)
    style_gaps = _style_gaps([table for _, _, table in sides], encoded.paired).double()
    changes = torch.cat([(side.probed * gaps).sum(-1).flatten() for side, gaps, _ in sides])
    style, bias = float(style_gaps.mean()), float(changes.square().mean().sqrt())
    return Separation(
        scale * style,
        float((style_gaps > 0).double().mean()),
        scale * float(_margin(sides)),
        bias / abs(style) if style else float("inf"),
    )


def _tables(text: RelativeText, encoded: EncodedExamples) -> SideTables:
    """Both sides with pos − neg under their captions, and its product with their images."""
    wanted, unwanted = encoded.wanted, encoded.unwanted
    texts = text(wanted.captions)
    same = unwanted.captions == wanted.captions
    sides = (wanted, texts), (unwanted, texts if same else text(unwanted.captions))
    return [(side, gaps, gaps @ side.features.T) for side, gaps in sides]


def _style_gaps(tables: Sequence[Tensor], paired: bool) -> Float[Tensor, " n"]:
    """r of wanted minus unwanted images under their own captions, for pairs or all combinations."""
    wanted, unwanted = (table.diagonal() for table in tables)
    return wanted - unwanted if paired else (wanted[:, None] - unwanted[None]).flatten()


def _differs(side: EncodedSide) -> Bool[Tensor, "c b"]:
    """Which images have another caption."""
    known = {caption: index for index, caption in enumerate(side.captions)}
    indices = torch.tensor([known[each] for each in side.captions], device=side.features.device)
    return indices[:, None] != indices[None]


def _contrastive(table: Float[Tensor, "c b"], differs: Bool[Tensor, "c b"]) -> Tensor:
    """Cross-entropy of selecting a caption's own image among those of other captions."""
    own = torch.eye(len(table), dtype=torch.bool, device=table.device)
    logits = (table / TEMPERATURE).masked_fill(~(differs | own), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(table), device=table.device))


def _margin(sides: SideTables) -> Tensor:
    """Mean over sides of r of an image minus that of images of other captions."""
    margins = [table.diagonal().mean() - table[_differs(side)].mean() for side, _, table in sides]
    return torch.stack(margins).mean()
