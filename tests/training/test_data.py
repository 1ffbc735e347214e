"""The batches of each step: prompts or images of one size, the same for any batch layout."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_stubs as stubs
from PIL import Image

from directalign import config
from directalign.training.data import TrainData, open_data
from directalign.training.distributed import TorchProcessGroup
from directalign.types import Batch, DirectAlignError

SHAPES = {(16, 16): 4, (24, 8): 4}
SIZES = [(8, 8), (8, 16), (16, 8)]


def write_image(folder: Path, index: int, height: int, width: int, level: int) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.full((height, width, 3), level, np.uint8)
    Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / f"{index}.txt").write_text(f"grey {index}")


def with_data(run: config.RunConfig, **data: Any) -> config.RunConfig:
    return run.model_copy(update={"data": config.DataConfig.model_validate(data)})


def open_stub(run: config.RunConfig, rank: int = 0, size: int = 1) -> TrainData:
    return open_data(run, stubs.StubModel(), TorchProcessGroup(rank, size))


@pytest.fixture
def run(tmp_path):
    """Two images for the first two steps, prompts afterwards; a third image is empty."""
    images = tmp_path / "images"
    for index in range(2):
        write_image(images, index, 6, 6, 40 * index)
    (images / "2.png").write_bytes(b"")
    (images / "2.txt").write_text("nothing")
    run = stubs.make_run(tmp_path / "prompts.txt", gradient_accumulation_steps=2, batch_size=1)
    return with_data(run, images=str(images), prompts=run.data.prompts, offline_steps=2)


@pytest.fixture
def shaped(tmp_path):
    """Four square and four tall images in buckets for 8 steps of 4, then prompts in three sizes."""
    images = tmp_path / "images"
    for index in range(8):
        write_image(images, index, 10 if index % 2 else 30, 10, 20 * index)
    run = stubs.make_run(tmp_path / "prompts.txt", batch_size=1, global_batch_size=4)
    rollout = {"num_inference_steps": 2, "sizes": [list(size) for size in SIZES]}
    run = run.model_copy(update={"rollout": config.RolloutConfig.model_validate(rollout)})
    buckets = [list(size) for size in SHAPES]
    prompts = run.data.prompts
    return with_data(run, images=str(images), prompts=prompts, offline_steps=8, buckets=buckets)


def test_images_come_first_then_prompts(run):
    data = open_stub(run)
    offline, online = data.batches(1), data.batches(2)
    assert [(batch.step, batch.offset, batch.global_size) for batch in offline] == [
        (1, 0, 2),
        (1, 1, 2),
    ]
    for batch in offline:
        assert batch.images is not None and batch.images.shape == (1, 3, stubs.SIZE, stubs.SIZE)
        level = 40 / 255 if batch.prompts == ("grey 1",) else 0.0
        assert float(batch.images.mean()) == pytest.approx(level, abs=1e-6)
    assert all(batch.images is None and batch.prompts[0] in stubs.PROMPTS for batch in online)
    assert len(data.skipped) == 1 and "2.png" in data.skipped[0]


def test_the_fingerprint_depends_on_prompts_captions_and_names(run):
    data = open_stub(run)
    assert data.prompts is not None and data.images is not None
    fewer = replace(data.prompts, prompts=data.prompts.prompts[1:])
    captions = replace(data.images.images, captions=("grey 1", "grey 0"))
    names = replace(data.images.images, names=("a", "b"))
    variants = [
        data,
        replace(data, prompts=fewer),
        replace(data, images=replace(data.images, images=captions)),
        replace(data, images=replace(data.images, images=names)),
    ]
    assert len({each.fingerprint for each in variants}) == 4
    assert data.fingerprint == open_stub(run).fingerprint


# --- several sizes --------------------------------------------------------------------------------


def steps(
    run: config.RunConfig, numbers: range, size: int = 1, batch_size: int = 1
) -> list[list[Batch]]:
    """The batches of each step over all ranks, by offset; the data are opened anew."""
    run = run.model_copy(update={"data": run.data.model_copy(update={"batch_size": batch_size})})
    data = [open_stub(run, rank, size) for rank in range(size)]
    return [
        sorted((b for each in data for b in each.batches(step)), key=lambda b: b.offset)
        for step in numbers
    ]


def joined(batches: list[Batch]) -> tuple[object, ...]:
    """What a step trains on, whatever its layout."""
    images = [batch.images for batch in batches if batch.images is not None]
    pixels = torch.cat(images).numpy().tobytes() if images else None
    prompts, first = sum((batch.prompts for batch in batches), ()), batches[0]
    return first.step, prompts, pixels, first.image_size, first.global_size


def test_a_step_has_one_bucket_or_one_size(shaped):
    seen = steps(shaped, range(14))
    for step, batches in enumerate(seen):
        assert len({batch.image_size for batch in batches}) == 1
        assert [(batch.offset, batch.global_size) for batch in batches] == [
            (offset, 4) for offset in range(4)
        ]
        for batch in batches:
            assert (batch.images is not None) == (step < 8)
            assert batch.images is None or batch.images.shape == (1, 3, *(batch.image_size or ()))
    assert Counter(batches[0].image_size for batches in seen[:8]) == SHAPES
    captions = {batch.prompts[0] for batches in seen[:8] for batch in batches}
    assert captions == {f"grey {index}" for index in range(8)}
    online = [batches[0].image_size for batches in steps(shaped, range(9, 15))]
    assert Counter(online) == dict.fromkeys(SIZES, 2)


@pytest.mark.parametrize(("size", "batch_size"), [(1, 4), (2, 1), (2, 2)])
def test_a_step_is_the_same_for_any_batch_layout(shaped, size, batch_size):
    found = steps(shaped, range(4, 12), size, batch_size)
    assert list(map(joined, found)) == list(map(joined, steps(shaped, range(4, 12))))
    offsets = [batch.offset for batch in found[0]]
    assert offsets == list(range(0, 4, batch_size)) and found[0][0].global_size == 4


def test_data_opened_again_continue_exactly(shaped):
    whole = list(map(joined, steps(shaped, range(14))))
    assert list(map(joined, steps(shaped, range(5)) + steps(shaped, range(5, 14)))) == whole
    other = shaped.model_copy(update={"seed": shaped.seed + 1})
    assert list(map(joined, steps(other, range(14)))) != whole


class MultipleOf16(stubs.StubModel):
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        if height % 16 or width % 16:
            raise DirectAlignError("both sides must be multiples of 16")
        return 3, height, width


@pytest.mark.parametrize(
    ("buckets", "message"), [(True, "data.buckets: [24, 8]"), (False, "rollout.sizes: [8, 8]")]
)
def test_a_size_that_the_model_does_not_support_is_named_with_its_key(shaped, buckets, message):
    data = shaped.data if buckets else shaped.data.model_copy(update={"buckets": None})
    with pytest.raises(DirectAlignError) as raised:
        open_data(shaped.model_copy(update={"data": data}), MultipleOf16(), TorchProcessGroup())
    assert str(raised.value) == f"{message}: both sides must be multiples of 16"
