"""Encode every prompt of a run before it starts, so that `model.text_encoders: free` can drop the text encoders."""

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
    """Each once: the empty prompt, those of the sample grids and of the measurements, and what the updates will be dealt on all ranks."""
    measured = measured_prompts(run.data)
    pairs = (
        fixed_pairs(measured, run.evaluate.num_samples),
        diversity_pairs(measured, run.evaluate.diversity_prompts),
    )
    looked_at = [
        "",
        *(run.train.sample_prompts or data.shown(NUM_SAMPLES)),
        *pairs[0].prompts,
        *pairs[1].prompts,
    ]
    dealt = (text for step in range(run.train.num_steps) for text in data.texts(step))
    return list(dict.fromkeys([*looked_at, *dealt]))


def precompute_embeddings(
    run: config.RunConfig, model: Any, data: TrainData, ranks: TorchProcessGroup
) -> None:
    """Encode all prompts of the run into the cache on disk and drop the family's encoders.

    Each rank encodes its share; then each makes up for what the others left on a disk that it does not see.
    """
    encoder: PromptEncoder = model.prompts
    prompts, folder = prompts_of_run(run, data), default_folder()
    show = partial(track, description="encoding prompts") if ranks.is_main else iter
    for share in (prompts[ranks.rank :: ranks.size], *([prompts] if ranks.size > 1 else [])):
        for fault in encoder.store(share, folder, show):
            logger.info(f"{fault}; it was made again")
        ranks.wait()
    encoder.free()
    logger.info(f"{len(prompts)} prompts are encoded in {folder}; the text encoders are freed")
