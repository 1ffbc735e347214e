"""Write the recorded numbers into the documents.

    python tools/write_numbers.py [--check]
    python tools/write_numbers.py --record STUDY FOLDER

A block `<!-- numbers: NAME -->` to `<!-- /numbers -->` in README.md, docs/ or docs/findings/ holds
STUDY.TABLE, a table of a study of benchmarks/results/studies, one of `BLOCKS` from
benchmarks/results/NAME.json, or `claims`, the ledger. With --check nothing is written, and
documents that differ from their records end the command with 1. So does, always, a sentence of the
README about results that links no row of the ledger. --record takes the rows of a finished
`python -m experiments STUDY` from FOLDER into the records first and draws its figures into
docs/img/studies.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from directalign.types import DirectAlignError
from experiments import claims
from experiments.rows import read_rows, write_rows
from experiments.runner import MARK, load_study
from experiments.tables import Table

RESULTS, FIGURES = Path("benchmarks/results"), Path("docs/img/studies")
BLOCK = re.compile(r"(<!-- numbers: (\w+)(?:\.(\w+))? -->\n).*?(<!-- /numbers -->)", re.DOTALL)
DEMO = {
    "base": "base model",
    "srpo": "**SRPO, anchored**",
    "official": "SRPO, released form",
    "direct_align": "Direct-Align, absolute score",
}


def documents() -> list[Path]:
    """The documents that may hold blocks."""
    folders = (ROOT / "docs", ROOT / "docs/findings")
    return [ROOT / "README.md", *(file for each in folders for file in sorted(each.glob("*.md")))]


def block(name: str, table: str | None) -> str:
    """The content of a block. Raises: DirectAlignError where there is none of this name."""
    if name == "claims":
        return claims.table(ROOT / RESULTS / "studies")
    if table is None and name in BLOCKS:
        return BLOCKS[name](json.loads((ROOT / RESULTS / f"{name}.json").read_text("utf-8")))
    if table is None:
        raise DirectAlignError(f"no block is called {name}: there are {', '.join(BLOCKS)}")
    found = load_study(name).tables(read_rows(ROOT / RESULTS / "studies" / f"{name}.jsonl"))
    if table not in found:
        raise DirectAlignError(f"study {name} has no table {table}: there are {', '.join(found)}")
    return found[table].markdown()


def filled(text: str) -> str:
    """A document with every block written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2], found[3])}\n{found[4]}", text)


# --- blocks of README.md and docs/ ----------------------------------------------------------------


def percent(interval: dict[str, float]) -> str:
    """A rate with its 95 % interval, in per cent."""
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.0f} % ({low:.0f}-{high:.0f})"


def machine_line(*found: dict[str, Any]) -> str:
    """Machine, versions and seed of the first record, commits of all."""
    first, machine = found[0], found[0]["machine"]
    where = machine["gpu"] or f"{machine['cores']} CPU cores ({machine['processor']})"
    libraries = [f"{name} {first['versions'][name]}" for name in ("torch", "diffusers")]
    commits = list(dict.fromkeys(str(each["commit"])[:10] for each in found))
    named = f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"
    return ", ".join([where, *libraries, f"seed {first['seed']}", named]) + "."


def demo(found: dict[str, Any]) -> str:
    """The runs of the demo, and the colour drift of two of them at equal photo rate."""
    lines = []
    for key, name in DEMO.items():
        row = found[key]
        seconds = f"{row['align_seconds']:.0f}" if row["align_seconds"] else ""
        rates = [percent(row[key]) for key in ("photo_and_content", "photo_rate", "content")]
        lines.append([name, *rates, f"{row['color_drift']:.3f}", seconds])
    matched = found["matched"]
    text = "Plain Direct-Align's photo rate never rose: there is no rate to compare the two at."
    if matched is not None:
        text = (
            f"At the highest photo rate that both reach ({100 * matched['photo_rate']:.0f} %), "
            f"SRPO has drifted by {matched['srpo']:.3f} and plain Direct-Align by "
            f"{matched['direct_align']:.3f}: a ratio of {matched['ratio']:.2f}."
        )
    columns = ["", "photo and content", "photo rate", "content", "colour drift", "seconds"]
    end = f"{found['base']['photo_rate']['n']} prompt-seed pairs, 95 % intervals"
    return f"{Table(columns, lines).markdown()}\n\n{text} {end}; {machine_line(found)}"


def world_runs(found: dict[str, Any]) -> str:
    """One line per recipe: before and after."""
    keys = [(key, end) for key in ("photo_rate", "content") for end in ("before", "after")]
    lines = []
    for name, row in found.items():
        rates = [percent(row[end][key]) for key, end in keys]
        steps, seconds = str(row["num_steps"]), f"{row['align_seconds']:.0f}"
        lines.append([f"`{name}.yaml`", steps, *rates, seconds])
    columns = ["recipe", "updates", "photo rate before", "after", "content before", "after"]
    table = Table([*columns, "seconds"], lines)
    return f"{table.markdown()}\n\n{machine_line(*found.values())}"


def recipe_memory(found: dict[str, Any]) -> str:
    """Predicted memory of each recipe on the GPU that it is meant for."""
    phases, lines = list(found["rows"][0]["phases"]), []
    for row in found["rows"]:
        gpu = f"{row['ranks']} x {row['gpu_gib']} GB".removeprefix("1 x ")
        gib = [f"{row['phases'][phase]:.1f}" for phase in phases]
        lines.append([f"`{row['recipe']}.yaml`", gpu, *gib, f"**{row['peak_gib']:.1f}**"])
    table = Table(["recipe", "meant for", *phases, "peak"], lines)
    return f"{table.markdown()}\n\nGiB on one GPU by phase, predicted; {machine_line(found)}"


def architectures(found: dict[str, Any]) -> str:
    """The registry: what an architecture reads, its guidance, and the memory of a LoRA."""
    lines = []
    for row in found["rows"]:
        texts = [f"{name} {count / 1e9:.1f}" for name, count in row["encoders"]]
        guided = "input" if row["embedded"] else f"{row['usual_cfg']:g}"
        files = "all" if row["formats"] else "diffusers"
        peaks = [row["peaks"].get(label) for label in ("bf16", "4bit")]
        gib = ["-" if peak is None else f"{peak:.1f}" for peak in peaks]
        billions, size = f"{row['parameters'] / 1e9:.1f}", "x".join(map(str, row["size"]))
        example = f"`{row['example']}`"
        name = f"`{row['architecture']}`"
        lines.append(
            [name, row["title"], example, billions, " + ".join(texts), guided, size, files, *gib]
        )
    columns = ["architecture", "title", "example", "B weights", "text encoders (B)", "cfg_scale"]
    table = Table([*columns, "size", "LoRA files", "bf16", "4 bit"], lines)
    return (
        f"{table.markdown()}\n\nbf16, 4 bit: predicted peak in GiB of a LoRA update (rank 16, one "
        "image of that size, SRPO with HPSv2.1, gradient checkpointing, text encoders freed, "
        "of Qwen-Image-Edit offloaded), by "
        f"`python benchmarks/architecture_memory.py`; {machine_line(found)}"
    )


def offline_cost(found: dict[str, Any]) -> str:
    """Seconds of an update online and offline, and their ratio."""
    form = "{num_inference_steps}|{online_seconds:.2f} s|{offline_seconds:.2f} s|"
    form += "{ratio:.2f} ({ratio_low:.2f}-{ratio_high:.2f})"
    lines = [form.format(**row).split("|") for row in found["rows"]]
    columns = ["rollout steps", "online update", "offline update", "ratio (range over pairs)"]
    return f"{Table(columns, lines).markdown()}\n\n{machine_line(found)}"


def latent_reward(found: dict[str, Any]) -> str:
    """Cost and quality of the latent reward beside the pixel reward, by seed."""
    lines = []
    for row in found["rows"]:
        ends = [row[end] for end in ("before", "after")]
        rates = [
            f"{100 * e[key]['value']:.0f} %" for key in ("photo_rate", "content") for e in ends
        ]
        drifts = [f"{end['color_drift']:.3f}" for end in ends]
        lines.append([row["sees"], str(row["seed"]), *rates, *drifts])
    columns = ["reward sees", "seed", "photo rate before", "after", "content before", "after"]
    table, cost = Table([*columns, "colour drift before", "after"], lines), found["cost"]
    updates, n = found["rows"][0]["num_steps"], found["rows"][0]["after"]["photo_rate"]["n"]
    return (
        f"{table.markdown()}\n\n{updates} updates of `world_srpo`, {n} images at either end. An "
        f"update takes {cost['pixels']:.2f} CPU seconds with pixels and {cost['latents']:.2f} with "
        f"latents, {cost['ratio']:.2f} times as many ({cost['low']:.2f} to {cost['high']:.2f} in "
        f"{cost['pairs']} pairs); {machine_line(found)}"
    )


def solvers(found: dict[str, Any]) -> str:
    """Photo rate, content and distance to many steps of each solver in few steps."""
    lines = []
    for row in found["rows"]:
        rates = [percent(row[key]) for key in ("photo_rate", "content")]
        named = [f"`{row['model']}`", str(row["steps"]), f"`{row['solver']}`"]
        lines.append([*named, *rates, f"{row['distance']:.4f}"])
    table = Table(["model", "steps", "solver", "photo rate", "content", "distance"], lines)
    return (
        f"{table.markdown()}\n\n{found['pairs']} images each, 95 % intervals; distance: mean "
        f"absolute difference from `euler` in {found['limit']} steps; {machine_line(found)}"
    )


def growth(found: dict[str, Any]) -> str:
    """Time and memory of an update with one setting doubled, over those of the first line."""
    lines, first = [], found["rows"][0]
    for row in found["rows"]:
        sizes = [str(row[key]) for key in ("side", "batch", "injections", "rank")]
        time = f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
        peaks = [row[key] / first["measured"] for key in ("predicted", "measured")]
        lines.append([*sizes, time, *(f"{peak:.2f}" for peak in peaks)])
    columns = ["side", "batch", "injections", "LoRA rank", "time", "predicted peak", "peak"]
    ranks = []
    for row in found["ranks"]:
        seconds = f"{row['seconds']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
        ranks.append(
            [str(row["ranks"]), row["parallel"], seconds, f"{row['received'] / 2**20:.0f}"]
        )
    several = Table(["ranks", "parallel", "seconds of an update", "received, MiB"], ranks)
    return (
        f"{Table(columns, lines).markdown()}\n\nOver the first line: {first['seconds']:.2f} CPU "
        f"seconds, {first['measured'] / 2**20:.0f} MiB of activations.\n\n{several.markdown()}\n\n"
        f"All weights, one prompt on each rank, one thread each; {machine_line(found)}"
    )


def communication(found: dict[str, Any]) -> str:
    """Seconds of an update of FLUX.1-dev by the number of ranks."""
    names = {"sharded": "all weights, sharded", "hybrid": "all weights, hybrid", "data": "LoRA"}
    lines = []
    for row in found["rows"]:
        counts = [names[row["parallel"]], str(row["ranks"]), str(found["prompts"] // row["ranks"])]
        sizes = [f"{row[key] / 2**30:,.1f}" for key in ("peak", "into_gpu", "into_node")]
        seconds = [f"{row[key]:.1f}" for key in ("computing", "between", "one_card")]
        lines.append([*counts, *sizes, *seconds])
    rates, sizes = found["rates"], ("peak", "into a GPU", "into a node")
    columns = ["trained", "ranks", "batch", *(f"{each}, GiB" for each in sizes)]
    columns += ["computing, s", "update, eight cards, s", "update, one card, s"]
    network = f"{rates['between']:g} GB/s into a node by eight network cards, {rates['one_card']:g}"
    return (
        f"{Table(columns, lines).markdown()}\n\n{found['prompts']} prompts for an update at "
        f"720x720, nodes of {found['per_node']}; assumed: {rates['teraflops']:g} TFLOPS, "
        f"{rates['within']:g} GB/s into a GPU, {network} by one; counted, not run; "
        f"{machine_line(found)}"
    )


def startup(found: dict[str, Any]) -> str:
    """CPU seconds of commands until their work begins."""
    names = {"help": "--help", "check": "check flux_srpo_lora_24gb", "train": "train world_srpo"}
    own = {key: seconds - found["seconds"]["imports"] for key, seconds in found["seconds"].items()}
    lines = [[f"`directalign {n}`", f"{found['seconds'][key]:.1f}"] for key, n in names.items()]
    for line, key in zip(lines, names, strict=True):
        line.append("" if key == "help" else f"{own[key]:.1f}")
    table = Table(["command", "CPU seconds", "less imports"], lines)
    imports = found["seconds"]["imports"]
    return (
        f"{table.markdown()}\n\nImports of torch, diffusers and transformers alone: {imports:.1f}. "
        "Training: to the record of its first update, without the measurement and sample grid "
        f"before it; {machine_line(found)}"
    )


def simulated_voters(found: dict[str, Any]) -> str:
    """How often the arena's intervals hold the truth and claims are made, by kind of voters."""
    rows = [list(row.values()) for row in found["rows"]]
    lines = [[name, *(f"{100 * share:.1f} %" for share in each)] for name, *each in rows]
    return f"{Table([*found['rows'][0]], lines).markdown()}\n\n{machine_line(found)}"


RECORDS = (
    *(demo, world_runs, recipe_memory, architectures, offline_cost, latent_reward),
    *(simulated_voters, solvers, growth, communication, startup),
)
BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {each.__name__: each for each in RECORDS}
BLOCKS["demo_full"] = demo

# --- the command ----------------------------------------------------------------------------------


def record(name: str, folder: Path) -> None:
    """Keep the rows of a finished full-size study, and draw its figures in place of former ones.

    Raises: DirectAlignError for a folder of another study, of a quick one, or without results.
    """
    study, mark = load_study(name), folder / MARK
    found = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else None
    if found != {"study": name, "size": "full"}:
        raise DirectAlignError(
            f"{folder} holds {found or f'no study (no {MARK})'}, not the full size of {name}: "
            f"run python -m experiments {name} --out {folder}"
        )
    rows = read_rows(folder / "results.jsonl")
    for former in (*(ROOT / FIGURES).glob(f"{name}.png"), *(ROOT / FIGURES).glob(f"{name}_*.png")):
        former.unlink()
    study.draw(rows, ROOT / FIGURES)
    write_rows(rows, ROOT / RESULTS / "studies" / f"{name}.jsonl")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the recorded numbers into the documents.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one is stale")
    parser.add_argument("--record", nargs=2, metavar=("STUDY", "FOLDER"), help="keep a study first")
    given, stale = parser.parse_args(words), []
    try:
        if given.record:
            record(given.record[0], Path(given.record[1]))
        for file in documents():
            text = file.read_text(encoding="utf-8")
            written = filled(text)
            if written != text:
                stale.append(str(file.relative_to(ROOT)))
                if not given.check:
                    file.write_text(written, encoding="utf-8")
        unlinked = list(claims.unlinked((ROOT / "README.md").read_text(encoding="utf-8")))
    except DirectAlignError as error:
        sys.exit(str(error))
    if unlinked:
        remedy = "link its row, docs/claims.md#ID, or leave it out"
        sys.exit(f"README.md speaks of results without a claim: {unlinked[0]!r}; {remedy}")
    if given.check and stale:
        sys.exit(f"{', '.join(stale)}: numbers differ; run python tools/write_numbers.py")


if __name__ == "__main__":
    main()
