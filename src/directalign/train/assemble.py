"""From a recipe to a finished folder: claim it, load what the recipe names, train, write the page.

run.yaml  metrics.jsonl  tensorboard/  samples/  checkpoints/  lora.safetensors | transformer/ | unet/  summary.json  report.html
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from .. import config
from ..evaluate.held_out import load_held_out
from ..evaluate.measure import Measurer
from ..families.loading import load_family
from ..methods import load_method
from ..report import write_page
from ..rewards import load_reward
from ..types import DirectAlignError
from ..world.judges import load_judge
from . import folder, random_state, sealed, sharding
from .distributed import Ranks, joined
from .feed import open_feed
from .kept_tokens import keep_tokens
from .prompts_ahead import free_text_encoders
from .session import Loaded, speaker, train_loaded


def run(run: config.Run, out: Path, resume: bool) -> Path:
    """Train as `run` says and leave everything in `out`, which is returned.

    Args:
        resume: go on from the newest whole checkpoint in `out`, or from the beginning if it has none yet. A run that its
            launcher starts again after a failure does so by itself.
    Raises:
        DirectAlignError: `out` may not be used, a file is missing or broken, the disk is full, a checkpoint does not fit.
        NonFiniteError, Interrupted: see `loop.train`.
    """
    with joined() as ranks, _disk_errors(out), ExitStack() as held:
        resume = resume or ranks.any(ranks.attempt > 0 and ranks.is_main and (out / "run.yaml").exists())
        if ranks.is_main:
            folder.check(out, resume)
        ranks.wait()
        random_state.seed_all(run.seed)
        loaded = _load(run, ranks)
        if ranks.is_main:
            folder.make(out)  # only now: what cannot be loaded leaves no folder behind
            unlocked = held.enter_context(folder.held(out))
            if unlocked is not None:
                speaker(ranks)(unlocked)
            keep_tokens(run, out)
        ranks.wait()
        train_loaded(run, out, resume, ranks, loaded)
        if ranks.is_main:
            write_page(out)
    return out


def _load(run: config.Run, ranks: Ranks) -> Loaded:
    """One after the other what is large: text encoders that are freed come before the denoiser and the reward."""
    say = speaker(ranks)
    sharded, frees = sharding.is_sharded_run(run, ranks), run.model.text_encoders == "free"
    family = load_family(run.model, ranks.device, run.seed, denoiser_device=torch.device("cpu") if sharded or frees else None)
    feed = open_feed(run, family, ranks)
    for fault in feed.skipped:
        say(f"skipped image {fault}")
    if frees:
        free_text_encoders(run, family, feed, ranks, say)
    if sharded:
        sharding.shard(family.denoiser, run.model, ranks)
    else:
        family.denoiser.to(ranks.device)
    reward = load_reward(run.reward, ranks.device)
    judge = load_judge() if run.evaluate.judge == "world" else None
    held_out = load_held_out(run.evaluate, ranks.device) if ranks.is_main else {}  # rank 0 alone judges
    return Loaded(family, load_method(run, family, reward, ranks), Measurer(run, family, reward, judge, together=ranks, held_out=held_out), feed)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk is one line, wherever it strikes."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not sealed.is_disk_full(error):
            raise
        raise DirectAlignError(f"no space left on the disk that holds {out}; free some and continue with --resume --out {out}") from error
