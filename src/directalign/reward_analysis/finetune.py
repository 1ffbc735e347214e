"""Finetune a reward on wanted and unwanted images until control phrases separate them.

A quarter of the captions is held out, with all their images: the loss on them selects the weights
and ends the training, and the measures before and after are taken on them. Output folder:

    weights in safetensors, config.json, tokenizer, image processor: loadable by transformers
    finetune.json: source, settings, and the measures before and after

A CLIP trains its text tower and text projection (`text`; image features stay fixed and are computed
once) or LoRA adapters in both towers (`lora`), merged at the end. A VLM trains LoRA adapters in its
language model; its vision tower stays fixed. Loss terms, in units of the caption margin (how far an
image's own caption scored above another one before):

    respond    each positive phrase scores above each negative one on a wanted image, and below it
               on an unwanted one
    straight   the gradient of pos − neg points from the unwanted image to the wanted image of the
               same content (paired examples, vector features)
    hold       that gradient keeps its length: a long one lets a relative reward erase the object
    keep       scores of bare prompts, own and other, and (pos + neg) / 2 do not change
    steady     pos − neg is invariant to `images.random_cast`
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig, LoraModel
from torch import Tensor

from .. import __version__, config
from ..data.captions import NONE
from ..interfaces import Reward
from ..io.atomic import new_folder
from ..rewards import load_named_reward, reward_settings
from ..rewards.clip import ClipReward
from ..rewards.common import Preprocessing, PromptCache
from ..rewards.qwen_vl import SETTINGS, VlmReward
from ..rewards.weights import locate
from ..types import DirectAlignError, Images
from . import responsiveness
from .images import Examples, Sides, load_examples, random_cast, source_text, split_examples

Part = Literal["text", "lora"]
Finetunable = ClipReward | VlmReward
RECORD = "finetune.json"
VIEWS = 4
"""Random casts per image if image features are computed once."""
WARMUP = 20
RATES: dict[Part, float] = {"text": 1e-5, "lora": 1e-4}
SHARPNESS = 1.0
"""Slope of the logistic loss per caption margin: low, so that all pairs have similar weight."""
RANK = 8
CLIP_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LANGUAGE_LAYERS = (*CLIP_LAYERS[:3], "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LossWeights:
    """Weight of each loss term."""

    respond: float = 0.3
    straight: float = 0.3
    hold: float = 1.0
    keep: float = 10.0
    steady: float = 3.0


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of the finetuning.

    `gap`: target length of the gradient of pos − neg, in score units per unit of image feature;
    None keeps the reward's own. `light`: relative brightness range that pos − neg is made invariant
    to; 0 if wanted images are themselves lighter or darker. `part`, `learning_rate`: None takes
    `part_of` and `RATES`.
    """

    part: Part | None = None
    num_steps: int = 300
    batch_size: int = 16
    learning_rate: float | None = None
    gap: float | None = None
    light: float = 0.0
    seed: int = 0
    check_every: int = 20
    patience: int = 5
    weights: LossWeights = field(default_factory=LossWeights)


def finetune_to_folder(
    reward: str,
    images: str | Sides,
    phrases: config.ControlPhrases,
    out: Path,
    settings: FinetuneConfig,
    count: int | None = None,
    caption: str = NONE,
) -> dict[str, Any]:
    """Finetune the reward that `reward` names (`rewards`) on `images` (as `load_examples`).

    Writes all of `out` or nothing and never overwrites. Returns the content of finetune.json.

    Raises: DirectAlignError if `out` exists, and as `reward_settings`, `load_examples`, `finetune`.
    """
    if out.exists():
        raise DirectAlignError(f"--out {out} exists already: choose a new folder")
    source = reward_settings(reward)
    examples = load_examples(images, "--images", count, settings.seed, caption)
    tuned, measures = finetune(load_named_reward(source), examples, phrases, settings)
    libraries = "torch", "transformers", "peft", "safetensors"
    record = {
        "reward": source.model_dump(mode="json"),
        "images": source_text(images),
        "count": len(examples.wanted),
        "paired": examples.paired,
        "control_phrases": phrases.model_dump(mode="json"),
        "config": asdict(settings),
        **measures,
        "versions": {"directalign": __version__, **{name: version(name) for name in libraries}},
    }
    with new_folder(out) as folder:
        save_reward(tuned, folder)
        text = json.dumps(record, indent=1, allow_nan=False)
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    return record


def finetune(
    reward: Reward, examples: Examples, phrases: config.ControlPhrases, settings: FinetuneConfig
) -> tuple[Reward, dict[str, Any]]:
    """Finetune `reward` in place; deterministic given the arguments.

    Returns the finetuned reward, and by name: the measures `before` and `after` on `held_out`
    images per side, the best update, and the one that the training stopped at.

    Raises: DirectAlignError for words of one side only, too few captions, or an unsupported reward.
    """
    if not phrases.positive or not phrases.negative:
        raise DirectAlignError(
            "--positive, --negative: phrases of both sides are needed; give one of each, or a "
            "recipe that has them"
        )
    reward, part = part_of(reward, settings.part)
    settings = replace(settings, part=part)
    train, held_out = split_examples(examples, settings.seed, "listen")
    before, base = responsiveness.measure(reward, held_out, phrases), with_logits(reward)
    sides, checks = (
        [baseline(base, *side, phrases) for side in each.sides] for each in (train, held_out)
    )
    gap = _target_gap(base, sides[1], phrases, settings.gap)
    margin, (trained, adapters) = caption_margin(*sides), trainable(reward, part, settings.seed)
    trainer = Trainer(trained, phrases, settings, sides, checks, margin, gap, examples.paired)
    rate = RATES[part] if settings.learning_rate is None else settings.learning_rate
    best_step, stopped_at = trainer.fit(rate)
    if adapters is not None:
        adapters.merge_and_unload()
    reward.model.requires_grad_(False)
    forget_texts(reward)
    return reward, {
        "before": before,
        "after": responsiveness.measure(reward, held_out, phrases),
        "best_step": best_step,
        "stopped_at": stopped_at,
        "held_out": len(held_out.wanted),
    }


@dataclass(frozen=True)
class Side:
    """Images of one side, own and other captions, and the scores (3, n) that `keep` preserves.

    Those are of the own and another bare caption, and (pos + neg) / 2, before finetuning.
    """

    images: Images
    prompts: Sequence[str]
    others: Sequence[str]
    kept: Tensor


@dataclass(frozen=True)
class Batch:
    """Indices in one side, image features, and features under a cast (None leaves out `steady`)."""

    side: Side
    indices: list[int]
    features: Any
    changed: Any | None = None

    @property
    def prompts(self) -> list[str]:
        """Captions of the batch."""
        return [self.side.prompts[i] for i in self.indices]


def baseline(
    reward: Reward, images: Images, prompts: Sequence[str], phrases: config.ControlPhrases
) -> Side:
    """One side with the scores that `keep` preserves."""
    others = []
    for i, own in enumerate(prompts):  # the next different caption, if there is one
        following = (*prompts[i + 1 :], *prompts[:i])
        others.append(next((text for text in following if text != own), own))
    encoded = responsiveness.Encoded(reward, images, prompts)
    sides = [encoded.score(side) for side in (phrases.positive, phrases.negative)]
    plain, other = encoded.score(), encoded.score(captions=others)
    return Side(images, prompts, others, torch.stack([plain, other, torch.stack(sides).mean(0)]))


def caption_margin(*sides: Side) -> float:
    """RMS of own minus other caption over both sides, in score units.

    Raises: DirectAlignError for a reward that scores all captions equally.
    """
    margins = torch.cat([side.kept[0] - side.kept[1] for side in sides])
    margin = margins.square().mean().sqrt().item()
    if not margin > 0:
        raise DirectAlignError(
            "--reward: scores every caption of --images equally, so there is nothing to keep: "
            "check its weights, or give captions that differ"
        )
    return margin


def _target_gap(
    reward: Reward, side: Side, phrases: config.ControlPhrases, gap: float | None
) -> float | None:
    """`gap`, else the mean gradient length of pos − neg; None if features are not vectors."""
    features = responsiveness.vectors(responsiveness.encode(reward, side.images))
    if features is None:
        if gap is not None:
            raise DirectAlignError(
                f"--gap {gap}: {reward.name} does not have one feature vector per image, so "
                "its gap cannot be set: omit --gap"
            )
        return None
    gradient = responsiveness.feature_gradient(reward, features, side.prompts, phrases)
    own = gradient.norm(dim=1).mean().item()
    if own == 0:
        raise DirectAlignError(
            "--positive, --negative: the reward scores both sides equally; use other phrases, or "
            "shorter ones if captions are truncated"
        )
    return own if gap is None else gap


@dataclass(frozen=True)
class Trainer:
    """Trains on wanted and unwanted images until the loss on held-out ones stops falling.

    `margin`: `caption_margin`. `gap`: target gradient length, None if image features are not
    vectors. `paired`: the sides' images of one index have the same content.
    """

    reward: Finetunable
    phrases: config.ControlPhrases
    settings: FinetuneConfig
    sides: Sequence[Side]
    held_out: Sequence[Side]
    margin: float
    gap: float | None
    paired: bool

    def fit(self, rate: float) -> tuple[int, int]:
        """Train, and restore the best weights; returns the best and the last update."""
        reward, settings = self.reward, self.settings

        def rate_factor(step: int) -> float:  # linear warmup, then linear decay to 0
            warmup = min(1.0, (step + 1) / min(WARMUP, settings.num_steps // 5 + 1))
            return warmup * (1 - step / settings.num_steps)

        def draw(side: Side) -> list[int]:
            size = (settings.batch_size,)
            return torch.randint(len(side.prompts), size, generator=generator).tolist()

        def weights() -> list[Tensor]:
            return [parameter.detach().clone() for parameter in parameters]

        parameters = [each for each in reward.model.parameters() if each.requires_grad]
        generator = torch.Generator().manual_seed(settings.seed)
        views = [self._batch_source(side, generator) for side in self.sides]
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor)
        lowest, best_step, best, step = self._held_out_loss(), 0, weights(), 0
        for step in range(1, settings.num_steps + 1):
            indices = draw(self.sides[0])
            wanted = views[0](indices)
            loss = self.loss(wanted, views[1](indices if self.paired else draw(self.sides[1])))
            if not math.isfinite(loss.item()):
                raise DirectAlignError(
                    f"the loss is {loss.item()}: choose a smaller --learning-rate"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            forget_texts(reward)
            if step % settings.check_every == 0 or step == settings.num_steps:
                current = self._held_out_loss()
                if current < lowest:
                    lowest, best_step, best = current, step, weights()
                elif step - best_step >= settings.patience * settings.check_every:
                    break
        with torch.no_grad():
            for parameter, value in zip(parameters, best, strict=True):
                parameter.copy_(value)
        return best_step, step

    def _batch_source(self, side: Side, generator: torch.Generator) -> Callable[[list[int]], Batch]:
        """Batches of one side by indices; features that do not change are computed once."""
        reward, light = self.reward, self.settings.light

        def encode_batch(indices: list[int]) -> Batch:
            images = side.images[indices]
            plain = reward.encode(images)
            return Batch(side, indices, plain, reward.encode(random_cast(images, generator, light)))

        def encode_all(images: Images) -> Tensor:
            return torch.cat(responsiveness.encode(reward, images))

        if self.settings.part != "text":
            return encode_batch
        plain = encode_all(side.images)
        casts = (random_cast(side.images, generator, light) for _ in range(VIEWS))
        changed = torch.stack([encode_all(images) for images in casts])

        def select(indices: list[int]) -> Batch:
            views = torch.randint(VIEWS, (len(indices),), generator=generator)
            return Batch(side, indices, plain[indices], changed[views, indices])

        return select

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Mean over all held-out images, without casts."""
        length, total = min(len(side.prompts) for side in self.held_out), 0.0
        for indices in torch.arange(length).split(responsiveness.BATCH):
            pair = [
                Batch(side, indices.tolist(), self.reward.encode(side.images[indices]))
                for side in self.held_out
            ]
            total += self.loss(*pair).item() * len(indices)
            forget_texts(self.reward)
        return total / length

    def loss(self, wanted: Batch, unwanted: Batch) -> Tensor:
        """Weighted sum of the terms on one batch."""
        sides = wanted, unwanted
        scores = [self._scores(batch) for batch in sides]
        # logistic over all pairs of phrases: on each side, and between the sides
        first, second = (pos[:, None] - neg for pos, neg, _ in scores)
        gaps = first, -second, first - second
        terms = {
            "respond": torch.stack([F.softplus(-SHARPNESS * gap).mean() for gap in gaps]).sum()
        }
        for batch, (pos, neg, bare) in zip(sides, scores, strict=True):
            now = torch.stack([*bare, (pos.mean(0) + neg.mean(0)) / 2])
            before = batch.side.kept[:, batch.indices] / self.margin
            found = {"keep": (now - before).square().mean()}
            if batch.changed is not None:
                views = batch.changed, batch.prompts
                changed = responsiveness.relative_score(self.reward, *views, self.phrases)
                relative = pos.mean(0) - neg.mean(0)
                found["steady"] = (changed / self.margin - relative).square().mean()
            terms |= {name: terms.get(name, 0.0) + value for name, value in found.items()}
        if self.gap is not None:
            terms |= self._gradient_terms(wanted, unwanted, self.gap)
        weighted = [getattr(self.settings.weights, name) * value for name, value in terms.items()]
        return torch.stack(weighted).sum()

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Scores in caption margins.

        Under each positive and each negative phrase (phrases, b); of own and other captions (b,).
        """
        reward, prompts = self.reward, batch.prompts
        others = [batch.side.others[i] for i in batch.indices]
        pos, neg = (
            responsiveness.phrase_scores(reward, batch.features, prompts, side) / self.margin
            for side in (self.phrases.positive, self.phrases.negative)
        )
        texts = prompts, others
        return pos, neg, [reward.score(batch.features, each) / self.margin for each in texts]

    def _gradient_terms(self, wanted: Batch, unwanted: Batch, gap: float) -> dict[str, Tensor]:
        """Length and direction of the gradient of pos − neg at the unwanted images."""
        target, start = wanted.features.detach(), unwanted.features.detach()
        gradient = responsiveness.feature_gradient(
            self.reward, start, unwanted.prompts, self.phrases, create_graph=True
        )
        terms = {"hold": (gradient.norm(dim=1) / gap - 1).square().mean()}
        if self.paired:
            directions = (
                responsiveness.tangent(gradient, start),
                responsiveness.tangent(target - start, start),
            )
            terms["straight"] = 1 - F.cosine_similarity(*directions, dim=1).mean()
        return terms


def part_of(reward: Reward, part: Part | None) -> tuple[Finetunable, Part]:
    """The reward and `part`; None takes the text side of a CLIP, adapters in a VLM.

    Raises: DirectAlignError for another kind of reward, and the text part of a VLM.
    """
    if not isinstance(reward, Finetunable):
        raise DirectAlignError(
            f"--reward: {reward.name} cannot be finetuned; give a CLIP (reward.name: clip) or a "
            "VLM (reward.name: vlm)"
        )
    if isinstance(reward, VlmReward) and part == "text":
        raise DirectAlignError(
            "--part text: a VLM has one model for images and texts; omit --part, or give lora"
        )
    return reward, part or ("lora" if isinstance(reward, VlmReward) else "text")


def with_logits(reward: Finetunable) -> Finetunable:
    """A VLM scoring by log-odds (a saturated probability has no gradient); others unchanged."""
    if not isinstance(reward, VlmReward):
        return reward
    settings = reward.settings.model_copy(update={"answer": "log_odds"})
    return VlmReward(reward.model, reward.chat, reward.pixels, settings, reward.answers)


class TrainableClip(ClipReward):
    """Its text features have a gradient; they are cached until `forget_texts`."""

    def __init__(self, clip: ClipReward) -> None:
        super().__init__(clip.model, clip.tokenizer, clip.preprocessing, clip.scale, clip.clean)
        self.directions, self._prompts = clip.directions, PromptCache(self.encode_text)


def trainable(reward: Finetunable, part: Part, seed: int) -> tuple[Finetunable, LoraModel | None]:
    """The reward with a gradient in a part of its weights, and the adapters to merge, if any.

    Adapters (LoRA, arXiv 2106.09685) are initialized from `seed`.
    """
    trained: Finetunable
    if isinstance(reward, VlmReward):
        trained, layers = with_logits(reward), LANGUAGE_LAYERS
        model = reward.model.model.language_model
    else:
        trained, layers, model = TrainableClip(reward), CLIP_LAYERS, reward.model
    if part == "text":
        model.text_model.requires_grad_()
        model.text_projection.requires_grad_()
        return trained, None
    adapters = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return trained, LoraModel(model, adapters, "default")


def forget_texts(reward: Finetunable) -> None:
    """Drop the text features of a CLIP that were encoded before an update."""
    if isinstance(reward, ClipReward):
        reward._prompts.cached.clear()


def save_reward(reward: Reward, folder: Path) -> None:
    """Write weights, tokenizer and image processor of a finetuned CLIP or VLM."""
    if isinstance(reward, VlmReward):
        reward.model.save_pretrained(folder)
        # The processor files differ between kinds of VLM: copy them unchanged.
        settings = reward.settings
        source = locate(settings.processor or settings.path, "--reward", SETTINGS)
        for file in sorted({file for pattern in SETTINGS for file in source.glob(pattern)}):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copy(file, folder / file.name)
        return
    assert isinstance(reward, ClipReward)
    reward.model.save_pretrained(folder)
    reward.tokenizer.save_pretrained(folder)
    image, names = reward.preprocessing, ("height", "width")
    assert isinstance(image, Preprocessing)
    short, both = {"shortest_edge": image.size}, zip(names, image.crop, strict=True)
    steps = ("convert_rgb", "resize", "center_crop", "rescale", "normalize")
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        **{f"do_{step}": True for step in steps},
        "rescale_factor": 1 / 255,
        "size": short if isinstance(image.size, int) else dict(zip(names, image.size, strict=True)),
        "crop_size": dict(both),
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "resample": {"bilinear": 2, "bicubic": 3}[image.mode],
    }
    text = json.dumps(processor, indent=1)
    (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")
