"""`rollout.cache`: blocks are skipped while images to train on are sampled, and nowhere else."""

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from pydantic import TypeAdapter

from directalign import config
from directalign.diffusion.sampling import RolloutStart, sample_rollout
from directalign.methods import method_class
from directalign.models import model_class
from directalign.models.block_cache import block_cache
from directalign.models.in_memory import source_of
from directalign.training.distributed import TorchProcessGroup, check_cached_ranks
from directalign.types import Batch, DirectAlignError
from methods.toy import ToyReward
from models.cases import CASES, PLAIN
from preflight.preflight_runs import a_run
from tiny import SIZE

CACHING = [name for name in PLAIN if model_class(CASES[name].architecture).caches_blocks]
ALWAYS, NEVER = 1e9, 0.0
PROMPTS = ["a red star", "a blue ring"]
STEPS = 4


def load(name: str, folder: Any) -> Any:
    return CASES[name].load(CASES[name].folder(folder), tune="lora")


def start_of(name: str, model: Any, cfg_scale: float) -> RolloutStart:
    noise = torch.randn(2, *model.latent_shape(SIZE, SIZE), generator=torch.manual_seed(3))
    cond = CASES[name].encode(model, PROMPTS).guided(CASES[name].embedded, cfg_scale)
    return RolloutStart(cond, noise, model.sigmas(STEPS, SIZE, SIZE))


class BlockCalls:
    """Counts the calls that compute the last block."""

    def __init__(self, model: Any) -> None:
        denoiser, self.count = model.denoiser, 0
        blocks = getattr(denoiser, "single_transformer_blocks", denoiser.transformer_blocks)
        blocks[-1].attn.register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        self.count += 1


@pytest.mark.parametrize("name", CACHING)
def test_no_threshold_skips_nothing_and_a_high_one_all_but_the_first_call(name, tmp_path):
    model = load(name, tmp_path)
    start, calls = start_of(name, model, 2.0), BlockCalls(model)
    plain = sample_rollout(model, start)
    assert calls.count == 2 * STEPS
    with block_cache(model.denoiser, NEVER):
        assert torch.equal(sample_rollout(model, start), plain)
    assert calls.count == 4 * STEPS
    for _ in range(2):  # each rollout begins anew
        before = calls.count
        with block_cache(model.denoiser, ALWAYS):
            assert (sample_rollout(model, start) - plain).abs().max() > 1e-3
        assert calls.count == before + 2
    assert torch.equal(sample_rollout(model, start), plain) and not model.denoiser.is_cache_enabled


@pytest.mark.parametrize("name", ["flux", "qwen_image"])
def test_each_pass_of_guidance_has_a_state_of_its_own(name, tmp_path):
    model = load(name, tmp_path)
    start = start_of(name, model, 2.0)
    cond, levels = start.cond, torch.tensor([[0.9, 0.9], [0.6, 0.6]], dtype=torch.float64)
    alone = cond.guided(cond.embedded_guidance, 1.0)

    def predicted(given: Any) -> torch.Tensor:
        with torch.no_grad(), block_cache(model.denoiser, ALWAYS):
            return [model.predict(start.noise, sigma, given) for sigma in levels][-1]

    other = type(alone)(**{**vars(alone), "tensors": cond.unconditional})
    expected = model._guide(predicted(alone), predicted(other), 2.0)
    assert torch.equal(predicted(cond), expected)


def method_of(model: Any, cache: float | None) -> Any:
    levels = {"kind": "uniform", "sigma_high": 0.9, "sigma_low": 0.5, "jump": 0.1}
    guidance: dict[str, Any] = {"embedded_guidance": 1.0}
    srpo = {"name": "srpo", "form": "absolute", "noise_levels": levels, **guidance}
    settings = TypeAdapter(config.MethodConfig).validate_python(srpo)
    size: dict[str, Any] = {"num_inference_steps": STEPS, "height": SIZE, "width": SIZE}
    rollout = config.RolloutConfig(**size, **guidance, cache=cache)
    return method_class("srpo")(model, ToyReward(), settings, rollout)


def test_training_calls_skip_nothing(tmp_path):
    model = load("flux", tmp_path)
    cached, plain, calls = method_of(model, ALWAYS), method_of(model, None), BlockCalls(model)
    sample, x0, batch = cached.sample, [], Batch(1, tuple(PROMPTS), seed=7)
    cached.sample = lambda start: x0.append(sample(start)) or x0[-1]
    losses = list(cached.losses(batch))
    assert calls.count == 1 + len(losses) and not model.denoiser.is_cache_enabled
    plain.sample = lambda start: x0[0]
    for ours, theirs in zip(losses, plain.losses(batch), strict=True):
        assert torch.equal(ours.value, theirs.value)


def test_sharded_weights_and_a_pipeline_that_caches_itself_are_refused(tmp_path):
    run = a_run("flux", tmp_path, tune="full")
    rollout = run.rollout.model_copy(update={"cache": 0.1})
    two, run = TorchProcessGroup(size=2), run.model_copy(update={"rollout": rollout})
    with pytest.raises(DirectAlignError, match=r"rollout\.cache: 0\.1: .* train\.parallel: data"):
        check_cached_ranks(run, two)
    parts = run.train.model_copy(update={"parallel": "data"})
    check_cached_ranks(run.model_copy(update={"train": parts}), two)
    check_cached_ranks(run, TorchProcessGroup())
    pipe = CASES["flux"].pipeline(CASES["flux"].folder(tmp_path))
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(DirectAlignError, match=r"pipe\.transformer\.disable_cache"):
        source_of(pipe)
