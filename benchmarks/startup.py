"""CPU seconds of commands before their work begins. Linux.

    python benchmarks/startup.py [--out benchmarks/results/startup.json]

`imports`: torch, diffusers and transformers alone; `train` ends with the record of the first
update, without the measurement of the base model that the recipe begins with. One process each, one
thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from directalign.training.run_folder import commit, machine, versions

OWN = [sys.executable, "-m", "directalign"]
BARE = ["evaluate.num_samples=1", "evaluate.references=false", "train.sample_prompts=[]"]
COMMANDS = {
    "help": [*OWN, "--help"],
    "imports": [sys.executable, "-c", "import torch, diffusers.loaders.peft, transformers"],
    "check": [*OWN, "check", "flux_srpo_lora_24gb", "--gpu-memory", "24"],
    "train": [*OWN, "train", "world_srpo", "--out", "run", *BARE],
}


def seconds(command: list[str]) -> float:
    """CPU seconds of a process, until it ends or its run in `run` has made an update."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        log, clock, used = Path(folder, "run/metrics.jsonl"), os.sysconf("SC_CLK_TCK"), 0.0
        while process.poll() is None:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            used = sum(map(int, fields[11:13])) / clock or used  # 0 once it has ended
            if log.exists() and '"event": "step"' in log.read_text():
                process.kill()
                process.wait()
                return used
            time.sleep(0.05)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    given, found = parser.parse_args(), dict[str, float]()
    for name, command in COMMANDS.items():
        found[name] = seconds(command)
        print(name, found[name], flush=True)
    facts = {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
    text = json.dumps({"seconds": found, **facts}, indent=2)
    given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
