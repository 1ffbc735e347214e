"""Every model equals its diffusers pipeline: prompts, predictions, gradients, images, updates."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from directalign.config import RolloutConfig
from directalign.diffusion.sampling import sample
from directalign.methods.srpo import SRPO
from directalign.models import MODELS, trainable
from directalign.models.text_encoder import padded
from methods.toy import ToyReward
from models.cases import CASES, PLAIN
from models.srpo_by_hand import BATCH, PROMPTS, SETTINGS, TRAINING_CFG, known_noise, losses_by_hand
from tiny import SIZE

LONG = "a red star on a sandy background . " * 90
close = partial(torch.testing.assert_close, rtol=0)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    return case.folder(tmp_path_factory.mktemp(case.architecture))


@pytest.fixture(scope="module")
def model(case, folder):
    return case.load(folder)


@pytest.fixture(scope="module")
def pipeline(case, folder):
    return case.pipeline(folder)


@pytest.fixture(scope="module", params=PLAIN)
def plain(request, tmp_path_factory):
    """The plain case of each architecture, for what does not differ within it; and its folder."""
    case = CASES[request.param]
    return case, case.folder(tmp_path_factory.mktemp(request.param))


def noise_for(model, width=SIZE, seed=3):
    shape = model.latent_shape(SIZE, width)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def noisy(model, case, width=SIZE):
    """Latents, their levels, and two prompts of different length."""
    sigma = torch.tensor([0.9, 0.3], dtype=torch.float64)
    cond = case.encode(model, PROMPTS, width=width).guided(case.embedded, 1.0)
    return noise_for(model, width, seed=0), sigma, cond


def library_prompts(case, pipeline, prompts=PROMPTS, width=SIZE):
    with torch.no_grad():
        return case.library_prompts(pipeline, list(prompts), width)


def library_guided(case, pipeline, x_t, sigma, scale):
    cond, uncond = (
        case.library_network(pipeline, x_t, sigma, tensors)
        for tensors in library_prompts(case, pipeline)
    )
    return case.guidance(cond, uncond, scale)


@torch.no_grad()
def image_of(model, case, noise, rollout):
    height, width = (case.cell * side for side in noise.shape[2:])
    cond = case.encode(model, PROMPTS, height, width).guided(case.embedded, rollout.cfg_scale)
    sigmas = model.sigmas(rollout.num_inference_steps, height, width)
    return model.decode(sample(model, cond, noise, sigmas)).clamp(0, 1)


def rollout_of(case, cfg_scale=1.0, steps=4):
    return RolloutConfig(
        num_inference_steps=steps,
        height=SIZE,
        width=SIZE,
        cfg_scale=cfg_scale if case.two_passes else 1.0,
        embedded_guidance=case.embedded,
    )


def assert_same_gradients(model, network, ours, theirs, **tolerance):
    """Of every trained weight, by backward passes of the scalars `ours` and `theirs`."""
    parameters = dict(network.named_parameters())
    names, weights = zip(*trainable(model).items(), strict=True)
    found = torch.autograd.grad(ours, weights, allow_unused=True)
    wanted = torch.autograd.grad(theirs, [parameters[name] for name in names], allow_unused=True)
    assert max(each.abs().max() for each in wanted if each is not None) > 1e-4
    for name, our, their in zip(names, found, wanted, strict=True):
        assert (our is None) == (their is None), name
        if our is not None:
            torch.testing.assert_close(our, their, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def denoiser_of(pipeline):
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def test_every_architecture_has_a_case():
    assert {case.architecture for case in CASES.values()} == set(MODELS) == set(PLAIN)


def test_prompts(case, model, pipeline):
    prompts = [*PROMPTS, LONG]
    cond = case.encode(model, prompts)
    both = zip(
        (cond.tensors, cond.unconditional), library_prompts(case, pipeline, prompts), strict=True
    )
    for ours, theirs in both:
        for name, tensor in theirs.items():
            if isinstance(tensor, list):  # each as long as its prompt
                rows = zip(ours["sequence"], ours["mask"], tensor, strict=True)
                for row, mask, expected in rows:
                    close(row[mask], expected, atol=1e-6)
            else:
                close(ours[name], tensor, atol=1e-6)


def test_prompts_encoded_one_by_one_and_joined_are_the_same(case, model):
    if case.reads_sources:
        pytest.skip("reads each by itself")
    rows, joint = [model.prompts([prompt]) for prompt in PROMPTS], model.prompts(PROMPTS)
    for key, tensor in joint.items():
        joined = padded([row[key] for row in rows])
        assert joined.dtype == tensor.dtype
        close(joined, tensor, atol=1e-6)


def test_prediction_and_gradient(case, model, pipeline):
    x_t, sigma, cond = noisy(model, case, width=2 * SIZE)
    pred = model.predict(x_t, sigma, cond)
    tensors = library_prompts(case, pipeline, width=2 * SIZE)[0]
    expected = case.library_network(pipeline, x_t, sigma, tensors)
    assert pred.dtype == torch.float32
    close(pred, expected, atol=1e-5)
    weights = torch.randn(pred.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (pred * weights).sum(), (expected * weights).sum()
    assert_same_gradients(model, denoiser_of(pipeline), ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_prediction_under_classifier_free_guidance(case, model, pipeline):
    if not case.two_passes:
        pytest.skip("has no second pass")
    x_t, sigma, cond = noisy(model, case)
    guided = model.predict(x_t, sigma, cond.guided(case.embedded, 3.0))
    assert (guided - model.predict(x_t, sigma, cond)).abs().max() > 1e-3
    close(guided, library_guided(case, pipeline, x_t, sigma, 3.0), atol=1e-5)


@pytest.mark.parametrize(("steps", "cfg_scale", "width"), [(4, 4.0, SIZE), (5, 1.0, 3 * SIZE)])
def test_rollout(case, model, pipeline, steps, cfg_scale, width):
    noise, rollout = noise_for(model, width), rollout_of(case, cfg_scale, steps)
    expected = case.call(pipeline, model, PROMPTS, noise, rollout)
    close(image_of(model, case, noise, rollout), expected, atol=1e-4)
    sigmas = model.sigmas(steps, SIZE, width)
    if model.path == "flow":
        assert torch.equal(sigmas, pipeline.scheduler.sigmas.double())
    else:
        visited = pipeline.scheduler.timesteps.double()
        close(model.levels.timestep_of(sigmas[:-1]), visited, atol=1e-6)
    assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@torch.no_grad()
def test_vae(case, model, pipeline):
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    x0 = case.vae.encode(pipeline, images)
    close(model.encode_image(images), x0, atol=1e-5)
    close(model.decode(x0), case.vae.decode(pipeline, x0), atol=1e-5)


def test_srpo_update(case, model, pipeline):
    rollout = rollout_of(case, cfg_scale=3.0)
    scale = TRAINING_CFG if case.two_passes else 1.0
    update = {"embedded_guidance": case.embedded, "cfg_scale": scale}
    settings = SETTINGS.model_copy(update=update)
    batch = replace(BATCH, sources=case.sources(SIZE, SIZE))
    ours = list(SRPO(model, ToyReward(), settings, rollout).losses(batch))
    noise = known_noise(model.latent_shape(SIZE, SIZE))
    sampled = case.call(pipeline, model, PROMPTS, noise, rollout, output_type="latent")
    theirs = losses_by_hand(
        model.path,
        lambda x_t, sigma: library_guided(case, pipeline, x_t, sigma, scale),
        lambda x0: case.vae.decode(pipeline, x0),
        case.latents(sampled, pipeline),
        noise,
        model.prediction,
    )
    assert [loss.branch for loss in ours] == ["denoise", "inversion"]
    for our, their in zip(ours, theirs, strict=True):
        assert their > 0
        torch.testing.assert_close(our.value, their, atol=1e-5, rtol=1e-5)
    total = sum(loss.value for loss in ours)
    tolerance = {"atol": 1e-5, "rtol": 1e-3}
    assert_same_gradients(model, denoiser_of(pipeline), total, sum(theirs), **tolerance)


@pytest.mark.parametrize(
    ("name", "tune"), [*((name, "lora") for name in PLAIN), ("flux", "full"), ("sd", "full")]
)
def test_gradient_checkpointing_recomputes_and_changes_no_gradient(tmp_path, name, tune):
    case = CASES[name]
    folder, gradients, calls = case.folder(tmp_path), [], []
    for recompute in (False, True):
        model = case.load(folder, tune=tune, gradient_checkpointing=recompute)
        model.vae.decoder.up_blocks[0].register_forward_pre_hook(
            lambda *_, on=recompute: calls.append(on)
        )
        model.decode(model.predict(*noisy(model, case))).square().sum().backward()
        gradients.append({name: each.grad for name, each in trainable(model).items()})
    assert calls == [False, True, True]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


def largest_gradient(model):
    return max(each.grad.abs().max() for each in trainable(model).values() if each.grad is not None)


def test_bfloat16_is_close_to_float32(plain):
    case, folder = plain
    exact, low = (case.load(folder, tune="lora", dtype=name) for name in ("float32", "bfloat16"))
    pred = low.predict(*noisy(low, case))
    assert pred.dtype == torch.float32
    assert {each.dtype for each in trainable(low).values()} == {torch.float32}
    torch.testing.assert_close(pred, exact.predict(*noisy(exact, case)), atol=0.1, rtol=0.1)
    low.decode(pred).mean().backward()
    assert largest_gradient(low) > 0


@pytest.mark.parametrize("name", [name for name in PLAIN if CASES[name].eight_bits])
def test_eight_bits_are_close(name, tmp_path):
    case = CASES[name]
    folder = case.folder(tmp_path, **case.eight_bits)
    plain, low = (case.load(folder, tune="lora", quantization=bits) for bits in (None, "8bit"))
    inputs = noisy(plain, case)
    pred, expected = (model.predict(*inputs) for model in (low, plain))
    assert 0 < (pred - expected).abs().max() < 0.05 * expected.abs().max()
    pred.sum().backward()
    assert largest_gradient(low) > 0
