"""What two processes do with a network that they share: the same numbers as one, weights that change hands, files that fit everyone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import tiny
from directalign import config
from directalign.interfaces import Model
from directalign.models import load_model
from directalign.models.reference_model import ReferenceModel
from directalign.training import checkpoint, distributed
from directalign.training.checkpoint import TrainState
from directalign.training.distributed import TorchProcessGroup, process_group
from directalign.training.optim import EMA, adamw, trained_parameters


class Forgetful:
    """A method without a memory."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def losses(self, batch: object) -> Any: ...


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_flux(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left what they found."""
    folder = tmp_path_factory.mktemp("shared")
    codes = launching.by_hand_with(lambda: two(model, folder), folder / "log")
    assert codes == [0, 0], (folder / "log").read_text()
    return folder


def recipe(
    model: Path, tune: str = "full", dtype: str = "float32", optimizer: str = "adamw"
) -> config.RunConfig:
    given = {
        "name": "tiny",
        "model": {
            "architecture": "flux",
            "path": str(model),
            "tune": tune,
            "dtype": dtype,
            "lora": {"rank": 2, "alpha": 2},
        },
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"form": "absolute"},
        "data": {"prompts": "none"},
        "train": {
            "num_steps": 1,
            "optimizer": optimizer,
            "learning_rate": 1e-3,
            "parallel": "sharded",
        },
    }
    return config.RunConfig.model_validate(given)


def predicted(family: Model) -> Tensor:
    """The network's answer to fixed noise."""
    noise = torch.randn(2, *family.latent_shape(32, 32), generator=torch.Generator().manual_seed(3))
    cond = family.encode_prompt(["a red star", "a blue circle"]).guided(2.0, 1.0)
    return family.predict(noise, torch.tensor([0.5, 0.9], dtype=torch.float64), cond)


def disturbed(family: Model) -> None:
    """Every trained weight moves."""
    with torch.no_grad():
        for p in trained_parameters(family.denoiser).values():
            p.mul_(1.5).add_(0.01)


def parts_of(run: config.RunConfig, family: Model) -> TrainState:
    parameters = trained_parameters(family.denoiser)
    return TrainState(
        run,
        family.denoiser,
        parameters,
        adamw(parameters, run.train),
        EMA(parameters, 0.9),
        Forgetful(),
        "data",
    )


def updated(parts: TrainState, family: Model) -> None:
    """One update on a fixed loss."""
    predicted(family).square().mean().backward()
    parts.optimizer.step()
    assert parts.average is not None
    parts.average.update()


def two(model: Path, folder: Path) -> None:
    with process_group() as ranks:
        found = {
            **whole_model(model, folder, ranks),
            **adapters(model, folder, ranks),
            **narrow(model, ranks),
            **sums(ranks),
        }
        torch.save(found, folder / f"rank-{ranks.rank}.pt")


def sharded(run: config.RunConfig, ranks: TorchProcessGroup) -> Model:
    family = load_model(run.model, "cpu")
    distributed.shard(family.denoiser, run.model, ranks)
    return family


def whole_model(model: Path, folder: Path, ranks: TorchProcessGroup) -> dict[str, Any]:
    """All weights: the base model put on and off, the average too, an update in 8 bits kept and saved."""
    run = recipe(model, optimizer="adamw8bit")
    family = sharded(run, ranks)
    base, found = ReferenceModel(family.denoiser), {"base": predicted(family).detach()}
    parts = parts_of(run, family)
    disturbed(family)
    found["moved"] = predicted(family).detach()
    with torch.no_grad(), base.active():
        found["worn"] = predicted(family)
    assert parts.average is not None
    with torch.no_grad(), parts.average.ema_weights():
        found["average"] = predicted(family)
    found["again"] = predicted(family).detach()
    updated(parts, family)
    found["updated"] = predicted(family).detach()
    (folder / "kept").mkdir(exist_ok=True)
    ranks.barrier()
    checkpoint.write_state(folder / "kept", parts, 1, ranks)
    distributed.save(family, folder / "saved", ranks)
    found["architecture"] = checkpoint.architecture(family.denoiser)
    found["share"] = max(
        p.to_local().numel() / p.numel()
        for p in parts.parameters.values()
        if isinstance(p, DTensor) and p.shape[0] % 2 == 0
    )
    return found


def adapters(model: Path, folder: Path, ranks: TorchProcessGroup) -> dict[str, Any]:
    """LoRA on a base that is split as well."""
    family = sharded(recipe(model, tune="lora"), ranks)
    disturbed(family)
    distributed.save(family, folder / "adapters", ranks)
    return {"adapted": predicted(family).detach()}


def narrow(model: Path, ranks: TorchProcessGroup) -> dict[str, Any]:
    """Computed in bfloat16, kept in float32."""
    family = sharded(recipe(model, dtype="bfloat16"), ranks)
    assert {p.dtype for p in family.denoiser.parameters()} == {torch.float32}
    answer = predicted(family)
    answer.square().mean().backward()
    assert {p.grad.dtype for p in family.denoiser.parameters() if p.grad is not None} == {
        torch.float32
    }
    return {"narrow": answer.detach()}


def sums(ranks: TorchProcessGroup) -> dict[str, Any]:
    """The plain exchanges: a weight that one rank reached, one that none did, numbers and words."""
    reached, missed = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    if ranks.rank == 1:
        reached.grad = torch.full((1,), 3.0)
    ranks.average_gradients([reached, missed])
    assert reached.grad is not None
    gathered = ranks.gather(torch.full((2, 1), float(ranks.rank)))
    given = torch.ones(2)
    return {
        "gradients": (float(reached.grad), missed.grad),
        "sum": ranks.sum(given),
        "given": given,
        "gathered": gathered,
        "texts": ranks.gather_texts("é" * ranks.rank),
    }


def results(shared: Path) -> list[dict[str, Any]]:
    return [torch.load(shared / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def test_a_shared_network_answers_as_a_whole_one(model: Path, shared: Path):
    family = load_model(recipe(model).model, "cpu")
    base = predicted(family)
    disturbed(family)
    for found in results(shared):
        assert torch.allclose(found["base"], base, atol=1e-6) and torch.allclose(
            found["moved"], predicted(family), atol=1e-6
        )
        assert found["share"] == 0.5
        assert found["architecture"] == checkpoint.architecture(family.denoiser)


def test_weights_change_hands_and_come_back(shared: Path):
    for found in results(shared):
        assert torch.equal(found["worn"], found["base"]) and torch.equal(
            found["average"], found["base"]
        )
        assert torch.equal(found["again"], found["moved"]) and not torch.allclose(
            found["moved"], found["base"], atol=1e-2
        )


def test_one_process_reads_what_two_kept_and_goes_on(model: Path, shared: Path):
    run = recipe(model, optimizer="adamw8bit")
    family = load_model(run.model, "cpu")
    parts = parts_of(run, family)
    assert checkpoint.read_state(shared / "kept", parts, TorchProcessGroup()) == 1
    assert torch.allclose(predicted(family), results(shared)[0]["updated"], atol=1e-6)
    state = parts.optimizer.state_dict()["state"]
    assert any(value.dtype == torch.uint8 for each in state.values() for value in each.values())
    assert parts.average is not None and parts.average.model.optimization_step == 1
    updated(parts, family)
    assert all(bool(p.isfinite().all()) for p in parts.parameters.values())


def test_the_saved_weights_are_those_of_a_whole_network(model: Path, shared: Path):
    family = load_model(recipe(model).model, "cpu")
    plain = load_file(shared / "saved" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert plain.keys() == family.denoiser.state_dict().keys()
    family.denoiser.load_state_dict(plain)
    assert torch.allclose(predicted(family), results(shared)[0]["updated"], atol=1e-6)


def test_adapters_on_a_shared_base_are_saved_as_on_a_whole_one(
    model: Path, shared: Path, tmp_path: Path
):
    family = load_model(recipe(model, tune="lora").model, "cpu")
    disturbed(family)
    family.save(tmp_path)
    ours, theirs = (
        load_file(shared / "adapters" / "lora.safetensors"),
        load_file(tmp_path / "lora.safetensors"),
    )
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    assert all(
        torch.allclose(found["adapted"], predicted(family), atol=1e-6) for found in results(shared)
    )


def test_bfloat16_is_that_of_one_process_but_for_its_rounding(model: Path, shared: Path):
    family = load_model(recipe(model, dtype="bfloat16").model, "cpu")
    wanted = predicted(family)
    for found in results(shared):
        assert (found["narrow"] - wanted).norm() < 0.02 * wanted.norm()


def test_plain_exchanges(shared: Path):
    for found in results(shared):
        assert found["gradients"] == (1.5, None)
        assert found["sum"].tolist() == [2.0, 2.0] and found["given"].tolist() == [1.0, 1.0]
        assert found["gathered"].tolist() == [[0.0], [0.0], [1.0], [1.0]] and found["texts"] == [
            "",
            "é",
        ]


def test_whole_files_are_read_as_they_were_written(tmp_path: Path):
    given = {
        "w": torch.randn(3, 2),
        "narrow": torch.randn(4).bfloat16(),
        "number": torch.tensor(2.5),
    }
    checkpoint.write_tensors(
        tmp_path, {"weights": given, "ema": {"w": torch.ones(3, 2)}}, TorchProcessGroup()
    )
    found = {name: torch.empty_like(tensor) for name, tensor in given.items()}
    checkpoint.read_tensors(tmp_path, {"weights": found})
    assert all(torch.equal(found[name], given[name]) for name in given)
    assert set(checkpoint.list_tensors(tmp_path)) == {
        "weights.w",
        "weights.narrow",
        "weights.number",
        "ema.w",
    }


def test_when_the_network_is_split(model: Path):
    def split(ranks: int, tune: str, parallel: str) -> bool:
        run = recipe(model, tune)
        run = run.model_copy(update={"train": run.train.model_copy(update={"parallel": parallel})})
        return distributed.is_sharded_run(run, replace(TorchProcessGroup(), size=ranks))

    assert split(2, "full", "auto") and split(2, "lora", "sharded")
    assert (
        not split(2, "lora", "auto")
        and not split(2, "full", "data")
        and not split(1, "full", "sharded")
    )


def test_a_denoiser_may_wait_elsewhere_than_its_pipeline(model: Path):
    family = load_model(recipe(model).model, "cpu", denoiser_device=torch.device("meta"))
    assert {p.device.type for p in family.denoiser.parameters()} == {"meta"}
    assert (
        load_model(recipe(model).model, "cpu").encode_prompt(["a"]).tensors["pooled"].device.type
        == "cpu"
    )
