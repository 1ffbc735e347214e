"""What can be known to go wrong before any weight is loaded: `directalign check`, and the first act of `directalign train`.

Each check raises one `DirectAlignError` naming the key and the remedy; what is merely doubtful becomes a warning. `recipe`
looks at the recipe alone, `surroundings` at models, data and disk, and memory is estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import config
from ..memory import Estimate, Place, binary, estimate, remedies, this_machine
from ..memory.architecture import model_architecture
from ..memory.geometry import geometry, image_size
from ..types import DirectAlignError
from .checkpoint import check_checkpoint, check_here, fetch
from .measuring import check_adherence, check_off_topic, trained_on_too
from .recipe import check_method, check_moves, check_reward, check_steps, unread
from .stopping import check_stop, doubts_of_stop
from .surroundings import check_data, check_disk, check_model, readable
from .tracking import check_track

__all__ = [
    "Plan",
    "check_adherence",
    "check_method",
    "check_moves",
    "check_reward",
    "check_steps",
    "check_stop",
    "plan",
    "readable",
    "survey",
]


@dataclass(frozen=True)
class Plan:
    """A run found sound: what it will use (name, finding), what is doubtful, and its memory, which may not suffice."""

    findings: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    memory: Estimate


def survey(run: config.RunConfig, out: Path, place: Place, online: bool = False) -> Plan:
    """Check a run and its surroundings, and estimate its memory at `place`. Loads no weight, writes nothing in `out`.

    When `online`, the configs of models on the hub are downloaded, and data sets there are read. Raises DirectAlignError at
    the first mistake; too little memory is none.
    """
    check_reward(run)
    check_method(run)
    check_steps(run)
    shown, unmet = check_track(run, place.is_here)
    rules = check_stop(run)
    fetch(run, online)
    model = model_architecture(run.model)
    check_checkpoint(run.model, model)
    of = geometry(run, model)
    check_model(run, model, of)
    lacking = check_here(run.model, model, online) if place.is_here else []
    data, warnings = check_data(run, place.ranks, online)
    data += check_off_topic(run, online) + check_adherence(run, online)
    memory = estimate(run, place)
    height, width = image_size(run, of)
    disk, small = _disk(run, out, memory)
    state = f", {model.state}" if model.state else ""
    findings = [
        ("model", f"{run.model.path}{state}, {run.model.tune}, {height}x{width}"),
        *data,
        *rules,
        *shown,
        ("output", f"{out}, {disk}"),
    ]
    return Plan(
        tuple(findings),
        (
            *unread(run.method),
            *trained_on_too(run),
            *doubts_of_stop(run),
            *unmet,
            *lacking,
            *warnings,
            *memory.doubts,
            *small,
        ),
        memory,
    )


def _disk(run: config.RunConfig, out: Path, memory: Estimate) -> tuple[str, list[str]]:
    """What the output folder will hold, and doubts: too small a disk is an error where the run is meant for this machine."""
    try:
        return check_disk(run, out, memory.trained), []
    except DirectAlignError as error:
        if memory.place.is_here:
            raise
        return "on another machine", [str(error)]


def plan(run: config.RunConfig, out: Path) -> Plan:
    """The survey of a run that is about to start on this machine.

    Raises:
        DirectAlignError: a mistake, or weights and optimiser that do not fit; where only the activations may not, a warning.
    """
    place = this_machine()
    found = survey(run, out, place, online=True)
    if found.memory.fits:
        return found
    if found.memory.counted > place.capacity:
        needed = f"model: needs {binary(found.memory.counted)} before any activation, and {place.name} has {binary(place.capacity)}"
        raise DirectAlignError(f"{needed}; {_first_remedy(run, place)}")
    doubt = f"memory: about {binary(found.memory.peak)}, and {place.name} has {binary(place.capacity)}; see directalign check"
    return Plan(found.findings, (*found.warnings, doubt), found.memory)


def _first_remedy(run: config.RunConfig, place: Place) -> str:
    best = remedies(run, place)[:1]
    return (
        f"set {best[0].says} ({binary(best[0].estimate.peak)}), see directalign check"
        if best
        else "see directalign check"
    )
