"""`directalign compare` and `directalign evaluate`: any number of models on the same prompts and seeds, in one folder that can be gone on with.

    models, prompts, rewards  ->  images of every model  ->  looks at them  ->  a line per image  ->  intervals, differences, wins  ->  page

Everything that can be refused is refused before the first model is loaded. Then models are loaded one after the other, and after them
rewards, so that memory holds one of either. See docs/evaluation.md for the folder and the numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from .. import config
from ..interfaces import Judge
from ..io.jsonl import Say, told_where_full, write_whole
from ..metrics import SCORE, SGP, Metric
from ..report import write_page
from ..rewards import check_reward
from ..toyworld.judges import load_judge
from ..toyworld.scenes import all_captions
from ..types import DirectAlignError
from .adherence_look import adherence_asked, planned_adherence
from .candidate_images import draw_all
from .candidates import BASE, Subject, items_of_images, open_subjects
from .eval_prompts import FIRST_SEED, PromptRow, measured_prompts, read_prompt_set
from .eval_samples import SEEDS_PER_PROMPT, Item, items_of, off_topic_items, unreadable
from .results import summarise
from .scores import Planned, SeenReward, look_at_all, planned_looks, rewards_of, words_of

FORMAT = 1
COMPARISON = "comparison.json"
OWN = ("images", "scores", "results.jsonl", "summary.json")
NO_TRAINING = ("model", "rollout")
"""The sections of a recipe that matter for a model that was not trained."""


def described(
    subjects: Sequence[Subject],
    items: Sequence[Item],
    source: str,
    rewards: Sequence[SeenReward],
    words: config.ControlPhrases,
    command: str,
) -> dict[str, Any]:
    """What a reader of the folder must know, without what it ran on."""
    own = [item for item in items if not item.control_prompts]
    prompts = {
        "source": source,
        "count": len({item.prompt for item in own}),
        "images": len(own),
        "control_prompts": len(items) - len(own),
    }
    return {
        "format": FORMAT,
        "models": [_model(subject, rewards) for subject in subjects],
        "prompts": prompts,
        "seed_of_pairs": FIRST_SEED,
        "control_phrases": {"positive": words.positive, "negative": words.negative},
        "differing": differing(subjects),
        "command": command,
    }


def asked(
    subjects: Sequence[Subject],
    items: Sequence[Item],
    looks: Sequence[Planned],
    words: config.ControlPhrases,
    control_prompts: str | None,
) -> dict[str, Any]:
    """What must be the same for a comparison to be gone on with: models and their weights, how they are sampled, prompts and seeds, looks."""
    pairs = json.dumps([(item.prompt, item.seed, item.group) for item in items], ensure_ascii=False)
    models = {
        subject.key: {
            "source": subject.source,
            "kind": subject.kind,
            **_weights(subject),
            **_sections(subject),
        }
        for subject in subjects
    }
    return {
        "models": models,
        "prompts and seeds": hashlib.sha256(pairs.encode()).hexdigest()[:16],
        "looks": {look.name: look.settings for look in looks},
        "control_phrases": words.model_dump(mode="json"),
        "control_prompts": control_prompts,
    }


def claim(
    out: Path, told: Mapping[str, Any], now: Mapping[str, Any], where: Mapping[str, Any]
) -> None:
    """Write comparison.json, or go on with one of the same question; `where` (commit, machine, versions) is of the process that began it.

    Raises: DirectAlignError for an `out` that is a file, holds something else, or holds another comparison: the first difference is named.
    """
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"--out {out} is a file; name a folder")
    file, whole = out / COMPARISON, json.loads(json.dumps(now))
    if file.is_file():
        _check_same(out, _read(file).get("asked", {}), whole)
        return
    taken = [name for name in OWN if (out / name).exists()]
    if taken:
        raise DirectAlignError(
            f"--out {out} holds {', '.join(taken)} and no {COMPARISON}; name another folder"
        )
    try:
        with told_where_full(out):
            out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise DirectAlignError(
            f"--out {out} cannot be made: {error.strerror}; name a folder that you may write to"
        ) from error
    write_whole(
        file, json.dumps({**told, **where, "asked": whole}, indent=2, ensure_ascii=False) + "\n"
    )


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """No other process writes to the folder meanwhile; the hold ends with this process, however that ends. Raises: DirectAlignError if there is one."""
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DirectAlignError(
            f"--out {out}: another process is at work on this comparison; wait for it, or end it first"
        ) from error
    try:
        yield
    finally:
        lock.release()


def differing(subjects: Sequence[Subject]) -> list[str]:
    """The settings of sampling that are not the same for all models, by their dotted names."""
    settings = [
        flat({"rollout": subject.run.rollout.model_dump(mode="json", exclude={"sizes"})})
        for subject in subjects
        if subject.run is not None
    ]
    return [
        name
        for name in (settings[0] if settings else {})
        if any(each.get(name) != settings[0][name] for each in settings)
    ]


def flat(section: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists stay values."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        dotted = f"{above}{name}"
        found |= (
            flat(value, f"{dotted}.") if isinstance(value, Mapping) and value else {dotted: value}
        )
    return found


def _model(subject: Subject, rewards: Sequence[SeenReward]) -> dict[str, Any]:
    own = [each.label for each in rewards if subject.key in each.trained]
    trained_on = [f"{prefix}{label}" for label in own for prefix in (SCORE, SGP)]
    settings = flat(_sections(subject)) if subject.run else None
    if subject.recipe is not None:
        settings = flat(subject.recipe.model_dump(mode="json"))
    told = {
        "key": subject.key,
        "label": subject.label,
        "source": subject.source,
        "kind": subject.kind,
        "trained_on": trained_on,
        "base": subject.base,
    }
    return {**told, "settings": settings}


def _sections(subject: Subject) -> dict[str, Any]:
    return (
        {} if subject.run is None else subject.run.model_dump(mode="json", include=set(NO_TRAINING))
    )


def _weights(subject: Subject) -> dict[str, Any]:
    """Size and time of the trained weights' files, or of images: a run that was trained again is another model."""
    folder = (
        subject.trained
        if subject.kind == "run"
        else Path(subject.source)
        if subject.kind == "images"
        else None
    )
    if folder is None:
        return {}
    files = sorted(file for file in folder.glob("*") if subject.kind == "images") or list(
        _safetensors(folder)
    )
    return {
        "files": {
            str(file.relative_to(folder)): [file.stat().st_size, file.stat().st_mtime_ns]
            for file in files
        }
    }


def _safetensors(folder: Path) -> Iterator[Path]:
    for part in (folder, folder / "transformer", folder / "unet"):
        yield from sorted(part.glob("*.safetensors"))


def _check_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = _identity(before), _identity(now)
    changed = next((name for name in (*new, *old) if old.get(name) != new.get(name)), None)
    if changed is not None:
        was, now_ = (
            f"{each[changed]!r:.80}" if changed in each else "nothing" for each in (old, new)
        )
        raise DirectAlignError(
            f"--out {out} holds another comparison: {changed} was {was} and is now {now_}; name another folder, or remove that one"
        )


def _identity(question: Mapping[str, Any]) -> dict[str, Any]:
    """`question` without the folders of models whose files are known: a run that was moved, or named by another path, is the same."""
    found = flat(question)
    known = {name.split(".files.")[0] for name in found if ".files." in name}
    return {
        name: value for name, value in found.items() if name.removesuffix(".source") not in known
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DirectAlignError(f"{file}: not JSON ({error}); name another --out") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DirectAlignError(
            f"{file}: not a comparison of this version (format {FORMAT}); name another --out"
        )
    return content


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
    num_samples: int | None = None
    seeds_per_prompt: int | None = None
    rollout: Mapping[str, Any] = field(default_factory=dict)
    rewards: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    judge: Literal["world", "none"] | None = None
    control_prompts: str | None = None
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
        raise DirectAlignError(
            f"{source}: holds no run (no run.yaml); give the folder that directalign train wrote, or use directalign compare"
        )
    subjects = open_subjects(request.sources, True, request.rollout)
    return _compare(
        request, [each if each.key == BASE else replace(each, key=TUNED) for each in subjects], say
    )


def judge_of(run: config.RunConfig) -> Judge | None:
    """The judge that a recipe asks for."""
    return load_judge() if run.evaluate.judge == "world" else None


def _compare(request: Request, subjects: list[Subject], say: Say) -> Path:
    items, source, files = _items(request, subjects)
    rewards, words = (
        rewards_of(subjects, request.rewards),
        words_of(subjects, request.positive, request.negative),
    )
    judge, control_prompts = _judge(request, subjects, items, say), _off_topic(request, subjects)
    _check_rewards(rewards)
    if control_prompts is not None:
        wanted = config.ControlPhrases(
            positive=[
                phrase
                for each in _recipes(subjects)
                for phrase in each.method.control_phrases.positive
            ]
        )
        items += off_topic_items(
            control_prompts, wanted, len(items), min(MOST_OFF_TOPIC, len(items))
        )
    batch_size = request.batch_size or LOOKED_AT_ONCE
    looks = planned_looks(rewards, words, judge, control_prompts, batch_size)
    adherence = adherence_asked(request.adherence, subjects)
    looks += [] if adherence is None else [planned_adherence(adherence, items, request.out, say)]
    told = described(subjects, items, source, rewards, words, request.command)
    claim(request.out, told, asked(subjects, items, looks, words, control_prompts), request.where)
    _say_what_differs(subjects, say)
    with alone(request.out):
        draw_all(subjects, items, files, request.out, request.batch_size, say)
        lines = look_at_all(looks, subjects, items, request.out, batch_size, say)
        about = {name: each for look in looks for name, each in look.about.items()}
        return _finish(request.out, [subject.key for subject in subjects], lines, about)


def _finish(
    out: Path, keys: Sequence[str], lines: Sequence[Mapping[str, Any]], about: Mapping[str, Metric]
) -> Path:
    summary = summarise(keys, lines, about)
    write_whole(
        out / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    with told_where_full(out):
        write_page(out)
    return out


def _items(
    request: Request, subjects: Sequence[Subject]
) -> tuple[list[Item], str, dict[str, list[Path]]]:
    """The items, where their prompts come from, and the files of subjects that are images."""
    sets = [subject for subject in subjects if subject.kind == "images"]
    if sets:
        given = {
            "--prompts": request.prompts,
            "--seeds-per-prompt": request.seeds_per_prompt,
            "--control-prompts": request.control_prompts,
        }
        taken = next((option for option, value in given.items() if value is not None), None)
        if taken is not None:
            raise DirectAlignError(
                f"{taken}: {sets[0].source} holds images of its own prompts and seeds, which all models are compared on; leave it out"
            )
        items, files = items_of_images(sets, request.num_samples)
        return items, sets[0].source, files
    rows, source = _prompts(request, subjects)
    num_samples = request.num_samples
    if num_samples is None and request.prompts is None:
        num_samples = _recipes(subjects)[0].evaluate.num_samples
    return items_of(rows, num_samples, request.seeds_per_prompt or SEEDS_PER_PROMPT), source, {}


def _prompts(request: Request, subjects: Sequence[Subject]) -> tuple[Sequence[PromptRow], str]:
    """The prompts asked for, or what the first run is measured on."""
    if request.prompts is not None:
        return read_prompt_set(request.prompts).rows, request.prompts
    recipes = _recipes(subjects)
    if not recipes:
        raise DirectAlignError(
            "--prompts: no run is compared whose prompts could be taken; give a list of prompts, or world"
        )
    data = recipes[0].data
    return [PromptRow(prompt) for prompt in measured_prompts(data)], str(
        data.prompts or data.images
    )


def _recipes(subjects: Sequence[Subject]) -> list[config.RunConfig]:
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
        raise DirectAlignError(
            f"--judge world: {lost!r:.80} is no caption of the embedded world, which is all that its judge can read; leave it out"
        )
    say(f"the world's judge is not asked: {lost!r:.80} is no caption of the embedded world")
    return "none"


def _off_topic(request: Request, subjects: Sequence[Subject]) -> str | None:
    """The control prompts asked for, or those of the first run that has some; none where images cannot be made of them."""
    if any(subject.kind == "images" for subject in subjects):
        return None
    return request.control_prompts or next(
        (
            each.evaluate.control_prompts
            for each in _recipes(subjects)
            if each.evaluate.control_prompts is not None
        ),
        None,
    )


def _check_rewards(rewards: Sequence[SeenReward]) -> None:
    """What would be refused after all images are made is refused before."""
    for each in rewards:
        check_reward(each.settings, each.key)


def _say_what_differs(subjects: Sequence[Subject], say: Say) -> None:
    names = differing(subjects)
    if names:
        say(
            f"the models are not sampled alike: {', '.join(names)} differ; give the option to all for one setting"
        )
