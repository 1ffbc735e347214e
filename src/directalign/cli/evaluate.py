"""`directalign evaluate`: a finished run measured against the model that it began with; the last line names the folder with everything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import comparing
from .common import Debug, RunFolder, one_line_errors


def evaluate(
    folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="Folder for the results; evaluation in the run's own if not given."
        ),
    ] = None,
    prompts: comparing.Prompts = None,
    num_samples: comparing.NumPairs = None,
    seeds_per_prompt: comparing.SeedsPerPrompt = None,
    reward: comparing.Reward = [],  # noqa: B006 (typer copies it)
    positive: comparing.PositiveWords = [],  # noqa: B006
    negative: comparing.NegativeWords = [],  # noqa: B006
    judge: comparing.JudgeName = None,
    control_prompts: comparing.OffTopic = None,
    adherence: comparing.Adherence = None,
    sampling_steps: comparing.SamplingSteps = None,
    cfg_scale: comparing.CfgScale = None,
    embedded_guidance: comparing.Guidance = None,
    height: comparing.Height = None,
    width: comparing.Width = None,
    batch_size: comparing.BatchSize = None,
    debug: Debug = False,
) -> None:
    """Measure a finished run against its base on fixed prompts and seeds: directalign compare of the two."""
    with one_line_errors(debug, "; the same command goes on where it stopped"):
        from ..evaluation.compare import Request, evaluate_run

        judge_: Any = comparing.checked_judge(judge)
        request = Request(
            (str(folder),),
            out or folder / "evaluation",
            base=True,
            prompts=prompts,
            num_samples=num_samples,
            seeds_per_prompt=seeds_per_prompt,
            rollout=comparing.rollout_of(
                sampling_steps, cfg_scale, embedded_guidance, height, width
            ),
            rewards=tuple(reward),
            positive=tuple(positive),
            negative=tuple(negative),
            judge=judge_,
            control_prompts=control_prompts,
            adherence=adherence,
            batch_size=batch_size,
            command=comparing.command_line(sys.argv[1:]),
            where=comparing.where(),
        )
        with comparing.progress_on_stderr():
            found = evaluate_run(request)
        comparing.show(found)
