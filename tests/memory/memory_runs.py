"""Recipes on tiny models, for the memory tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from directalign.config import RunConfig


def a_run(family: str, folder: Path, **model: Any) -> RunConfig:
    guidance = {"embedded_guidance": 1.0 if family == "flux" else None}
    given: dict[str, Any] = {"name": "test", "reward": {"name": "pixels", "statistic": "redness"}, "data": {"prompts": "world"}, "train": {"num_steps": 3}}
    given |= {"model": {"family": family, "path": str(folder), **model}, "method": {"form": "absolute", **guidance}, "rollout": guidance}
    return RunConfig.model_validate(given | {"evaluate": {"batch_size": 1}})


def changed(run: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    given = run.model_dump()
    return RunConfig.model_validate(given | {name: given[name] | section for name, section in sections.items()})
