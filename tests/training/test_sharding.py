"""A network sharded over two processes: predictions, swapped weights, checkpoints and exports."""

from pathlib import Path
from types import SimpleNamespace
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
from directalign.methods.alignprop import AlignProp
from directalign.models import load_model
from directalign.models.lora import ReferenceModel
from directalign.rewards import load_reward
from directalign.training import checkpoint, distributed
from directalign.training.checkpoint import TrainState
from directalign.training.distributed import TorchProcessGroup, process_group
from directalign.training.optim import EMA, adamw, trained_parameters
from directalign.types import Batch, DirectAlignError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_flux(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def shared(model, tmp_path_factory):
    """The folder with the results of two processes."""
    folder = tmp_path_factory.mktemp("shared")
    codes = launching.processes(lambda: on_each_rank(model, folder), folder / "log")
    assert codes == [0, 0], (folder / "log").read_text()
    return folder


def recipe(path: Path, optimizer: str = "adamw", **model: str) -> config.RunConfig:
    lora = {"rank": 2, "alpha": 2}
    given = {
        "name": "tiny",
        "model": {"architecture": "flux", "path": str(path), "tune": "full", "lora": lora, **model},
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"form": "absolute"},
        "data": {"prompts": "none"},
        "train": {"num_steps": 1, "optimizer": optimizer, "learning_rate": 1e-3},
    }
    return config.RunConfig.model_validate(given)


def predicted(model: Model) -> Tensor:
    """The prediction for fixed noise."""
    noise = torch.randn(2, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(3))
    cond = model.encode_prompt(["a red star", "a blue circle"]).guided(2.0, 1.0)
    return model.predict(noise, torch.tensor([0.5, 0.9], dtype=torch.float64), cond)


def moved(model: Model) -> Model:
    """The same model after a change of every trained weight."""
    with torch.no_grad():
        for p in trained_parameters(model.denoiser).values():
            p.mul_(1.5).add_(0.01)
    return model


def state_of(run: config.RunConfig, model: Model) -> tuple[TrainState, EMA]:
    parameters = trained_parameters(model.denoiser)
    average = EMA(parameters, 0.9)
    method: Any = SimpleNamespace(
        losses=lambda batch: iter(()), state_dict=dict, load_state_dict=lambda state: None
    )
    optimizer = adamw(parameters, run.train)
    return TrainState(run, model.denoiser, parameters, optimizer, average, method, "data"), average


def update(state: TrainState, average: EMA, model: Model) -> None:
    """One step on a fixed loss."""
    predicted(model).square().mean().backward()
    state.optimizer.step()
    average.update()


def on_each_rank(path: Path, folder: Path) -> None:
    with process_group() as group:

        def sharded(run: config.RunConfig) -> Model:
            model = load_model(run.model, "cpu")
            distributed.shard(model.denoiser, run, group)
            return model

        run = recipe(path, "adamw8bit")
        found = full_model(run, sharded(run), folder, group)
        adapted = moved(sharded(recipe(path, tune="lora")))
        distributed.save(adapted, folder / "adapters", group)
        found["adapted"] = predicted(adapted).detach()
        narrow = sharded(recipe(path, dtype="bfloat16"))
        found["narrow"] = predicted(narrow)
        found["narrow"].square().mean().backward()
        parameters = list(narrow.denoiser.parameters())
        grads = [p.grad for p in parameters if p.grad is not None]
        assert {tensor.dtype for tensor in [*parameters, *grads]} == {torch.float32}
        found["chained"] = chained(run, sharded(run))
        torch.save(found | collectives(group), folder / f"rank-{group.rank}.pt")


def full_model(
    run: config.RunConfig, model: Model, folder: Path, group: TorchProcessGroup
) -> dict[str, Any]:
    """Swap base weights and EMA in and out, update in 8 bits, write a checkpoint, export."""
    base, found = ReferenceModel(model.denoiser), {"base": predicted(model).detach()}
    state, average = state_of(run, model)
    found["moved"] = predicted(moved(model)).detach()
    with torch.no_grad(), base.active():
        found["reference"] = predicted(model)
    with torch.no_grad(), average.ema_weights():
        found["average"] = predicted(model)
    found["again"] = predicted(model).detach()
    update(state, average, model)
    found["updated"] = predicted(model).detach()
    (folder / "checkpoint").mkdir(exist_ok=True)
    group.barrier()
    checkpoint.write_state(folder / "checkpoint", state, 1, group)
    distributed.save(model, folder / "saved", group)
    shares = [
        p.to_local().numel() / p.numel()
        for p in state.parameters.values()
        if isinstance(p, DTensor) and p.shape[0] % 2 == 0
    ]
    return {**found, "architecture": checkpoint.architecture(model.denoiser), "share": max(shares)}


def chained(run: config.RunConfig, model: Model) -> dict[str, Tensor]:
    """The gradient through AlignProp's recomputed steps: the network runs in the backward pass."""
    settings = config.AlignPropConfig(max_grad_steps=2)
    rollout = config.RolloutConfig(num_inference_steps=2, embedded_guidance=2.0)
    method = AlignProp(model, load_reward(run.reward, "cpu"), settings, rollout)
    batch = Batch(0, ("a red star", "a blue star", "a photo"), image_size=(32, 32))
    next(method.losses(batch)).value.backward()
    parameters = trained_parameters(model.denoiser).items()
    return {name: distributed.unsharded(p.grad) for name, p in parameters if p.grad is not None}


def collectives(group: TorchProcessGroup) -> dict[str, Any]:
    one, none, given = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)), torch.ones(2)
    if group.rank == 1:
        one.grad = torch.full((1,), 3.0)
    group.average_gradients([one, none])
    assert one.grad is not None
    return {
        "gradients": (float(one.grad), none.grad),
        "sum": group.sum(given).tolist(),
        "given": given.tolist(),
        "gathered": group.gather(torch.full((2, 1), float(group.rank))).flatten().tolist(),
        "texts": group.gather_texts("é" * group.rank),
        "first": group.first_text("é" * group.rank),
        "any": group.any(group.rank == 1),
    }


@pytest.fixture(scope="module")
def results(shared):
    return [torch.load(shared / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def test_predictions_are_those_of_a_whole_network(model, results):
    whole = load_model(recipe(model).model, "cpu")
    base, after = predicted(whole), predicted(moved(whole))
    narrow = predicted(load_model(recipe(model, dtype="bfloat16").model, "cpu"))
    for found in results:
        assert torch.allclose(found["base"], base, atol=1e-6)
        assert torch.allclose(found["moved"], after, atol=1e-6)
        assert (found["narrow"] - narrow).norm() < 0.02 * narrow.norm()
        assert found["share"] == 0.5
        assert found["architecture"] == checkpoint.architecture(whole.denoiser)


def test_a_chain_of_recomputed_steps_has_the_gradient_of_a_whole_network(model, results):
    whole = chained(recipe(model), load_model(recipe(model).model, "cpu"))
    assert max(float(each.abs().max()) for each in whole.values()) > 1e-4
    for found in results:
        assert found["chained"].keys() == whole.keys()
        for name, gradient in whole.items():
            assert torch.allclose(found["chained"][name], gradient, atol=1e-6), name


def test_weights_are_swapped_in_and_out(results):
    for found in results:
        assert torch.equal(found["reference"], found["base"])
        assert torch.equal(found["average"], found["base"])
        assert torch.equal(found["again"], found["moved"])
        assert not torch.allclose(found["moved"], found["base"], atol=1e-2)


def test_one_process_reads_a_sharded_checkpoint(model, shared, results):
    run = recipe(model, "adamw8bit")
    whole = load_model(run.model, "cpu")
    state, average = state_of(run, whole)
    assert checkpoint.read_state(shared / "checkpoint", state, TorchProcessGroup()) == 1
    assert torch.allclose(predicted(whole), results[0]["updated"], atol=1e-6)
    moments = state.optimizer.state_dict()["state"].values()
    assert any(value.dtype == torch.uint8 for each in moments for value in each.values())
    assert average.model.optimization_step == 1
    update(state, average, whole)
    assert all(bool(p.isfinite().all()) for p in state.parameters.values())


def test_exports_are_those_of_a_whole_network(model, shared, results, tmp_path):
    whole = load_model(recipe(model).model, "cpu")
    saved = load_file(shared / "saved" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == whole.denoiser.state_dict().keys()
    whole.denoiser.load_state_dict(saved)
    assert torch.allclose(predicted(whole), results[0]["updated"], atol=1e-6)

    adapted = moved(load_model(recipe(model, tune="lora").model, "cpu"))
    adapted.save(tmp_path)
    ours, theirs = (
        load_file(folder / "lora.safetensors") for folder in (shared / "adapters", tmp_path)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.allclose(r["adapted"], predicted(adapted), atol=1e-6) for r in results)


def test_collectives(results):
    for found in results:
        assert found["gradients"] == (1.5, None) and found["any"]
        assert found["sum"] == [2.0, 2.0] and found["given"] == [1.0, 1.0]
        assert found["gathered"] == [0.0, 0.0, 1.0, 1.0]
        assert found["texts"] == ["", "é"] and found["first"] == "é"
    single = TorchProcessGroup()
    assert single.is_main and single.any(True) and not single.any(False)
    assert single.sum(torch.tensor([2.0])).tolist() == [2.0] and single.gather_texts("a") == ["a"]


@pytest.mark.parametrize(
    ("size", "tune", "parallel", "sharded"),
    [
        *((2, "full", "auto", True), (2, "lora", "sharded", True), (2, "lora", "auto", False)),
        *((2, "full", "data", False), (1, "full", "sharded", False), (2, "lora", "hybrid", True)),
    ],
)
def test_when_the_network_is_sharded(model, size, tune, parallel, sharded):
    run = on_several_ranks(recipe(model, tune=tune), parallel)
    assert distributed.is_sharded_run(run, TorchProcessGroup(size=size)) == sharded


def on_several_ranks(run: config.RunConfig, parallel: str) -> config.RunConfig:
    return run.model_copy(update={"train": run.train.model_copy(update={"parallel": parallel})})


@pytest.mark.parametrize(("size", "per_node", "shards"), [(8, 4, 4), (4, 4, 4), (1, 1, 1)])
def test_a_hybrid_run_is_split_within_a_node(model, size, per_node, shards):
    run = on_several_ranks(recipe(model), "hybrid")
    assert distributed.shards_of(run, TorchProcessGroup(size=size, per_node=per_node)) == shards


@pytest.mark.parametrize("per_node", [0, 3])
def test_a_hybrid_run_on_unequal_nodes_is_refused(model, per_node):
    group = TorchProcessGroup(size=8, per_node=per_node)
    with pytest.raises(DirectAlignError, match=r"train\.parallel: hybrid"):
        distributed.shards_of(on_several_ranks(recipe(model), "hybrid"), group)
