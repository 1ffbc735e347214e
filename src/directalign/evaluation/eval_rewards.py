"""The rewards of a comparison: trained ones, held-out ones of recipes, those of `--reward`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import config
from ..config.load import parse_section
from ..io.text import read_text
from ..io.yaml_text import MAX_BYTES, parse_yaml
from ..rewards import reward_settings
from ..types import DirectAlignError
from .candidates import Candidate, numbered
from .scores import LABEL, held_out_key, plain_phrases

OPTION = "--reward"
NOT_COMPARED = {"scale", "gradient_checkpointing"}
"""Settings in which two sections of the same reward may differ."""


@dataclass(frozen=True)
class EvalReward:
    """A reward; `key` names it in errors; `trained`: keys of the candidates trained on it.

    `model`: of a run that has it, whose VAE encodes images for a reward that sees latents.
    """

    label: str
    settings: config.SingleRewardConfig
    key: str
    trained: tuple[str, ...] = ()
    model: config.ModelConfig | None = None

    @property
    def kind(self) -> str:
        """In words: clip world:reward."""
        names = (getattr(self.settings, name, None) for name in ("path", "statistic", "url"))
        return f"{self.settings.name} {next(filter(None, names), '')}".strip()


def eval_rewards(candidates: Sequence[Candidate], options: Sequence[str]) -> list[EvalReward]:
    """All rewards, each once, trained ones first; equal labels get a number (`light-2`).

    Args:
        options: LABEL=RECIPE, LABEL=PATH of a CLIP or SigLIP, or LABEL={name: pixels, ...}.
    Raises:
        DirectAlignError: an invalid option, or a reward that cannot be read.
    """
    unique: dict[str, EvalReward] = {}
    held_out = [
        EvalReward(
            label, settings, f"{each.source}: {held_out_key(label)}", model=each.recipe.model
        )
        for each in candidates
        if each.recipe is not None
        for label, settings in each.recipe.evaluate.rewards.items()
    ]
    for each in [*_trained(candidates), *held_out, *map(_from_option, options)]:
        dumped = each.settings.model_dump(mode="json", exclude=NOT_COMPARED)
        same = json.dumps(dumped, sort_keys=True)
        known = unique.get(same, replace(each, trained=()))
        trained = tuple(dict.fromkeys((*known.trained, *each.trained)))
        unique[same] = replace(known, trained=trained)
    found: list[EvalReward] = []
    for each in unique.values():
        label = numbered(each.label, "-", [other.label for other in found])
        found.append(replace(each, label=label))
    return found


def gap_phrases(
    candidates: Sequence[Candidate], positive: Sequence[str], negative: Sequence[str]
) -> config.ControlPhrases:
    """The given phrases, else those of the first run with both kinds, else the SRPO paper's."""
    if bool(positive) != bool(negative):
        raise DirectAlignError(
            "--positive and --negative: the style gap is the difference between the two; "
            "give both or neither"
        )
    if positive:
        return config.ControlPhrases(positive=list(positive), negative=list(negative))
    for recipe in (each.recipe for each in candidates if each.recipe is not None):
        phrases = recipe.method.control_phrases
        plain = plain_phrases(phrases.positive), plain_phrases(phrases.negative)
        if all(plain):
            return config.ControlPhrases(positive=plain[0], negative=plain[1])
    return config.ControlPhrases(positive=["Realistic photo"], negative=["CG Render"])


def _trained(candidates: Sequence[Candidate]) -> Iterator[EvalReward]:
    for candidate in candidates:
        if candidate.recipe is None:
            continue
        reward, where = candidate.recipe.reward, f"{candidate.source}: reward"
        run = (candidate.key,), candidate.recipe.model
        if isinstance(reward, config.MixtureConfig):
            for member in reward.members:
                key = f"{where} {member.label}"
                yield EvalReward(member.label, member.reward, key, *run)
        else:
            yield EvalReward(_label(reward), reward, where, *run)


def _from_option(text: str) -> EvalReward:
    """Of a recipe, a reward section in YAML (inline or in a file), or the folder of a model."""
    label, equals, source = text.partition("=")
    if not equals or not LABEL.fullmatch(label) or not source:
        raise DirectAlignError(
            f"{OPTION} {text}: write it as LABEL=RECIPE, LABEL=PATH or "
            "LABEL='{name: pixels, ...}', the label of letters, digits, _ and -"
        )
    is_file = Path(source).suffix in (".yaml", ".yml") and Path(source).is_file()
    text = read_text(Path(source), "reward section", MAX_BYTES) if is_file else source
    section, where = None, f"{OPTION} {label}"
    if is_file or source.startswith("{"):
        section = parse_yaml(text, f"{where}: {source!r:.80}", "is not YAML")
    if not isinstance(section, dict) or "name" not in section or "model" in section:
        return EvalReward(label, reward_settings(source), where)
    found = parse_section(config.SingleRewardConfig, section, where, "see docs/rewards.md")
    return EvalReward(label, found, where)


def _label(settings: config.SingleRewardConfig) -> str:
    """A label from the settings: world_reward of clip world:reward, redness of pixels."""
    named = getattr(settings, "statistic", None) or getattr(settings, "path", None) or settings.name
    last = str(named).rstrip("/").split("/")[-1].removesuffix(".safetensors").removesuffix(".pt")
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in last)
    return plain.strip("_-") or settings.name
