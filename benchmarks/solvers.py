"""The toy world's base models asked for photographs, by each solver in few steps.

    python benchmarks/solvers.py [--pairs 64] [--out benchmarks/results/solvers.json]

`distance`: mean absolute difference of the images from those of Euler (DDIM) in 100 steps, of which
each solver's own limit differs by how its levels and whole timesteps are chosen.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from directalign.config.load import load_run
from directalign.evaluation.eval_prompts import fixed_pairs, measured_prompts
from directalign.evaluation.generate import generate
from directalign.models import load_model
from directalign.stats import rate_interval
from directalign.toyworld.judges import load_judge
from directalign.training.run_folder import commit, machine, versions

RECIPES, SOLVERS, STEPS = ("world_srpo", "world_sd"), ("euler", "dpm_solver", "unipc"), (4, 8)
RATES, PHRASE, LIMIT = ("photo_rate", "content"), "Realistic photo. ", 100


@torch.no_grad()
def measure(recipe: str, count: int) -> list[dict[str, Any]]:
    """Photo rate, content and distance by solver and number of steps."""
    run = load_run(recipe)
    pairs, model = fixed_pairs(measured_prompts(run), count), load_model(run.model, "cpu")
    asked = [PHRASE + prompt for prompt in pairs.prompts]

    def images(**changed: Any) -> torch.Tensor:
        rollout = run.rollout.model_copy(update=changed)
        return generate(model, asked, pairs.seeds, rollout)

    limit, judge, rows = images(num_inference_steps=LIMIT), load_judge(), []
    for steps in STEPS:
        for solver in SOLVERS:
            made = images(num_inference_steps=steps, solver=solver)
            judged = judge(made, pairs.prompts)
            row = {"model": run.model.path, "steps": steps, "solver": solver}
            row |= {key: asdict(rate_interval(judged[key].numpy())) for key in RATES}
            rows.append({**row, "distance": float((made - limit).abs().mean())})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/solvers.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for recipe in RECIPES for row in measure(recipe, given.pairs)]
    facts = {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
    text = json.dumps({"rows": rows, "limit": LIMIT, "pairs": given.pairs, **facts}, indent=2)
    given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
