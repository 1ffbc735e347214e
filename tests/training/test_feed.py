"""What each update is fed: prompts or real images of one shape, as a function of the step alone, however ranks share it out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import train_stubs as stubs
from PIL import Image

from directalign import config
from directalign.training.data import TrainData, open_data
from directalign.training.distributed import TorchProcessGroup
from directalign.types import Batch, DirectAlignError


@pytest.fixture
def run(tmp_path: Path) -> config.RunConfig:
    """Two real images for the first two updates, prompts afterwards; a third image is empty."""
    for index in range(2):
        Image.fromarray(np.full((6, 6, 3), 40 * index, np.uint8)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"grey {index}")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "2.txt").write_text("nothing")
    run = stubs.make_run(
        tmp_path.parent / f"{tmp_path.name}.txt", gradient_accumulation_steps=2, batch_size=1
    )
    data = config.DataConfig.model_validate(
        {"images": str(tmp_path), "prompts": run.data.prompts, "offline_steps": 2}
    )
    return run.model_copy(update={"data": data})


def test_images_come_first_then_prompts(run: config.RunConfig):
    feed = open_data(run, stubs.StubModel(), TorchProcessGroup())
    offline, online = feed.batches(1), feed.batches(2)
    assert [(batch.offset, batch.global_size) for batch in offline] == [(0, 2), (1, 2)] and all(
        batch.step == 1 for batch in offline
    )
    for batch in offline:
        assert batch.images is not None and batch.images.shape == (1, 3, stubs.SIZE, stubs.SIZE)
        assert float(batch.images.mean()) == pytest.approx(
            40 / 255 if batch.prompts == ("grey 1",) else 0.0, abs=1e-6
        )
    assert all(batch.images is None and batch.prompts[0] in stubs.PROMPTS for batch in online)
    assert len(feed.skipped) == 1 and "2.png" in feed.skipped[0]


def test_images_alone_last_for_the_whole_run_and_show_their_captions(run: config.RunConfig):
    data = config.DataConfig.model_validate({"images": run.data.images})
    feed = open_data(run.model_copy(update={"data": data}), stubs.StubModel(), TorchProcessGroup())
    assert feed.batches(5)[0].images is not None
    assert list(feed.first_texts(8)) == ["grey 0", "grey 1"]


def test_ranks_and_micro_batches_share_out_the_prompts(run: config.RunConfig):
    run = run.model_copy(
        update={"data": config.DataConfig.model_validate({"prompts": run.data.prompts})}
    )
    feeds = [open_data(run, stubs.StubModel(), TorchProcessGroup(rank, 2)) for rank in range(2)]
    seen = [batch.prompts[0] for feed in feeds for step in (0, 1) for batch in feed.batches(step)]
    assert len(set(seen)) == 8
    assert [(batch.offset, batch.global_size) for batch in feeds[1].batches(0)] == [(1, 4), (3, 4)]


def test_the_fingerprint_follows_the_contents(run: config.RunConfig):
    feed = open_data(run, stubs.StubModel(), TorchProcessGroup())
    assert feed.prompts is not None and feed.images is not None
    assert feed.fingerprint == open_data(run, stubs.StubModel(), TorchProcessGroup()).fingerprint
    fewer = replace(feed, prompts=replace(feed.prompts, prompts=feed.prompts.prompts[1:]))
    renamed = replace(
        feed,
        images=replace(
            feed.images, images=replace(feed.images.images, captions=("grey 1", "grey 0"))
        ),
    )
    assert len({feed.fingerprint, fewer.fingerprint, renamed.fingerprint}) == 3


# --- several shapes ---------------------------------------------------------------------------------------------------

SHAPES = {(16, 16): 4, (24, 8): 4}
SIZES = [(8, 8), (8, 16), (16, 8)]


@pytest.fixture
def shaped(tmp_path: Path) -> config.RunConfig:
    """Four square and four tall images in buckets for 8 updates of 4, then prompts in three sizes."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(8):
        Image.fromarray(
            np.full((10, 10, 3) if index % 2 else (30, 10, 3), 20 * index, np.uint8)
        ).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"grey {index}")
    run = stubs.make_run(tmp_path / "prompts.txt", batch_size=1, global_batch_size=4)
    data = {
        "images": str(pictures),
        "prompts": run.data.prompts,
        "offline_steps": 8,
        "buckets": [list(size) for size in SHAPES],
    }
    rollout = {"num_inference_steps": 2, "sizes": [list(size) for size in SIZES]}
    return run.model_copy(
        update={
            "data": config.DataConfig.model_validate(data),
            "rollout": config.RolloutConfig.model_validate(rollout),
        }
    )


def updates(
    run: config.RunConfig, steps: range, world_size: int = 1, batch_size: int = 1
) -> list[list[Batch]]:
    """The batches of each update over all ranks, in the order of their places; every feed is opened anew."""
    run = run.model_copy(update={"data": run.data.model_copy(update={"batch_size": batch_size})})
    feeds = [
        open_data(run, stubs.StubModel(), TorchProcessGroup(rank, world_size))
        for rank in range(world_size)
    ]
    return [
        sorted(
            (batch for feed in feeds for batch in feed.batches(step)),
            key=lambda batch: batch.offset,
        )
        for step in steps
    ]


def whole(update: list[Batch]) -> tuple[object, ...]:
    """What an update sees, apart from how it is cut."""
    images = [batch.images for batch in update if batch.images is not None]
    pixels = torch.cat(images).numpy().tobytes() if images else None
    return (
        update[0].step,
        sum((batch.prompts for batch in update), ()),
        pixels,
        update[0].image_size,
        update[0].global_size,
    )


def test_an_update_takes_one_bucket_then_one_size(shaped: config.RunConfig):
    seen = updates(shaped, range(14))
    for step, update in enumerate(seen):
        assert len({batch.image_size for batch in update}) == 1 and [
            (batch.offset, batch.global_size) for batch in update
        ] == [(place, 4) for place in range(4)]
        for batch in update:
            assert (batch.images is not None) == (step < 8)
            assert batch.images is None or batch.images.shape == (1, 3, *(batch.image_size or ()))
    assert Counter(update[0].image_size for update in seen[:8]) == SHAPES
    assert {batch.prompts[0] for update in seen[:8] for batch in update} == {
        f"grey {index}" for index in range(8)
    }
    online = [update[0].image_size for update in updates(shaped, range(9, 15))]
    assert Counter(online) == dict.fromkeys(SIZES, 2)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_an_update_is_the_same_however_it_is_shared_out(
    shaped: config.RunConfig, world_size: int, batch_size: int
):
    steps = range(4, 12)
    assert list(map(whole, updates(shaped, steps, world_size, batch_size))) == list(
        map(whole, updates(shaped, steps))
    )


def test_a_feed_opened_anew_goes_on_exactly(shaped: config.RunConfig):
    straight = list(map(whole, updates(shaped, range(14))))
    assert list(map(whole, updates(shaped, range(5)) + updates(shaped, range(5, 14)))) == straight
    other = shaped.model_copy(update={"seed": shaped.seed + 1})
    assert list(map(whole, updates(other, range(14)))) != straight


def test_without_buckets_images_have_the_size_of_the_rollout(shaped: config.RunConfig):
    data = shaped.data.model_copy(update={"buckets": None})
    rollout = shaped.rollout.model_copy(update={"height": 12, "width": 20})
    ((batch, *_),) = updates(shaped.model_copy(update={"data": data, "rollout": rollout}), range(1))
    assert (
        batch.images is not None
        and batch.images.shape == (1, 3, 12, 20)
        and batch.image_size == (12, 20)
    )


def test_a_bucket_too_small_for_an_update_is_refused_before_training(shaped: config.RunConfig):
    run = shaped.model_copy(
        update={"train": shaped.train.model_copy(update={"global_batch_size": 6})}
    )
    with pytest.raises(
        DirectAlignError,
        match=r"data\.buckets: \[16, 16\] has 4, \[24, 8\] has 4 images, and an update takes 6",
    ):
        open_data(run, stubs.StubModel(), TorchProcessGroup())


class Choosy(stubs.StubModel):
    """Takes sides that are multiples of 16."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        if height % 16 or width % 16:
            raise DirectAlignError("both sides must be multiples of 16")
        return 3, height, width


def test_a_shape_that_the_model_cannot_take_is_named_with_its_key(shaped: config.RunConfig):
    def complaint(run: config.RunConfig) -> str:
        with pytest.raises(DirectAlignError) as raised:
            open_data(run, Choosy(), TorchProcessGroup())
        return str(raised.value)

    assert complaint(shaped) == "data.buckets: [24, 8]: both sides must be multiples of 16"
    unbucketed = shaped.model_copy(
        update={"data": shaped.data.model_copy(update={"buckets": None})}
    )
    assert complaint(unbucketed) == "rollout.sizes: [8, 8]: both sides must be multiples of 16"


def test_the_fingerprint_tells_images_apart_by_name(shaped: config.RunConfig):
    feed: TrainData = open_data(shaped, stubs.StubModel(), TorchProcessGroup())
    assert feed.images is not None
    renamed = replace(
        feed,
        images=replace(feed.images, images=replace(feed.images.images, names=tuple("abcdefgh"))),
    )
    assert feed.fingerprint != renamed.fingerprint
