"""Tables of a comparison as CSV and LaTeX: one row per model, or per group of runs that are alike.

Runs are alike if their recipes differ only in one key, usually the seed, and in their names, and
their weights are of the same step and strength. The mean of a group is over its runs, with its 95 %
t interval; that of a single model is over images, with the bootstrap interval over prompts.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DirectAlignError
from ..io.text import read_json
from ..report.read import COMPARISON, SUMMARY
from ..stats import t_quantile

PLUS_MINUS = "± standard deviation over runs, of a single model half its 95 % interval over prompts"
LATEX_SPECIAL = re.compile(r"[&%$#_{}]")
LATEX_WORDS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True)
class Cell:
    """A mean with its interval, over `n` images of each run.

    `std` is the standard deviation over runs, None without several.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    std: float | None = None


@dataclass(frozen=True)
class Group:
    """A row: `runs` models with one label; cells by name of the metric."""

    label: str
    runs: int
    cells: Mapping[str, Cell]


def groups_of(out: Path, key: str | None) -> tuple[list[Group], dict[str, str]]:
    """The groups of a finished comparison by the dotted recipe key `key` (None: every model alone),
    and {metric: label}.

    Raises: DirectAlignError if no compared run has the key.
    """
    models = read_json(out / COMPARISON, "compare again")["models"]
    summary = read_json(out / SUMMARY, "compare again")
    ignored = {"name", key}
    alike: dict[Any, list[Any]] = {}
    for model in models:
        settings = (model["settings"] or {}) if model["kind"] == "run" else {}
        same = [(k, repr(v)) for k, v in settings.items() if k not in ignored]
        group = (*same, *model.get("weights", ())) if key and same else model["key"]
        alike.setdefault(group, []).append(model)
    known = {name for model in models for name in model["settings"] or () if model["kind"] == "run"}
    if key is not None and key not in known:
        raise DirectAlignError(
            f"--group-by {key}: no compared run has this key; seed is usual, "
            "or a key such as train.learning_rate"
        )
    runs = [each[0]["settings"] for each in alike.values() if each[0]["kind"] == "run"]
    shared = [k for k in (runs[0] if runs else ()) if all(k in each for each in runs)]
    differing = [k for k in shared if any(each[k] != runs[0][k] for each in runs)]
    groups = [
        Group(
            _label(members, [k for k in differing if k not in ignored]),
            len(members),
            _cells([summary["models"][each["key"]] for each in members]),
        )
        for members in alike.values()
    ]
    return groups, {name: info["label"] for name, info in summary["names"].items()}


def _label(members: Sequence[Mapping[str, Any]], differing: Sequence[str]) -> str:
    """The label of a single model; of several what sets them apart from other groups."""
    if len(members) == 1:
        return members[0]["label"]
    settings = members[0]["settings"]
    parts = [f"{key.rpartition('.')[2]} {settings[key]}" for key in differing]
    parts += members[0].get("weights", ())
    return ", ".join(parts) or members[0]["label"]


def _cells(members: Sequence[Mapping[str, Any]]) -> dict[str, Cell]:
    """Of the metrics that all members have."""
    if len(members) == 1:
        return {k: Cell(v["value"], v["low"], v["high"], v["n"]) for k, v in members[0].items()}
    found = dict[str, Cell]()
    for name in members[0]:
        if all(name in each for each in members):
            values = np.array([each[name]["value"] for each in members])
            mean, std = float(values.mean()), float(values.std(ddof=1))
            half = t_quantile(len(values) - 1) * std / math.sqrt(len(values))
            n = members[0][name]["n"]  # as of all: see `results.summarise`
            found[name] = Cell(mean, mean - half, mean + half, n, std)
    return found


def as_csv(groups: Sequence[Group], labels: Mapping[str, str]) -> str:
    """One row per group and metric; n counts the images of a run."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = "model", "runs", "metric", "n", "mean", "std", "low", "high", "interval_over"
    writer.writerow(head)
    for group in groups:
        over = "runs" if group.runs > 1 else "prompts"
        for name, cell in group.cells.items():
            if name in labels:
                numbers = (cell.mean, cell.std, cell.low, cell.high)
                texts = ["" if each is None else f"{each:.8g}" for each in numbers]
                writer.writerow([group.label, group.runs, name, cell.n, *texts, over])
    return stream.getvalue()


def as_latex(groups: Sequence[Group], labels: Mapping[str, str]) -> str:
    """A tabular of booktabs: metrics as rows with the number of images, groups as columns."""
    head = [
        "",
        "$n$",
        *(_tex(each.label) + (f" ({each.runs} runs)" if each.runs > 1 else "") for each in groups),
    ]
    lines = [rf"\begin{{tabular}}{{lr{'c' * len(groups)}}}", r"\toprule", _row(head), r"\midrule"]
    for name, label in labels.items():
        cells = [each.cells.get(name) for each in groups]
        n = next((str(each.n) for each in cells if each is not None), "")
        numbers = ("" if each is None else f"${text(each)}$" for each in cells)
        lines.append(_row([_tex(label), n, *numbers]))
    about = [r"% needs \usepackage{booktabs}", f"% mean {PLUS_MINUS}; n images of each run"]
    return "\n".join([*about, *lines, r"\bottomrule", r"\end{tabular}", ""])


def text(cell: Cell, plus_minus: str = r" \pm ") -> str:
    """`mean ± std` over runs, else `mean ± half the interval`, to two digits of the second."""
    half = cell.std
    if half is None and cell.low is not None and cell.high is not None:
        half = (cell.high - cell.low) / 2
    if half is None:
        return f"{cell.mean:.3f}"
    digits = min(6, max(0, 1 - math.floor(math.log10(half)))) if half else 3
    return f"{cell.mean:.{digits}f}{plus_minus}{half:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex(label: str) -> str:
    parts = [LATEX_WORDS.get(letter, letter) for letter in label]
    return "".join(p if len(p) > 1 else LATEX_SPECIAL.sub(r"\\\g<0>", p) for p in parts)
