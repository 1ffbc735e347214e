"""`directalign compare` and `directalign evaluate`: any number of models on the same prompts and seeds, in one folder that can be gone on with.

    models, prompts, rewards  ->  images of every model  ->  looks at them  ->  a line per image  ->  intervals, differences, wins  ->  page

Everything that can be refused is refused before the first model is loaded. Then models are loaded one after the other, and after them
rewards, so that memory holds one of either. See docs/evaluation.md for the folder and the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .. import config
from ..interfaces import Judge
from ..io.jsonl import Say, told_where_full, write_whole
from ..metrics import Metric
from ..report import write_page
from ..rewards import check_reward
from ..toyworld.judges import load_judge
from ..toyworld.scenes import all_captions
from ..types import DirectAlignError
from .adherence_look import adherence_asked, planned_adherence
from .comparison import alone, asked, claim, described, differing
from .drawing import draw_all
from .image_sets import items_of_images
from .items import SEEDS_PER_PROMPT, Item, items_of, off_topic_items, unreadable
from .looking import look_at_all
from .looks import planned_looks
from .pairs import measured_prompts
from .prompt_sets import PromptRow, read_prompt_set
from .results import summarise
from .seen_rewards import SeenReward, rewards_of, words_of
from .subjects import BASE, Subject, open_subjects

SUMMARY = "summary.json"
LOOKED_AT_ONCE = 16
MOST_OFF_TOPIC = 64
TUNED = "tuned"


@dataclass(frozen=True)
class Request:
    """What is asked for; None leaves it to the runs' recipes.

    `sources`: SOURCE or LABEL=SOURCE. `base`: add the model that the runs began with. `rollout`: settings of `config.Rollout` for all models.
    `rewards`: further ones, LABEL=RECIPE. `adherence`: its judge, as `adherence_settings` reads it. `batch_size`: images made, or looked at,
    at once. `command` and `where` (commit, machine, versions) go into the records.
    """

    sources: tuple[str, ...]
    out: Path
    base: bool = False
    prompts: str | None = None
    num_pairs: int | None = None
    seeds_per_prompt: int | None = None
    rollout: Mapping[str, Any] = field(default_factory=dict)
    rewards: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    judge: Literal["world", "none"] | None = None
    off_topic: str | None = None
    adherence: str | None = None
    batch_size: int | None = None
    command: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)


def compare(request: Request, say: Say = lambda words: None) -> Path:
    """Measure the models of a request; returns its folder. What is there already of the same request is not made again.

    Args:
        say: is told what goes on, a line at a time.
    Raises:
        DirectAlignError: whatever cannot be compared, before anything is loaded where it can be known; a full disk.
    """
    return _compare(request, open_subjects(request.sources, request.base, request.rollout), say)


def evaluate_run(request: Request, say: Say = lambda words: None) -> Path:
    """A run against the model that it began with: `compare` of one source with its base, under the keys `base` and `tuned`."""
    (source,) = request.sources
    if not (Path(source) / "run.yaml").is_file():
        raise DirectAlignError(f"{source}: holds no run (no run.yaml); give the folder that directalign train wrote, or use directalign compare")
    subjects = open_subjects(request.sources, True, request.rollout)
    return _compare(request, [each if each.key == BASE else replace(each, key=TUNED) for each in subjects], say)


def judge_of(run: config.Run) -> Judge | None:
    """The judge that a recipe asks for."""
    return load_judge() if run.evaluate.judge == "world" else None


def _compare(request: Request, subjects: list[Subject], say: Say) -> Path:
    items, source, files = _items(request, subjects)
    rewards, words = rewards_of(subjects, request.rewards), words_of(subjects, request.positive, request.negative)
    judge, off_topic = _judge(request, subjects, items, say), _off_topic(request, subjects)
    _check_rewards(rewards)
    if off_topic is not None:
        wanted = config.ControlPhrases(positive=[phrase for each in _recipes(subjects) for phrase in each.method.words.positive])
        items += off_topic_items(off_topic, wanted, len(items), min(MOST_OFF_TOPIC, len(items)))
    batch_size = request.batch_size or LOOKED_AT_ONCE
    looks = planned_looks(rewards, words, judge, off_topic, batch_size)
    adherence = adherence_asked(request.adherence, subjects)
    looks += [] if adherence is None else [planned_adherence(adherence, items, request.out, say)]
    told = described(subjects, items, source, rewards, words, request.command)
    claim(request.out, told, asked(subjects, items, looks, words, off_topic), request.where)
    _say_what_differs(subjects, say)
    with alone(request.out):
        draw_all(subjects, items, files, request.out, request.batch_size, say)
        lines = look_at_all(looks, subjects, items, request.out, batch_size, say)
        about = {name: each for look in looks for name, each in look.about.items()}
        return _finish(request.out, [subject.key for subject in subjects], lines, about)


def _finish(out: Path, keys: Sequence[str], lines: Sequence[Mapping[str, Any]], about: Mapping[str, Metric]) -> Path:
    summary = summarise(keys, lines, about)
    write_whole(out / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    with told_where_full(out):
        write_page(out)
    return out


def _items(request: Request, subjects: Sequence[Subject]) -> tuple[list[Item], str, dict[str, list[Path]]]:
    """The items, where their prompts come from, and the files of subjects that are images."""
    sets = [subject for subject in subjects if subject.kind == "images"]
    if sets:
        given = {"--prompts": request.prompts, "--seeds-per-prompt": request.seeds_per_prompt, "--off-topic": request.off_topic}
        taken = next((option for option, value in given.items() if value is not None), None)
        if taken is not None:
            raise DirectAlignError(f"{taken}: {sets[0].source} holds images of its own prompts and seeds, which all models are compared on; leave it out")
        items, files = items_of_images(sets, request.num_pairs)
        return items, sets[0].source, files
    rows, source = _prompts(request, subjects)
    num_pairs = request.num_pairs
    if num_pairs is None and request.prompts is None:
        num_pairs = _recipes(subjects)[0].evaluate.num_pairs
    return items_of(rows, num_pairs, request.seeds_per_prompt or SEEDS_PER_PROMPT), source, {}


def _prompts(request: Request, subjects: Sequence[Subject]) -> tuple[Sequence[PromptRow], str]:
    """The prompts asked for, or what the first run is measured on."""
    if request.prompts is not None:
        return read_prompt_set(request.prompts).rows, request.prompts
    recipes = _recipes(subjects)
    if not recipes:
        raise DirectAlignError("--prompts: no run is compared whose prompts could be taken; give a list of prompts, or world")
    data = recipes[0].data
    return [PromptRow(prompt) for prompt in measured_prompts(data)], str(data.prompts or data.images)


def _recipes(subjects: Sequence[Subject]) -> list[config.Run]:
    """Of the models that were trained."""
    return [subject.recipe for subject in subjects if subject.recipe is not None]


def _judge(request: Request, subjects: Sequence[Subject], items: Sequence[Item], say: Say) -> str:
    """The judge asked for, or that of the recipes, if it can read the prompts."""
    asked_by = any(each.evaluate.judge == "world" for each in _recipes(subjects))
    chosen = request.judge or ("world" if asked_by else "none")
    lost = unreadable(items, all_captions()) if chosen == "world" else None
    if lost is None:
        return chosen
    if request.judge is not None:
        raise DirectAlignError(f"--judge world: {lost!r:.80} is no caption of the embedded world, which is all that its judge can read; leave it out")
    say(f"the world's judge is not asked: {lost!r:.80} is no caption of the embedded world")
    return "none"


def _off_topic(request: Request, subjects: Sequence[Subject]) -> str | None:
    """The control prompts asked for, or those of the first run that has some; none where images cannot be made of them."""
    if any(subject.kind == "images" for subject in subjects):
        return None
    return request.off_topic or next((each.evaluate.off_topic for each in _recipes(subjects) if each.evaluate.off_topic is not None), None)


def _check_rewards(rewards: Sequence[SeenReward]) -> None:
    """What would be refused after all images are made is refused before."""
    for each in rewards:
        check_reward(each.settings, each.key)


def _say_what_differs(subjects: Sequence[Subject], say: Say) -> None:
    names = differing(subjects)
    if names:
        say(f"the models are not sampled alike: {', '.join(names)} differ; give the option to all for one setting")
