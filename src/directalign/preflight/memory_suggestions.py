"""Changes that make a recipe fit: each is applied to the recipe and estimated anew, the most saving first.

Changes that make no difference, or that the recipe's own rules refuse, are not listed. The last line puts together as many as
it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from .. import config
from ..types import DirectAlignError
from .memory import Estimate, Place, estimate, image_size
from .meta_models import meta_model, nearest_size

WORTHWHILE = 0.01
"""Share of the peak that a change must save to be named."""

Changes = dict[str, Any]


@dataclass(frozen=True)
class Suggestion:
    """A change of the recipe (or of the number of ranks) as on the command line, and the estimate after it."""

    change: str
    estimate: Estimate


def suggestions(run: config.RunConfig, place: Place) -> list[Suggestion]:
    """Changes that lower the peak of a run at `place`, best first; then, where one alone is not enough, as many of them together as fit."""
    now = estimate(run, place).peak
    found = [
        (says, changes, tried)
        for says, changes in candidates(run, place)
        if (tried := _tried(run, changes, place)) is not None
    ]
    found = sorted(
        (each for each in found if each[2].peak < (1 - WORTHWHILE) * now),
        key=lambda each: each[2].peak,
    )
    singles = [Suggestion(says, tried) for says, _, tried in found]
    if not found or found[0][2].fits:
        return singles
    return [*singles, *_together(run, place, [(says, changes) for says, changes, _ in found])]


def _together(
    run: config.RunConfig, place: Place, ordered: list[tuple[str, Changes]]
) -> Iterator[Suggestion]:
    """The first of the changes one upon the other, until it fits or they run out; those that then save nothing are left out."""
    said: list[str] = []
    joined: Changes = {}
    best = estimate(run, place)
    for says, changes in ordered:
        if joined.keys() & changes.keys():
            continue
        tried = _tried(run, joined | changes, place)
        if tried is not None and tried.peak < (1 - WORTHWHILE) * best.peak:
            said, joined, best = [*said, says], joined | changes, tried
        if best.fits:
            break
    if len(said) > 1:
        yield Suggestion("together: " + ", ".join(said), best)


def candidates(run: config.RunConfig, place: Place) -> Iterator[tuple[str, Changes]]:
    """Every change that is tried, as it would be said on the command line, and as keys of the recipe."""
    whole: list[Changes] = [
        {"model.dtype": "bfloat16"},
        {"model.text_encoders": "free"},
        {"model.gradient_checkpointing": True},
        {"reward.gradient_checkpointing": True}
        if hasattr(run.reward, "gradient_checkpointing")
        else {},
        {"evaluate.batch_size": 1},
        {"evaluate.rewards": {}},
        {"train.ema_decay": None},
        {"data.batch_size": max(1, run.data.batch_size // 2)},
        _smaller(run),
        *({"model.quantization": bits} for bits in ("8bit", "4bit") if run.model.tune == "lora"),
    ]
    if run.model.tune == "full":
        narrow = {
            "model.dtype": "bfloat16",
            "model.trained_dtype": "bfloat16",
            "train.optimizer": "adamw8bit",
        }
        whole += [
            {"model.tune": "lora", "model.trained_dtype": "float32"},
            {"train.optimizer": "adamw8bit"},
            narrow,
        ]
        whole.append({"method.kl_beta": 0.0} if getattr(run.method, "kl_beta", 0.0) else {})
        yield f"--ranks {2 * place.ranks}", {"ranks": 2 * place.ranks}
    for changes in whole:
        shown = {key: value for key, value in changes.items() if value != _value(run, key)}
        if shown:
            yield ", ".join(f"{key}: {_yaml(value)}" for key, value in shown.items()), shown


def _smaller(run: config.RunConfig) -> Changes:
    """Three quarters of the image's sides, where the recipe has one size that fits the model."""
    if run.rollout.sizes is not None or run.data.buckets is not None:
        return {}
    model = meta_model(run.model)
    near = nearest_size(model.model, *(side * 3 // 4 for side in image_size(run, model)))
    return {} if near is None else {"rollout.height": near[0], "rollout.width": near[1]}


def _tried(run: config.RunConfig, changes: Changes, place: Place) -> Estimate | None:
    """The estimate of the changed recipe; None where its own rules refuse it."""
    given: dict[str, Any] = run.model_dump()
    for key, value in changes.items():
        if key != "ranks":
            section, name = key.split(".")
            given[section][name] = value
    try:
        return estimate(
            config.RunConfig.model_validate(given),
            replace(place, ranks=changes.get("ranks", place.ranks)),
        )
    except (ValidationError, DirectAlignError):
        return None


def _value(run: config.RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(run, section), name)


def _yaml(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value]
        if isinstance(value, bool) or value is None
        else str(value)
    )
