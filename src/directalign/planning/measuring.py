"""What is wrong with what a recipe measures by: off-topic prompts or a judge of adherence that cannot be read, what is trained on after all."""

from __future__ import annotations

from .. import config
from ..data.hf_datasets import is_address, parse
from ..data.prompts import read_prompts
from ..evaluation import adherence
from ..evaluation.control_prompts import KEY, WORLD, off_topic_prompts
from ..evaluation.scores import key_of
from ..types import DirectAlignError


def check_off_topic(run: config.RunConfig, online: bool = False) -> list[tuple[str, str]]:
    """The off-topic prompts as a finding, none where none are asked for.

    Raises: DirectAlignError for a list that cannot be read, and for a prompt in it that is trained on. Data sets on the hub are read when `online`.
    """
    source = run.evaluate.off_topic
    if source is None:
        return []
    if _is_far(source, online):
        return [("off topic", f"{source}, read when the run starts")]
    prompts = off_topic_prompts(source, run.method.words)
    if run.data.prompts is not None and not _is_far(run.data.prompts, online):
        trained = set(read_prompts(run.data.prompts))
        both = [prompt for prompt in prompts if prompt in trained]
        if both:
            raise DirectAlignError(f"{KEY}: {source}: {len(both)} of its prompts are trained on, first {both[0]!r:.60}; take them out of one of the two lists")
    return [("off topic", f"{len(prompts):,} prompts from {source}")]


def check_adherence(run: config.RunConfig, online: bool = False) -> list[tuple[str, str]]:
    """What judges adherence as a finding, none where nothing does. Raises DirectAlignError as `adherence.check_adherence`."""
    settings = run.evaluate.adherence
    if settings is None:
        return []
    adherence.check_adherence(settings, online=online)
    return [("adherence", f"judged afterwards by {settings.path}")]


def trained_on_too(run: config.RunConfig) -> list[str]:
    """A warning for each held-out reward that is the trained one after all, or a member of it, whatever its scale."""
    trained = [member.reward for member in run.reward.members] if isinstance(run.reward, config.MixtureConfig) else [run.reward]
    unscaled = [each.model_copy(update={"scale": 1.0}) for each in trained]
    same = [label for label, each in run.evaluate.rewards.items() if each.model_copy(update={"scale": 1.0}) in unscaled]
    return [f"{key_of(label)}: is a reward that is trained on, and cannot tell hacking; hold another one out" for label in same]


def _is_far(source: str, online: bool) -> bool:
    """Whether reading this would take a network, and none is to be used."""
    return source != WORLD and not online and is_address(source) and parse(source).folder is None
