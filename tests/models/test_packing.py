"""Packing is FluxPipeline's own, and undoes itself."""

from __future__ import annotations

import torch
from diffusers import FluxPipeline

from directalign.models import common

LATENTS = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_pack_equals_the_pipeline():
    assert torch.equal(common.pack(LATENTS), FluxPipeline._pack_latents(LATENTS, 2, 3, 4, 6))


def test_unpack_inverts_pack():
    assert torch.equal(common.unpack(common.pack(LATENTS), 4, 6), LATENTS)


def test_image_ids_equal_the_pipeline():
    expected = FluxPipeline._prepare_latent_image_ids(1, 2, 3, "cpu", torch.float32)
    assert torch.equal(common.image_ids(4, 6, torch.device("cpu")), expected)


def test_text_ids_have_no_place():
    assert not common.text_ids(5, torch.device("cpu")).any()
