"""Memory and counted operations against those of real updates, and against FLUX's known cost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from preflight_runs import a_run, changed
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import forked
import tiny
from directalign.config import RunConfig
from directalign.config.load import load_run
from directalign.diffusion.sampling import encode
from directalign.methods import load_method
from directalign.models import MODELS, load_model, trainable
from directalign.preflight.activation_memory import FORMULAS, MemoryTracker
from directalign.preflight.cost import PARTS, Cost, Work, cost_of
from directalign.preflight.fake_tensors import fake
from directalign.preflight.memory import PROMPT, MetaRewards, trace
from directalign.preflight.meta_models import meta_model
from directalign.rewards import load_reward
from directalign.training.distributed import TorchProcessGroup, shard
from directalign.types import Batch, Sources

LONG = "a red star over a sandy shore " * 200


@pytest.fixture(scope="module")
def deep_flux(tmp_path_factory):
    """A tiny FLUX whose blocks are too many to be traced all."""
    with pytest.MonkeyPatch.context() as patch:
        deep = tiny.SIZES["flux"] | {"num_layers": 5, "num_single_layers": 6}
        patch.setitem(tiny.SIZES, "flux", deep)
        return tiny.write_flux(tmp_path_factory.mktemp("deep_flux"))


def counted(work: Callable[[], Any]) -> int:
    """By torch's counter, which has no formula for attention on a CPU."""
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= {op: each for op, each in FORMULAS.items() if "cpu" in str(op)}
    with counter:
        work()
    return counter.get_total_flops()


def real_update(run: RunConfig) -> tuple[tuple[int, int], int, int]:
    """Peak bytes of a training step and of sampling before it; FLOPs of another update without the
    text encoders, and of these. One after the other: the counter keeps tensors alive."""
    model, prompts, sources = load_model(run.model, "cpu"), [], None
    for parameter in trainable(model).values():
        parameter.grad = torch.zeros_like(parameter)
    method = load_method(run, model, load_reward(run.reward))

    def update() -> None:
        for loss in method.losses(Batch(0, (PROMPT,), sources=sources)):
            tracker.phase = "train"
            loss.value.backward()
            del loss

    def training(*_: Any) -> None:
        tracker.phase = "train" if torch.is_grad_enabled() else tracker.phase

    with MemoryTracker() as tracker:
        tracker.phase = "encode"
        if run.data.edits is not None:
            sources = Sources(torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64))
        images = sources and sources.images
        cond = encode(model, [LONG], images)
        model.encode_prompt = lambda *given: prompts.append(given) or cond  # type: ignore[method-assign]
        hook = model.denoiser.register_forward_pre_hook(training)
        tracker.phase = "rollout"
        update()
    peaks = tracker.peaks["train"], tracker.peaks["rollout"]
    hook.remove()
    calls, operations = len(prompts), counted(update)
    del model.encode_prompt
    return peaks, operations, calls * counted(lambda: encode(model, [LONG], images))


def traced(run: RunConfig) -> tuple[tuple[int, int], Work]:
    """The predicted peaks and the work."""
    meta = meta_model(run.model)
    for stub in meta.model.tokenizers:  # a tiny tokenizer has more tokens than letters suggest
        stub.real = stub.load()
    found = trace(run, meta, MetaRewards(run))
    assert found.work is not None
    return (found.peaks["train"], found.peaks["rollout"]), found.work


LORA, FULL = {"gradient_checkpointing": True}, {"tune": "full"}
DEEP = {**LORA}
SETTINGS = {"flux": (LORA, DEEP), "sd": (LORA,), "sd3": (LORA,), "qwen_image": (LORA,)}
"""Others with all weights trained, among them transformers of both kinds of blocks and a UNet."""


@pytest.mark.parametrize(
    ("name", "model"), [(name, model) for name in MODELS for model in SETTINGS.get(name, (FULL,))]
)
def test_an_update_takes_and_costs_what_is_predicted(models, deep_flux, clip_folder, name, model):
    """Operations as torch counts them, bytes as a tracker sees them, for every model."""
    folder = deep_flux if model is DEEP else models[name]
    run = changed(
        a_run(name, folder, **model),
        rollout={"height": 64, "width": 64},
        reward={"name": "clip", "path": str(clip_folder)},
    )
    real, update, encoding = real_update(run)
    peaks, work = traced(run)
    assert model is DEEP or peaks == pytest.approx(real, rel=0.1)
    parts = dict(work.batch)
    assert set(parts) == set(PARTS) and min(parts.values()) > 0
    assert parts.pop("encode") == pytest.approx(encoding, rel=0.02)
    assert sum(parts.values()) == pytest.approx(update, rel=0.02)


def test_a_reused_rollout_is_shared_by_its_updates(models):
    run = a_run("sd", models["sd"])
    once, twice = (traced(changed(run, rollout={"reuse": k}))[1].batch for k in (1, 2))
    assert {part: twice[part] / once[part] for part in ("rollout", "train", "decode")} == {
        "rollout": 0.5,
        "train": 1,
        "decode": 1,
    }


def test_swapped_blocks_are_copied_for_every_pass_and_again_for_its_backward_pass(deep_flux):
    """Two steps of a rollout; two branches of SRPO whose pass is repeated."""
    run = a_run("flux", deep_flux, gradient_checkpointing=True, block_swap=3)
    swapped = sum(meta_model(run.model).swapped(3))
    copied = traced(run)[1].copied
    assert copied == (2 + 2 * 2) * swapped > 0
    cost = Cost({"rollout": 2e12, "train": 4e12, "decode": 1e12}, 7e12, 3e12, copied=1e9)
    assert cost.hours(1.0, pcie=1.0) == Cost(cost.parts, 7e12, 3e12).hours(1.0)  # 6 s hide 1 s
    assert cost.hours(1.0, pcie=1 / 12)[0] == pytest.approx(100 * (12 + 1) / 3600)
    assert cost.hours(1.0, pcie=1 / 12)[1] == pytest.approx((12 + 1 + 2 * 3) / 3600)


class Received(TorchDispatchMode):
    """Bytes of whole weights gathered, whole gradients summed and their shards averaged by FSDP."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"gathered": 0, "summed": 0, "averaged": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = {"_allgather": "gathered", "_reduce_scatter": "summed", "allreduce": "averaged"}
        for name in (name for op, name in names.items() if op in str(func)):
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.bytes[name] += max(each.nbytes for each in tensors)
        return func(*args, **(kwargs or {}))


FOUR_RANKS = TorchProcessGroup(size=4, per_node=2)


def received(run: RunConfig, file: Path) -> dict[str, int]:
    """What an update brings, in a process of its own: a group of four of which only it runs, whose
    collectives do nothing; what torch remembers of the group ends with it."""

    def update() -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
        network = load_model(run.model, "cpu")
        shard(network.denoiser, run, FOUR_RANKS)
        method = load_method(run, network, load_reward(run.reward))
        with Received() as real:
            for loss in method.losses(Batch(0, (PROMPT,))):
                loss.value.backward()
        file.write_text(json.dumps(real.bytes))

    assert forked.process(update).wait() == 0
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("parallel", "model", "shards"),
    [("sharded", LORA, 4), ("sharded", FULL, 4), ("hybrid", FULL, 2)],
)
def test_a_sharded_update_receives_what_is_predicted(models, tmp_path, parallel, model, shards):
    """Weights for each pass, gradients once; a mean over two nodes is a sum and its spreading."""
    run = changed(a_run("flux", models["flux"], **model), train={"parallel": parallel})
    work, real = traced(run)[1], received(run, tmp_path / "bytes")
    gathered, summed = (work.forward + work.backward) * work.weights, 4 * work.trained
    assert real["gathered"] == pytest.approx(gathered, rel=0.02)
    assert real["summed"] == pytest.approx(work.backward * summed, rel=0.02)
    averaged, cost = shards * real["averaged"], cost_of(run, work, FOUR_RANKS)
    split = (shards - 1) / shards * (gathered + work.backward * summed)
    assert cost.within == pytest.approx(split, rel=0.02) and cost.sharded
    assert cost.between == pytest.approx(averaged if parallel == "hybrid" else split, rel=0.02)


def test_ranks_that_average_gradients_get_them_twice(models):
    run = a_run("flux", models["flux"])
    work = traced(run)[1]
    one, node, nodes = (
        cost_of(run, work, TorchProcessGroup(size=size, per_node=per_node))
        for size, per_node in ((1, 1), (4, 4), (4, 2))
    )
    assert one.within == one.between == node.between == 0
    assert node.within == nodes.within == nodes.between == 2 * 0.75 * 4 * work.trained > 0
    alone = changed(a_run("flux", models["flux"], tune="full"), train={"parallel": "hybrid"})
    cost = cost_of(alone, work, TorchProcessGroup(size=2, per_node=1))
    assert cost.within == 0 and cost.sharded
    assert cost.between == work.backward * 4 * work.trained


def test_gathering_hides_behind_the_denoiser_and_averaging_does_not():
    parts = {"rollout": 2e12, "train": 4e12, "decode": 1e12}
    hidden = Cost(parts, 7e12, 3e12, within=4e9, between=1e9, sharded=True)
    assert hidden.hours(1.0, within=1.0, between=1.0) == Cost(parts, 7e12, 3e12).hours(1.0)
    assert hidden.hours(1.0, within=1.0, between=1 / 12)[0] == pytest.approx(100 * (12 + 1) / 3600)
    averaged = Cost(parts, 7e12, 3e12, between=1e9)
    assert averaged.hours(1.0, between=1.0)[0] == pytest.approx(100 * (7 + 1) / 3600)


@pytest.mark.parametrize(("size", "teraflops"), [(720, 37), (1024, 74)])
def test_a_call_of_flux_costs_what_is_known(size, teraflops):
    run = load_run("flux_srpo", [f"rollout.height={size}", f"rollout.width={size}"])
    model = meta_model(run.model, like_gpu=True).model
    with MemoryTracker() as tracker, torch.no_grad():
        cond = model.encode_prompt([PROMPT]).guided(3.5, 1.0)
        tracker.flops.clear()
        latents = fake((1, *model.latent_shape(size, size)), torch.float32)
        model.predict(latents, torch.ones(1), cond)
    assert tracker.flops.total() == pytest.approx(teraflops * 1e12, rel=0.05)
