"""Rows beside the base model and the trained one: the base asked in words, and photographs.

All rows of a table are of equal pairs. Statistics of photos are given relative to photographs
through the autoencoder, which have all the detail that a model can have.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from ..metrics import OF_PHOTOS, Metric
from .basis import measured_with
from .format import cut, decimal, interval, mapping, number, with_ends
from .read import Record, RunFiles

KEPT = {
    f"{OF_PHOTOS}sharpness": "Detail kept",
    f"{OF_PHOTOS}high_frequency": "Fine detail kept",
    f"{OF_PHOTOS}diversity": "Diversity kept",
}
"""Titles of shares of what photographs through the autoencoder have, of photos only."""
AS_WELL = "Asking the base model does as well here"
BETTER = "Asking the base model does better here"
WORSE = "Training reaches more than asking the base model"
Cell = tuple[str, str]
"""A value, and the ends of its interval or ""."""
Shared = tuple[RunFiles, Record]
"""A run and one of its rows."""


def on_pairs(run: RunFiles, count: int | None) -> list[Record]:
    """The reference rows of a run on `count` samples; [] where they are of others."""
    found = [run.by_count(row) for row in run.references]
    return [each[count] for each in found if count in each]


def shared_rows(runs: Sequence[RunFiles], count: int | None) -> list[Shared]:
    """The rows of runs on `count` samples, each with the first run that has it: those of one base
    and sampling are the same."""
    found: dict[str, Shared] = {}
    for run in runs:
        for row in on_pairs(run, count):
            found.setdefault(json.dumps([*_base(run), row.get("label")], default=str), (run, row))
    return [*found.values()]


def of_base(run: RunFiles, rows: Sequence[Shared], judge: Metric | None) -> list[Record]:
    """Those of `shared_rows` that are of the run's base and sampling, and judged as the run is."""
    name = judge.name if judge else ""
    how = _base(run), measured_with(run, name)
    return [row for other, row in rows if (_base(other), measured_with(other, name)) == how]


def _base(run: RunFiles) -> tuple[Any, Any]:
    return run.setting("model", "path"), run.setting("rollout")


def run_table(run: RunFiles, columns: Sequence[tuple[str, str]], judge: Metric | None) -> Record:
    """Table of the base model, the references and the trained model on equal pairs; {} without
    references. `columns`: titles and names of metrics.

    {"columns": titles, "rows": (kind, label, cells), "says": `verdict`, "n": pairs}
    """
    if run.ends:
        count, (before, after) = next(iter(run.ends.items()))
    elif run.measured and run.measured[0].get("step") == 0:
        (count, before), after = next(iter(run.by_count(run.measured[0]).items())), None
    else:
        return {}
    references = on_pairs(run, count)
    if not references:
        return {}
    best = best_asked(references, judge)
    rows = [("base", "Base model", before)]
    for row in references:
        label = f"{row.get('label')}{' (best phrase found)' if row is best else ''}"
        rows.append((str(row.get("kind")), cut(label, 80), row))
    rows += [("run", "Trained model", after)] if after else []
    whole = next((row for row in references if row.get("kind") == "autoencoded"), {})
    kept = {name: title for name, title in KEPT.items() if number(whole.get(name))}
    found = [(title, name) for title, name in columns if any(name in row for *_, row in rows)]
    cells = [
        (kind, label, [_cell(row, n) for _, n in found] + [_share(row, whole, n) for n in kept])
        for kind, label, row in rows
    ]
    titles = [*(title for title, _ in found), *kept.values()]
    says = verdict(after, references, judge) if after else ""
    return {"columns": titles, "rows": cells, "says": says, "n": count, "kept": bool(kept)}


def _cell(row: Record, name: str) -> Cell:
    value = row.get(name)
    return interval(value, percent=True) if isinstance(value, dict) else (decimal(value), "")


def _share(row: Record, whole: Record, name: str) -> Cell:
    value, most = number(row.get(name)), number(whole.get(name))
    return ("–" if value is None or not most else f"{100 * value / most:.0f}\u00a0%"), ""


def best_asked(rows: Sequence[Record], judge: Metric | None) -> Record | None:
    """The asked row that is best by the judge."""
    asked = [row for row in rows if row.get("kind") == "asked"]
    asked = [row for row in asked if judge and number(row.get(judge.name)) is not None]
    return max(asked, key=lambda row: number(judge and row[judge.name]) or 0.0, default=None)


def judged(row: Record, judge: Metric) -> Record:
    """The interval of a row by the judge, {} without one on the row's own samples."""
    found, own = mapping(row.get(judge.name)), mapping(row.get("judged"))
    value, whole = number(row.get(judge.name)), number(own)
    if not found and own.get("name") == judge.name and value is not None and whole is not None:
        found = own if math.isclose(value, whole, rel_tol=1e-6) else {}  # else of more samples
    return found if "low" in found and "high" in found else {}


def verdict(after: Record, rows: Sequence[Record], judge: Metric | None) -> str:
    """Whether asking the base model does as well as the trained one, in one sentence; "" where it
    is not known: without asked rows or intervals."""
    best = best_asked(rows, judge)
    if best is None or judge is None:
        return ""
    asked, trained = judged(best, judge), judged(after, judge)
    if not asked or not trained or asked.get("n") != trained.get("n"):
        return ""
    (_, low, high), (_, trained_low, trained_high) = with_ends(asked), with_ends(trained)
    says = AS_WELL
    if low > trained_high:
        says = BETTER
    elif high < trained_low:
        says = WORSE
    return sentence(says, judge, asked, trained, cut(best.get("phrase"), 80))


def sentence(says: str, judge: Metric, asked: Any, trained: Any, phrase: str) -> str:
    """What the numbers say, then the numbers: intervals of the asked base and the trained model."""
    texts = ["{} ({})".format(*interval(each, judge.percent)) for each in (asked, trained)]
    return (
        f"{says}: {judge.label.lower()} {texts[0]} with “{phrase}.” before the prompt, "
        f"{texts[1]} after training, n = {mapping(asked).get('n')}."
    )
