"""What a study knows: one flat row per measurement of a run, kept as JSON lines that statistics, tables and figures read.

    {"study", "arm", "title", "seed", "step", "seconds", "forward_calls", "backward_calls", "call_equivalents", "learning_rate",
     "photo_rate", "photo_rate_low", "photo_rate_high", "content", ..., "color_drift", ..., "commit", "machine", "versions"}

`seconds` and the calls are what the updates up to the measurement took: measuring, sampling grids and loading are left out.
"""

from __future__ import annotations

from ...config.load import load_run
from ...io.atomic import write_text
from ...training.run_log import read
from ...types import DirectAlignError
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


Row = dict[str, Any]
Number = int | float
FACTS = ("commit", "machine", "versions")


@dataclass(frozen=True)
class Arm:
    """One way to align that a study compares: a recipe (file stem in the recipes folder) with `section.key=value` overrides laid over it.

    `name` becomes part of folder names; `title` is shown in tables and figures.
    """

    name: str
    title: str
    recipe: str
    overrides: tuple[str, ...] = ()


def call_equivalents(forward: Number, backward: Number) -> Number:
    """Cost in network calls: a sample through the network counts one, and two more where a gradient went back through it."""
    return forward + 2 * backward


def rows_of(study: str, arm: Arm, seed: int, folder: Path) -> list[Row]:
    """One row per measurement of the finished run in `folder`, in order of step.

    Rates come as a plain number with `<name>_low` and `<name>_high` beside it.

    Raises: DirectAlignError for a folder without a finished run.
    """
    if not (folder / "summary.json").is_file():
        raise DirectAlignError(f"{folder} holds no finished run (no summary.json): run the study again, it goes on where it stopped")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    facts = {key: summary[key] for key in FACTS}
    named = {"study": study, "arm": arm.name, "title": arm.title, "seed": seed}
    rate = load_run(folder / "run.yaml").train.learning_rate
    return [{**named, **spent, "learning_rate": rate, **measured, **facts} for spent, measured in _measurements(read(folder))]


def _measurements(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Row, Row]]:
    """(what was spent until then, what was measured) of every measurement."""
    seconds, forward, backward = 0.0, 0, 0
    for record in history:
        if record["event"] == "step":
            seconds += record["seconds"]
            forward += record["network_calls"]["forward"]
            backward += record["network_calls"]["backward"]
        elif record["event"] == "evaluate":
            calls = {"forward_calls": forward, "backward_calls": backward, "call_equivalents": call_equivalents(forward, backward)}
            yield {"step": record["step"], "seconds": seconds, **calls}, _flat(record)


def _flat(record: Mapping[str, Any]) -> Row:
    """The measured numbers alone, an interval as three; those of the pairs that are measured during the run, where a record tells them apart."""
    flat: Row = {}
    for name, value in {**record, **record.get("during", {})}.items():
        if name in ("during", "each"):
            continue
        if isinstance(value, Mapping):
            flat |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        elif name not in ("event", "step", "seconds"):
            flat[name] = value
    return flat


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """All rows as JSON lines, the file whole or not touched; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_rows(file: Path) -> list[Row]:
    """The rows of a file that `write_rows` wrote.

    Raises: DirectAlignError naming the file, and the line that is not one JSON object.
    """
    if not file.is_file():
        raise DirectAlignError(f"{file}: no such file of results; run the study first")
    return [_row(line, file, place) for place, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)]


def _row(line: str, file: Path, place: int) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DirectAlignError(f"{file}, line {place}: not JSON ({error}); run the study again to write it anew") from error
    if not isinstance(row, dict):
        raise DirectAlignError(f"{file}, line {place}: a {type(row).__name__} where an object is expected; run the study again to write it anew")
    return row


def of_run(rows: Sequence[Row], arm: str, seed: int) -> list[Row]:
    """The rows of one arm and seed, by step."""
    return sorted((row for row in rows if (row["arm"], row["seed"]) == (arm, seed)), key=lambda row: row["step"])


def arms_of(rows: Sequence[Row]) -> dict[str, str]:
    """{arm: title} in the order in which they appear."""
    return {row["arm"]: row["title"] for row in rows}


def seeds_of(rows: Sequence[Row], arm: str | None = None) -> list[int]:
    """The seeds there are (of one arm), rising."""
    return sorted({row["seed"] for row in rows if arm in (None, row["arm"])})
