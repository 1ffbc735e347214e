"""`directalign compare` and `evaluate`: models on the same prompts and seeds, resumable.

    models, prompts, rewards  ->  images  ->  metrics of every image  ->  summary  ->  page

Invalid requests are refused before the first model is loaded. Models are loaded one after the
other, rewards after them, so memory holds one at a time. docs/evaluation.md describes the folder
and the metrics.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import config
from ..io.atomic import exclusive, make_folder, write_text
from ..io.text import read_json
from ..metrics import SCORE, SGP
from ..report import write_page
from ..report.page import flat
from ..report.read import COMPARISON, FORMAT, RESULTS, SUMMARY
from ..rewards import check_reward, reward_cuts
from ..toyworld.judges import foreign_prompt
from ..toyworld.worlds import WORLDS
from ..types import DirectAlignError
from . import eval_prompts
from .adherence import adherence_settings
from .candidate_scores import MetricGroup, adherence_group, metric_groups, score_candidates
from .candidates import (
    BASE,
    Candidate,
    generate_all,
    open_candidates,
    samples_of_images,
    with_references,
    with_sources,
)
from .eval_rewards import EvalReward, eval_rewards, gap_phrases
from .references import references
from .results import summarise
from .run_weights import split_weights

logger = logging.getLogger(__name__)
OWN = ("images", "scores", RESULTS, SUMMARY)
PAIRS = "prompts and seeds"
UNTRAINED_SECTIONS = ("model", "rollout")
"""The sections of a recipe that determine an untrained model's images."""
BATCH_SIZE = 16
MAX_CONTROL_SAMPLES = 64
TUNED = "tuned"


@dataclass(frozen=True)
class Request:
    """A comparison as requested; None takes the value of the runs' recipes.

    `sources`: SOURCE or LABEL=SOURCE. `base`: add the model that the runs began with; `references`:
    it asked with the positive phrases, and photographs where the toy world's judge is. `rollout`:
    settings of `config.RolloutConfig` for all models. `rewards`: further ones, LABEL=RECIPE.
    `metrics`: further ones, file.py:name. `adherence`: its judge, as `adherence_settings` reads it.
    `batch_size`: images generated, or evaluated, at once. `command` and `where` (commit, machine,
    versions) are stored in the record.
    """

    sources: tuple[str, ...]
    out: Path
    base: bool = False
    prompts: str | None = None
    num_samples: int | None = None
    seeds_per_prompt: int | None = None
    rollout: Mapping[str, Any] = field(default_factory=dict)
    rewards: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    judge: config.Judge | None = None
    control_prompts: str | None = None
    adherence: str | None = None
    references: bool = False
    batch_size: int | None = None
    command: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)


def compare(request: Request) -> Path:
    """Evaluate the models of a request; returns its folder. Existing results are reused.

    Raises: DirectAlignError for an invalid request, before loading where possible; for a full disk.
    """
    return _compare(request, open_candidates(request.sources, request.base, request.rollout))


def evaluate_run(request: Request) -> Path:
    """Compare a run with the model it began with, under the keys `tuned` and `base`."""
    (source,) = request.sources
    if not (Path(split_weights(source)[0]) / "run.yaml").is_file():
        raise DirectAlignError(
            f"{source}: holds no run (no run.yaml); give the folder that directalign train wrote, "
            "or use directalign compare"
        )
    candidates = open_candidates(request.sources, True, request.rollout)
    return _compare(
        request, [each if each.key == BASE else replace(each, key=TUNED) for each in candidates]
    )


def _compare(request: Request, candidates: list[Candidate]) -> Path:
    out, recipes = request.out, [each.recipe for each in candidates if each.recipe is not None]
    candidates = with_sources(candidates)
    if request.control_prompts is not None and candidates[0].edits:
        raise DirectAlignError(
            f"--control-prompts: {candidates[0].source} edits images, and these prompts have none: "
            "leave it out"
        )
    samples, source, files = _samples(request, candidates, recipes)
    rewards = eval_rewards(candidates, request.rewards)
    phrases = gap_phrases(candidates, request.positive, request.negative)
    judge = _judge(request, recipes, samples)
    control_prompts = None
    if not any(each.kind == "images" for each in candidates):
        of_recipes = (each.evaluate.control_prompts for each in recipes)
        control_prompts = request.control_prompts or next(filter(None, of_recipes), None)
    if request.references:
        drawn = judge != "none" and control_prompts is None
        candidates = with_references(candidates, references(phrases.positive, drawn))
        if judge != "none" and not drawn:
            logger.info("photographs are left out: there are none of control prompts")
    prompts, sides = [each.prompt for each in samples], [*phrases.positive, *phrases.negative]
    for each in rewards:
        check_reward(each.settings, each.key)
        for sentence in reward_cuts(each.settings, each.key, prompts, sides, online=True):
            logger.warning(sentence)
    if control_prompts is not None:
        wanted = [name for each in recipes for name in each.method.control_phrases.positive]
        unwanted_styles = config.ControlPhrases(positive=wanted)
        count = min(MAX_CONTROL_SAMPLES, len(samples))
        samples += eval_prompts.control_samples(
            control_prompts, unwanted_styles, len(samples), count
        )
    batch_size = request.batch_size or BATCH_SIZE
    named = [metric for each in recipes for metric in each.evaluate.metrics]
    named += [config.UserMetricConfig(path=path) for path in request.metrics]
    own = [each for place, each in enumerate(named) if each not in named[:place]]
    groups = metric_groups(rewards, phrases, judge, control_prompts, batch_size, own)
    adherence = next(filter(None, (each.evaluate.adherence for each in recipes)), None)
    if request.adherence is not None:
        adherence = adherence_settings(request.adherence)
    if adherence is not None:
        groups.append(adherence_group(adherence, samples, out))
    record = _record(request, candidates, samples, source, rewards, phrases)
    identity = _identity(candidates, samples, groups, phrases, control_prompts)
    claim_folder(out, {**record, **request.where}, identity)
    if differing := record["differing"]:
        logger.info(
            f"the models are not sampled alike: {', '.join(differing)} differ; "
            "give the option to all for one setting"
        )
    with exclusive(out, "at work on this comparison"):
        generate_all(candidates, samples, files, out, request.batch_size)
        rows = score_candidates(groups, candidates, samples, out, batch_size)
        about = {name: each for group in groups for name, each in group.metrics.items()}
        summary = summarise([each.key for each in candidates], rows, about)
        text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(out / SUMMARY, text)
        write_page(out)
    return out


def _samples(
    request: Request, candidates: Sequence[Candidate], recipes: Sequence[config.RunConfig]
) -> tuple[list[eval_prompts.EvalSample], str, dict[str, list[Path]]]:
    """The samples, the source of their prompts, and the files of candidates that are images."""
    sets = [each for each in candidates if each.kind == "images"]
    if sets:
        given = {
            "--prompts": request.prompts,
            "--seeds-per-prompt": request.seeds_per_prompt,
            "--control-prompts": request.control_prompts,
        }
        option = next((option for option, value in given.items() if value is not None), None)
        if option is not None:
            raise DirectAlignError(
                f"{option}: {sets[0].source} holds images of its own prompts and seeds, "
                "which all models are compared on; leave it out"
            )
        samples, files = samples_of_images(sets, request.num_samples)
        return samples, sets[0].source, files
    num_samples = request.num_samples
    rows: Sequence[eval_prompts.PromptRow]
    if request.prompts is not None:
        read = eval_prompts.read_edits if candidates[0].edits else eval_prompts.read_prompt_set
        rows, source = read(request.prompts), request.prompts
    elif recipes:
        rows = eval_prompts.measured_rows(recipes[0])
        _, source = eval_prompts.measured_source(recipes[0])
        if num_samples is None:
            num_samples = recipes[0].evaluate.num_samples
    else:
        raise DirectAlignError(
            "--prompts: no run is compared whose prompts could be used; "
            "give a list of prompts, or world"
        )
    seeds_per_prompt = request.seeds_per_prompt or eval_prompts.SEEDS_PER_PROMPT
    return eval_prompts.samples_of_rows(rows, num_samples, seeds_per_prompt), source, {}


def _judge(
    request: Request,
    recipes: Sequence[config.RunConfig],
    samples: Sequence[eval_prompts.EvalSample],
) -> str:
    """The requested judge, else that of the recipes if it can read the prompts."""
    of_recipes = (each.evaluate.judge for each in recipes if each.evaluate.judge != "none")
    judge = request.judge or next(of_recipes, "none")
    if judge == "none":
        return judge
    foreign = foreign_prompt(WORLDS[judge], (each.prompt for each in samples))
    if foreign is None:
        return judge
    problem = f"{foreign!r:.80} is no caption of {WORLDS[judge].title}"
    if request.judge is not None:
        raise DirectAlignError(
            f"--judge {judge}: {problem}, which is all that its judge can read; leave it out"
        )
    logger.info(f"its judge is left out: {problem}")
    return "none"


def _record(
    request: Request,
    candidates: Sequence[Candidate],
    samples: Sequence[eval_prompts.EvalSample],
    source: str,
    rewards: Sequence[EvalReward],
    phrases: config.ControlPhrases,
) -> dict[str, Any]:
    """The description of the comparison for readers of the folder.

    "differing": dotted names of the sampling settings that are not the same for all models.
    """
    own = [sample for sample in samples if not sample.is_control]
    prompts = {
        "source": source,
        "count": len({sample.prompt for sample in own}),
        "images": len(own),
        "control_prompts": len(samples) - len(own),
    }
    models = []
    for each in candidates:
        labels = [reward.label for reward in rewards if each.key in reward.trained]
        recipe = each.recipe.model_dump(mode="json") if each.recipe else _sections(each)
        about = {name: getattr(each, name) for name in ("key", "label", "source", "kind")}
        about["trained_on"] = [f"{kind}{label}" for label in labels for kind in (SCORE, SGP)]
        weights = each.trained.words if each.trained is not None else []
        about |= {"base": each.base, "settings": flat(recipe) if recipe else None}
        about["weights"] = weights
        about |= {"phrase": each.phrase} if each.phrase else {}
        models.append(about)
    runs = [each.run.rollout for each in candidates if each.run is not None]
    left_out: set[str] = set(config.TRAINING_ONLY)
    rollouts = [flat({"rollout": e.model_dump(mode="json", exclude=left_out)}) for e in runs]
    first = rollouts[0] if rollouts else {}
    differing = [name for name in first if any(e.get(name) != first[name] for e in rollouts)]
    return {
        "format": FORMAT,
        "models": models,
        "prompts": prompts,
        "seed_of_pairs": eval_prompts.FIRST_SEED,
        "control_phrases": {"positive": phrases.positive, "negative": phrases.negative},
        "differing": differing,
        "command": request.command,
    }


def _identity(
    candidates: Sequence[Candidate],
    samples: Sequence[eval_prompts.EvalSample],
    groups: Sequence[MetricGroup],
    phrases: config.ControlPhrases,
    control_prompts: str | None,
) -> dict[str, Any]:
    """What must be unchanged to resume: weights and sampling of models, samples, metrics."""
    keys = [(each.prompt, each.seed, each.group, *_edited(each)) for each in samples]
    pairs = json.dumps(keys, ensure_ascii=False)
    identity = {
        "models": {
            each.key: {"source": each.source, "kind": each.kind}
            | ({"phrase": each.phrase} if each.phrase else {})
            | _weights(each)
            | _sections(each)
            for each in candidates
        },
        PAIRS: hashlib.sha256(pairs.encode()).hexdigest()[:16],
        "metrics": {group.name: group.settings for group in groups},
        "control_phrases": phrases.model_dump(mode="json"),
        "control_prompts": control_prompts,
    }
    return json.loads(json.dumps(identity))


def _edited(sample: eval_prompts.EvalSample) -> list[tuple[str, int, int]]:
    """Name, size and time of the files that a prompt edits."""
    source = sample.source
    files = [] if source is None else [file for file in (source.image, source.mask) if file]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _sections(candidate: Candidate) -> dict[str, Any]:
    if candidate.run is None or candidate.kind == "photographs":
        return {}
    return candidate.run.model_dump(mode="json", include=set(UNTRAINED_SECTIONS))


def _weights(candidate: Candidate) -> dict[str, Any]:
    """Strength, and size and time of the files of weights or images, which tell a retrained run."""
    if candidate.kind == "images":
        folder = Path(candidate.source)
        files = sorted(folder.glob("*"))
    elif candidate.kind == "run" and candidate.trained is not None:
        folder, files = candidate.trained.folder, candidate.trained.files
    else:
        return {}
    stats = {str(file.relative_to(folder)): file.stat() for file in files}
    sizes = {name: [each.st_size, each.st_mtime_ns] for name, each in stats.items()}
    found: dict[str, Any] = {"files": sizes}
    if candidate.trained is not None and candidate.trained.strength != 1:
        found["strength"] = candidate.trained.strength
    return found


def claim_folder(out: Path, record: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Write comparison.json, or check that an existing one has the same identity.

    Raises: DirectAlignError for an `out` that is a file, cannot be created, or holds something
    else; of another comparison it names the first difference.
    """
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"--out {out} is a file; name a folder")
    file = out / COMPARISON
    if file.is_file():
        content = read_json(file, "name another --out")
        if content.get("format") != FORMAT or not isinstance(content.get("identity"), dict):
            raise DirectAlignError(
                f"{file}: not a comparison of this version (format {FORMAT}); name another --out"
            )
        _check_same(out, content["identity"], identity)
        return
    taken = [name for name in OWN if (out / name).exists()]
    if taken:
        raise DirectAlignError(
            f"--out {out} holds {', '.join(taken)} and no {COMPARISON}; name another folder"
        )
    make_folder(out)
    whole = {**record, "identity": identity}
    write_text(file, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


def _check_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse another identity; a model's folder may have moved if its files are known."""

    def comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
        found = flat(identity)
        known = {f"{name.split('.files.')[0]}.source" for name in found if ".files." in name}
        return {name: value for name, value in found.items() if name not in known}

    old, new = comparable(before), comparable(now)
    changed = next((name for name in (*new, *old) if old.get(name) != new.get(name)), None)
    if changed is not None:
        was, is_ = (f"{s[changed]!r:.80}" if changed in s else "nothing" for s in (old, new))
        what = f"{changed} was {was} and is now {is_}"
        if changed == PAIRS:
            what = f"{changed} (--prompts, --num-samples, --seeds-per-prompt) are others now"
        raise DirectAlignError(
            f"--out {out} holds another comparison: {what}; name another folder, or remove that one"
        )
