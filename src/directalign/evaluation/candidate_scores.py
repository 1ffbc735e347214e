"""Scores of a comparison: every metric of every image, one JSONL file per metric group, resumable.

scores/NAME.jsonl               {"model", "index", "numbers"}, NAME: pixels, judge, reward-LABEL
scores/adherence_facts.jsonl    {"model", "index", "facts": [{"fact": "exactly two clocks",
                                "right": false, "saw": "3 found"}, ...]}
results.jsonl                   all metrics of an image in one line

A line and its newline are written at once, so only the last line can be incomplete; it is removed
when the file is opened. No row is written twice: a resumed process ends with the same bytes as an
uninterrupted one.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import config, metrics
from ..device import default_device
from ..io.atomic import disk_errors
from ..metrics import SHARE, Metric
from ..models import load_model
from ..report.read import RESULTS
from ..rewards import load_reward, reward_class
from ..toyworld.judges import load_judge
from ..toyworld.worlds import WORLDS
from ..types import DirectAlignError, PerSample
from . import scores
from .adherence import Adherence, adherence_of, check_adherence, check_rows
from .adherence.geneval import ADHERENCE, numbers
from .candidates import Candidate, image_file, load_images
from .eval_prompts import EvalSample, PromptRow, batches
from .eval_rewards import EvalReward

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
RowKey = tuple[str, int]
"""Model key and sample index."""


class JsonlStore:
    """The rows of a file by `RowKey`; an incomplete last line is removed with a warning.

    Raises: DirectAlignError for a line that is no row; names file and line.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[RowKey, Row] = {}
        for number, line in enumerate(_complete_lines(file), start=1):
            try:
                row = json.loads(line)
                self.rows[str(row["model"]), int(row["index"])] = row
            except (ValueError, KeyError, TypeError) as error:
                raise DirectAlignError(
                    f"{file}:{number}: not a line of this comparison ({error}); remove the file, "
                    "and the same command evaluates again"
                ) from error

    def missing(self, keys: Iterable[RowKey]) -> list[RowKey]:
        """The keys without a row."""
        return [key for key in keys if key not in self.rows]

    def append(self, rows: Iterable[Row]) -> None:
        """Write the rows whose key is new; they are on the disk when this returns."""
        new = {(str(row["model"]), int(row["index"])): row for row in rows}
        new = {key: row for key, row in new.items() if key not in self.rows}
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in new.values())
        text = "".join(f"{line}\n" for line in lines)
        with disk_errors(self.file), self.file.open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= new


def _complete_lines(file: Path) -> list[bytes]:
    """The lines that end in a newline; anything after the last newline is cut off the file."""
    if not file.exists():
        return []
    content = file.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        logger.warning(
            f"{file}: the last line was incomplete; it is removed and its image evaluated again"
        )
        with file.open("r+b") as stream:
            stream.truncate(len(complete))
    return complete.splitlines()


SCORES, FACTS = "scores", "adherence_facts.jsonl"


@dataclass(frozen=True)
class MetricGroup:
    """Metrics of one source, to be loaded. `name`: its file in scores/; `settings`: identity."""

    name: str
    metrics: Mapping[str, Metric]
    load: Callable[[], Sequence[scores.MetricFunction]]
    settings: Mapping[str, object]


def metric_groups(
    rewards: Sequence[EvalReward],
    phrases: config.ControlPhrases,
    judge: str,
    control_prompts: str | None,
    batch_size: int,
    own: Sequence[config.UserMetricConfig] = (),
) -> list[MetricGroup]:
    """Pixels, a toy world's judge, every reward, and `own`, metrics of users' files; to be loaded
    one at a time."""
    leaked = [metrics.OFF_TOPIC + name for name in (metrics.BASE_RMSE, metrics.BASE_CAST)]
    pixel_metrics = metrics.PIXELS | {name: metrics.CONTROL[name] for name in leaked}
    groups = [MetricGroup("pixels", pixel_metrics, lambda: [scores.compared_pixels], {})]
    if judge != "none":
        names_styles, world = control_prompts == judge, WORLDS[judge]
        judged = {name: each for name, each in metrics.JUDGED.items() if name in world.judged}
        groups.append(
            MetricGroup(
                "judge",
                judged | metrics.CONTROL,
                lambda: [partial(scores.judge_metrics, load_judge(world), names_styles)],
                {"judge": judge},
            )
        )
    groups += [_reward_group(each, phrases, batch_size) for each in rewards]
    for metric, about in zip(own, scores.user_metrics(own), strict=True):
        leaked = metrics.metric(metrics.OFF_TOPIC + about.name)
        load = partial(scores.user_metric_functions, [metric], batch_size)
        digest = hashlib.sha256(Path(metric.path.rpartition(":")[0]).read_bytes()).hexdigest()
        settings = {"path": metric.path, "sha256": digest[:16]}
        settings |= {"args": metric.args} if metric.args else {}
        described = {each.name: each for each in (about, leaked)}
        groups.append(MetricGroup(f"metric-{about.name}", described, load, settings))
    return groups


def _reward_group(each: EvalReward, phrases: config.ControlPhrases, batch_size: int) -> MetricGroup:
    sides = phrases.positive, phrases.negative
    found = metrics.reward_metrics(each.label, each.kind, each.settings.scale, sides)
    if each.trained:
        name = metrics.SCORE + each.label
        found[name] = replace(found[name], role="trained")
    if not reward_class(each.settings.name).image_embeddings:
        for prefix in (metrics.BASE_FEATURES, metrics.DIVERSITY_FEATURES):
            del found[prefix + each.label]

    def load() -> list[scores.MetricFunction]:
        device = default_device()
        reward, model = load_reward(each.settings, device, each.key), None
        if reward.sees == "latents":
            if each.model is None:
                raise DirectAlignError(
                    f"{each.key}: {each.settings.name} sees latents, and no run gives its VAE: "
                    "compare a run that was trained with it, or give a reward that sees images"
                )
            model = load_model(each.model, device)
        about = phrases, batch_size, device, model
        return [scores.compared_reward_metrics(each.label, reward, *about)]

    settings = {"reward": each.settings.model_dump(mode="json")}
    return MetricGroup(f"reward-{each.label}", found, load, settings)


def adherence_group(
    settings: config.AdherenceConfig, samples: Sequence[EvalSample], out: Path
) -> MetricGroup:
    """Prompt adherence of all prompts and of those of each tag, checked and not loaded.

    Raises: DirectAlignError for a judge that cannot load, and for prompts that it cannot judge.
    """
    rows = [_row(sample) for sample in samples if not sample.is_control]
    check_adherence(settings, online=True)
    check_rows(settings, rows)

    def load() -> list[scores.MetricFunction]:
        judge = adherence_of(settings, default_device())
        return [partial(adherence_per_image, judge, JsonlStore(out / SCORES / FACTS))]

    is_vlm = isinstance(settings, config.QwenVLConfig)
    judge = f"a {'vision-language model' if is_vlm else 'detector'} ({settings.path})"
    judge += "" if is_vlm else " and GenEval's rules"
    text = f"Share of images in which all that the prompt asks for is right by {judge}, 0 to 1."
    found = [Metric(ADHERENCE, "As the prompt says", "adherence", True, text, SHARE)]
    for tag in dict.fromkeys(row.facts["tag"] for row in rows if row.facts):
        label = f"As the prompt says: {tag.replace('_', ' ')}"
        text = f"The same, of prompts of {tag} only."
        found.append(Metric(f"{ADHERENCE}_{tag}", label, "adherence", True, text))
    described, identity = {each.name: each for each in found}, settings.model_dump(mode="json")
    return MetricGroup(ADHERENCE, described, load, {ADHERENCE: identity})


def adherence_per_image(
    judge: Adherence, facts: JsonlStore, inputs: scores.MetricInput
) -> Mapping[str, PerSample]:
    """Adherence per image, none on control prompts; appends the verdicts to `facts`."""
    if inputs.is_control:
        return {}
    judged = judge.judged(inputs.images, [_row(sample) for sample in inputs.samples])
    facts.append(
        {"model": inputs.model, "index": sample.index, "facts": [*map(asdict, each.verdicts)]}
        for sample, each in zip(inputs.samples, judged, strict=True)
    )
    return numbers(judged)


def _row(sample: EvalSample) -> PromptRow:
    return PromptRow(sample.prompt, sample.group, sample.facts)


def score_candidates(
    groups: Sequence[MetricGroup],
    candidates: Sequence[Candidate],
    samples: Sequence[EvalSample],
    out: Path,
    batch_size: int,
) -> list[Row]:
    """The lines of results.jsonl, by candidate and sample; only what is missing is evaluated."""
    (out / SCORES).mkdir(exist_ok=True)
    stores = [JsonlStore(out / SCORES / f"{group.name}.jsonl") for group in groups]
    for group, store in zip(groups, stores, strict=True):
        if missing := store.missing(_keys(candidates, samples)):
            logger.info(f"{group.name}: {len(missing)} images to evaluate")
            functions = group.load()
            for batch in batches(samples, batch_size):
                if store.missing(_keys(candidates, batch)):
                    store.append(_rows(functions, candidates, batch, out))
    results = JsonlStore(out / RESULTS)
    for candidate in candidates:
        results.append(_result(candidate, sample, stores) for sample in samples)
    return [results.rows[key] for key in _keys(candidates, samples)]


def _rows(
    functions: Sequence[scores.MetricFunction],
    candidates: Sequence[Candidate],
    batch: Sequence[EvalSample],
    out: Path,
) -> Iterator[Row]:
    inputs: dict[str, scores.MetricInput] = {}
    for candidate in candidates:  # bases come first
        base = None if candidate.base is None else inputs[candidate.base]
        images = load_images(out, candidate.key, batch)
        inputs[candidate.key] = scores.MetricInput(batch, images, base, candidate.key)
    for key, each in inputs.items():
        found = {
            name: values.tolist() for name, values in scores.per_image(functions, each).items()
        }
        for place, sample in enumerate(batch):
            own = {name: values[place] for name, values in found.items()}
            numbers = {name: value for name, value in own.items() if math.isfinite(value)}
            yield {"model": key, "index": sample.index, "numbers": numbers}


def _result(candidate: Candidate, sample: EvalSample, stores: Sequence[JsonlStore]) -> Row:
    key, numbers = (candidate.key, sample.index), {}
    for store in stores:
        numbers |= store.rows[key]["numbers"]
    about = {"model": candidate.key, "index": sample.index, "prompt": sample.prompt}
    about |= {"seed": sample.seed, "file": image_file(*key), "group": sample.group}
    about |= {} if sample.source is None else {"task": sample.task}
    return {**about, "numbers": numbers}


def _keys(candidates: Sequence[Candidate], samples: Sequence[EvalSample]) -> list[RowKey]:
    return [(candidate.key, sample.index) for candidate in candidates for sample in samples]
