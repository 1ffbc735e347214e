"""What each update is fed: prompts or real images, as a function of the step, the rank and the micro-batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import train_stubs as stubs
from PIL import Image

from directalign import config
from directalign.train.distributed import Ranks
from directalign.train.feed import open_feed


@pytest.fixture
def run(tmp_path: Path) -> config.Run:
    """Two real images for the first two updates, prompts afterwards; a third image is empty."""
    for index in range(2):
        Image.fromarray(np.full((6, 6, 3), 40 * index, np.uint8)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"grey {index}")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "2.txt").write_text("nothing")
    run = stubs.make_run(tmp_path.parent / f"{tmp_path.name}.txt", accumulation=2, batch_size=1)
    data = config.Data.model_validate({"images": str(tmp_path), "prompts": run.data.prompts, "offline_steps": 2})
    return run.model_copy(update={"data": data})


def test_images_come_first_then_prompts(run: config.Run):
    feed = open_feed(run, stubs.StubFamily(), Ranks())
    offline, online = feed.batches(1), feed.batches(2)
    assert [(batch.place, batch.total) for batch in offline] == [(0, 2), (1, 2)] and all(batch.step == 1 for batch in offline)
    for batch in offline:
        assert batch.images is not None and batch.images.shape == (1, 3, stubs.SIZE, stubs.SIZE)
        assert float(batch.images.mean()) == pytest.approx(40 / 255 if batch.prompts == ("grey 1",) else 0.0, abs=1e-6)
    assert all(batch.images is None and batch.prompts[0] in stubs.PROMPTS for batch in online)
    assert len(feed.skipped) == 1 and "2.png" in feed.skipped[0]


def test_images_alone_last_for_the_whole_run_and_show_their_captions(run: config.Run):
    data = config.Data.model_validate({"images": run.data.images})
    feed = open_feed(run.model_copy(update={"data": data}), stubs.StubFamily(), Ranks())
    assert feed.batches(5)[0].images is not None
    assert list(feed.shown(8)) == ["grey 0", "grey 1"]


def test_ranks_and_micro_batches_share_out_the_prompts(run: config.Run):
    run = run.model_copy(update={"data": config.Data.model_validate({"prompts": run.data.prompts})})
    feeds = [open_feed(run, stubs.StubFamily(), Ranks(rank, 2)) for rank in range(2)]
    seen = [batch.prompts[0] for feed in feeds for step in (0, 1) for batch in feed.batches(step)]
    assert len(set(seen)) == 8
    assert [(batch.place, batch.total) for batch in feeds[1].batches(0)] == [(1, 4), (3, 4)]


def test_the_fingerprint_follows_the_contents(run: config.Run):
    feed = open_feed(run, stubs.StubFamily(), Ranks())
    assert feed.prompts is not None and feed.images is not None
    assert feed.fingerprint == open_feed(run, stubs.StubFamily(), Ranks()).fingerprint
    fewer = replace(feed, prompts=replace(feed.prompts, prompts=feed.prompts.prompts[1:]))
    renamed = replace(feed, images=replace(feed.images, images=replace(feed.images.images, captions=("grey 1", "grey 0"))))
    assert len({feed.fingerprint, fewer.fingerprint, renamed.fingerprint}) == 3
