"""What is looked at in the images of a comparison: the pixels, the world's judge, and each reward by itself.

A look sees the images of all models for some whole prompts, so that it can hold an image against the base's and against the others of its
prompt. It gives numbers by model and name, one per image, NaN where an image has none. Of the control prompts it gives what tells leakage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .. import config, metrics
from ..interfaces import Judge, Reward
from ..metrics import Metric
from ..rewards import load_reward, reward_class
from ..toyworld.judges import load_judge
from ..types import Images, PerSample
from . import drift
from .control_prompts import styles_named
from .diversity import cosine_distance, rmse, to_siblings
from .items import Item
from .seen_rewards import SeenReward


@dataclass(frozen=True)
class Shown:
    """The images (b, 3, H, W) of some items by model, and which model each is held against, None for none. All control items, or none."""

    items: Sequence[Item]
    images: Mapping[str, Images]
    base_of: Mapping[str, str | None]

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(item.prompt for item in self.items)

    @property
    def off_topic(self) -> bool:
        return self.items[0].off_topic


Numbers = dict[str, dict[str, PerSample]]
"""By model, by name, one per item."""
Look = Callable[[Shown], Numbers]


@dataclass(frozen=True)
class Planned:
    """A look before it is loaded: `name` is its file, `about` says what it may measure, `settings` how it is told from another look."""

    name: str
    about: Mapping[str, Metric]
    load: Callable[[], Look]
    settings: Mapping[str, object]


def planned_looks(rewards: Sequence[SeenReward], words: config.ControlPhrases, judge: str, off_topic: str | None, batch_size: int) -> list[Planned]:
    """Every look of a comparison, the cheap ones first; rewards load one at a time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    looks = [Planned("pixels", _pixel_metrics(), lambda: pixels, {})]
    if judge == "world":
        looks.append(Planned("judge", {**metrics.JUDGED, **metrics.CONTROL}, lambda: partial(judged, load_judge(), off_topic == "world"), {"judge": judge}))
    for each in rewards:
        load = partial(_load_reward, each, words, device, batch_size)
        looks.append(Planned(f"reward-{each.label}", _reward_metrics(each, words), load, {"reward": each.settings.model_dump(mode="json")}))
    return looks


# --- pixels -------------------------------------------------------------------------------------------------------------


def pixels(shown: Shown) -> Numbers:
    """Drift statistics, distances to the base, and the diversity of a prompt's images."""
    found: Numbers = {}
    for key, images in shown.images.items():
        base = shown.base_of[key]
        against = {} if base is None else _from_base(images, shown.images[base])
        if shown.off_topic:
            found[key] = {metrics.OFF_TOPIC + name: values for name, values in against.items()}
        else:
            own = {**drift.statistics(images), **drift.casts(images), metrics.DIVERSITY: to_siblings(images, shown.prompts, rmse)}
            found[key] = {**own, **against}
    return found


def _from_base(images: Images, base: Images) -> dict[str, PerSample]:
    shift = drift.color_cast(images) - drift.color_cast(base)
    return {metrics.BASE_RMSE: rmse(images, base), metrics.BASE_CAST: shift.norm(dim=1)}


def _pixel_metrics() -> dict[str, Metric]:
    leaked = {metrics.OFF_TOPIC + name: metrics.CONTROL[metrics.OFF_TOPIC + name] for name in (metrics.BASE_RMSE, metrics.BASE_CAST)}
    return {**metrics.PIXELS, **leaked}


# --- the judge ----------------------------------------------------------------------------------------------------------


def judged(judge: Judge, styles_known: bool, shown: Shown) -> Numbers:
    """What the world's judge says; of its own control prompts whether style and content are as they ask, of others nothing."""
    if not shown.off_topic:
        return {key: dict(judge(images, shown.prompts)) for key, images in shown.images.items()}
    return {key: _kept(judge(images, shown.prompts), shown.prompts) for key, images in shown.images.items()} if styles_known else {}


def _kept(said: Mapping[str, PerSample], prompts: tuple[str, ...]) -> dict[str, PerSample]:
    style = torch.stack([said[f"style_{style}"][place] for place, style in enumerate(styles_named(prompts))])
    return {"off_topic_style_kept": style, "off_topic_content": said["content"]}


# --- rewards ------------------------------------------------------------------------------------------------------------


def _load_reward(each: SeenReward, words: config.ControlPhrases, device: str, batch_size: int) -> Look:
    return partial(rewarded, load_reward(each.settings, device, each.key), each.label, words, device, batch_size)


@torch.no_grad()
def rewarded(reward: Reward, label: str, words: config.ControlPhrases, device: str, batch_size: int, shown: Shown) -> Numbers:
    """The plain score, the style gap where the reward reads prompts, and distances between its features where it has them."""
    seen = {key: _asked(reward, label, words, images, shown, device, batch_size) for key, images in shown.images.items()}
    found = {key: dict(numbers) for key, (numbers, _) in seen.items()}
    features = {key: each for key, (_, each) in seen.items() if each is not None}
    for key, each in features.items() if not shown.off_topic else ():
        found[key][metrics.DIVERSITY_FEATURES + label] = to_siblings(each, shown.prompts, cosine_distance)
        base = shown.base_of[key]
        if base is not None:
            found[key][metrics.BASE_FEATURES + label] = cosine_distance(each, features[base])
    return found


def _asked(reward: Reward, label: str, words: config.ControlPhrases, images: Images, shown: Shown, device: str, size: int) -> tuple[dict[str, PerSample], Tensor | None]:
    starts = range(0, len(images), size)
    parts = [_ask(reward, words, images[i : i + size].to(device), shown.prompts[i : i + size], shown.off_topic) for i in starts]
    plain, gaps, features = ([part[place] for part in parts] for place in range(3))
    if shown.off_topic:
        return {f"{metrics.OFF_TOPIC}{metrics.SCORE}{label}": torch.cat(plain)}, None
    gap = {metrics.SGP + label: torch.cat(gaps)} if reward.reads_prompt else {}
    return {metrics.SCORE + label: torch.cat(plain), **gap}, torch.cat(features) if getattr(reward, "image_embeddings", False) else None


def _ask(reward: Reward, words: config.ControlPhrases, images: Images, prompts: tuple[str, ...], plain_only: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Plain score, style gap and features of a batch; what there is not is empty."""
    features = reward.encode(images)
    plain, nothing = reward.score(features, prompts).float().cpu(), torch.empty(0)

    def mean(phrases: Sequence[str]) -> Tensor:
        return torch.stack([reward.score(features, [f"{phrase}. {prompt}" for prompt in prompts]).float().cpu() for phrase in phrases]).mean(0)

    gap = mean(words.positive) - mean(words.negative) if reward.reads_prompt and not plain_only else nothing
    return plain, gap, features.float().cpu() if isinstance(features, Tensor) and getattr(reward, "image_embeddings", False) else nothing


def _reward_metrics(each: SeenReward, words: config.ControlPhrases) -> dict[str, Metric]:
    label, scale = each.label, each.settings.scale
    found = [
        metrics.score_metric(label, each.kind, scale, bool(each.trained)),
        metrics.sgp_metric(label, each.kind, scale, words.positive, words.negative),
        metrics.off_topic_score_metric(label),
    ]
    features = metrics.feature_metrics(label) if reward_class(each.settings.name).image_embeddings else {}
    return {**{one.name: one for one in found[:2]}, **features, found[2].name: found[2]}
