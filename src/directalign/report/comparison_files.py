"""A comparison folder as `directalign evaluate` and `directalign compare` leave it: models, one line per image, what was said of them.

comparison.json   the models, what each was trained on, its settings; commit, machine, versions, the command
results.jsonl     {"model", "index", "prompt", "seed", "file", "group", "numbers"}, one line per image
summary.json      what each number is, its value per model with an interval, paired differences, wins
"""

from __future__ import annotations

from ..metrics import ROLES, SHARE, Metric, metric
from .files import Record, json_lines, listing, mapping, number, read_json
from .writing import cut
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


RECORD, RESULTS, SUMMARY = "comparison.json", "results.jsonl", "summary.json"
FORMAT = 1
MOST_MODELS = 12


@dataclass(frozen=True)
class Model:
    """`trained_on` names the numbers that it was trained on; `settings` is None for one without a recipe."""

    key: str
    label: str
    kind: str
    source: str
    trained_on: frozenset[str]
    settings: Record | None


@dataclass(frozen=True)
class Shot:
    """One image: what was asked, where it lies, and its numbers."""

    prompt: str
    seed: str
    file: str
    group: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """All there is of a comparison. `shots` are by model and index: one index is one prompt and seed for all models."""

    folder: Path
    told: Record
    models: list[Model]
    shots: dict[str, dict[int, Shot]]
    summary: Record
    metrics: dict[str, Metric]
    notes: list[str] = field(default_factory=list)

    def interval(self, key: str, name: str) -> Any:
        """{"value", "low", "high", "n"} of a model's number: the summary's, else the mean of its lines without an interval; None without either."""
        said = mapping(mapping(self.summary.get("models")).get(key)).get(name)
        if number(said) is not None:
            return said
        values = [
            shot.numbers[name] for shot in self.shots.get(key, {}).values() if name in shot.numbers
        ]
        return {"value": sum(values) / len(values), "n": len(values)} if values else None

    def wins(self, name: str) -> dict[tuple[str, str], Record]:
        """{(a, b): b against a} by one number, as recorded and turned round."""
        found: dict[tuple[str, str], Record] = {}
        for each in listing(self.summary.get("wins")):
            if isinstance(each, dict) and each.get("name") == name and number(each) is not None:
                a, b = str(each.get("a")), str(each.get("b"))
                found[a, b] = each
                found[b, a] = _turned(each)
        return found

    def label(self, key: str) -> str:
        return next((model.label for model in self.models if model.key == key), key)


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison, finished or not."""
    return (folder / RECORD).is_file()


def read_comparison(folder: Path) -> Comparison:
    """Everything there is; what is missing, torn or of another format becomes a note."""
    notes: list[str] = []
    told = read_json(folder / RECORD, notes)
    if told and told.get("format") != FORMAT:
        notes.append(
            f"{RECORD}: format {cut(told.get('format'), 20)}, written for another version; read as format {FORMAT}."
        )
    shots = _shots(folder, notes)
    models = _models(told, shots, notes)
    summary = read_json(folder / SUMMARY, notes)
    return Comparison(
        folder,
        told,
        models,
        {model.key: shots.get(model.key, {}) for model in models},
        summary,
        _metrics(summary, shots),
        notes,
    )


def _shots(folder: Path, notes: list[str]) -> dict[str, dict[int, Shot]]:
    """By model and index; of an image that was measured twice the later line."""
    found: dict[str, dict[int, Shot]] = {}
    for place, line in json_lines(folder / RESULTS, notes):
        index = line.get("index") if isinstance(line, dict) else None
        if not isinstance(index, int) or not isinstance(line.get("model"), str):
            notes.append(f"{RESULTS}, line {place}: no line about an image, left out.")
            continue
        values = {str(name): number(value) for name, value in mapping(line.get("numbers")).items()}
        shot = Shot(
            prompt=cut(line.get("prompt") or ""),
            seed=cut(line.get("seed", ""), 20),
            file=str(line.get("file") or ""),
            group=cut(line.get("group") or "", 40),
            numbers={name: value for name, value in values.items() if value is not None},
        )
        found.setdefault(line["model"], {})[index] = shot
    return {key: dict(sorted(shots.items())) for key, shots in found.items()}


def _models(told: Record, shots: Mapping[str, Any], notes: list[str]) -> list[Model]:
    """As comparison.json names them, else as the lines do."""
    named = [
        each
        for each in listing(told.get("models"))
        if isinstance(each, dict) and isinstance(each.get("key"), str)
    ]
    records = named or [{"key": key} for key in shots]
    if len(records) > MOST_MODELS:
        notes.append(f"{len(records) - MOST_MODELS} of {len(records)} models are left out.")
    return [_model(each) for each in records[:MOST_MODELS]]


def _model(told: Record) -> Model:
    return Model(
        key=told["key"],
        label=cut(told.get("label") or told["key"], 80),
        kind=cut(told.get("kind") or "", 20),
        source=cut(told.get("source") or ""),
        trained_on=frozenset(map(str, listing(told.get("trained_on")))),
        settings=told["settings"]
        if isinstance(told.get("settings"), dict) and told["settings"]
        else None,
    )


def _metrics(summary: Record, shots: Mapping[str, Mapping[int, Shot]]) -> dict[str, Metric]:
    """Of the numbers that the summary names, in its order; where there is none, of those in the lines."""
    told = mapping(summary.get("names"))
    seen = dict.fromkeys(
        name for each in shots.values() for shot in each.values() for name in shot.numbers
    )
    return {name: recorded_metric(name, mapping(told.get(name))) for name in told or seen}


def recorded_metric(name: str, told: Record) -> Metric:
    """The metric of a name, with what the records say of it over what the registry says."""
    known, role, better = metric(name), told.get("role"), told.get("better")
    description = cut(told.get("scale") or known.description)
    return Metric(
        name,
        label=cut(told.get("label") or known.label, 60),
        role=role if isinstance(role, str) and role in ROLES else known.role,
        higher_is_better={1: True, -1: False, 0: None}[better]
        if better in (-1, 0, 1)
        else known.higher_is_better,
        description=description,
        unit=SHARE if description.startswith("Share ") else known.unit,
    )


def _turned(win: Record) -> Record:
    """The same comparison seen from the other model."""
    low, high = number(win.get("low")), number(win.get("high"))
    ends = {"low": 1 - high, "high": 1 - low} if low is not None and high is not None else {}
    return {
        **win,
        **ends,
        "value": 1 - (number(win) or 0.0),
        "wins": win.get("losses"),
        "losses": win.get("wins"),
        "a": win.get("b"),
        "b": win.get("a"),
    }
