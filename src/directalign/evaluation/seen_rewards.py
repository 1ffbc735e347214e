"""The rewards that a comparison asks: those that its runs were trained on, those they held out, and those named on the command line.

Each is asked once, whoever brought it. A model that was trained on it is marked: its score there is what was paid for, not evidence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from .. import config
from ..rewards.resolve import RECIPES, reward_settings
from ..types import DirectAlignError
from .held_out import LABEL, key_of
from .subjects import Subject

OPTION = "--reward"
NOT_ITS_OWN = {"scale", "gradient_checkpointing"}
"""Settings in which the same reward may stand in two recipes."""


@dataclass(frozen=True)
class SeenReward:
    """A reward with its label; `key` is where it stands, for errors; `trained` are the keys of the models that were trained on it."""

    label: str
    settings: config.SingleReward
    key: str
    trained: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """In words: clip world:reward."""
        which = getattr(self.settings, "path", None) or getattr(self.settings, "statistic", None) or getattr(self.settings, "url", "")
        return f"{self.settings.name} {which}".strip()


def rewards_of(subjects: Sequence[Subject], given: Sequence[str]) -> list[SeenReward]:
    """All rewards at hand, trained-on ones first; `given` are LABEL=RECIPE, LABEL=PATH of a CLIP or SigLIP, or LABEL={name: pixels, ...}.

    Raises: DirectAlignError for a label that names no file, a label given twice, and a reward that cannot be read.
    """
    found: dict[str, SeenReward] = {}
    for each in [*_trained(subjects), *_held_out(subjects), *map(_given, given)]:
        same = json.dumps(each.settings.model_dump(mode="json", exclude=NOT_ITS_OWN), sort_keys=True)
        known = found.get(same)
        found[same] = each if known is None else replace(known, trained=tuple(dict.fromkeys((*known.trained, *each.trained))))
    return _apart(list(found.values()))


def words_of(subjects: Sequence[Subject], positive: Sequence[str], negative: Sequence[str]) -> config.ControlPhrases:
    """The phrases of the style gap: as asked, else of the first run that has both kinds, else those of the paper."""
    if bool(positive) != bool(negative):
        raise DirectAlignError("--positive and --negative: the style gap is the difference between the two; give both or neither")
    if positive:
        return config.ControlPhrases(positive=list(positive), negative=list(negative))
    words = [each.recipe.method.words for each in subjects if each.recipe is not None]
    plain = [config.ControlPhrases(positive=_plain(each.positive), negative=_plain(each.negative)) for each in words]
    return next((each for each in plain if each.positive and each.negative), config.ControlPhrases(positive=["Realistic photo"], negative=["CG Render"]))


def _plain(phrases: Sequence[str]) -> list[str]:
    """Without learned tokens, which belong to the reward that they were fitted to."""
    return [phrase for phrase in phrases if not phrase.endswith(".safetensors")]


def _trained(subjects: Sequence[Subject]) -> Iterator[SeenReward]:
    for subject in subjects:
        if subject.recipe is None:
            continue
        reward = subject.recipe.reward
        if isinstance(reward, config.Mix):
            yield from (SeenReward(each.label, each.reward, f"{subject.source}: reward {each.label}", (subject.key,)) for each in reward.members)
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
        raise DirectAlignError(f"{OPTION} {text}: write it as LABEL=RECIPE, LABEL=PATH or LABEL='{{name: pixels, ...}}', the label of letters, digits, _ and -")
    return SeenReward(label, _section(source, f"{OPTION} {label}"), f"{OPTION} {label}")


def _section(source: str, where: str) -> config.SingleReward:
    """From a recipe, from a section in YAML, here or in a file, or from a model's folder."""
    text = Path(source).read_text(encoding="utf-8") if Path(source).suffix in RECIPES and Path(source).is_file() else source
    try:
        section: Any = yaml.safe_load(text) if text is not source or source.startswith("{") else None
    except yaml.YAMLError as error:
        raise DirectAlignError(f"{where}: {source!r:.80} is not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(section, dict) or "name" not in section or "model" in section:
        return reward_settings(source)
    try:
        return TypeAdapter(config.SingleReward).validate_json(json.dumps(section))
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise DirectAlignError(f"{where}: {'.'.join(map(str, first['loc'][1:])) or 'section'}: {first['msg']}; see docs/rewards.md") from error


def _label(settings: config.SingleReward) -> str:
    """A name from what tells it from others: world_reward of clip world:reward, redness of pixels."""
    named = getattr(settings, "statistic", None) or getattr(settings, "path", None) or settings.name
    last = str(named).rstrip("/").split("/")[-1].removesuffix(".safetensors").removesuffix(".pt").split(":")
    plain = "_".join("".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in part) for part in last).strip("_-")
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
