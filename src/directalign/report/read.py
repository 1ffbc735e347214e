"""Read run folders and comparison folders.

Files that are missing, truncated or outside of the folder become notes on the page, not errors.

A run: run.yaml (the recipe), metrics.jsonl (one record per event), summary.json, samples/.
A comparison: comparison.json (models, settings, environment), results.jsonl (one line per image),
summary.json (values with intervals, wins).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ..metrics import ROLES, SHARE, Metric, metric
from .format import cut, ends, listing, mapping, number

Record = dict[str, Any]
LEVEL_NUMBERS = ("recovery_error", "gain", "reward")
NOT_METRICS = ("step", "seconds", "event", "judged")
SIGMA_BINS = 20
COMPARISON, RESULTS, SUMMARY = "comparison.json", "results.jsonl", "summary.json"
FORMAT = 1
MAX_MODELS = 12


def read_text(file: Path, notes: list[str]) -> str:
    """The text of a file; "" and a note if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{file.name}: {error.strerror}.")
        return ""


def read_json(file: Path, notes: list[str], optional: bool = False) -> Record:
    """The object in a file; {} and a note if there is none. No note if it is `optional`."""
    if optional and not file.exists():
        return {}
    try:
        return mapping(json.loads(read_text(file, notes) or "{}"))
    except (ValueError, RecursionError):
        notes.append(f"{file.name}: truncated or not JSON, left out.")
        return {}


def read_yaml(text: str, name: str, notes: list[str]) -> Record:
    """The mapping in a YAML text; {} and a note if there is none."""
    try:
        return mapping(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError):
        notes.append(f"{name}: not YAML, settings left out.")
        return {}


def json_lines(file: Path, notes: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of each line that is JSON; the others become notes."""
    for place, line in enumerate(read_text(file, notes).splitlines(), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                notes.append(f"{file.name}, line {place}: truncated or not JSON, left out.")
            else:
                yield place, value


def inside(folder: Path, name: str) -> Path | None:
    """The file `name` of a folder; None if the name or a symbolic link leads out of it.

    >>> inside(Path("run"), "../secret.png") is None
    True
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
        return None
    try:
        file = (folder / path).resolve()
        return file if file.is_relative_to(folder.resolve()) else None
    except (OSError, RuntimeError):  # a loop of links
        return None


@dataclass(frozen=True)
class RunFiles:
    """One run folder.

    `steps`, `measured`, `stops` and `keeps` are the records of metrics.jsonl with the events step,
    evaluate, stop and kept, by step; `references` are the rows of the event of this name. `samples`
    are (step, file) of the sample grids.
    `metrics` are described in metric_names.json, which runs with metrics of users' files have.
    `alias` is the displayed name if several runs have the same.
    """

    folder: Path
    settings: Record
    settings_text: str
    steps: list[Record]
    measured: list[Record]
    stops: list[Record]
    keeps: list[Record]
    summary: Record
    samples: list[tuple[int, Path]]
    sample_info: Record
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    references: list[Record] = field(default_factory=list)
    alias: str = ""

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        return self.alias or str(self.settings.get("name") or self.folder.name)

    def setting(self, *keys: str, default: Any = None) -> Any:
        """A nested value of run.yaml, `default` if it is missing or null."""
        value = _nested(self.settings, keys)
        return default if value is None else value

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) over the updates; dots in the name are nested keys ("metrics.reward")."""
        return _curve(self.steps, name.split("."))

    def by_count(self, record: Record) -> dict[int | None, Record]:
        """An evaluation by its number of samples, None if that is unknown.

        Before and after training a run is evaluated on more samples than during it; those records
        have the numbers of the samples of every evaluation too, under `during`.
        """
        during = mapping(record.get("during"))
        found = {self._count(record, bool(during) or record.get("event") == "kept"): record}
        return found | ({self._count(during, False): {**record, **during}} if during else {})

    def _count(self, numbers: Record, is_whole: bool) -> int | None:
        """As the toy world's judge records it, else as in the recipe."""
        count = number(mapping(numbers.get("photo_rate")).get("n"))
        if count is None:
            counts = [
                number(self.setting("evaluate", key))
                for key in ("num_samples", "num_samples_during")
            ]
            is_whole = is_whole or not self.setting("evaluate", "every")
            count = counts[0] if is_whole else min(filter(None, counts), default=None)
        return None if count is None else int(count)

    @property
    def ends(self) -> dict[int | None, tuple[Record, Record]]:
        """The evaluations of the base model and of the final or kept weights, on equal samples, by
        their number (the largest first); {} without both."""
        last = self.keeps[-1:] or self.measured[1:][-1:]
        if not last or not self.measured or self.measured[0].get("step") != 0:
            return {}
        before, after = self.by_count(self.measured[0]), self.by_count(last[0])
        for each in self.measured[1:]:  # the kept record has no numbers of fewer samples
            after = self.by_count(each) | after if each["step"] == last[0]["step"] else after
        counts = sorted((count for count in before if count in after), key=lambda n: -(n or 0))
        return {count: (before[count], after[count]) for count in counts}

    @property
    def count(self) -> int | None:
        """The number of samples of the curves: that which most evaluations have, the smaller of
        two; None if unknown."""
        counts = Counter(count for each in self.measured for count in self.by_count(each))
        return max(counts, key=lambda each: (counts[each], -(each or 0)), default=None)

    @property
    def comparable(self) -> list[Record]:
        """The evaluations on `count` samples, the same ones for all."""
        found, count = map(self.by_count, self.measured), self.count
        return [each[count] for each in found if count in each]

    @property
    def num_samples(self) -> str:
        """The samples of `comparable`, as "n = 128"; empty if unknown."""
        return "" if self.count is None else f"n = {self.count}"

    @property
    def measured_names(self) -> list[str]:
        """Names of all metrics of the evaluations."""
        names = dict.fromkeys(name for record in self.measured for name in record)
        return [name for name in names if name not in NOT_METRICS]

    def measured_curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) over the evaluations, on equal samples."""
        return _curve(self.comparable, [name])

    def band(self, name: str) -> list[tuple[float, float, float]]:
        """(step, low, high) over the evaluations that have an interval."""
        found = [(float(record["step"]), *ends(record.get(name))) for record in self.comparable]
        return [(step, low, high) for step, low, high in found if None not in (low, high)]  # type: ignore[misc]

    @property
    def align_seconds(self) -> float | None:
        """Seconds of training: from the summary, else the sum over the steps."""
        recorded = number(self.summary.get("align_seconds"))
        if recorded is not None or not self.steps:
            return recorded
        return sum((value for _, value in self.curve("seconds")), 0.0)

    def levels(self) -> dict[str, list[Record]]:
        """{branch: rows by rising sigma}: means over all updates, weighted by sample counts."""
        bins: dict[str, dict[float, list[Record]]] = {}
        for record in self.steps:
            for branch, entries in mapping(record.get("levels")).items():
                for entry in map(mapping, listing(entries)):
                    sigma = number(entry.get("sigma"))
                    if sigma is not None:
                        place = round(sigma * SIGMA_BINS - 0.5)
                        bins.setdefault(branch, {}).setdefault(place, []).append(entry)
        return {
            branch: [_mean_row(found[place]) for place in sorted(found)]
            for branch, found in bins.items()
        }


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / "run.yaml").is_file() or (folder / "metrics.jsonl").is_file()


def run_folders(folder: Path) -> list[Path]:
    """Run folders directly inside a folder: by name, but srpo first."""
    found = [path for path in folder.iterdir() if path.is_dir() and is_run(path)]
    return sorted(found, key=lambda path: (path.name != "srpo", path.name))


def read_run(folder: Path) -> RunFiles:
    """Read a run folder."""
    notes: list[str] = []
    text = read_text(folder / "run.yaml", notes)
    events: dict[str, dict[float, Record]] = {}  # a resumed run may have evaluated a step twice
    for place, record in json_lines(folder / "metrics.jsonl", notes):
        if isinstance(record, dict) and number(record.get("step")) is not None:
            events.setdefault(str(record.get("event")), {})[record["step"]] = record
        else:
            notes.append(f"metrics.jsonl, line {place}: not a record with a step, left out.")
    names = read_json(folder / "metric_names.json", notes, optional=True)
    by_step = {event: [found[step] for step in sorted(found)] for event, found in events.items()}
    run = RunFiles(
        folder=folder,
        settings=read_yaml(text, "run.yaml", notes),
        settings_text=text,
        steps=by_step.get("step", []),
        measured=by_step.get("evaluate", []),
        stops=by_step.get("stop", []),
        keeps=by_step.get("kept", []),
        summary=read_json(folder / SUMMARY, notes, optional=True),  # written at the end
        samples=_samples(folder, notes),
        sample_info=read_json(folder / "samples" / "samples.json", notes, optional=True),
        notes=notes,
        metrics={name: recorded_metric(name, mapping(each)) for name, each in names.items()},
        references=[
            mapping(row)
            for record in by_step.get("references", [])[-1:]
            for row in listing(record.get("rows"))
        ],
    )
    if left_out := len(run.measured) - len(run.comparable):
        of = f"{left_out} of {len(run.measured)} evaluations are on other samples"
        notes.append(f"metrics.jsonl: {of}, and not in curves of {run.num_samples}.")
    return run


def metric_of(runs: Sequence[RunFiles], name: str) -> Metric:
    """The metric of a name as the first run that describes it does, else as the registry."""
    return next((run.metrics[name] for run in runs if name in run.metrics), None) or metric(name)


def with_distinct_names(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """The same runs; those with equal names get the names of their folders."""
    names = [run.name for run in runs]
    return [replace(run, alias=run.key) if names.count(run.name) > 1 else run for run in runs]


def _samples(folder: Path, notes: list[str]) -> list[tuple[int, Path]]:
    found = []
    for file in sorted((folder / "samples").glob("step[-_]*.png")):
        if inside(folder, f"samples/{file.name}") is None:
            notes.append(f"samples/{file.name}: outside of the folder, left out.")
            continue
        digits = "".join(letter for letter in file.stem if letter.isdigit())
        found.append((int(digits or 0), file))
    if not found:
        notes.append("No sample grids: samples/ is missing or empty.")
    return found


def _nested(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        value = mapping(value).get(key)
    return value


def _curve(records: Sequence[Record], keys: Sequence[str]) -> list[tuple[float, float]]:
    found = [(float(record["step"]), number(_nested(record, keys))) for record in records]
    return [(step, value) for step, value in found if value is not None]


def _mean_row(entries: Sequence[Record]) -> Record:
    counts = [max(1.0, number(entry.get("n")) or 1.0) for entry in entries]
    row: Record = {"n": int(sum(counts))}
    for name in ("sigma", *LEVEL_NUMBERS):
        values = [number(entry.get(name)) for entry in entries]
        known = [(value, n) for value, n in zip(values, counts, strict=True) if value is not None]
        if known:
            row[name] = sum(value * n for value, n in known) / sum(n for _, n in known)
    return row


@dataclass(frozen=True)
class Model:
    """A compared model. `trained_on` names metrics; `settings` is None without a recipe; `phrase`
    is that of a base model that is asked."""

    key: str
    label: str
    kind: str
    source: str
    trained_on: frozenset[str]
    settings: Record | None
    phrase: str = ""


@dataclass(frozen=True)
class ImageRecord:
    """One image of a comparison with its metrics."""

    prompt: str
    seed: str
    file: str
    group: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """A comparison folder. `images` are by model and index (one prompt and seed for all models)."""

    folder: Path
    record: Record
    models: list[Model]
    images: dict[str, dict[int, ImageRecord]]
    summary: Record
    metrics: dict[str, Metric]
    notes: list[str] = field(default_factory=list)

    def with_metric(self, name: str) -> dict[str, dict[int, ImageRecord]]:
        """The images that have a metric, by model and index: those that all models with it have."""
        own = {
            key: {index: each for index, each in images.items() if name in each.numbers}
            for key, images in self.images.items()
        }
        own = {key: images for key, images in own.items() if images}
        shared = set.intersection(*map(set, own.values())) if own else set[int]()
        return {
            key: {index: each for index, each in images.items() if index in shared}
            for key, images in own.items()
        }

    def interval(self, key: str, name: str) -> Any:
        """A model's metric as recorded in the summary, else the mean of its images, else None."""
        recorded = _nested(self.summary, ("models", key, name))
        if number(recorded) is not None:
            return recorded
        images = self.with_metric(name).get(key, {}).values()
        values = [image.numbers[name] for image in images]
        return {"value": sum(values) / len(values), "n": len(values)} if values else None

    def wins(self, name: str) -> dict[tuple[str, str], Record]:
        """{(a, b): b against a} by one metric, for both orders of each pair."""
        found: dict[tuple[str, str], Record] = {}
        for win in map(mapping, listing(self.summary.get("wins"))):
            if win.get("name") == name and number(win) is not None:
                a, b = str(win.get("a")), str(win.get("b"))
                found[a, b], found[b, a] = win, _swapped(win)
        return found


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison, finished or not."""
    return (folder / COMPARISON).is_file()


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison folder."""
    notes: list[str] = []
    record = read_json(folder / COMPARISON, notes)
    if record and record.get("format") != FORMAT:
        notes.append(
            f"{COMPARISON}: format {cut(record.get('format'), 20)} of another version; "
            f"read as format {FORMAT}."
        )
    images = _images(folder, notes)
    models = _models(record, images, notes)
    summary = read_json(folder / SUMMARY, notes)
    names = mapping(summary.get("names"))
    numbers = [image.numbers for found in images.values() for image in found.values()]
    seen = dict.fromkeys(name for each in numbers for name in each)
    return Comparison(
        folder=folder,
        record=record,
        models=models,
        images={model.key: images.get(model.key, {}) for model in models},
        summary=summary,
        metrics={name: recorded_metric(name, mapping(names.get(name))) for name in names or seen},
        notes=notes,
    )


def recorded_metric(name: str, record: Record) -> Metric:
    """The metric of a name; what the record says overrides the registry."""
    known, role, better = metric(name), record.get("role"), record.get("better")
    description = cut(record.get("scale") or known.description)
    directions = {1: True, -1: False, 0: None}
    default_unit = SHARE if description.startswith("Share ") else known.unit
    return Metric(
        name,
        label=cut(record.get("label") or known.label, 60),
        role=role if isinstance(role, str) and role in ROLES else known.role,
        higher_is_better=directions[better] if better in (-1, 0, 1) else known.higher_is_better,
        description=description,
        unit=cut(record.get("unit") or default_unit, 40),
    )


def _images(folder: Path, notes: list[str]) -> dict[str, dict[int, ImageRecord]]:
    """Image records by model and index; a later line replaces an earlier one."""
    found: dict[str, dict[int, ImageRecord]] = {}
    for place, line in json_lines(folder / RESULTS, notes):
        index, model = mapping(line).get("index"), mapping(line).get("model")
        if not isinstance(index, int) or not isinstance(model, str):
            notes.append(f"{RESULTS}, line {place}: not a record of an image, left out.")
            continue
        values = {str(name): number(value) for name, value in mapping(line.get("numbers")).items()}
        found.setdefault(model, {})[index] = ImageRecord(
            prompt=cut(line.get("prompt") or ""),
            seed=cut(line.get("seed", ""), 20),
            file=str(line.get("file") or ""),
            group=cut(line.get("group") or "", 40),
            numbers={name: value for name, value in values.items() if value is not None},
        )
    return {key: dict(sorted(images.items())) for key, images in found.items()}


def _models(record: Record, images: Mapping[str, Any], notes: list[str]) -> list[Model]:
    """Models of comparison.json, else those of the image records."""
    listed = map(mapping, listing(record.get("models")))
    found = [each for each in listed if isinstance(each.get("key"), str)]
    found = found or [{"key": key} for key in images]
    if len(found) > MAX_MODELS:
        notes.append(f"{len(found) - MAX_MODELS} of {len(found)} models are left out.")
    return [
        Model(
            key=each["key"],
            label=cut(each.get("label") or each["key"], 80),
            kind=cut(each.get("kind") or "", 20),
            source=cut(each.get("source") or ""),
            trained_on=frozenset(map(str, listing(each.get("trained_on")))),
            settings=mapping(each.get("settings")) or None,
            phrase=cut(each.get("phrase") or "", 80),
        )
        for each in found[:MAX_MODELS]
    ]


def _swapped(win: Record) -> Record:
    """The same result from the other model's side."""
    low, high = ends(win)
    found = {**win, "value": 1 - (number(win) or 0.0), "a": win.get("b"), "b": win.get("a")}
    found |= {"wins": win.get("losses"), "losses": win.get("wins")}
    if low is not None and high is not None:
        found |= {"low": 1 - high, "high": 1 - low}
    return found
