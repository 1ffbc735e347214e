"""Seconds of an update with real images and with rollouts, alternating, and their ratio.

    python benchmarks/offline_cost.py [--pairs 8] [--out benchmarks/results/offline_cost.json]

The toy FLUX, one denoise branch, rollouts of 25 steps (as released) and of the recipe's 8. The
ratio is the result; seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from directalign.config.load import load_run, recipe_path
from directalign.methods import load_method
from directalign.models import load_model, trainable
from directalign.rewards import load_reward
from directalign.toyworld.scenes import render, scenes_of, train_captions
from directalign.training.run_folder import commit, machine, versions
from directalign.types import Batch

ROLLOUT_STEPS = (25, 8)
RECIPE = recipe_path("world_srpo")


class Updates:
    """A model and whole updates (losses, backward, clip, step), with images or with rollouts."""

    def __init__(self, num_inference_steps: int) -> None:
        self.run = load_run(RECIPE, [f"rollout.num_inference_steps={num_inference_steps}"])
        self.model = load_model(self.run.model, "cpu")
        self.weights = list(trainable(self.model).values())
        self.optimizer = torch.optim.AdamW(self.weights, lr=self.run.train.learning_rate)
        self.method = load_method(self.run, self.model, load_reward(self.run.reward, "cpu"))
        self.prompts = tuple(train_captions()[: self.run.data.batch_size])
        self.images = render(scenes_of(list(self.prompts)), torch.Generator().manual_seed(0))

    def seconds(self, step: int, offline: bool) -> float:
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        for loss in self.method.losses(
            Batch(step, self.prompts, self.images if offline else None, self.run.seed)
        ):
            loss.value.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.run.train.max_grad_norm)
        self.optimizer.step()
        return time.perf_counter() - start


def measure(num_inference_steps: int, pairs: int) -> dict[str, float | int]:
    """Median seconds of both kinds of update and of their ratio, after one warm-up of each."""
    updates = Updates(num_inference_steps)
    timed = [
        (updates.seconds(step, True), updates.seconds(step, False)) for step in range(pairs + 1)
    ][1:]
    offline, online = zip(*timed, strict=True)
    ratios = [a / b for a, b in timed]
    return {
        "num_inference_steps": num_inference_steps,
        "offline_seconds": statistics.median(offline),
        "online_seconds": statistics.median(online),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/offline_cost.json"))
    arguments = parser.parse_args()
    rows = [measure(steps, arguments.pairs) for steps in ROLLOUT_STEPS]
    for row in rows:
        print(", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    facts = {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
    result = {"rows": rows, **facts}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
