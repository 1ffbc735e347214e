"""What comes and goes: foretold from configs, and taken by an update of the real family on real numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_runs import a_run, changed
from torch import Tensor

from directalign import memory
from directalign.diffusion.recovery import recover
from directalign.memory.architecture import model_architecture
from directalign.memory.held import Subject
from directalign.memory.judges import Panel
from directalign.memory.live import LiveStorages
from directalign.memory.passing import passing
from directalign.models import load_model, trainable
from directalign.types import Noised
from tiny import tiny_flux, tiny_sd  # noqa: F401 (fixtures)

CPU = memory.Place("the CPU", 10**12, is_gpu=False)


def peak_of(call: Callable[[], Tensor], resident: list[Tensor]) -> int:
    """Of a call and its backward pass, on real numbers."""
    with LiveStorages(resident) as live:
        call().backward()
    return live.peak


@pytest.mark.parametrize("family_name", ["flux", "sd"])
@pytest.mark.parametrize("model", [{"gradient_checkpointing": True}, {"tune": "full", "dtype": "bfloat16"}], ids=str)
def test_a_training_call_takes_what_is_foretold(family_name: str, model: dict[str, Any], tiny_flux: Path, tiny_sd: Path) -> None:  # noqa: F811
    """An update of the real family on real numbers: predict, recover, decode, judge, backward."""
    run = a_run(family_name, tiny_flux if family_name == "flux" else tiny_sd, **model)
    family = load_model(run.model, "cpu")
    cond = family.encode_prompt(["a red star"]).guided(run.rollout.embedded_guidance, 1.0)
    x0 = torch.randn(1, *family.latent_shape(*family.default_size))
    sigma = torch.tensor([0.5], dtype=torch.float64)
    for parameter in trainable(family).values():
        parameter.grad = torch.zeros_like(parameter)

    def loss() -> Tensor:
        pred = family.predict(x0, sigma, cond)
        recovered = recover(family.path, family.prediction, Noised(x0, x0, x0, sigma), pred, sigma / 2)
        return family.decode(recovered.x0).clamp(0, 1).mean()

    vae: Any = getattr(family, "vae")  # noqa: B009 (not of the contract)
    held = [x0, *cond.tensors.values(), *family.denoiser.parameters(), *family.denoiser.buffers(), *vae.parameters()]
    held += [parameter.grad for parameter in trainable(family).values() if parameter.grad is not None]
    foretold = passing(Subject(run, model_architecture(run.model), Panel(), CPU))["train"]
    assert foretold == pytest.approx(peak_of(loss, held), rel=0.05)


def test_checkpointing_and_a_smaller_batch_lower_the_peak(tiny_sd: Path) -> None:  # noqa: F811
    run = a_run("sd", tiny_sd)
    now, kept, double = (memory.estimate(each, CPU).at("train", ("traced",)) for each in (
        a_run("sd", tiny_sd, gradient_checkpointing=True), run, changed(run, data={"batch_size": 2})
    ))  # fmt: skip
    assert now < kept < double < 2.1 * kept
