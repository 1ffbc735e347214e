"""What only a CUDA device shows: `pytest tests/gpu` runs all of it; skipped where there is none."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file

import tiny
from directalign.config import ModelConfig
from directalign.config.load import load_run
from directalign.diffusion.path import DDPMTable
from directalign.methods import load_method
from directalign.models import load_model, trainable
from directalign.rewards import load_reward
from directalign.toyworld.scenes import train_captions
from directalign.training import run as train
from directalign.types import Batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHORT = ("train.num_steps=4", "train.save_every=2", "evaluate.num_samples=2", "evaluate.every=0")
EMA = "train.ema_decay=0.9"


def start(recipe: str, out: Path, *overrides: str, resume: bool = False) -> dict[str, torch.Tensor]:
    train(load_run(recipe, [*SHORT, *overrides]), out, resume)
    return load_file(out / "lora.safetensors")


@pytest.mark.parametrize("recipe", ["world_srpo", "world_official", "world_sd"])
def test_a_step_on_the_gpu_equals_the_step_on_the_cpu(recipe):
    found = {}
    for device in ("cpu", "cuda"):
        run = load_run(recipe, [])
        family = load_model(run.model, device, run.seed)
        losses = load_method(run, family, load_reward(run.reward, device)).losses(
            Batch(0, tuple(train_captions()[:4]))
        )
        total = sum(loss.value for loss in losses)
        gradient = torch.autograd.grad(total, list(trainable(family).values()), allow_unused=True)
        found[device] = (
            float(total),
            torch.cat([g.flatten().cpu() for g in gradient if g is not None]),
        )
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], abs=1e-3)
    assert torch.cosine_similarity(found["cuda"][1], found["cpu"][1], dim=0) > 0.99


@pytest.mark.parametrize("recipe", ["world_srpo", "world_sd"])
def test_with_deterministic_a_resume_repeats_the_run_bit_by_bit(recipe, tmp_path):
    given = ("train.deterministic=true", "model.tune=lora", EMA)
    whole = start(recipe, tmp_path / "whole", *given)
    start(recipe, tmp_path / "cut", *given, "train.num_steps=2")
    resumed = start(recipe, tmp_path / "cut", *given, resume=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_a_lookup_in_the_table_of_levels_does_not_wait_for_the_device():
    table = DDPMTable(torch.linspace(0.999, 0.01, 1000))
    sigma = torch.rand(4, device="cuda", dtype=torch.float64)
    table.timestep_of(sigma)  # copies the table
    torch.cuda.set_sync_debug_mode("error")
    try:
        table.timestep_of(sigma)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_that_of_the_recipe(wanted, tmp_path, monkeypatch):
    seen: list[bool] = []
    step = torch.optim.AdamW.step

    def watched(*arguments: Any) -> Any:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return step(*arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    start("world_srpo", tmp_path, f"train.tf32={json.dumps(wanted)}", "model.tune=lora")
    assert set(seen) == {wanted}


def test_compiled_blocks_with_the_base_model_never_fall_to_eager(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    start("world_srpo", tmp_path, "model.compile=true", "method.kl_beta=0.1", "model.tune=lora")


@pytest.mark.parametrize("bits", [None, "8bit", "4bit"])
def test_swapped_blocks_lower_the_peak_and_change_no_digit(bits, tmp_path, monkeypatch):
    """FLUX with 12 blocks that are most of its weights; two updates, the second one prefetched."""
    if bits == "4bit":
        pytest.importorskip("bitsandbytes")
    wide = {"num_layers": 4, "num_single_layers": 8, "num_attention_heads": 32}
    monkeypatch.setitem(tiny.SIZES, "flux", tiny.SIZES["flux"] | wide)
    path, found = str(tiny.write_flux(tmp_path)), []
    for number in (None, 12):
        settings = ModelConfig(
            architecture="flux", path=path, quantization=bits, gradient_checkpointing=True,
            block_swap=number, dtype="bfloat16",
        )  # fmt: skip
        model = load_model(settings, "cuda")
        torch.cuda.reset_peak_memory_stats()
        frozen = [p for p in model.denoiser.parameters() if not p.requires_grad and p.is_cuda]
        noise = torch.randn(1, *model.latent_shape(32, 32), generator=torch.manual_seed(0)).cuda()
        cond = model.encode_prompt(["a red star"]).guided(3.5, 1.0)
        for _ in range(2):
            with torch.no_grad():
                model.predict(noise, torch.tensor([0.9]), cond)
            model.predict(noise, torch.tensor([0.5]), cond).square().sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in trainable(model).values()])
        peak = torch.cuda.max_memory_allocated()
        found.append((sum(p.nbytes for p in frozen), peak, gradients.cpu()))
        del model, frozen, cond
        gc.collect()
    (whole, peak, wanted), (left, lower, gradients) = found
    assert torch.equal(gradients, wanted) and left < 0.3 * whole
    assert peak - lower > 0.5 * (whole - left)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("method", ["srpo", "alignprop"])
def test_two_gpus_sharded_with_an_average_equal_one(method, tmp_path):
    """FSDP2 with EMA weights swapped in and out, and with AlignProp's recomputed steps."""
    given = [*SHORT, EMA, "model.tune=full", "train.learning_rate=1e-5"]
    if method == "alignprop":
        given.append("method={name: alignprop, form: absolute, max_grad_steps: 2}")
    found = []
    for ranks, batch_size in ((1, 4), (2, 2)):
        launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        arguments = ["directalign", "train", "world_srpo", "--out", str(tmp_path / str(ranks))]
        sets = [f"--set={each}" for each in (*given, f"data.batch_size={batch_size}")]
        subprocess.run([sys.executable, "-m", *launch, *arguments, *sets], check=True)
        file = next((tmp_path / str(ranks) / "transformer").glob("*.safetensors"))
        found.append(load_file(file))
    assert all(torch.allclose(found[1][name], found[0][name], atol=1e-4) for name in found[0])
