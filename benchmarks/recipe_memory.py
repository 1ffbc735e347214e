"""Record the memory that `directalign check` predicts for each recipe of a real model.

    python benchmarks/recipe_memory.py [--out benchmarks/results/recipe_memory.json]

Predicted from the published configs, without weights, network or GPU; not measured. docs/recipes.md
shows the numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from directalign.config.load import load_run
from directalign.preflight import PHASES, a_gpu, estimate
from directalign.training.run_folder import commit, machine, versions

PLACES = {
    "flux_srpo_lora_12gb": (12, 1),
    "flux_srpo_lora_16gb": (16, 1),
    "flux_srpo_lora_24gb": (24, 1),
    "flux_srpo_offline": (24, 1),
    "flux_srpo": (80, 8),
    "flux_srpo_pickscore": (80, 8),
    "sd35_srpo_lora": (16, 1),
    "sdxl_srpo_lora": (24, 1),
    "sd15_srpo_lora": (12, 1),
    "qwen_srpo_lora": (32, 1),
}
"""Recipe to the GiB of its GPU, and the number of GPUs."""


def predicted(name: str, gibibytes: float, ranks: int) -> dict[str, Any]:
    """Peak of one GPU in GiB, the phase it falls in, and every phase."""
    found = estimate(load_run(name, []), a_gpu(gibibytes, ranks))
    phases = {phase: found.at(phase) / 2**30 for phase in PHASES}
    return {
        "recipe": name,
        "gpu_gib": gibibytes,
        "ranks": ranks,
        "peak_gib": found.peak / 2**30,
        "busiest": found.busiest,
        "phases": phases,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recipe_memory.json"))
    arguments = parser.parse_args()
    rows = []
    for name, (gibibytes, ranks) in PLACES.items():
        rows.append(predicted(name, gibibytes, ranks))
        print(
            "{recipe}: {peak_gib:.1f} GiB of {gpu_gib} on {ranks} GPU(s), in {busiest}".format(
                **rows[-1]
            ),
            flush=True,
        )
    facts = {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
    result = {"rows": rows, **facts}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
