"""Counted operations against torch's own counter on real updates, and against FLUX's known cost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from preflight_runs import a_run, changed
from torch.utils.flop_counter import FlopCounterMode

import tiny
from directalign.config import RunConfig
from directalign.config.load import load_run
from directalign.diffusion.sampling import encode
from directalign.methods import load_method
from directalign.models import MODELS, load_model
from directalign.preflight.activation_memory import FORMULAS, MemoryTracker, fake
from directalign.preflight.cost import PARTS, Cost, Work
from directalign.preflight.memory import PROMPT, MetaRewards, trace
from directalign.preflight.meta_models import meta_model
from directalign.rewards import load_reward
from directalign.types import Batch, Sources

LONG = "a red star over a sandy shore " * 200


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny pipeline of each architecture; the blocks of FLUX are too many to be traced all."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        deep = tiny.SIZES["flux"] | {"num_layers": 5, "num_single_layers": 6}
        patch.setitem(tiny.SIZES, "flux", deep)
        return {name: write(folder / name) for name, write in tiny.WRITERS.items()}


def counted(work: Callable[[], Any]) -> int:
    """By torch's counter, which has no formula for attention on a CPU."""
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= {op: each for op, each in FORMULAS.items() if "cpu" in str(op)}
    with counter:
        work()
    return counter.get_total_flops()


def real_update(run: RunConfig) -> tuple[int, int]:
    """FLOPs of an update without the text encoders, and of one call of these."""
    model = load_model(run.model, "cpu")
    method = load_method(run, model, load_reward(run.reward))
    sources = None
    if run.data.edits is not None:
        sources = Sources(torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64))
    images = sources and sources.images
    cond, prompts = encode(model, [LONG], images), []
    encoding = counted(lambda: encode(model, [LONG], images))
    model.encode_prompt = lambda *given: prompts.append(given) or cond  # type: ignore[method-assign]

    def update() -> None:
        for loss in method.losses(Batch(0, (PROMPT,), sources=sources)):
            loss.value.backward()

    return counted(update), encoding * len(prompts)


def traced(run: RunConfig) -> Work:
    meta = meta_model(run.model)
    for stub in meta.model.tokenizers:  # a tiny tokenizer has more tokens than letters suggest
        stub.real = stub.load()
    work = trace(run, meta, MetaRewards(run)).work
    assert work is not None
    return work


@pytest.mark.parametrize("name", MODELS)
def test_an_update_of_every_model_is_counted_as_torch_counts_it(models, name, clip_folder):
    """LoRA with recomputed activations for FLUX, where most blocks are not traced, else all
    weights."""
    model = {"gradient_checkpointing": True} if name == "flux" else {"tune": "full"}
    run = changed(
        a_run(name, models[name], **model),
        rollout={"height": 64, "width": 64},
        reward={"name": "clip", "path": str(clip_folder)},
    )
    update, encoding = real_update(run)
    parts = dict(traced(run).batch)
    assert set(parts) == set(PARTS) and min(parts.values()) > 0
    assert parts.pop("encode") == pytest.approx(encoding, rel=0.02)
    assert sum(parts.values()) == pytest.approx(update, rel=0.02)


def test_a_reused_rollout_is_shared_by_its_updates(models):
    run = a_run("sd", models["sd"])
    once, twice = (traced(changed(run, rollout={"reuse": k})).batch for k in (1, 2))
    assert {part: twice[part] / once[part] for part in ("rollout", "train", "decode")} == {
        "rollout": 0.5,
        "train": 1,
        "decode": 1,
    }


def test_swapped_blocks_are_copied_for_every_pass_and_again_for_its_backward_pass(models):
    """Two steps of a rollout; two branches of SRPO whose pass is repeated."""
    run = a_run("flux", models["flux"], gradient_checkpointing=True, block_swap=3)
    swapped = sum(meta_model(run.model).swapped(3))
    copied = traced(run).copied
    assert copied == (2 + 2 * 2) * swapped > 0
    cost = Cost({"rollout": 2e12, "train": 4e12, "decode": 1e12}, 7e12, 3e12, copied=1e9)
    assert cost.hours(1.0, pcie=1.0) == Cost(cost.parts, 7e12, 3e12).hours(1.0)  # 6 s hide 1 s
    assert cost.hours(1.0, pcie=1 / 12)[0] == pytest.approx(100 * (12 + 1) / 3600)
    assert cost.hours(1.0, pcie=1 / 12)[1] == pytest.approx((12 + 1 + 2 * 3) / 3600)


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
