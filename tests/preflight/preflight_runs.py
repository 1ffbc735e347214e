"""Recipes on tiny models, for the tests of preflight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from directalign.config import Run


def a_run(family: str, folder: Path, **model: Any) -> Run:
    guidance = {"embedded_guidance": 1.0 if family == "flux" else None}
    given: dict[str, Any] = {
        "name": "test",
        "model": {"family": family, "path": str(folder), **model},
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"form": "absolute", **guidance},
        "rollout": guidance,
        "data": {"prompts": "world"},
        "train": {"num_steps": 3},
        "evaluate": {"batch_size": 1},
    }
    return Run.model_validate(given)


def changed(run: Run, **sections: dict[str, Any]) -> Run:
    given = run.model_dump()
    return Run.model_validate(
        given | {name: given[name] | section for name, section in sections.items()}
    )
