"""What a run left in its folder, read as it is: a file that is missing or cut short becomes a note on the page, not a crash."""

from __future__ import annotations

from .files import Record, inside, json_lines, mapping, number, read_json, read_text, read_yaml
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


__all__ = ["Record", "RunFiles", "is_run", "number", "read_run", "read_summary", "run_folders"]
LEVEL_NUMBERS = ("recovery_error", "gain", "reward")


@dataclass(frozen=True)
class RunFiles:
    """One run folder. `steps`, `measured`, `stops` and `keeps` are the records of metrics.jsonl by event, in order of step."""

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
    alias: str = ""
    """What the run is called among others of its name."""

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        return self.alias or str(self.settings.get("name") or self.folder.name)

    def setting(self, *keys: str, default: Any = None) -> Any:
        """A value deep in run.yaml, `default` where the path ends early."""
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of one number over the updates; dots reach inside ("metrics.reward")."""
        return _curve(self.steps, name)

    def measured_curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) over the measurements; of an interval its value."""
        return _curve(self.measured, name)

    def band(self, name: str) -> list[tuple[float, float, float]]:
        """(step, low, high) over the measurements, for numbers with an interval."""
        found = [(record["step"], mapping(record.get(name))) for record in self.measured]
        ends = [
            (float(step), number(told.get("low")), number(told.get("high"))) for step, told in found
        ]
        return [
            (step, low, high) for step, low, high in ends if low is not None and high is not None
        ]

    def levels(self) -> dict[str, list[Record]]:
        """{branch: rows by rising sigma}, each a mean over all updates, weighted by how many samples fell into the bin."""
        rows: dict[str, dict[float, list[Record]]] = {}
        for record in self.steps:
            for branch, entries in mapping(record.get("levels")).items():
                for entry in entries if isinstance(entries, list) else []:
                    if isinstance(entry, dict) and number(entry.get("sigma")) is not None:
                        rows.setdefault(branch, {}).setdefault(
                            round(entry["sigma"] * 20 - 0.5) / 20, []
                        ).append(entry)
        return {
            branch: [_mean_row(bins[place]) for place in sorted(bins)]
            for branch, bins in rows.items()
        }


def read_run(folder: Path) -> RunFiles:
    """Everything there is of one run."""
    notes: list[str] = []
    text = read_text(folder / "run.yaml", notes)
    records = list(_records(folder / "metrics.jsonl", notes))
    return RunFiles(
        folder=folder,
        settings=read_yaml(text, "run.yaml", notes),
        settings_text=text,
        steps=_of(records, "step"),
        measured=_of(records, "evaluate"),
        stops=_of(records, "stop"),
        keeps=_of(records, "kept"),
        summary=read_json(folder / "summary.json", notes),
        samples=_samples(folder, notes),
        sample_info=read_json(folder / "samples" / "samples.json", None),
        notes=notes,
    )


def told_apart(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """The same runs; those whose recipes have one name are called by their folders."""
    names = [run.name for run in runs]
    return [replace(run, alias=run.key) if names.count(run.name) > 1 else run for run in runs]


def run_folders(folder: Path) -> list[Path]:
    """The run folders directly inside a folder: srpo first, then direct_align, longer runs last."""
    rank = {"srpo": 0, "direct_align": 1, "srpo_long": 3, "official_long": 4}
    found = [path for path in folder.iterdir() if path.is_dir() and is_run(path)]
    return sorted(found, key=lambda path: (rank.get(path.name, 2), path.name))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / "run.yaml").is_file() or (folder / "metrics.jsonl").is_file()


def read_summary(folder: Path, notes: list[str]) -> Record:
    """A folder's summary.json, {} with a note where there is none."""
    return read_json(folder / "summary.json", notes)


def _samples(folder: Path, notes: list[str]) -> list[tuple[int, Path]]:
    """(step, file) of the sample grids, by name."""
    found = (
        sorted((folder / "samples").glob("step[-_]*.png")) if (folder / "samples").is_dir() else []
    )
    if not found:
        notes.append("No sample grids: samples/ is missing or empty.")
    outside = [file for file in found if inside(folder, f"samples/{file.name}") is None]
    notes.extend(f"samples/{file.name}: leads out of the folder, left out." for file in outside)
    return [(_step_of(file), file) for file in found if file not in outside]


def _curve(records: Sequence[Record], name: str) -> list[tuple[float, float]]:
    points = []
    for record in records:
        value: Any = record
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found = number(value)
        if found is not None:
            points.append((float(record["step"]), found))
    return points


def _of(records: Sequence[Record], event: str) -> list[Record]:
    """The last record of each step, by step: a resumed run may have measured twice."""
    return [
        record
        for _, record in sorted(
            {record["step"]: record for record in records if record.get("event") == event}.items()
        )
    ]


def _mean_row(entries: Sequence[Record]) -> Record:
    counts = [max(1.0, number(entry.get("n")) or 1.0) for entry in entries]
    row: Record = {"n": int(sum(counts))}
    for name in ("sigma", *LEVEL_NUMBERS):
        values = [
            (number(entry.get(name)), count) for entry, count in zip(entries, counts, strict=True)
        ]
        known = [(value, count) for value, count in values if value is not None]
        if known:
            row[name] = sum(value * count for value, count in known) / sum(
                count for _, count in known
            )
    return row


def _records(file: Path, notes: list[str]) -> Iterator[Record]:
    for place, record in json_lines(file, notes):
        if isinstance(record, dict) and number(record.get("step")) is not None:
            yield record
        else:
            notes.append(f"{file.name}, line {place}: not a record with a step, left out.")


def _step_of(file: Path) -> int:
    digits = "".join(c for c in file.stem if c.isdigit())
    return int(digits) if digits else 0
