"""Where the text encoders are while nobody encodes, and how rows of different length are joined."""

from __future__ import annotations

import torch
from torch import nn

from directalign.families.prompt_encoder import PromptEncoder, padded


def test_rows_are_filled_up_with_zeros_at_the_end():
    joined = padded([torch.ones(1, 2, 3), torch.ones(1, 4, 3)])
    assert joined.shape == (2, 4, 3)
    assert bool((joined[0, 2:] == 0).all()) and bool((joined[1] == 1).all())
    assert padded([torch.ones(1, 5), torch.ones(1, 5)]).shape == (2, 5)


def test_an_offloaded_encoder_is_back_on_the_cpu_after_use():
    module = nn.Linear(2, 2)
    encoder = PromptEncoder({"one": module}, lambda prompts: {"sequence": module(torch.ones(len(prompts), 2))}, torch.device("cpu"), "offload")
    tensors = encoder(["a", "b"])
    assert tensors["sequence"].shape == (2, 2) and not tensors["sequence"].requires_grad
    assert module.weight.device == torch.device("cpu")
