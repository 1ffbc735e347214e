"""Kill trainings at random moments, resume them, compare them with an undisturbed run.

    python tools/kill_runs.py FOLDER [--kills 200] [--seed 0]

A run gets SIGKILL up to three times in a row, at moments drawn from the length of an undisturbed
run, and is resumed after each. At its end it must hold the same files: weights, checkpoints and
samples equal to the bit, records equal except for times. Full weights and LoRA take turns. The
record goes to benchmarks/results/kill_runs.json; the exit code is 1 if one run differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from directalign.cli import main
from directalign.training.run_folder import commit, machine, versions

RESULT = Path(__file__).parent.parent / "benchmarks/results/kill_runs.json"
RECIPES = ("world_srpo", "world_srpo_lora")
SHORT = "train.num_steps=6 train.save_every=2 train.sample_every=3 evaluate.every=3"
SHORT += " evaluate.num_samples=8 data.batch_size=2 rollout.num_inference_steps=3"
WITH_TIMES = ("metrics.jsonl", "report.html", "summary.json")
TIMES = {"seconds", "phases", "resources", "time"}


def train(recipe: str, out: Path, kill_after: float | None = None) -> int:
    """Begin the run in `out` or resume it, in a child that is killed after so many seconds."""
    child = os.fork()
    if not child:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        sets = [part for setting in SHORT.split() for part in ("--set", setting)]
        sets += ["--resume"] if (out / "run.yaml").exists() else []
        try:
            sys.argv = ["directalign", "train", recipe, "--out", str(out), *sets]
            main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(out: Path) -> dict[str, Any]:
    """Every file's bytes, records without times; TensorBoard begins a file at each start."""
    names = [str(path.relative_to(out)) for path in sorted(out.rglob("*")) if path.is_file()]
    names = [name for name in names if not name.startswith("tensorboard/")]
    found: dict[str, Any] = {n: n in WITH_TIMES or (out / n).read_bytes() for n in names}
    lines = map(json.loads, (out / "metrics.jsonl").read_text("utf-8").splitlines())
    found["metrics.jsonl"] = [{k: v for k, v in x.items() if k not in TIMES} for x in lines]
    return found


def kill_and_compare() -> int:
    parser = argparse.ArgumentParser(description="Kill trainings and compare the resumed ones.")
    parser.add_argument("folder", type=Path, help="new folder for the runs")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    draws, whole, length = random.Random(given.seed), {}, {}
    for recipe in RECIPES:
        begun = time.monotonic()
        if train(recipe, given.folder / recipe):
            sys.exit(f"the undisturbed run failed: see {given.folder / recipe}.log")
        length[recipe], whole[recipe] = time.monotonic() - begun, contents(given.folder / recipe)
    kills = runs = 0
    different: list[str] = []
    while kills < given.kills:
        recipe, out = RECIPES[runs % 2], given.folder / f"run-{runs:04d}"
        for _ in range(min(draws.randint(1, 3), given.kills - kills)):
            kills += train(recipe, out, draws.uniform(0, length[recipe])) == -signal.SIGKILL
        code, runs = train(recipe, out), runs + 1
        found = contents(out) if code == 0 else {}
        names = [n for n in found | whole[recipe] if found.get(n, 0) != whole[recipe].get(n, 0)]
        if code or names:
            different.append(f"{out.name} ({recipe}): exit code {code}, {', '.join(names[:5])}")
            print(different[-1], flush=True)
        else:
            shutil.rmtree(out)
    facts = {"commit": commit(), "machine": machine(), "versions": versions(), "seed": given.seed}
    record = {**facts, "kills": kills, "runs": runs, "different": different}
    RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{kills} kills of {runs} runs: {len(different)} differ")
    return bool(different)


if __name__ == "__main__":
    sys.exit(kill_and_compare())
