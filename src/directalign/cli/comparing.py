"""What `directalign evaluate` and `directalign compare` share: their options, and the table of what they found."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

ALL = "for all models; each as its recipe says if not given"

Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="SET",
        help="Prompts: a list, geneval:FILE, hpdv2:FOLDER, drawbench:FILE, parti:FILE or world; the run's own if not given.",
    ),
]
NumPairs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images per model; all prompts of --prompts, or the recipe's number, if not given.",
    ),
]
SeedsPerPrompt = Annotated[
    int | None,
    typer.Option(
        min=1, help="Seeds of each prompt; 2 if not given, the least that shows diversity."
    ),
]
Reward = Annotated[
    list[str],
    typer.Option(
        "--reward",
        metavar="LABEL=RECIPE",
        help="A further held-out reward: recipe, CLIP or '{name: ...}'. Repeatable.",
    ),
]
PositiveWords = Annotated[
    list[str],
    typer.Option(
        "--positive",
        help="Wanted phrase of the style gap; the first run's if not given. Repeatable.",
    ),
]
NegativeWords = Annotated[
    list[str], typer.Option("--negative", help="Unwanted phrase of the style gap. Repeatable.")
]
JudgeName = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="world|none", help="The world's judges; as the recipes say if not given."
    ),
]
OffTopic = Annotated[
    str | None,
    typer.Option(
        metavar="SET",
        help="Control prompts for leakage, or world; as the recipes say if not given.",
    ),
]
ADHERENCE = "What judges whether images show what prompts say: a detector or VLM, a recipe, or '{name: ...}'; as the recipes say if not given."
Adherence = Annotated[str | None, typer.Option(metavar="MODEL", help=ADHERENCE)]
SamplingSteps = Annotated[
    int | None, typer.Option("--sampling-steps", min=1, help=f"Sampling steps, {ALL}.")
]
CfgScale = Annotated[float | None, typer.Option(min=0, help=f"Classifier-free guidance, {ALL}.")]
Guidance = Annotated[
    float | None, typer.Option("--embedded-guidance", help=f"Guidance fed to the network, {ALL}.")
]
Height = Annotated[int | None, typer.Option(min=8, help=f"Pixels, {ALL}.")]
Width = Annotated[int | None, typer.Option(min=8, help=f"Pixels, {ALL}.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Images made, or looked at, at once; as the recipes say if not given."
    ),
]

ROLES = {
    "judge": "Judges",
    "adherence": "Prompt adherence",
    "held_out": "Held-out rewards",
    "sgp": "Style gap",
    "trained": "Trained-on rewards",
    "leakage": "Off-topic prompts",
    "drift": "Drift and diversity",
}
BETTER = {1: "↑", -1: "↓", 0: " "}


def rollout_of(
    sampling_steps: int | None,
    cfg_scale: float | None,
    guidance: float | None,
    height: int | None,
    width: int | None,
) -> dict[str, Any]:
    """The settings that were given."""
    asked = {
        "num_inference_steps": sampling_steps,
        "cfg_scale": cfg_scale,
        "embedded_guidance": guidance,
        "height": height,
        "width": width,
    }
    return {name: value for name, value in asked.items() if value is not None}


def checked_judge(judge: str | None) -> str | None:
    """Refuse a judge that there is not."""
    from ..types import DirectAlignError

    if judge not in (None, "world", "none"):
        raise DirectAlignError(f"--judge {judge}: no such judge; world or none")
    return judge


def command_line(words: Sequence[str]) -> str:
    """The command as it was typed, to be repeated."""
    import shlex

    return shlex.join(["directalign", *words])


def where() -> dict[str, Any]:
    """What the comparison runs on."""
    from ..training.run_folder import commit, machine, versions

    return {"commit": commit(), "machine": machine(), "versions": versions()}


@contextmanager
def progress_on_stderr() -> Iterator[None]:
    """Print the package's log messages to stderr, one line each."""
    package, handler = logging.getLogger("directalign"), logging.StreamHandler(sys.stderr)
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)


def show(out: Path) -> None:
    """The table, and on the last line the folder."""
    from rich.console import Console

    comparison, summary = (
        json.loads((out / name).read_text(encoding="utf-8"))
        for name in ("comparison.json", "summary.json")
    )
    console = Console()
    console.print(table_of(comparison["models"], summary), highlight=False)
    if len(comparison["models"]) > 1:
        console.print(
            "Wins: share of images that beat the first model's on the same prompt and seed; * beyond chance (p < .05 after Holm's correction)."
        )
    typer.echo(out)


def table_of(models: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Table:
    """Numbers as rows by role, models as columns: the mean, below it its 95 % interval, and before it the wins against the first model."""
    table = Table(
        "",
        "",
        title="↑ larger is better, ↓ smaller is better, † trained on; 95 % intervals over prompts",
        title_justify="left",
    )
    for model in models:
        table.add_column(escape(model["label"]), justify="right")
    for role, title in ROLES.items():
        names = [name for name, about in summary["names"].items() if about["role"] == role]
        if names:
            table.add_section()
            table.add_row(f"[bold]{title}[/bold]", "", *("" for _ in models))
        for name in names:
            table.add_row(*_row(name, models, summary))
    return table


def _row(
    name: str, models: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> Iterator[str]:
    about, first = summary["names"][name], models[0]["key"]
    won = {
        each["b"]: each for each in summary["wins"] if each["name"] == name and each["a"] == first
    }
    yield escape(about["label"])
    yield BETTER[about["better"]]
    for model in models:
        found = summary["models"][model["key"]].get(name)
        yield (
            ""
            if found is None
            else _cell(found, name in model["trained_on"], won.get(model["key"]))
        )


def _cell(found: Mapping[str, float], trained_on: bool, won: Mapping[str, float] | None) -> str:
    """The mean and the wins, below them the interval, to the second digit of its half width; of a single image there is none."""
    half = (found["high"] - found["low"]) / 2
    digits = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3
    wins = "" if won is None else f"{won['value']:.0%}{'*' if won['p_holm'] < 0.05 else ' '} "
    ends = (
        ""
        if half == 0 and found["n"] == 1
        else f"{found['low']:.{digits}f} to {found['high']:.{digits}f}"
    )
    return f"{wins}{'†' if trained_on else ''}[bold]{found['value']:.{digits}f}[/bold]\n{ends}"
