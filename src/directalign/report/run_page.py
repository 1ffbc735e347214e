"""The page of one run: what it changed, how it got there, where it stopped, its best and its worst prompts, how to repeat it."""

from __future__ import annotations

from . import curves, figures, planes, story, strips
from .album import BUDGET, Album
from .collect import RunFiles
from .comparison_files import is_comparison, read_comparison
from .extremes import extremes, pictures_of
from .files import MOST_TEXT, mapping
from .rendering import environment_of, render, repeat_command
from .stopping import Ending, ending
from .writing import cut
from collections.abc import Sequence
from typing import Any


EVALUATION = "evaluation"
"""Where `directalign evaluate` puts the comparison of a run with its base."""


def html(run: RunFiles) -> str:
    """The whole page."""
    end = ending(run)
    frames = strips.frames_of(run, kept=end.kept if end else None)
    compared = (
        read_comparison(run.folder / EVALUATION) if is_comparison(run.folder / EVALUATION) else None
    )
    ends = extremes(compared) if compared else []
    pictures = pictures_of(compared, ends, BUDGET // 2) if compared else Album({}, False)
    run.notes.extend(f"{EVALUATION}/{note}" for note in (compared.notes if compared else []))
    return render(
        "run.html.j2",
        title=cut(run.name, 120),
        run=run,
        ending=end,
        lead=story.lead(run),
        changes=[(change, figures.change_bar(change)) for change in story.changes(run)],
        film=strips.shown([frames], BUDGET // 2 if ends else BUDGET)[0],
        frame=_frame([step for step, _ in frames], end),
        pixelated=strips.pixelated([frames]),
        prompts=strips.prompts_of(run),
        planes=planes.of_run(run),
        groups=curves.groups(run),
        extremes=ends,
        extreme_pictures=pictures,
        levels=figures.levels(run),
        facts=_facts(run),
        settings_text=run.settings_text[:MOST_TEXT],
        command=repeat_command(run),
        environment=environment_of(run.summary),
        notes=run.notes,
    )


def _frame(steps: Sequence[int], end: Ending | None) -> int:
    """Which grid stands right of the line at first: that of the weights that are left, where there is one after the first grid."""
    kept = [
        place
        for place, step in enumerate(steps)
        if place > 0 and end is not None and step == end.kept
    ]
    return kept[0] if kept else len(steps) - 1


def _facts(run: RunFiles) -> list[tuple[str, Any]]:
    """The settings that matter most, as name and value."""
    words = [run.setting("method", "words", side, default=[]) for side in ("positive", "negative")]
    asked = [
        ("Model", run.setting("model", "path")),
        ("Trained", run.setting("model", "tune")),
        ("Reward model", story.reward_of(mapping(run.setting("reward")))),
        ("Method", story.method_of(run)),
        ("Form of the reward", run.setting("method", "form")),
        ("Desired words", ", ".join(map(str, words[0]))),
        ("Undesired words", ", ".join(map(str, words[1]))),
        ("Branches", run.setting("method", "branches")),
        ("Sampling steps of a rollout", run.setting("rollout", "num_inference_steps")),
        ("Learning rate", run.setting("train", "learning_rate")),
        ("Updates", f"{len(run.steps)} of {run.setting('train', 'num_steps', default='?')}"),
        ("Batch", run.setting("data", "batch_size")),
        ("Seed", run.setting("seed")),
    ]
    return [(name, cut(value)) for name, value in asked if value not in (None, "")]
