"""`directalign sample`, `evaluate`, `compare` and `report`: images, numbers and pages of models."""

import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import DirectAlignError
from ..io.text import checked_prompt, isolated
from .common import (
    Debug,
    RunFolder,
    Step,
    Strength,
    announce,
    argument,
    flag,
    log_to_stderr,
    one_line_errors,
    option,
    require_room,
    seed_option,
    shared_options,
    without_garbage_collection,
)

CONTINUES = "; the same command continues"
RECIPE = "default: as in the recipes"
MODEL = "default: as in the recipe, or of a bare model"


def sampling_options(
    num_inference_steps: Annotated[
        int | None, option(f"Sampling steps; {MODEL} 25.", min=1, max=1000)
    ] = None,
    solver: Annotated[
        str | None, option(f"euler, dpm_solver or unipc; {MODEL} euler.", "NAME")
    ] = None,
    cfg_scale: Annotated[
        float | None, option(f"Classifier-free guidance, two passes when not 1; {MODEL} 1.")
    ] = None,
    embedded_guidance: Annotated[
        float | None, option(f"Guidance input of the network; {MODEL} 3.5 if it has one.")
    ] = None,
    height: Annotated[
        int | None, option(f"Pixels; {MODEL} its training size.", min=8, max=16_384)
    ] = None,
    width: Annotated[
        int | None, option(f"Pixels; {MODEL} its training size.", min=8, max=16_384)
    ] = None,
) -> dict[str, Any]:
    """The settings of `config.RolloutConfig` that are given."""
    return {name: value for name, value in locals().items() if value is not None}


def comparison_options(
    prompts: Annotated[
        str | None,
        option(
            "A prompt list, geneval:FILE, hpdv2:FOLDER, drawbench:FILE, parti:FILE or world; "
            f"{RECIPE}.",
            "SET",
        ),
    ] = None,
    num_samples: Annotated[
        int | None, option(f"Images per model; default: all of --prompts, or {RECIPE[9:]}.", min=1)
    ] = None,
    seeds_per_prompt: Annotated[
        int | None, option("Seeds of each prompt; default 2, the least for diversity.", min=1)
    ] = None,
    reward: Annotated[
        list[str],
        option(
            "A further held-out reward: recipe, CLIP or '{name: ...}'. Repeatable.", "LABEL=RECIPE"
        ),
    ] = [],
    metric: Annotated[list[str], option("A metric of your own. Repeatable.", "FILE.py:NAME")] = [],
    positive: Annotated[
        list[str], option("Desired phrase of the style gap; default: the first run's. Repeatable.")
    ] = [],
    negative: Annotated[list[str], option("Undesired phrase of the style gap. Repeatable.")] = [],
    judge: Annotated[
        Literal["world", "world2", "none"] | None,
        option(f"Classifiers of a toy world, or none; {RECIPE}."),
    ] = None,
    control_prompts: Annotated[
        str | None, option(f"Prompts to measure leakage on, or world; {RECIPE}.", "SET")
    ] = None,
    adherence: Annotated[
        str | None,
        option(
            "Model that measures prompt adherence: a detector or VLM, a recipe, or "
            f"'{{name: ...}}'; {RECIPE}.",
            "MODEL",
        ),
    ] = None,
    references: Annotated[
        bool,
        flag(
            "--references",
            "Add the base model asked with each desired phrase before the prompt, and, with the "
            "toy world's judge, photographs.",
        ),
    ] = False,
    batch_size: Annotated[
        int | None, option(f"Images generated or evaluated at once; {RECIPE}.", min=1)
    ] = None,
) -> dict[str, Any]:
    """Fields of `evaluation.compare.Request`."""
    given = dict(locals())
    lists = {"rewards": given.pop("reward"), "metrics": given.pop("metric")}
    lists |= {"positive": positive, "negative": negative}
    return given | {k: tuple(v) for k, v in lists.items()}


@shared_options(rollout=sampling_options, settings=comparison_options)
def evaluate(
    folder: RunFolder,
    rollout: dict[str, Any],
    settings: dict[str, Any],
    out: Annotated[Path | None, option("Output folder; default: DIR/evaluation.", "OUT")] = None,
    step: Step = None,
    strength: Strength = 1.0,
    debug: Debug = False,
) -> None:
    """Evaluate a run and its base model on the same prompts and seeds."""
    with one_line_errors(debug, CONTINUES):
        announce(f"evaluating {folder}")
        with without_garbage_collection():
            from ..evaluation.compare import evaluate_run
            from ..evaluation.run_weights import suffix_of

        sources, suffix = (str(folder),), suffix_of(step, strength)
        if suffix:
            sources = (f"{folder}@{'' if step is None else step}:{strength}",)
        out = out or folder / f"evaluation{suffix}"
        show(_compare(evaluate_run, sources, out, base=True, rollout=rollout, **settings))


@shared_options(rollout=sampling_options, settings=comparison_options)
def compare(
    sources: Annotated[
        list[str],
        argument(
            "A run's folder (RUN@10: its checkpoint of step 10; RUN@10:0.5: at half strength), a "
            "folder of finished runs, a diffusers folder, a hub id, world:flux, or a folder of "
            "images with images.jsonl.",
            "[LABEL=]SOURCE...",
        ),
    ],
    out: Annotated[Path, option("Output folder; an interrupted comparison continues.", "DIR")],
    rollout: dict[str, Any],
    settings: dict[str, Any],
    base: Annotated[
        bool, flag("--base", "Add the base model of the runs, as the reference.")
    ] = False,
    group_by: Annotated[
        str | None,
        option("Join runs that differ in this key only, as in --group-by seed: mean ± std.", "KEY"),
    ] = None,
    csv: Annotated[Path | None, option("Write the table as CSV too.", "FILE")] = None,
    latex: Annotated[Path | None, option("Write the table as LaTeX too.", "FILE")] = None,
    debug: Debug = False,
) -> None:
    """Compare models on the same prompts and seeds: rewards, judges, drift, diversity, leakage."""
    with one_line_errors(debug, CONTINUES):
        _require_files(csv, latex)
        announce(f"comparing, in {out}")
        with without_garbage_collection():
            from ..evaluation.compare import compare as compare_models

        found = _compare(compare_models, tuple(sources), out, base, rollout=rollout, **settings)
        if group_by is None:
            show(found)
        if group_by is not None or csv is not None or latex is not None:
            _tables(out, group_by, csv, latex)


def _require_files(csv: Path | None, latex: Path | None) -> None:
    """Raise DirectAlignError for a table that cannot be written, before the comparison."""
    for name, file in (("--csv", csv), ("--latex", latex)):
        if file is not None:
            require_room(file, name)
            if file.is_dir():
                raise DirectAlignError(f"{name} {file}: is a folder; name a file")
    if csv is not None and csv == latex:
        raise DirectAlignError(f"--csv, --latex: both are {csv}; name two files")


def _tables(out: Path, group_by: str | None, csv: Path | None, latex: Path | None) -> None:
    """Print the table of groups, write the files, and print what has been written."""
    from ..evaluation.tables import PLUS_MINUS, as_csv, as_latex, groups_of, text
    from ..io.atomic import write_text

    groups, labels = groups_of(out, group_by)
    if group_by is not None:
        title = f"Runs that differ in {group_by} only: mean {PLUS_MINUS}"
        heads = (escape(isolated(f"{each.label} ({each.runs})")) for each in groups)
        table = Table("", "n", *heads, title=title, title_justify="left")
        for name, label in labels.items():
            cells = [each.cells.get(name) for each in groups]
            n = next((str(each.n) for each in cells if each is not None), "")
            numbers = ("" if each is None else text(each, " ± ") for each in cells)
            table.add_row(escape(label), n, *numbers)
        Console().print(table, highlight=False)
    for file, make in ((csv, as_csv), (latex, as_latex)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, make(groups, labels))
            typer.echo(file)
    if group_by is not None:
        typer.echo(out)


def _compare(run: Any, sources: tuple[str, ...], out: Path, base: bool, **settings: Any) -> Path:
    """Run a comparison; returns its folder."""
    from ..evaluation.compare import Request
    from ..training.run_folder import where

    command = shlex.join(["directalign", *sys.argv[1:]])
    with log_to_stderr():
        return run(Request(sources, out, base, command=command, where=where(), **settings))


def show(out: Path) -> None:
    """Print the table of a comparison, and on the last line its folder."""
    from ..report.comparison_page import asking
    from ..report.read import read_comparison

    models, summary = (
        json.loads((out / name).read_text(encoding="utf-8"))
        for name in ("comparison.json", "summary.json")
    )
    console = Console()
    console.print(table_of(models["models"], summary), highlight=False)
    if len(models["models"]) > 1:
        console.print(
            "Wins: share of images that score better than the first model's for the same prompt "
            "and seed; * p < .05 after Holm's correction."
        )
    for sentence in asking(read_comparison(out)):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    typer.echo(out)


ROLES = {
    "judge": "Judges",
    "adherence": "Prompt adherence",
    "held_out": "Held-out rewards",
    "sgp": "Style gap",
    "trained": "Trained-on rewards",
    "leakage": "Control prompts",
    "drift": "Drift and diversity",
}
BETTER = {1: "↑", -1: "↓", 0: " "}


def table_of(models: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Table:
    """Metrics as rows by role, models as columns.

    A cell has wins against the first model and mean, and below them the 95 % interval. The title
    has the number of images per model, and so have rows of another number.
    """
    found = summary["models"].values()  # those that have a metric have it of as many images
    counts = {n: next(each[n]["n"] for each in found if n in each) for n in summary["names"]}
    usual = max(counts.values(), key=list(counts.values()).count, default=0)
    title = "↑ larger is better, ↓ smaller is better, † trained on; 95 % intervals over prompts"
    title += f"; n = {usual} pairs"
    table = Table("", "", title=title, title_justify="left")
    for model in models:
        table.add_column(escape(isolated(model["label"])), justify="right")
    for role, title in ROLES.items():
        names = [name for name, info in summary["names"].items() if info["role"] == role]
        if names:
            table.add_section()
            table.add_row(f"[bold]{title}[/bold]", "", *("" for _ in models))
        for name in names:
            label, *cells = _row(name, models, summary)
            table.add_row(label + f" (n = {counts[name]})" * (counts[name] != usual), *cells)
    return table


def _row(
    name: str, models: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> Iterator[str]:
    info, first = summary["names"][name], models[0]["key"]
    wins = {
        each["b"]: each for each in summary["wins"] if each["name"] == name and each["a"] == first
    }
    yield escape(isolated(info["label"]))
    yield BETTER[info["better"]]
    for model in models:
        found, won = summary["models"][model["key"]].get(name), wins.get(model["key"])
        yield "" if found is None else _cell(found, name in model["trained_on"], won)


def _cell(found: Mapping[str, Any], trained_on: bool, won: Mapping[str, Any] | None) -> str:
    """Wins and mean, below them the interval (if any), to two digits of its half width."""
    half = (found["high"] - found["low"]) / 2
    digits = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3
    wins = "" if won is None else f"{won['value']:.0%}{'*' if won['p_holm'] < 0.05 else ' '} "
    single = half == 0 and found["n"] == 1
    interval = "" if single else f"{found['low']:.{digits}f} to {found['high']:.{digits}f}"
    return f"{wins}{'†' if trained_on else ''}[bold]{found['value']:.{digits}f}[/bold]\n{interval}"


@shared_options(rollout=sampling_options)
def sample(
    source: Annotated[
        Path, argument("A run's folder, a diffusers folder, a hub id, or world:flux.", "SOURCE")
    ],
    rollout: dict[str, Any],
    prompt: Annotated[list[str], option("A prompt. Repeatable.")] = [],
    prompts: Annotated[
        str | None, option("A prompt list (.txt, .jsonl, .csv, .tsv, .parquet), or world.", "FILE")
    ] = None,
    seed: Annotated[list[int], seed_option("Seed, for every prompt. Repeatable.")] = [0],
    out: Annotated[
        Path, option("Folder for the images; one that holds images gets a number.", "DIR")
    ] = Path("images"),
    base: Annotated[bool, flag("--base", "Sample the base model of the run instead.")] = False,
    image: Annotated[
        Path | None, option("The image to edit, for a model that edits images.", "FILE", "--source")
    ] = None,
    step: Step = None,
    strength: Strength = 1.0,
    debug: Debug = False,
) -> None:
    """Sample images: PNG files, and images.jsonl with the diffusers call that reproduces each."""
    with one_line_errors(debug):
        announce(f"sampling {source}")
        from ..data.prompts import read_prompts

        if image is not None and not image.is_file():
            raise DirectAlignError(f"--source {image}: there is no such file: give an image")
        texts = [checked_prompt(text, "--prompt") for text in prompt]
        texts += read_prompts(prompts) if prompts is not None else []
        if not texts:
            raise DirectAlignError("no prompts: give --prompt 'a red star' or --prompts FILE")
        with without_garbage_collection():
            from ..evaluation.generate import sample_images

        pairs = [(text, number) for text in texts for number in seed]
        all_prompts, seeds = [text for text, _ in pairs], [number for _, number in pairs]
        with log_to_stderr():
            given = source, all_prompts, seeds, out, rollout, base, step, strength, image
            files = sample_images(*given)
        for file in files:
            typer.echo(file)


def report(
    folder: Annotated[
        Path,
        argument("A run's folder, a folder of runs, or the output of evaluate or compare.", "DIR"),
    ],
    debug: Debug = False,
) -> None:
    """Write the page of a run, of several runs, or of a comparison, from their records."""
    with one_line_errors(debug):
        from ..report import write_page

        typer.echo(write_page(folder))
