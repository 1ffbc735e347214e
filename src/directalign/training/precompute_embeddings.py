"""Encode every prompt of a run before it starts, for `model.text_encoders: free`."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from rich.progress import track

from .. import config
from ..evaluation.eval_prompts import fixed_pairs, measured_prompts
from ..evaluation.image_metrics import diversity_pairs
from ..models.text_encoder import PromptEncoder, default_folder
from .data import TrainData
from .distributed import TorchProcessGroup
from .run_log import NUM_SAMPLES

logger = logging.getLogger(__name__)


def prompts_of_run(run: config.RunConfig, data: TrainData) -> list[str]:
    """Every prompt once: the empty one, of sample grids, evaluations, and training on all ranks."""
    measured = measured_prompts(run.data)
    evaluated = fixed_pairs(measured, run.evaluate.num_samples)
    diverse = diversity_pairs(measured, run.evaluate.diversity_prompts)
    samples = run.train.sample_prompts or data.first_texts(NUM_SAMPLES)
    trained = (text for step in range(run.train.num_steps) for text in data.texts(step))
    return list(dict.fromkeys(["", *samples, *evaluated.prompts, *diverse.prompts, *trained]))


def precompute_embeddings(
    run: config.RunConfig, model: Any, data: TrainData, group: TorchProcessGroup
) -> None:
    """Encode all prompts of the run into the cache on disk and free the model's text encoders.

    Each rank encodes its share, then what other ranks stored on a disk that it cannot read.
    """
    encoder: PromptEncoder = model.prompts
    prompts, folder = prompts_of_run(run, data), default_folder()
    show = partial(track, description="encoding prompts") if group.is_main else iter
    for share in (prompts[group.rank :: group.size], *([prompts] if group.size > 1 else [])):
        for fault in encoder.store(share, folder, show):
            logger.info(f"{fault}; encoded again")
        group.barrier()
    encoder.free()
    logger.info(f"{len(prompts)} prompts are encoded in {folder}; the text encoders are freed")
