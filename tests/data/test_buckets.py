"""Aspect-ratio buckets: nearest shape, exact proportions, refused if smaller than an update."""

import re
from itertools import chain
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from directalign.data.buckets import check_buckets, fill_buckets, suggest_buckets
from directalign.data.image_dataset import ImageStream, scan_images
from directalign.types import DirectAlignError

side = st.integers(8, 400)
shapes = st.tuples(side, side)
SHAPES = [(32, 32), (48, 24), (24, 48)]


@given(sizes=st.lists(shapes, max_size=20), buckets=st.lists(shapes, min_size=1, max_size=6))
def test_every_image_is_in_the_bucket_of_nearest_shape(sizes, buckets):
    filled = fill_buckets(sizes, buckets)
    assert [bucket.size for bucket in filled] == buckets
    members = chain.from_iterable(bucket.members for bucket in filled)
    assert sorted(members) == list(range(len(sizes)))
    for bucket in filled:
        for h, w in (sizes[i] for i in bucket.members):
            apart = [abs(log(h * other[1] / (w * other[0]))) for other in buckets]
            assert apart[buckets.index(bucket.size)] == pytest.approx(min(apart), abs=1e-12)


def test_nearness_is_measured_on_a_logarithmic_scale():
    one, two = fill_buckets([(140, 100), (142, 100), (100, 140), (100, 142)], [(64, 64), (128, 64)])
    assert one.members == (0, 2, 3) and two.members == (1,)  # the border is the square root of 2


def test_small_buckets_are_named_with_the_remedy():
    filled = fill_buckets([(32, 32)] * 5 + [(48, 24)] * 3, SHAPES)
    check_buckets(filled[:2], 3)
    with pytest.raises(DirectAlignError) as raised:
        check_buckets(filled, 4)
    message = str(raised.value)
    assert message.startswith("data.buckets: [48, 24] has 3, [24, 48] has 0 images, and an update")
    assert "takes 4 from one bucket; remove them" in message and "\n" not in message
    assert "lower data.batch_size or train.global_batch_size, or remove data.buckets" in message


@pytest.fixture
def stream(tmp_path):
    """Six square, four tall and two wide images; each is of one grey, written in its caption."""
    sizes = [(40, 40)] * 6 + [(60, 30)] * 4 + [(20, 41)] * 2
    for index, size in enumerate(sizes):
        Image.fromarray(np.full((*size, 3), 20 * index, np.uint8)).save(
            tmp_path / f"{index:02}.png"
        )
        (tmp_path / f"{index:02}.txt").write_text(str(index))
    images = scan_images(tmp_path)
    return ImageStream(images, fill_buckets(images.sizes, SHAPES), seed=5)


def test_an_update_has_one_shape_however_it_is_shared_out(stream):
    for step in range(6):
        captions, images = stream.batch(step, 4)
        assert images.shape == (4, 3, *stream.size(step))
        assert [round(float(image.mean()) * 255) for image in images] == [
            20 * int(caption) for caption in captions
        ]
        parts = [stream.batch(step, 1, place, 4) for place in range(4)]
        assert tuple(part[0][0] for part in parts) == captions and torch.equal(
            torch.cat([part[1] for part in parts]), images
        )


def test_no_image_comes_twice_before_the_others_of_its_bucket(stream):
    by_size: dict[tuple[int, int], list[str]] = {size: [] for size in SHAPES}
    for step in range(40):
        by_size[stream.size(step)] += stream.batch(step, 2)[0]
    for bucket in stream.buckets:
        seen, n = by_size[bucket.size], len(bucket.members)
        rounds = [seen[first : first + n] for first in range(0, len(seen) - n + 1, n)]
        assert all(len(set(each)) == n for each in rounds)


def test_the_order_depends_only_on_the_seed_and_the_step(stream):
    anew = ImageStream(stream.images, stream.buckets, stream.seed)
    forwards = [stream.batch(step, 2)[0] for step in range(20)]
    assert [anew.batch(step, 2)[0] for step in reversed(range(20))] == forwards[::-1]
    other = ImageStream(stream.images, stream.buckets, stream.seed + 1)
    assert [other.batch(step, 2)[0] for step in range(20)] != forwards


@given(pixels=st.integers(64**2, 2048**2), multiple=st.sampled_from([8, 16, 32, 64]))
def test_suggested_buckets_lie_around_the_area(pixels, multiple):
    buckets = suggest_buckets(pixels, multiple)
    assert buckets == sorted(buckets, key=lambda size: -size[0] / size[1])
    assert [size[::-1] for size in buckets[::-1]] == buckets
    for short, long in map(sorted, buckets):
        assert short % multiple == long % multiple == 0
        assert short * long <= pixels < short * (long + multiple) and long <= 2 * short


def test_the_documented_list_is_the_suggested_one():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    found = re.search(r"suggest_buckets\((\d+) \* (\d+), (\d+)\)\n((?:\[\[.*\]\])\n)", text)
    assert found is not None
    height, width, multiple = map(int, found.groups()[:3])
    assert str(suggest_buckets(height * width, multiple)) == found[4].strip()


def test_no_bucket_fits_a_tiny_area():
    with pytest.raises(DirectAlignError, match="no square of 3,000 pixels has sides that are mult"):
        suggest_buckets(3000, 64)
