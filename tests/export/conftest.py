"""Tiny pipelines, and finished runs on them."""

import pytest
from diffusers import FluxTransformer2DModel

from finished_runs import finished_recipe, write_finished
from low_rank_updates import JOINT, random_updates


@pytest.fixture
def flux_run(tmp_path, tiny_flux):
    """A LoRA of the joint blocks and of one layer of the single blocks.

    Diffusers reads fused single blocks only at FLUX.1's full width.
    """
    network = FluxTransformer2DModel.from_pretrained(tiny_flux, subfolder="transformer")
    updates = random_updates(network, (*JOINT, "ff.net.2"))
    double = {name: each for name, each in updates.items() if name.startswith("transformer_")}
    single = random_updates(network, ("proj_out",), seed=1)
    return write_finished(tmp_path / "run", finished_recipe("flux", tiny_flux), double | single)
