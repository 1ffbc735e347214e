"""The known noise is reproducible, and no two streams share it."""

from __future__ import annotations

import itertools

import torch
from torch.testing import assert_close

from directalign.diffusion.recovery import inject
from directalign.diffusion.rng import draw_noise, generator_for


def test_equal_keys_give_equal_noise():
    """Whatever the global random state; different keys never do."""
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn.append(draw_noise((2, 4, 3, 3), generator_for(5, 1, 2, 0)))
    assert drawn[0].dtype == torch.float32 and torch.equal(*drawn)
    keys = [*itertools.product(range(3), range(3), range(20), range(4))]
    keys += [(0,), (0, 0), (0, 0, 0), (1, 0), (0, 1), (2**70,), (-1,)]
    heads = {tuple(draw_noise((4,), generator_for(*key)).tolist()) for key in keys}
    assert len(heads) == len(keys)


def test_a_stream_is_no_shifted_copy_of_its_neighbour():
    one, two = (draw_noise((512,), generator_for(0, 0, step)) for step in (0, 1))
    assert not set(one.tolist()) & set(two.tolist())
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.2


def test_inject_mixes_by_sample_and_keeps_what_it_mixed(latents):
    x0, noise, _ = latents
    noised = inject("flow", x0, noise, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert_close(noised.x_t[0], x0[0])
    assert_close(noised.x_t[1], 0.75 * x0[1] + 0.25 * noise[1])
    assert_close(noised.x_t[2], noise[2])
    assert noised.x0 is x0
    assert noised.noise is noise
