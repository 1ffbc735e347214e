"""Train the recipes of the embedded world that the demo does not show, and record where each begins
and ends.

    python benchmarks/world_runs.py [NAME ...] [--runs runs/bench] [--out
    benchmarks/results/world_runs.json]

NAME is a recipe without path and ending (default: all of `RECIPES`); what is recorded of others
stays. Finished runs are kept and read again; the recorded JSON carries machine, commit and seed,
and `write_numbers.py` makes the tables of the documents from it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from directalign.config.load import load_run
from directalign.toyworld.assets import write_pictures
from directalign.training import run

RECIPES = ("world_sd", "world_sd_v", "world_srpo_lora", "world_offline", "world_black_box")
KEPT = ("photo_rate", "content", "color_drift", "reward")
FACTS = ("name", "num_steps", "align_seconds", "seed", "commit", "machine", "versions")


def measure(name: str, runs: Path) -> dict[str, Any]:
    """Train one recipe, unless it is there already, and give its beginning and end."""
    pictures = runs / "pictures"
    if name == "world_offline" and not pictures.exists():
        write_pictures(pictures, 256)
    overrides = [f"data.images={pictures}"] if name == "world_offline" else []
    folder = runs / name
    if not (folder / "summary.json").exists():
        run(
            load_run(name, overrides),
            folder,
            resume=(folder / "run.yaml").exists(),
        )
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    ends = {end: {key: summary[end][key] for key in KEPT} for end in ("before", "after")}
    return ends | {key: summary[key] for key in FACTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=RECIPES, metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/world_runs.json"))
    arguments = parser.parse_args()
    kept = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {}
    results = kept | {name: measure(name, arguments.runs) for name in arguments.names}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
