"""Fixed pairs are the same for everyone, and their noise is the one that diffusers pipelines
draw."""

from __future__ import annotations

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from directalign.config import DataConfig
from directalign.data.prompts import held_out_captions, train_captions
from directalign.evaluation.eval_prompts import Pairs, fixed_pairs, measured_prompts, seed_noise
from directalign.types import DirectAlignError


def test_fewer_pairs_are_the_first_of_more():
    prompts = [f"prompt {i}" for i in range(7)]
    many = fixed_pairs(prompts, 20)
    assert many.first(5) == fixed_pairs(prompts, 5)
    assert len(set(many.seeds)) == 20
    assert set(many.prompts[:7]) == set(prompts)


def test_world_is_measured_on_all_captions_held_out_ones_among_the_first():
    found = measured_prompts(DataConfig(prompts="world"))
    assert (
        sorted(found) == sorted(held_out_captions() + train_captions()) and len(set(found)) == 240
    )
    first = set(fixed_pairs(found, 64).prompts)
    assert first & set(held_out_captions()) and first & set(train_captions())


def test_noise_is_the_pipelines_own():
    noise = seed_noise([3, 4], (4, 8, 6))
    expected = randn_tensor(
        (1, 4, 8, 6),
        generator=torch.Generator().manual_seed(4),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert torch.equal(noise[1:], expected)
    assert torch.equal(seed_noise([4, 9, 3], (4, 8, 6))[[2, 0]], noise)


def test_prompts_without_a_seed_are_refused():
    with pytest.raises(DirectAlignError, match="2 prompts and 1 seeds"):
        Pairs(("a", "b"), (1,))
