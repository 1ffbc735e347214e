"""How time and memory of an update grow: one setting of the toy FLUX doubled at a time.

    python benchmarks/growth.py [--updates 3] [--out benchmarks/results/growth.json]

Updates of all variants alternate, on one thread; seconds are of the process's CPU, and each is
given over that of the first variant in the same round. Peaks are of the activations of a training
call and its backward pass, as `directalign check` predicts them and as counted in a real update.
Then all weights are trained on one rank and on two, one prompt each for an update: seconds of the
clock by the log of `directalign train`, and the bytes that a rank gets from the other, predicted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from directalign.config.load import load_run
from directalign.diffusion.sampling import encode
from directalign.methods import load_method
from directalign.models import load_model, trainable
from directalign.preflight.activation_memory import MemoryTracker
from directalign.preflight.cost import cost_of
from directalign.preflight.memory import PROMPT, MetaRewards, trace
from directalign.preflight.meta_models import meta_model
from directalign.rewards import load_reward
from directalign.training.distributed import TorchProcessGroup
from directalign.training.run_folder import commit, machine, versions
from directalign.types import Batch

BASE = {"side": 64, "batch": 2, "injections": 1, "rank": 8}
KEYS = {
    "side": ("rollout.height", "rollout.width"),
    "batch": ("data.batch_size",),
    "injections": ("method.injections",),
    "rank": ("model.lora.rank",),
}
RANKS = ((1, "data"), (2, "data"), (2, "sharded"))
VARIANTS = [BASE, *({**BASE, key: 2 * value} for key, value in BASE.items())]


class Updates:
    """Updates of world_srpo with a LoRA under one variant's settings."""

    def __init__(self, variant: dict[str, int]) -> None:
        words = [f"{key}={variant[name]}" for name, keys in KEYS.items() for key in keys]
        self.run = load_run("world_srpo_lora", words)
        self.model = load_model(self.run.model, "cpu")
        self.weights = list(trainable(self.model).values())
        self.optimizer = torch.optim.AdamW(self.weights, lr=self.run.train.learning_rate)
        self.method = load_method(self.run, self.model, load_reward(self.run.reward))

    def update(self, step: int) -> float:
        """CPU seconds."""
        start = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        for loss in self.method.losses(Batch(step, (PROMPT,) * self.run.data.batch_size)):
            loss.value.backward()
        self.optimizer.step()
        return time.process_time() - start

    def peak(self) -> int:
        """Bytes, of losses and backward passes with the prompts encoded and gradients made."""
        prompts = (PROMPT,) * self.run.data.batch_size
        cond = encode(self.model, prompts)
        self.model.encode_prompt = lambda *_: cond  # type: ignore[method-assign]
        with MemoryTracker() as tracker:
            for loss in self.method.losses(Batch(0, prompts)):
                loss.value.backward()
                del loss
        return tracker.peaks[""]

    def predicted(self) -> int:
        return trace(self.run, meta_model(self.run.model), MetaRewards(self.run)).peaks["train"]


def measure(count: int) -> list[dict[str, Any]]:
    """A row per variant; the first update of each warms up."""
    every = [Updates(variant) for variant in VARIANTS]
    rounds = [[each.update(step) for each in every] for step in range(count + 1)][1:]
    rows = []
    for place, (variant, each) in enumerate(zip(VARIANTS, every, strict=True)):
        ratios = [seconds[place] / seconds[0] for seconds in rounds]
        found = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        seconds = statistics.median(each[place] for each in rounds)
        peaks = {"predicted": each.predicted(), "measured": each.peak()}
        rows.append({**variant, "seconds": seconds, **found, **peaks})
        print(rows[-1], flush=True)
    return rows


def on_ranks(ranks: int, parallel: str, count: int) -> dict[str, Any]:
    """A run of the command on several processes; its first update warms up."""
    words = [f"train.parallel={parallel}", f"train.num_steps={count + 1}", "data.batch_size=1"]
    words += ["train.sample_every=0", "evaluate.every=0", "evaluate.num_samples=2"]
    words += ["method.anchor.reference_updates=1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "directalign", "train", "world_srpo", *words, "--out", f"{folder}/run"]
        subprocess.run([*launch, f"--nproc-per-node={ranks}", *command], check=True)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    seconds = [each["seconds"] for each in records if each["event"] == "step"][1:]
    run = load_run("world_srpo", words)
    work = trace(run, meta_model(run.model), MetaRewards(run)).work
    received = cost_of(run, work, TorchProcessGroup(size=ranks)).within if work else None
    middle = statistics.median(seconds)
    found = {"ranks": ranks, "parallel": parallel, "received": received, "seconds": middle}
    print(found, flush=True)
    return {**found, "low": min(seconds), "high": max(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts = {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
    ranks = [on_ranks(*each, given.updates) for each in RANKS]
    text = json.dumps({"rows": measure(given.updates), "ranks": ranks, **facts}, indent=2)
    given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
