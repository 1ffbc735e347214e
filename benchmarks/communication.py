"""What ranks send each other for an update of FLUX.1-dev, and from how many on that takes longest.

    python benchmarks/communication.py [--out benchmarks/results/communication.json]

Counted by the cost model of `directalign check`, with nothing run: recipe flux_srpo, 32 prompts for
an update, shared out to the ranks in one batch each, on nodes of 8. The rates are assumed: of each
GPU (an H100 reaches about a third of its nominal 990 TFLOPS) and those of `directalign check`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from directalign.config.load import load_run
from directalign.preflight import BETWEEN, WITHIN, a_gpu, estimate
from directalign.preflight.cost import cost_of
from directalign.training.run_folder import commit, machine, versions

PROMPTS, RANKS, PER_NODE = 32, (2, 4, 8, 16, 32), 8
TUNE = {"sharded": "full", "hybrid": "full", "data": "lora"}
RATES = {"teraflops": 350.0, "within": WITHIN, "between": BETWEEN, "one_card": BETWEEN / 8}
"""10^12 operations and 10^9 bytes a second of each GPU; 10^9 bytes a second into a node with eight
network cards, and with one."""


def row(parallel: str, ranks: int) -> dict[str, Any]:
    """Bytes of memory and of an update, seconds of its computing, and of all by network."""
    words = [f"model.tune={TUNE[parallel]}", f"data.batch_size={PROMPTS // ranks}"]
    words += ["train.global_batch_size=32", f"train.parallel={parallel}"]
    run, place = load_run("flux_srpo", words), a_gpu(80, ranks)
    place = replace(place, per_node=min(ranks, PER_NODE))
    found = estimate(run, place)
    if found.work is None:
        raise SystemExit(f"flux_srpo on {ranks} ranks: its operations could not be counted")
    cost = cost_of(run, found.work, place.group)
    return {
        "parallel": parallel,
        "ranks": ranks,
        "peak": found.peak,
        "into_gpu": cost.within,
        "into_node": cost.between,
        "computing": cost.update / (RATES["teraflops"] * 1e12),
        **{
            name: 36 * cost.hours(RATES["teraflops"], between=RATES[name])[0]
            for name in ("between", "one_card")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/communication.json"))
    given = parser.parse_args()
    kinds = [(parallel, ranks) for parallel in TUNE for ranks in RANKS]
    rows = [row(*each) for each in kinds if each[0] != "hybrid" or each[1] > PER_NODE]
    facts = {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
    found = {"rows": rows, "rates": RATES, "prompts": PROMPTS, "per_node": PER_NODE, **facts}
    given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
