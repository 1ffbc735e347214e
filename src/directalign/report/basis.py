"""What the numbers of runs were measured on: only equal ones stand side by side on a page.

Evaluations draw their pairs from a run's prompts, in one order and with one series of seeds: two
runs with the same prompts and number of samples have the same pairs. A metric may also
depend on a reward, on phrases or on the base model.
"""

import json
from collections.abc import Sequence
from typing import Any

from ..metrics import HELD_OUT, NEG, OFF_TOPIC, POS
from .format import listing
from .read import RunFiles, metric_of

PHRASES = ("method", "control_phrases")


def prompts_measured(run: RunFiles) -> str:
    """Where the prompts of a run's evaluations come from; without a recipe no other run's."""
    keys = (("evaluate", "prompts"), ("data", "prompts"), ("data", "images"))
    source = next(filter(None, (run.setting(*key) for key in keys)), None)
    return str(source or f"the unknown prompts of {run.key}")


def measured_with(run: RunFiles, name: str) -> str:
    """What a metric depends on beside the images, as JSON: reward, phrases, reference."""
    inner = name.removeprefix(OFF_TOPIC)
    found = [run.setting("evaluate", "control_prompts") if inner != name else None]
    judge, role = run.setting("evaluate", "judge"), metric_of([run], inner).role
    if inner.endswith((POS, NEG)):
        found.append(run.setting(*PHRASES))
    if inner.startswith(HELD_OUT):
        label = inner.removeprefix(HELD_OUT).removesuffix(POS).removesuffix(NEG)
        found.append(run.setting("evaluate", "rewards", label))
    elif role in ("trained", "sgp"):
        found.append(run.setting("reward"))
    elif role in ("judge", "adherence"):
        found.append(judge)
    elif inner == "color_drift" and (judge in (None, "none") or inner != name):  # its reference
        found.append(run.setting("model", "path"))
    elif inner in run.metrics:  # of a user's file
        files = map(str, listing(run.setting("evaluate", "metrics")))
        found += [each for each in files if inner in each]
    return json.dumps(found, sort_keys=True, default=str)


def alike(runs: Sequence[RunFiles], name: str) -> list[list[RunFiles]]:
    """The runs that have a metric in their curves, in groups within which its values compare."""
    groups: dict[tuple[Any, ...], list[RunFiles]] = {}
    for run in runs:
        if run.measured_curve(name):
            basis = prompts_measured(run), run.count, measured_with(run, name)
            groups.setdefault(basis, []).append(run)
    return list(groups.values())


def on_equal_pairs(runs: Sequence[RunFiles]) -> list[list[RunFiles]]:
    """Groups of runs that were measured before and after on the same pairs, the largest first.

    Runs without both ends are with the others of their prompts.
    """
    by_prompts: dict[str, list[RunFiles]] = {}
    for run in runs:
        by_prompts.setdefault(prompts_measured(run), []).append(run)
    found: list[list[RunFiles]] = []
    for group in by_prompts.values():
        most = {run.key: next(iter(run.ends), None) for run in group}
        if common_count(group) is not None or len({*most.values()} - {None}) < 2:
            found.append(group)
        else:
            counts = dict.fromkeys(most.values())
            found += [[run for run in group if most[run.key] == count] for count in counts]
    return sorted(found, key=lambda group: -len(group))


def common_count(runs: Sequence[RunFiles]) -> int | None:
    """The largest number of samples on which all runs with both ends have them; None if there is
    none, or if it is unknown."""
    ends = [run.ends for run in runs if run.ends]
    shared = [count for count in (ends[0] if ends else ()) if all(count in each for each in ends)]
    return next(iter(shared), None)
