"""Held-out rewards: measured beside the one that is trained on, and never trained on.

A model that games its reward does not please another one; a score that rises with the trained one and falls with these is hacking.
`held_out_<label>` is the score under the bare prompt. A CLIP or SigLIP is also asked under the run's control phrases, which costs it no
further look at the image; learned control tokens belong to the reward that they were fitted to, and are left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from .. import config, metrics
from ..config.load import is_recipe
from ..interfaces import Judge, Reward
from ..io.jsonl import Ledger, Place, Row, Say
from ..metrics import HELD_OUT, MEMBER, NEG, POS, Metric
from ..rewards import load_reward, reward_class
from ..rewards.mixture import MixReward
from ..rewards.resolve import reward_settings
from ..rewards.soft_prompts import is_tokens_file
from ..toyworld.judges import load_judge
from ..types import DirectAlignError, Images, PerSample
from . import image_metrics
from .candidate_images import file_of, load_images
from .candidates import Subject
from .control_prompts import styles_named
from .eval_samples import Item, batches
from .image_metrics import cosine_distance, rmse, to_siblings

BARE = ("",)
"""The phrases of the question that puts nothing before the prompt."""

Asked = Mapping[str, Sequence[str]]
"""The name of each score, and the phrases whose scores are averaged for it."""


@torch.no_grad()
def scored(
    reward: Reward,
    asked: Asked,
    images: Images,
    prompts: Sequence[str],
    batch_size: int,
    device: torch.device,
) -> dict[str, PerSample]:
    """Each of `asked` as (b,) on the CPU, those without a phrase left out; of a mixture also every member's plain score."""
    starts = range(0, len(images), batch_size)
    parts = [
        _score_batch(
            reward, asked, images[i : i + batch_size].to(device), prompts[i : i + batch_size]
        )
        for i in starts
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _score_batch(
    reward: Reward, asked: Asked, images: Images, prompts: Sequence[str]
) -> dict[str, PerSample]:
    features = reward.encode(images)
    scores = {}
    for name, phrases in asked.items():
        each = [
            reward.score(
                features, [f"{phrase}. {prompt}" if phrase else prompt for prompt in prompts]
            )
            for phrase in phrases
        ]
        if each:
            scores[name] = torch.stack(each).mean(0).float().cpu()
    if isinstance(reward, MixReward):
        scores |= {
            f"{MEMBER}{label}": score.float().cpu()
            for label, score in reward.each(features, prompts).items()
        }
    return scores


LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def key_of(label: str) -> str:
    """Where a held-out reward stands in the recipe."""
    return f"evaluate.rewards.{label}"


def check_labels(labels: Sequence[str]) -> None:
    """Refuse labels that make no name of a number, or the name of another number."""
    for label in labels:
        if not LABEL.fullmatch(label) or label.endswith((POS, NEG)):
            raise DirectAlignError(
                f"{key_of(label)}: a label has letters, digits, _ and - alone and does not end in {POS} or {NEG}; call it e.g. second"
            )


def load_held_out(settings: config.EvaluateConfig, device: torch.device | str) -> dict[str, Reward]:
    """The held-out rewards of a recipe by label, in its order."""
    check_labels(list(settings.rewards))
    return {
        label: load_reward(each, device, key_of(label)) for label, each in settings.rewards.items()
    }


def held_out_scores(
    rewards: Mapping[str, Reward],
    images: Images,
    prompts: Sequence[str],
    run: config.RunConfig,
    device: torch.device,
) -> dict[str, PerSample]:
    """`held_out_<label>` of every image, and `held_out_<label>_pos`, `held_out_<label>_neg` where they cost little; each (b,)."""
    found: dict[str, PerSample] = {}
    for label, reward in rewards.items():
        found |= scored(
            reward,
            _scores_held_out(f"{HELD_OUT}{label}", reward, run.method.control_phrases),
            images,
            prompts,
            run.evaluate.batch_size,
            device,
        )
    return found


def _scores_held_out(name: str, reward: Reward, words: config.ControlPhrases) -> Asked:
    if not getattr(reward, "image_embeddings", False):
        return {name: BARE}
    sides = {POS: words.positive, NEG: words.negative}
    return {
        name: BARE,
        **{
            f"{name}{side}": [phrase for phrase in phrases if not is_tokens_file(phrase)]
            for side, phrases in sides.items()
        },
    }


OPTION = "--reward"
NOT_ITS_OWN = {"scale", "gradient_checkpointing"}
"""Settings in which the same reward may stand in two recipes."""


@dataclass(frozen=True)
class SeenReward:
    """A reward with its label; `key` is where it stands, for errors; `trained` are the keys of the models that were trained on it."""

    label: str
    settings: config.SingleRewardConfig
    key: str
    trained: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """In words: clip world:reward."""
        which = (
            getattr(self.settings, "path", None)
            or getattr(self.settings, "statistic", None)
            or getattr(self.settings, "url", "")
        )
        return f"{self.settings.name} {which}".strip()


def rewards_of(subjects: Sequence[Subject], given: Sequence[str]) -> list[SeenReward]:
    """All rewards at hand, trained-on ones first; `given` are LABEL=RECIPE, LABEL=PATH of a CLIP or SigLIP, or LABEL={name: pixels, ...}.

    Raises: DirectAlignError for a label that names no file, a label given twice, and a reward that cannot be read.
    """
    found: dict[str, SeenReward] = {}
    for each in [*_trained(subjects), *_held_out(subjects), *map(_given, given)]:
        same = json.dumps(
            each.settings.model_dump(mode="json", exclude=NOT_ITS_OWN), sort_keys=True
        )
        known = found.get(same)
        found[same] = (
            each
            if known is None
            else replace(known, trained=tuple(dict.fromkeys((*known.trained, *each.trained))))
        )
    return _apart(list(found.values()))


def words_of(
    subjects: Sequence[Subject], positive: Sequence[str], negative: Sequence[str]
) -> config.ControlPhrases:
    """The phrases of the style gap: as asked, else of the first run that has both kinds, else those of the paper."""
    if bool(positive) != bool(negative):
        raise DirectAlignError(
            "--positive and --negative: the style gap is the difference between the two; give both or neither"
        )
    if positive:
        return config.ControlPhrases(positive=list(positive), negative=list(negative))
    words = [each.recipe.method.control_phrases for each in subjects if each.recipe is not None]
    plain = [
        config.ControlPhrases(positive=_plain(each.positive), negative=_plain(each.negative))
        for each in words
    ]
    return next(
        (each for each in plain if each.positive and each.negative),
        config.ControlPhrases(positive=["Realistic photo"], negative=["CG Render"]),
    )


def _plain(phrases: Sequence[str]) -> list[str]:
    """Without learned tokens, which belong to the reward that they were fitted to."""
    return [phrase for phrase in phrases if not phrase.endswith(".safetensors")]


def _trained(subjects: Sequence[Subject]) -> Iterator[SeenReward]:
    for subject in subjects:
        if subject.recipe is None:
            continue
        reward = subject.recipe.reward
        if isinstance(reward, config.MixtureConfig):
            yield from (
                SeenReward(
                    each.label,
                    each.reward,
                    f"{subject.source}: reward {each.label}",
                    (subject.key,),
                )
                for each in reward.members
            )
        else:
            yield SeenReward(_label(reward), reward, f"{subject.source}: reward", (subject.key,))


def _held_out(subjects: Sequence[Subject]) -> Iterator[SeenReward]:
    for subject in subjects:
        if subject.recipe is not None:
            for label, settings in subject.recipe.evaluate.rewards.items():
                yield SeenReward(label, settings, f"{subject.source}: {key_of(label)}")


def _given(text: str) -> SeenReward:
    label, equals, source = text.partition("=")
    if not equals or not LABEL.fullmatch(label) or not source:
        raise DirectAlignError(
            f"{OPTION} {text}: write it as LABEL=RECIPE, LABEL=PATH or LABEL='{{name: pixels, ...}}', the label of letters, digits, _ and -"
        )
    return SeenReward(label, _section(source, f"{OPTION} {label}"), f"{OPTION} {label}")


def _section(source: str, where: str) -> config.SingleRewardConfig:
    """From a recipe, from a section in YAML, here or in a file, or from a model's folder."""
    text = (
        Path(source).read_text(encoding="utf-8")
        if is_recipe(source) and Path(source).is_file()
        else source
    )
    try:
        section: Any = (
            yaml.safe_load(text) if text is not source or source.startswith("{") else None
        )
    except yaml.YAMLError as error:
        raise DirectAlignError(
            f"{where}: {source!r:.80} is not YAML ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(section, dict) or "name" not in section or "model" in section:
        return reward_settings(source)
    try:
        return TypeAdapter(config.SingleRewardConfig).validate_json(json.dumps(section))
    except (ValidationError, TypeError) as error:
        first = (
            error.errors()[0]
            if isinstance(error, ValidationError)
            else {"loc": (), "msg": str(error)}
        )
        raise DirectAlignError(
            f"{where}: {'.'.join(map(str, first['loc'][1:])) or 'section'}: {first['msg']}; see docs/rewards.md"
        ) from error


def _label(settings: config.SingleRewardConfig) -> str:
    """A name from what tells it from others: world_reward of clip world:reward, redness of pixels."""
    named = getattr(settings, "statistic", None) or getattr(settings, "path", None) or settings.name
    last = (
        str(named)
        .rstrip("/")
        .split("/")[-1]
        .removesuffix(".safetensors")
        .removesuffix(".pt")
        .split(":")
    )
    plain = "_".join(
        "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in part)
        for part in last
    ).strip("_-")
    return plain or settings.name


def _apart(rewards: Sequence[SeenReward]) -> list[SeenReward]:
    """Different rewards under different labels: the second `light` is `light-2`."""
    found: list[SeenReward] = []
    for each in rewards:
        label, number = each.label, 2
        while label in {other.label for other in found}:
            label, number = f"{each.label}-{number}", number + 1
        found.append(replace(each, label=label))
    return found


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
    def control_prompts(self) -> bool:
        return self.items[0].control_prompts


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


def planned_looks(
    rewards: Sequence[SeenReward],
    words: config.ControlPhrases,
    judge: str,
    control_prompts: str | None,
    batch_size: int,
) -> list[Planned]:
    """Every look of a comparison, the cheap ones first; rewards load one at a time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    looks = [Planned("pixels", _pixel_metrics(), lambda: pixels, {})]
    if judge == "world":
        looks.append(
            Planned(
                "judge",
                {**metrics.JUDGED, **metrics.CONTROL},
                lambda: partial(judged, load_judge(), control_prompts == "world"),
                {"judge": judge},
            )
        )
    for each in rewards:
        load = partial(_load_reward, each, words, device, batch_size)
        looks.append(
            Planned(
                f"reward-{each.label}",
                _reward_metrics(each, words),
                load,
                {"reward": each.settings.model_dump(mode="json")},
            )
        )
    return looks


# --- pixels -------------------------------------------------------------------------------------------------------------


def pixels(shown: Shown) -> Numbers:
    """Drift statistics, distances to the base, and the diversity of a prompt's images."""
    found: Numbers = {}
    for key, images in shown.images.items():
        base = shown.base_of[key]
        against = {} if base is None else _from_base(images, shown.images[base])
        if shown.control_prompts:
            found[key] = {metrics.OFF_TOPIC + name: values for name, values in against.items()}
        else:
            own = {
                **image_metrics.statistics(images),
                **image_metrics.casts(images),
                metrics.DIVERSITY: to_siblings(images, shown.prompts, rmse),
            }
            found[key] = {**own, **against}
    return found


def _from_base(images: Images, base: Images) -> dict[str, PerSample]:
    shift = image_metrics.color_cast(images) - image_metrics.color_cast(base)
    return {metrics.BASE_RMSE: rmse(images, base), metrics.BASE_CAST: shift.norm(dim=1)}


def _pixel_metrics() -> dict[str, Metric]:
    leaked = {
        metrics.OFF_TOPIC + name: metrics.CONTROL[metrics.OFF_TOPIC + name]
        for name in (metrics.BASE_RMSE, metrics.BASE_CAST)
    }
    return {**metrics.PIXELS, **leaked}


# --- the judge ----------------------------------------------------------------------------------------------------------


def judged(judge: Judge, styles_known: bool, shown: Shown) -> Numbers:
    """What the world's judge says; of its own control prompts whether style and content are as they ask, of others nothing."""
    if not shown.control_prompts:
        return {key: dict(judge(images, shown.prompts)) for key, images in shown.images.items()}
    return (
        {
            key: _kept(judge(images, shown.prompts), shown.prompts)
            for key, images in shown.images.items()
        }
        if styles_known
        else {}
    )


def _kept(said: Mapping[str, PerSample], prompts: tuple[str, ...]) -> dict[str, PerSample]:
    style = torch.stack(
        [said[f"style_{style}"][place] for place, style in enumerate(styles_named(prompts))]
    )
    return {"off_topic_style_kept": style, "off_topic_content": said["content"]}


# --- rewards ------------------------------------------------------------------------------------------------------------


def _load_reward(
    each: SeenReward, words: config.ControlPhrases, device: str, batch_size: int
) -> Look:
    return partial(
        rewarded,
        load_reward(each.settings, device, each.key),
        each.label,
        words,
        device,
        batch_size,
    )


@torch.no_grad()
def rewarded(
    reward: Reward,
    label: str,
    words: config.ControlPhrases,
    device: str,
    batch_size: int,
    shown: Shown,
) -> Numbers:
    """The plain score, the style gap where the reward reads prompts, and distances between its features where it has them."""
    seen = {
        key: _scores_of(reward, label, words, images, shown, device, batch_size)
        for key, images in shown.images.items()
    }
    found = {key: dict(numbers) for key, (numbers, _) in seen.items()}
    features = {key: each for key, (_, each) in seen.items() if each is not None}
    for key, each in features.items() if not shown.control_prompts else ():
        found[key][metrics.DIVERSITY_FEATURES + label] = to_siblings(
            each, shown.prompts, cosine_distance
        )
        base = shown.base_of[key]
        if base is not None:
            found[key][metrics.BASE_FEATURES + label] = cosine_distance(each, features[base])
    return found


def _scores_of(
    reward: Reward,
    label: str,
    words: config.ControlPhrases,
    images: Images,
    shown: Shown,
    device: str,
    size: int,
) -> tuple[dict[str, PerSample], Tensor | None]:
    starts = range(0, len(images), size)
    parts = [
        _ask(
            reward,
            words,
            images[i : i + size].to(device),
            shown.prompts[i : i + size],
            shown.control_prompts,
        )
        for i in starts
    ]
    plain, gaps, features = ([part[place] for part in parts] for place in range(3))
    if shown.control_prompts:
        return {f"{metrics.OFF_TOPIC}{metrics.SCORE}{label}": torch.cat(plain)}, None
    gap = {metrics.SGP + label: torch.cat(gaps)} if reward.reads_prompt else {}
    return {metrics.SCORE + label: torch.cat(plain), **gap}, torch.cat(features) if getattr(
        reward, "image_embeddings", False
    ) else None


def _ask(
    reward: Reward,
    words: config.ControlPhrases,
    images: Images,
    prompts: tuple[str, ...],
    plain_only: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain score, style gap and features of a batch; what there is not is empty."""
    features = reward.encode(images)
    plain, nothing = reward.score(features, prompts).float().cpu(), torch.empty(0)

    def mean(phrases: Sequence[str]) -> Tensor:
        return torch.stack(
            [
                reward.score(features, [f"{phrase}. {prompt}" for prompt in prompts]).float().cpu()
                for phrase in phrases
            ]
        ).mean(0)

    gap = (
        mean(words.positive) - mean(words.negative)
        if reward.reads_prompt and not plain_only
        else nothing
    )
    return (
        plain,
        gap,
        features.float().cpu()
        if isinstance(features, Tensor) and getattr(reward, "image_embeddings", False)
        else nothing,
    )


def _reward_metrics(each: SeenReward, words: config.ControlPhrases) -> dict[str, Metric]:
    label, scale = each.label, each.settings.scale
    found = [
        metrics.score_metric(label, each.kind, scale, bool(each.trained)),
        metrics.sgp_metric(label, each.kind, scale, words.positive, words.negative),
        metrics.off_topic_score_metric(label),
    ]
    features = (
        metrics.feature_metrics(label) if reward_class(each.settings.name).image_embeddings else {}
    )
    return {**{one.name: one for one in found[:2]}, **features, found[2].name: found[2]}


RESULTS, SCORES = "results.jsonl", "scores"


def look_at_all(
    planned: Sequence[Planned],
    subjects: Sequence[Subject],
    items: Sequence[Item],
    out: Path,
    batch_size: int,
    say: Say,
) -> list[Row]:
    """The lines of results.jsonl, model by model and in the order of the items: what is missing is looked at and appended."""
    ledgers = [_looked(each, subjects, items, out, batch_size, say) for each in planned]
    results = Ledger(out / RESULTS, say)
    for subject in subjects:
        results.append(_line(subject, item, ledgers) for item in items)
    return [results.rows[subject.key, item.index] for subject in subjects for item in items]


def _looked(
    planned: Planned,
    subjects: Sequence[Subject],
    items: Sequence[Item],
    out: Path,
    batch_size: int,
    say: Say,
) -> Ledger:
    """Its file complete; it is loaded only if something is missing, and let go of at the end."""
    (out / SCORES).mkdir(exist_ok=True)
    ledger = Ledger(out / SCORES / f"{planned.name}.jsonl", say)
    look: Look | None = None
    for batch in batches(items, batch_size):
        if not ledger.missing(_places(subjects, batch)):
            continue
        if look is None:
            say(
                f"{planned.name}: looking at {len(ledger.missing(_places(subjects, items)))} images"
            )
            look = planned.load()
        ledger.append(_rows(look, subjects, batch, out))
    return ledger


def _rows(
    look: Look, subjects: Sequence[Subject], batch: Sequence[Item], out: Path
) -> Iterator[Row]:
    images = {subject.key: load_images(out, subject.key, batch) for subject in subjects}
    found = look(Shown(batch, images, {subject.key: subject.base for subject in subjects}))
    for subject in subjects:
        each = {name: values.tolist() for name, values in found.get(subject.key, {}).items()}
        for place, item in enumerate(batch):
            numbers = {
                name: values[place] for name, values in each.items() if math.isfinite(values[place])
            }
            yield {"model": subject.key, "index": item.index, "numbers": numbers}


def _line(subject: Subject, item: Item, ledgers: Sequence[Ledger]) -> Row:
    numbers = {
        name: value
        for ledger in ledgers
        for name, value in ledger.rows[subject.key, item.index]["numbers"].items()
    }
    file = file_of(subject.key, item.index)
    return {
        "model": subject.key,
        "index": item.index,
        "prompt": item.prompt,
        "seed": item.seed,
        "file": file,
        "group": item.group,
        "numbers": numbers,
    }


def _places(subjects: Sequence[Subject], items: Sequence[Item]) -> list[Place]:
    return [(subject.key, item.index) for subject in subjects for item in items]
