"""`directalign compare A B C`: any number of models on the same prompts and seeds; the last line names the folder with everything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import comparing
from .common import Debug, one_line_errors

SOURCES = "LABEL=SOURCE or SOURCE: a run's folder, a diffusers folder, a hub id, world:flux, or a folder of images with images.jsonl."


def compare(
    sources: Annotated[
        list[str], typer.Argument(metavar="[LABEL=]SOURCE...", help=SOURCES, show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder for images, numbers and the page; the same command goes on there.",
        ),
    ],
    base: Annotated[
        bool,
        typer.Option(
            "--base", help="Add the model that the runs began with, and hold all against it."
        ),
    ] = False,
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
    """Compare models on the same prompts and seeds: rewards, judges, drift, diversity, leakage, wins."""
    with one_line_errors(debug, "; the same command goes on where it stopped"):
        from ..evaluation.compare import Request
        from ..evaluation.compare import compare as compare_models

        judge_: Any = comparing.checked_judge(judge)
        request = Request(
            tuple(sources),
            out,
            base,
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
            found = compare_models(request)
        comparing.show(found)
