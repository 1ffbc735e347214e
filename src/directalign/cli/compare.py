"""`directalign compare A B C`: any number of models on the same prompts and seeds; the last line names the folder with everything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import comparing as options
from .errors import one_line_errors
from .options import Debug

SOURCES = "LABEL=SOURCE or SOURCE: a run's folder, a diffusers folder, a hub id, world:flux, or a folder of images with images.jsonl."


def compare(
    sources: Annotated[list[str], typer.Argument(metavar="[LABEL=]SOURCE...", help=SOURCES, show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for images, numbers and the page; the same command goes on there.")],
    base: Annotated[bool, typer.Option("--base", help="Add the model that the runs began with, and hold all against it.")] = False,
    prompts: options.Prompts = None,
    num_pairs: options.NumPairs = None,
    seeds_per_prompt: options.SeedsPerPrompt = None,
    reward: options.Reward = [],  # noqa: B006 (typer copies it)
    positive: options.PositiveWords = [],  # noqa: B006
    negative: options.NegativeWords = [],  # noqa: B006
    judge: options.JudgeName = None,
    off_topic: options.OffTopic = None,
    adherence: options.Adherence = None,
    sampling_steps: options.SamplingSteps = None,
    cfg_scale: options.CfgScale = None,
    embedded_guidance: options.Guidance = None,
    height: options.Height = None,
    width: options.Width = None,
    batch_size: options.BatchSize = None,
    debug: Debug = False,
) -> None:
    """Compare models on the same prompts and seeds: rewards, judges, drift, diversity, leakage, wins."""
    with one_line_errors(debug, "; the same command goes on where it stopped"):
        from ..evaluate.compare import Request
        from ..evaluate.compare import compare as compare_models

        judge_: Any = options.checked_judge(judge)
        request = Request(
            tuple(sources),
            out,
            base,
            prompts=prompts,
            num_pairs=num_pairs,
            seeds_per_prompt=seeds_per_prompt,
            rollout=options.rollout_of(sampling_steps, cfg_scale, embedded_guidance, height, width),
            rewards=tuple(reward),
            positive=tuple(positive),
            negative=tuple(negative),
            judge=judge_,
            off_topic=off_topic,
            adherence=adherence,
            batch_size=batch_size,
            command=options.command_line(sys.argv[1:]),
            where=options.where(),
        )
        options.show(compare_models(request, lambda words: typer.echo(words, err=True)))
