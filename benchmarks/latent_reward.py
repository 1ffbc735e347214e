"""SRPO on the toy FLUX with the reward of pixels and with that of latents: cost and quality.

    python benchmarks/latent_reward.py [--seeds 0 1 2] [--pairs 8] [--runs runs/latent]
        [--out benchmarks/results/latent_reward.json]

The recipe world_srpo, nothing changed but the reward. CPU seconds of an update are medians of
updates of both in turn, on one thread; the ratio is the result. Finished runs are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from directalign.config.load import load_run
from directalign.methods import load_method
from directalign.models import load_model, trainable
from directalign.rewards import load_reward
from directalign.toyworld.scenes import train_captions
from directalign.training import run
from directalign.training.run_folder import commit, machine, versions
from directalign.types import Batch

REWARDS = {
    "pixels": "reward={name: clip, path: 'world:reward'}",
    "latents": "reward={name: latent_clip, path: 'world:reward_latent'}",
}
FEWER = ["train.save_every=0", "train.sample_every=0", "train.sample_prompts=[a red star]"]
FEWER += ["evaluate.every=0", "evaluate.num_samples=128", "evaluate.references=false"]
KEPT = ("photo_rate", "content", "color_drift")


class Updates:
    """Whole updates (rollout, loss, backward, step) with one of the rewards."""

    def __init__(self, sees: str) -> None:
        self.run = load_run("world_srpo", [REWARDS[sees]])
        model = load_model(self.run.model, "cpu")
        self.weights = list(trainable(model).values())
        self.optimizer = torch.optim.AdamW(self.weights, lr=self.run.train.learning_rate)
        self.method = load_method(self.run, model, load_reward(self.run.reward))
        self.prompts = tuple(train_captions()[: self.run.data.batch_size])

    def seconds(self, step: int) -> float:
        """CPU seconds of one update."""
        start = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        for loss in self.method.losses(Batch(step, self.prompts, seed=self.run.seed)):
            loss.value.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.run.train.max_grad_norm)
        self.optimizer.step()
        return time.process_time() - start


def cost(pairs: int) -> dict[str, Any]:
    """Median CPU seconds of both kinds of update, and of their ratio, after one to warm up."""
    updates = {sees: Updates(sees) for sees in REWARDS}
    timed = [{sees: each.seconds(step) for sees, each in updates.items()} for step in range(pairs)]
    ratios = [each["latents"] / each["pixels"] for each in timed[1:]]
    seconds = {sees: statistics.median(each[sees] for each in timed[1:]) for sees in REWARDS}
    found = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return {**seconds, **found, "pairs": len(ratios)}


def trained(sees: str, seed: int, folder: Path) -> dict[str, Any]:
    """What a run of the recipe begins and ends with, trained unless it is there."""
    if not (folder / "summary.json").exists():
        settings = load_run("world_srpo", [REWARDS[sees], f"seed={seed}", *FEWER])
        run(settings, folder, resume=(folder / "run.yaml").exists())
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    ends = {end: {key: summary[end][key] for key in KEPT} for end in ("before", "after")}
    return {"sees": sees, "seed": seed, "num_steps": summary["num_steps"], **ends}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--runs", type=Path, default=Path("runs/latent"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latent_reward.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"cost": cost(given.pairs + 1)}
    found["rows"] = [
        trained(sees, seed, given.runs / f"{sees}-{seed}")
        for seed in given.seeds
        for sees in REWARDS
    ]
    facts = {"seed": given.seeds[0], "commit": commit(), "machine": machine()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**found, **facts, "versions": versions()}, indent=2)
    given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
