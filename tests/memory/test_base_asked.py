"""What it takes to ask the base model while training: a copy of weights that are all trained, a call without gradient, its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from memory_runs import a_run, changed
from torch import Tensor

from directalign import memory
from directalign.config import RunConfig, Trust
from directalign.diffusion.recovery import recover
from directalign.memory.architecture import model_architecture
from directalign.memory.held import Subject, asks_base
from directalign.memory.judges import Panel
from directalign.memory.live import LiveStorages
from directalign.memory.passing import passing
from directalign.methods import objective_math
from directalign.models import load_model, trainable
from directalign.models.reference_model import ReferenceModel
from directalign.types import Noised
from tiny import tiny_flux, tiny_sd  # noqa: F401 (fixtures)

CPU = memory.Place("the CPU", 10**12, is_gpu=False)


def trusting(run: RunConfig) -> RunConfig:
    return changed(run, method={"trust": Trust(weight=1.0).model_dump()})


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("directalign.memory.phases.passing", lambda subject: dict.fromkeys(memory.PHASES, 0))
    monkeypatch.setattr("directalign.memory.phases.says", lambda subject: "")


def test_who_asks(tiny_sd: Path) -> None:  # noqa: F811
    plain = a_run("sd", tiny_sd)
    policies = [RunConfig.model_validate({**plain.model_dump(), "method": {"name": "flow_grpo", "kl_weight": weight}}) for weight in (0.0, 0.1)]
    found = [asks_base(run.method) for run in (plain, trusting(plain), *policies)]
    assert found == [None, "method.trust", None, "method.kl_weight"]


def test_weights_that_are_all_trained_are_copied_and_adapters_switched_off(tiny_sd: Path, untraced: None) -> None:  # noqa: F811
    for tune in ("full", "lora"):
        run = trusting(a_run("sd", tiny_sd, tune=tune))
        copied = sum(weight.numel() * weight.element_size() for weight in ReferenceModel(load_model(run.model, "cpu").denoiser).weights.values())
        rows = {row.part: max(row.sizes.values()) for row in memory.estimate(run, CPU).rows}
        assert rows.get("frozen copy of weights", 0) == copied
        assert (copied > 0) == (tune == "full")


def test_to_leave_it_out_is_a_remedy_where_it_costs_a_copy(tiny_sd: Path, untraced: None) -> None:  # noqa: F811
    says = [remedy.says for remedy in memory.remedies(trusting(a_run("sd", tiny_sd, tune="full")), CPU)]
    assert "method.trust: null" in says
    assert not any("method.trust" in each.says for each in memory.remedies(trusting(a_run("sd", tiny_sd)), CPU))


@pytest.mark.parametrize("model", [{"gradient_checkpointing": True}, {"tune": "full"}], ids=str)
def test_a_training_call_beside_the_base_takes_what_is_foretold(model: dict[str, Any], tiny_flux: Path) -> None:  # noqa: F811
    run = trusting(a_run("flux", tiny_flux, **model))
    family = load_model(run.model, "cpu")
    cond = family.encode_prompt(["a red star"]).guided(run.rollout.embedded_guidance, 1.0)
    x0 = torch.randn(1, *family.latent_shape(*family.default_size))
    sigma = torch.tensor([0.5], dtype=torch.float64)
    for parameter in trainable(family).values():
        parameter.grad = torch.zeros_like(parameter)

    def loss() -> Tensor:
        with torch.no_grad():
            base = family.predict(x0, sigma, cond)
        pred = family.predict(x0, sigma, cond)
        recovered = recover(family.path, family.prediction, Noised(x0, x0, x0, sigma), pred, sigma / 2)
        return family.decode(recovered.x0).clamp(0, 1).mean() + objective_math.velocity_kl(pred, base).mean()

    vae: Any = getattr(family, "vae")  # noqa: B009 (not of the contract)
    held = [x0, *cond.tensors.values(), *family.denoiser.parameters(), *family.denoiser.buffers(), *vae.parameters()]
    held += [parameter.grad for parameter in trainable(family).values() if parameter.grad is not None]
    foretold = passing(Subject(run, model_architecture(run.model), Panel(), CPU))["train"]
    with LiveStorages(held) as live:
        loss().backward()
    assert foretold == pytest.approx(live.peak, rel=0.05)
