"""Every prompt that a run will encode, known before it starts; with `model.text_encoders: free` the encoders go once they have read them all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rich.progress import track

from .. import config
from ..evaluate.diversity import diversity_pairs
from ..evaluate.pairs import fixed_pairs, measured_prompts
from ..families.embedding_cache import default_folder
from ..families.prompt_encoder import PromptEncoder
from .distributed import Ranks
from .feed import Feed
from .samples import NUM_SAMPLES


def prompts_of_run(run: config.Run, feed: Feed) -> list[str]:
    """Each once: the empty prompt, those of the sample grids and of the measurements, and what the updates will be dealt on all ranks."""
    measured = measured_prompts(run.data)
    pairs = fixed_pairs(measured, run.evaluate.num_pairs), diversity_pairs(measured, run.evaluate.diversity_prompts)
    looked_at = ["", *(run.train.sample_prompts or feed.shown(NUM_SAMPLES)), *pairs[0].prompts, *pairs[1].prompts]
    dealt = (text for step in range(run.train.num_steps) for text in feed.texts(step))
    return list(dict.fromkeys([*looked_at, *dealt]))


def free_text_encoders(run: config.Run, family: Any, feed: Feed, ranks: Ranks, say: Callable[[str], None]) -> None:
    """Encode all prompts of the run into the cache on disk and drop the family's encoders.

    Each rank encodes its share; then each makes up for what the others left on a disk that it does not see.
    """
    encoder: PromptEncoder = family.prompts
    prompts, folder = prompts_of_run(run, feed), default_folder()
    show = partial(track, description="encoding prompts") if ranks.is_main else iter
    for share in (prompts[ranks.rank :: ranks.size], *([prompts] if ranks.size > 1 else [])):
        for fault in encoder.store(share, folder, show):
            say(f"{fault}; it was made again")
        ranks.wait()
    encoder.free()
    say(f"{len(prompts)} prompts are encoded in {folder}; the text encoders are freed")
