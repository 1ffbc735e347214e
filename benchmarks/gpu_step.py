"""Cost of an SRPO update of a FLUX.1-dev-sized model by phase, and the gain of each setting.

    python benchmarks/gpu_step.py [--size flux|tiny] [--cases online_lora ...] [--updates 3]
                                  [--folder runs/gpu_step] [--out FILE]

Real shapes, random weights, the package's own loaders, method and optimizer. `tiny` runs the same
code on a CPU as a test. Per case: seconds by phase (median over the updates after one warm-up),
peak GiB measured and predicted by `directalign check`, floating-point operations executed
(recomputation included), and their rate relative to a matmul on the same device. Compiled blocks
and quantized layers hide operations from the counter; such a case takes the count of the plain case
with the same shape.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_update import Bench, Figures
from random_checkpoint import write_flux, write_reward

from directalign import config
from directalign.config.load import load_run
from directalign.preflight import estimate, this_machine
from directalign.training.run_folder import commit, machine, versions
from directalign.types import DirectAlignError

PLAIN = ["model.quantization=null", "model.compile=false"]


@dataclass(frozen=True)
class Case:
    """A recipe with overrides: `shape` changes what is computed, `lever` only how."""

    name: str
    shape: tuple[str, ...] = ()
    lever: tuple[str, ...] = ()
    recipe: str = "flux_srpo_lora_24gb"
    offline: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        return self.recipe, self.shape, self.offline


FULL_BF16 = ("model.tune=full", "model.dtype=bfloat16", "model.trained_dtype=bfloat16")
FULL_BF16 += ("train.optimizer=adamw8bit",)
CASES = [
    Case("online_lora"),
    Case("online_lora_compiled", lever=("model.compile=true",)),
    Case("online_lora_cudnn_attention", lever=("model.attention=_native_cudnn",)),
    Case("online_lora_8bit", lever=("model.quantization=8bit",)),
    Case("online_lora_4bit", lever=("model.quantization=4bit",)),
    Case("online_lora_4bit_compiled", lever=("model.quantization=4bit", "model.compile=true")),
    Case("online_lora_10_steps", shape=("rollout.num_inference_steps=10",)),
    Case("online_lora_batch_2", shape=("data.batch_size=2",)),
    Case("online_lora_batch_4", shape=("data.batch_size=4",)),
    Case("online_lora_kept_activations", shape=("model.gradient_checkpointing=false",)),
    Case("online_lora_half_cost", shape=("preset=half_cost",)),
    Case("offline_lora", offline=True),
    Case("offline_lora_compiled", offline=True, lever=("model.compile=true",)),
    Case("offline_lora_4bit", offline=True, lever=("model.quantization=4bit",)),
    Case("offline_full_bf16", shape=FULL_BF16, offline=True),
]


def run_of(case: Case, flux: Path, reward: Path, size: str) -> config.RunConfig:
    """The recipe of a case, on the random checkpoints; one batch is one update."""
    tiny = ["model.dtype=float32", "rollout.height=64", "rollout.width=64"]
    tiny += ["rollout.num_inference_steps=4"]
    paths = [f"model.path={flux}", f"reward.path={reward}", "reward.processor=null"]
    changes = [*paths, "train.global_batch_size=null", *PLAIN, *(tiny if size == "tiny" else [])]
    changes += [*case.shape, *case.lever]
    return load_run(case.recipe, changes)


def measure(
    case: Case, run: config.RunConfig, updates: int, counted: dict[Any, float], cache: Path
) -> Figures:
    """Figures of one case; `counted` remembers operations by shape."""
    bench = Bench(run, case.offline, cache, updates + 1)
    bench.update(0)
    if not case.lever:
        counted[case.key] = bench.operations()
    return bench.figures(range(1, updates + 1))


def row_of(
    case: Case, run: config.RunConfig, figures: Figures, operations: float | None, ceiling: float
) -> dict[str, Any]:
    """One case as it is recorded; what has no count has no rate."""
    rate = None if operations is None else operations / figures.seconds / 1e12
    return {
        "case": case.name,
        "changes": [*case.shape, *case.lever],
        "offline": case.offline,
        "prompts": run.data.batch_size,
        "seconds": figures.seconds,
        "seconds_per_prompt": figures.seconds / run.data.batch_size,
        "phases": figures.phases,
        "peak_gib": figures.peak_gib,
        "predicted_gib": estimate(run, this_machine()).allocated / 2**30,
        "tera_operations": None if operations is None else operations / 1e12,
        "tflops": rate,
        "share_of_matmul": None if rate is None else rate / ceiling,
    }


def ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds per prompt of the plain case over those of each lever, largest gain first."""
    measured = {
        row["case"]: row["seconds_per_prompt"] for row in rows if "seconds_per_prompt" in row
    }
    gains = []
    for name, base in ((name, _base(name)) for name in measured):
        if base in measured and base != name:
            gain = measured[base] / measured[name]
            gains.append({"case": name, "over": base, "gain": gain})
    return sorted(gains, key=lambda gain: gain["gain"], reverse=True)


def _base(name: str) -> str:
    return "_".join(name.split("_")[:2])


def matmul_ceiling(device: torch.device, size: int, repeats: int = 10) -> float:
    """TFLOP/s of a square matmul in the dtype of the runs: the best of `repeats`."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = min(Bench.timed(device, lambda: a @ b) for _ in range(repeats + 1))
    return 2 * size**3 / seconds / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda, names = torch.cuda.is_available(), [case.name for case in CASES]
    parser.add_argument("--size", choices=["flux", "tiny"], default="flux" if cuda else "tiny")
    parser.add_argument("--cases", nargs="*", choices=names, default=names)
    parser.add_argument("--updates", type=int, default=3)
    folder = "where the random checkpoints are written"
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu_step"), help=folder)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device, suffix = (
        torch.device("cuda" if cuda else "cpu"),
        "" if arguments.size == "flux" else "_tiny",
    )
    out = arguments.out or Path(f"benchmarks/results/gpu_step{suffix}.json")
    dtype = torch.bfloat16 if arguments.size == "flux" else torch.float32
    flux = write_flux(arguments.folder / arguments.size / "flux", arguments.size, device, dtype)
    reward = write_reward(arguments.folder / arguments.size / "reward", arguments.size, device)
    ceiling = matmul_ceiling(device, 8192 if device.type == "cuda" else 1024)
    rows: list[dict[str, Any]] = []
    counted: dict[Any, float] = {}
    for case in (case for case in CASES if case.name in arguments.cases):
        run = run_of(case, flux, reward, arguments.size)
        try:
            figures = measure(case, run, arguments.updates, counted, arguments.folder / "prompts")
            row = row_of(case, run, figures, counted.get(case.key), ceiling)
        except (DirectAlignError, RuntimeError) as error:  # no memory, or no such kernel: recorded
            problem = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            row = {"case": case.name, "failed": problem}
        rows.append(row)
        print(json.dumps(row), flush=True)
        write(out, rows, arguments.size, ceiling)


def write(out: Path, rows: list[dict[str, Any]], size: str, ceiling: float) -> None:
    """All rows so far, so that a run that is cut short leaves what it measured."""
    result = {"size": size, "matmul_tflops": ceiling, "rows": rows, "levers": ranked(rows)}
    result |= {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
