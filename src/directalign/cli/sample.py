"""`directalign sample`: images from a run or from a bare model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, one_line_errors

DEFAULT = "if not given the recipe's, or of a bare model"


def sample(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A run's folder, a diffusers folder, a hub id, or world:flux.",
            show_default=False,
        ),
    ],
    prompt: Annotated[list[str], typer.Option("--prompt", help="A prompt. Repeatable.")] = [],  # noqa: B006 (typer copies it)
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A list of prompts (.txt, .jsonl, .csv, .tsv, .parquet), or world."
        ),
    ] = None,
    seed: Annotated[
        list[int],
        typer.Option(
            "--seed", help="Seed of the noise; every prompt is sampled with every seed. Repeatable."
        ),
    ] = [0],  # noqa: B006
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the images.")] = Path(
        "images"
    ),
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, help=f"Sampling steps; {DEFAULT} 25.")
    ] = None,
    cfg_scale: Annotated[
        float | None,
        typer.Option(min=0, help=f"Classifier-free guidance, two passes when not 1; {DEFAULT} 1."),
    ] = None,
    embedded_guidance: Annotated[
        float | None,
        typer.Option(help=f"Guidance fed to the network; {DEFAULT} 3.5 where it takes one."),
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=8, help=f"Pixels; {DEFAULT} the size it was made for.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=8, help=f"Pixels; {DEFAULT} the size it was made for.")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Sample the model as it was before training.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Sample images from what was trained: PNG files, and images.jsonl with the diffusers call that makes each again."""
    with one_line_errors(debug):
        texts = _prompts(prompt, prompts)
        asked = {
            "num_inference_steps": num_inference_steps,
            "cfg_scale": cfg_scale,
            "embedded_guidance": embedded_guidance,
            "height": height,
            "width": width,
        }
        rollout = {name: value for name, value in asked.items() if value is not None}
        from ..evaluation.generate import sample_images

        pairs = [(text, number) for text in texts for number in seed]
        for file in sample_images(
            source, [text for text, _ in pairs], [number for _, number in pairs], out, rollout, base
        ):
            typer.echo(file)


def _prompts(given: list[str], source: str | None) -> list[str]:
    from ..data.prompts import read_prompts
    from ..data.text_files import checked_prompt
    from ..types import DirectAlignError

    listed = read_prompts(source) if source is not None else []
    texts = [checked_prompt(text, "--prompt") for text in given] + listed
    if not texts:
        raise DirectAlignError("nothing to sample: give --prompt 'a red star' or --prompts FILE")
    return texts
