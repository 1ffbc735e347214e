"""Record, for each architecture, its published model and the memory predicted for a LoRA of it.

    python benchmarks/architecture_memory.py [--out FILE] [NAME ...]

With names only those rows are made anew. Predicted from the published configs in models/known,
without weights, network or GPU; not measured. docs/architectures.md shows the numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from directalign.config import RunConfig
from directalign.models import MODELS, model_class
from directalign.preflight import a_gpu, estimate
from directalign.preflight.meta_models import known, meta_model
from directalign.training.run_folder import commit, machine, versions

HPS = {
    "name": "clip",
    "path": "xswu/HPSv2/HPS_v2.1_compressed.pt",
    "processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "gradient_checkpointing": True,
}
QUANTIZATIONS = {"bf16": None, "4bit": "4bit"}


def run_of(name: str, path: str, quantization: str | None, guidance: float | None) -> RunConfig:
    """SRPO as a LoRA of rank 16, one image of the model's own size, text encoders freed, or
    offloaded where they read sources."""
    given = {"embedded_guidance": guidance}
    return RunConfig.model_validate(
        {
            "name": name,
            "model": {
                "architecture": name,
                "path": path,
                "lora": {"rank": 16, "alpha": 16},
                "dtype": "bfloat16",
                "quantization": quantization,
                "gradient_checkpointing": True,
                "text_encoders": "offload" if model_class(name).reads_sources else "free",
            },
            "reward": HPS,
            "method": {"form": "absolute", **given},
            "rollout": given,
            "data": {"edits" if model_class(name).edits_images else "prompts": "photographs"},
            "train": {"num_steps": 60},
            "evaluate": {"batch_size": 1},
        }
    )


def row_of(name: str) -> dict[str, Any]:
    """What is known of an architecture, and the peak of one GPU in GiB by quantization."""
    kind = model_class(name)
    published = known()[kind.published]
    path = published["hub_ids"][0]
    meta = meta_model(run_of(name, path, None, None).model)
    model: Any = meta.model
    guidance = 3.5 if getattr(model, "embeds_guidance", False) else None
    encoders = [part for part in kind.text_parts if part in meta.parts]
    peaks = {
        label: estimate(run_of(name, path, bits, guidance), a_gpu(24, 1)).peak / 2**30
        for label, bits in QUANTIZATIONS.items()
    }
    return {
        "architecture": name,
        "title": kind.title,
        "example": path,
        "parameters": meta.count(kind.part),
        "encoders": [(type(meta.parts[part]).__name__, meta.count(part)) for part in encoders],
        "embedded": guidance is not None,
        "usual_cfg": kind.usual_cfg,
        "size": list(model.default_size),
        "formats": bool(kind.lora_layout),
        "peaks": peaks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the predicted memory of a LoRA.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/architectures.json"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    out: Path = arguments.out
    rows = {}
    if arguments.names and out.exists():
        found = json.loads(out.read_text(encoding="utf-8"))["rows"]
        rows = {row["architecture"]: row for row in found}
    for name in arguments.names or MODELS:
        rows[name] = row_of(name)
        print(
            name, {key: round(value, 1) for key, value in rows[name]["peaks"].items()}, flush=True
        )
        facts = {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
        ordered = [rows[name] for name in MODELS if name in rows]
        text = json.dumps({"rows": ordered, **facts}, indent=2)
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
