"""Recipes on tiny models, for the tests of preflight."""

from pathlib import Path
from typing import Any

from directalign.config import RunConfig
from directalign.models import model_class


def a_run(architecture: str, folder: Path, **model: Any) -> RunConfig:
    guidance = {
        "embedded_guidance": 1.0 if "flux" in architecture and "klein" not in architecture else None
    }
    edits = model_class(architecture).edits_images
    given: dict[str, Any] = {
        "name": "test",
        "model": {"architecture": architecture, "path": str(folder), **model},
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"form": "absolute", **guidance},
        "rollout": {"num_inference_steps": 2, **guidance},
        "data": {"edits": "edits.jsonl"} if edits else {"prompts": "world"},
        "train": {"num_steps": 3},
        "evaluate": {"batch_size": 1},
    }
    return RunConfig.model_validate(given)


def changed(run: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """The run with keys of sections changed; a section with `name` is replaced."""
    given = run.model_dump()
    for name, section in sections.items():
        given[name] = section if "name" in section else given[name] | section
    return RunConfig.model_validate(given)
