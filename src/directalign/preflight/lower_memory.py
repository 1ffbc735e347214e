"""Changes of a recipe that lower the peak of its memory, each estimated.

Those that save nothing or that the recipe's own rules refuse are left out. If no single change is
enough, the last one combines as many as needed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from pydantic import ValidationError

from .. import config
from ..models import model_class
from ..types import DirectAlignError
from .memory import Estimate, Place, estimate, image_size
from .meta_models import meta_model, nearest_size

WORTHWHILE = 0.01
"""Share of the peak that a change must save."""
Changes = dict[str, Any]
"""Recipe keys with their new values; `ranks` is the number of processes."""


@dataclass(frozen=True)
class Suggestion:
    """A change of the recipe or of the number of ranks as typed, and the estimate after it."""

    change: str
    estimate: Estimate


def suggestions(run: config.RunConfig, place: Place) -> list[Suggestion]:
    """Changes that lower the peak at `place`, best first; then a combination if none suffices."""
    now = estimate(run, place)
    found = []
    for text, changes in candidates(run, place):
        after = _changed(run, changes, place)
        if after is not None and after.peak < (1 - WORTHWHILE) * now.peak:
            found.append((text, changes, after))
    found.sort(key=lambda each: each[2].peak)
    singles = [Suggestion(text, after) for text, _, after in found]
    if not found or singles[0].estimate.fits:
        return singles
    texts, joined, best = list[str](), Changes(), now
    for text, changes, _ in found:
        if joined.keys() & changes.keys():
            continue
        after = _changed(run, joined | changes, place)
        if after is not None and after.peak < (1 - WORTHWHILE) * best.peak:
            texts, joined, best = [*texts, text], joined | changes, after
        if best.fits:
            break
    return [*singles, Suggestion("combined: " + ", ".join(texts), best)] if texts[1:] else singles


def candidates(run: config.RunConfig, place: Place) -> Iterator[tuple[str, Changes]]:
    """Every change to try, as typed on the command line, and as keys of the recipe."""
    reads_sources = getattr(model_class(run.model.architecture), "reads_sources", False)
    every: list[Changes] = [
        {"model.dtype": "bfloat16"},
        {"model.text_encoders": "offload" if reads_sources else "free"},
        {"model.gradient_checkpointing": True},
        {"evaluate.batch_size": 1},
        {"evaluate.rewards": {}},
        {"train.ema_decay": None},
        {"data.batch_size": max(1, run.data.batch_size // 2)},
        _smaller(run),
    ]
    if hasattr(run.reward, "gradient_checkpointing"):
        every.append({"reward.gradient_checkpointing": True})
    if run.model.tune == "lora":
        every += [{"model.quantization": "8bit"}, {"model.quantization": "4bit"}]
        every.append({"model.block_swap": len(meta_model(run.model).blocks)})
    else:
        narrow = {"model.dtype": "bfloat16", "model.trained_dtype": "bfloat16"}
        every += [
            {"model.tune": "lora", "model.trained_dtype": "float32"},
            {"train.optimizer": "adamw8bit"},
            narrow | {"train.optimizer": "adamw8bit"},
        ]
        if getattr(run.method, "kl_beta", 0.0):
            every.append({"method.kl_beta": 0.0})
        yield f"--ranks {2 * place.ranks}", {"ranks": 2 * place.ranks}
    for changes in every:
        new = {key: each for key, each in changes.items() if each != attrgetter(key)(run)}
        typed = {
            key: each if isinstance(each, str) else json.dumps(each) for key, each in new.items()
        }
        if new:
            yield ", ".join(f"{key}: {each}" for key, each in typed.items()), new


def _smaller(run: config.RunConfig) -> Changes:
    """Three quarters of the image's sides, if the recipe has one size and the model accepts it."""
    if run.rollout.sizes is not None or run.data.buckets is not None:
        return {}
    model = meta_model(run.model)
    near = nearest_size(model.model, *(side * 3 // 4 for side in image_size(run, model)))
    return {} if near is None else {"rollout.height": near[0], "rollout.width": near[1]}


def _changed(run: config.RunConfig, changes: Changes, place: Place) -> Estimate | None:
    """The estimate of the changed recipe; None if its own rules refuse it."""
    given: dict[str, Any] = run.model_dump()
    for key, value in changes.items():
        if key != "ranks":
            section, name = key.split(".")
            given[section][name] = value
    place = replace(place, ranks=changes.get("ranks", place.ranks))
    try:
        return estimate(config.RunConfig.model_validate(given), place)
    except (ValidationError, DirectAlignError):
        return None
