"""A run's images once more, after training: its weights, or the base model's, on the fixed pairs of its recipe."""

from __future__ import annotations

from ...evaluation.compare import judge_of
from ...evaluation.generate import generate, run_of, trained_family
from ...evaluation.in_training import Measurer
from ...rewards import load_reward
from ...toyworld.scenes import STYLE_WORDS
from ...types import DirectAlignError, Images
from pathlib import Path


def measurer_of(folder: Path, base: bool = False) -> Measurer:
    """What measures the finished run in `folder`, with its trained weights in place, or with those it began from.

    Raises: DirectAlignError for a folder without a run.
    """
    run, trained = run_of(folder)
    if trained is None:
        raise DirectAlignError(f"{folder}: holds no run (no run.yaml); give the folder of a finished run")
    family = trained_family(run, None if base else trained)
    return Measurer(run, family, load_reward(run.reward, next(family.denoiser.parameters()).device), judge_of(run))


def asked_images(measurer: Measurer, style: str, count: int) -> Images:
    """Images (count, 3, H, W) of the first pairs when the prompt itself asks for a style: "Anime. a red star ..."."""
    pairs, run = measurer.pairs.first(count), measurer.run
    prompts = [f"{STYLE_WORDS[style][0]}. {prompt}" for prompt in pairs.prompts]
    return generate(measurer.family, prompts, pairs.seeds, run.rollout, run.evaluate.batch_size)
