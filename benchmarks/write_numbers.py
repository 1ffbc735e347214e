"""Write the recorded numbers into the documents: every figure in README.md and docs/ stands between two markers and comes from here.

    python benchmarks/write_numbers.py [--check]

Reads `benchmarks/results/*.json` and `benchmarks/results/studies/*.jsonl`; a block is `<!-- numbers: NAME -->` to `<!-- /numbers -->`. With --check nothing is
written, and a document that differs from its records ends the command with 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from directalign.studies import stopping_story
from directalign.studies.comparing import matching
from directalign.studies.running.records import Row, arms_of, read_rows, seeds_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
DOCUMENTS = ("README.md", "docs/world.md", "docs/recipes.md")
BLOCK = re.compile(r"(<!-- numbers: (\w+) -->\n).*?(<!-- /numbers -->)", re.DOTALL)
ROWS = {
    "base": "base model",
    "srpo": "**SRPO, anchored**",
    "direct_align": "Direct-Align, plain reward, same budget",
    "srpo_long": "SRPO, anchored, 3x the updates",
    "official_long": "SRPO, official ramps, 3x the updates",
}


def percent(interval: dict[str, float]) -> str:
    """A rate with its 95 % interval, in per cent."""
    return f"{100 * interval['value']:.0f} % ({100 * interval['low']:.0f}-{100 * interval['high']:.0f})"


def machine_line(*found: dict[str, Any]) -> str:
    """Where records were taken: the machine of the first, the commits of them all."""
    machine, versions = found[0]["machine"], found[0]["versions"]
    where = machine["gpu"] or f"{machine['cores']} CPU cores ({machine['processor']})"
    commits = list(dict.fromkeys(str(each["commit"])[:10] for each in found))
    named = f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"
    return f"{where}, torch {versions['torch']}, diffusers {versions['diffusers']}, seed {found[0]['seed']}, {named}."


def demo(found: dict[str, Any]) -> str:
    """The table of the demo and its comparison at matched photo rate."""
    lines = [
        "| | photo rate | content right | colour drift | seconds of alignment |",
        "|---|---|---|---|---|",
    ]
    for key, name in ROWS.items():
        row = found[key]
        seconds = f"{row['align_seconds']:.0f}" if row["align_seconds"] else ""
        lines.append(
            f"| {name} | {percent(row['photo_rate'])} | {percent(row['content'])} | {row['color_drift']:.3f} | {seconds} |"
        )
    n = found["base"]["photo_rate"]["n"]
    return "\n".join(
        [
            *lines,
            "",
            f"{matched_line(found['matched'])} {n} prompt-seed pairs, 95 % intervals; {machine_line(found)}",
        ]
    )


def matched_line(matched: dict[str, float] | None) -> str:
    """What the comparison at equal photo rate came to, or that there is none."""
    if matched is None:
        return "Plain Direct-Align's photo rate never rose, so there is no rate at which to compare the two."
    return (
        f"At the highest photo rate that both reach ({100 * matched['photo_rate']:.0f} %), SRPO has drifted by {matched['srpo']:.3f} and plain "
        f"Direct-Align by {matched['direct_align']:.3f}: a ratio of {matched['ratio']:.2f}."
    )


def world_runs(found: dict[str, Any]) -> str:
    """One row per recipe: before and after."""
    lines = [
        "| recipe | updates | photo rate before | after | content before | after | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        ends = " | ".join(
            percent(row[end][key])
            for key in ("photo_rate", "content")
            for end in ("before", "after")
        )
        lines.append(
            f"| `{name}.yaml` | {row['num_steps']} | {ends} | {row['align_seconds']:.0f} |"
        )
    return "\n".join([*lines, "", machine_line(*found.values())])


def recipe_memory(found: dict[str, Any]) -> str:
    """Predicted memory of each recipe on the GPU that it is meant for."""
    lines = [
        "| recipe | meant for | encode | rollout | train | update | measure | peak |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        count = f"{row['ranks']} x " if row["ranks"] > 1 else ""
        phases = " | ".join(
            f"{row['phases'][phase]:.1f}"
            for phase in ("encode", "rollout", "train", "update", "measure")
        )
        lines.append(
            f"| `{row['recipe']}.yaml` | {count}{row['gpu_gib']} GB | {phases} | **{row['peak_gib']:.1f}** |"
        )
    return "\n".join([*lines, "", f"GiB on one GPU by phase, predicted; {machine_line(found)}"])


def offline_cost(found: dict[str, Any]) -> str:
    """Seconds of an update online and offline, and their ratio."""
    lines = [
        "| rollout steps | online update | offline update | ratio (range over pairs) |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        span = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
        lines.append(
            f"| {row['num_inference_steps']} | {row['online_seconds']:.2f} s | {row['offline_seconds']:.2f} s | {span} |"
        )
    return "\n".join([*lines, "", machine_line(found)])


def table1(rows: list[Row]) -> str:
    """All methods at the highest photo rate that most of them reach: what it cost them in content, colour and network calls."""
    level = matching.level_of_most(rows, "photo_rate")
    found = matching.at_same_level(rows, "photo_rate", level)
    columns = [
        matching.Column("content", "content right", 0, percent=True),
        matching.Column("color_drift", "colour drift"),
        matching.Column("score_pos", "reward"),
        matching.Column("call_equivalents", "network calls", 0),
    ]
    missed = matching.absent(found, arms_of(rows), len(seeds_of(rows)))
    lines = [
        matching.table(found, arms_of(rows), columns, matching.base_row(rows)),
        f"Each run where its photo rate first reaches {100 * level:.0f} %, the highest that two thirds of the methods reach with every seed (the base model "
        f"begins at {100 * matching.base_row(rows)['photo_rate']:.0f} %); means and 95 % intervals over {len(seeds_of(rows))} seeds. {missed}",
    ]
    return "\n\n".join(lines).rstrip()


def stopping(rows: list[Row]) -> str:
    """Runs of ten times the recommended length, with and without rules that end them."""
    facts = [row for row in rows if row.get("kind") == "ending"]
    seeds = f"Means and 95 % intervals over seeds {', '.join(map(str, seeds_of(rows)))}, of the plain reward one seed"
    where = machine_line(*facts).replace(f"seed {facts[0]['seed']}, ", "")
    return f"{stopping_story.in_short(rows)}\n\n{seeds}; {where}"


TABLES: dict[str, Callable[[Any], str]] = {
    "demo": demo,
    "world_runs": world_runs,
    "offline_cost": offline_cost,
    "table1": table1,
    "stopping": stopping,
    "recipe_memory": recipe_memory,
}


def record_of(name: str) -> Any:
    """What is recorded under a name: the rows of a study, or one JSON value."""
    study = RESULTS / "studies" / f"{name}.jsonl"
    return (
        read_rows(study)
        if study.is_file()
        else json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    )


def filled(text: str) -> str:
    """A document with every block written anew from its record."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{TABLES[match[2]](record_of(match[2]))}\n{match[3]}"

    return BLOCK.sub(block, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        written = filled(text)
        if written != text:
            stale.append(name)
            if not check:
                (ROOT / name).write_text(written, encoding="utf-8")
    if check and stale:
        sys.exit(
            f"{', '.join(stale)}: numbers differ from benchmarks/results; run python benchmarks/write_numbers.py"
        )


if __name__ == "__main__":
    main()
