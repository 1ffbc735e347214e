"""What ranks send each other for an update of FLUX.1-dev, and from how many on that takes longest.

    python benchmarks/communication.py [--out benchmarks/results/communication.json]

Counted by the cost model of `directalign check`, with nothing run: recipe flux_srpo, 32 prompts for
an update, shared out to the ranks in one batch each. The rates are assumed: those of the GPU and
within a node are what an H100 and NVLink 4 reach of their nominal 990 and 450.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from directalign.config.load import load_run
from directalign.preflight import NETWORK, a_gpu, estimate
from directalign.preflight.cost import cost_of
from directalign.training.run_folder import commit, machine, versions

PROMPTS, RANKS = 32, (1, 2, 4, 8, 16, 32)
TUNE = {"sharded": "full", "data": "lora"}
RATES = {"teraflops": 350.0, "within_node": 350.0, "between_nodes": NETWORK}
"""10^12 operations and 10^9 bytes a second of each GPU."""


def row(parallel: str, ranks: int) -> dict[str, Any]:
    """Seconds of an update: computing, receiving at each rate, and both."""
    words = [f"model.tune={TUNE[parallel]}", f"data.batch_size={PROMPTS // ranks}"]
    run = load_run("flux_srpo", [*words, "train.global_batch_size=32"])
    work = estimate(run, a_gpu(80, ranks)).work
    if work is None:
        raise SystemExit(f"flux_srpo on {ranks} ranks: its operations could not be counted")
    cost = cost_of(run, work, ranks)
    found: dict[str, Any] = {"parallel": parallel, "ranks": ranks, "received": cost.received}
    found["computing"] = cost.update / (RATES["teraflops"] * 1e12)
    for name in ("within_node", "between_nodes"):
        update = 36 * cost.hours(RATES["teraflops"], network=RATES[name])[0]
        receiving = cost.received / (RATES[name] * 1e9)
        found |= {f"{name}_receiving": receiving, f"{name}_update": update}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/communication.json"))
    given = parser.parse_args()
    rows = [row(parallel, ranks) for parallel in TUNE for ranks in RANKS]
    facts = {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
    text = json.dumps({"rows": rows, "rates": RATES, "prompts": PROMPTS, **facts}, indent=2)
    given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
