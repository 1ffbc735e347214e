"""A reward that sees latents: its score, the training without a decoder, the models it refuses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor
from transformers import CLIPModel
from typer.testing import CliRunner

from directalign import config
from directalign.cli import app
from directalign.config.load import load_run
from directalign.diffusion import path
from directalign.evaluation.candidate_scores import metric_groups
from directalign.evaluation.eval_prompts import EvalSample
from directalign.evaluation.eval_rewards import EvalReward
from directalign.evaluation.scores import MetricInput, trained_reward_metrics
from directalign.interfaces import Reward
from directalign.methods import METHODS, load_method, method_class
from directalign.models import load_model, trainable
from directalign.preflight import checks
from directalign.rewards import check_reward, load_named_reward, load_reward
from directalign.rewards.black_box import PythonReward
from directalign.toyworld.assets import resolve
from directalign.types import Batch, DirectAlignError
from methods.by_hand import read
from methods.toy import ToyFamily, ToyReward
from published_layouts import images_drawn
from rewards.cases import refused
from tiny import write_sd

PROMPTS = ("a red star on a navy background", "a blue ring on a white background")
SETTINGS = config.LatentClipConfig(path="world:reward_latent")
OVERRIDE = "reward={name: latent_clip, path: 'world:reward_latent'}"
PHRASES = {"positive": ["Photo"], "negative": ["Render"]}


@pytest.fixture(scope="module")
def flux():
    """The first toy world's FLUX."""
    return load_model(load_run("world_srpo").model, "cpu")


@pytest.fixture(scope="module")
def reward():
    return load_reward(SETTINGS)


def latents(seed: int = 0, count: int = 2) -> Tensor:
    return torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(seed))


# --- the score ------------------------------------------------------------------------------------


def test_the_score_is_that_of_the_clip_on_latents(reward):
    model, x0 = CLIPModel.from_pretrained(resolve("world:reward_latent")), latents()
    tokens = reward.tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(pixel_values=x0).pooler_output)
        read = model.text_projection(model.text_model(**tokens).pooler_output)
    assert isinstance(reward, Reward) and reward.sees == "latents"
    expected = F.cosine_similarity(seen, read)
    torch.testing.assert_close(reward.score(reward.encode(x0), PROMPTS), expected)


def test_evaluations_score_the_latents_of_the_images(reward, flux):
    images, run = images_drawn(2, 64, 64, 0), load_run("world_srpo", [OVERRIDE])
    samples = [EvalSample(i, prompt, 0) for i, prompt in enumerate(PROMPTS)]
    found = trained_reward_metrics(reward, run, "cpu", flux)(MetricInput(samples, images))
    expected = reward.score(reward.encode(flux.encode_image(images)), PROMPTS)
    torch.testing.assert_close(found["reward"], expected)
    assert {"score_pos", "score_neg"} <= found.keys()


# --- training -------------------------------------------------------------------------------------


class Seeing(ToyReward):
    """Linear in the mean of three of a latent's channels."""

    sees: Any = "latents"

    def encode(self, images: Tensor) -> Tensor:
        return images[:, :3].mean((2, 3))


class Undecoded(ToyFamily):
    def decode(self, x0):
        raise AssertionError("decoded")


def test_the_gradient_is_that_of_the_reward_at_the_recovered_latents():
    """SRPO, relative, without ramps: with g = sigma, x0_hat = x0 + g·(target − pred)."""
    family, reward = Undecoded(), Seeing()
    settings = {"control_phrases": PHRASES, "branches": "denoise", "noise_levels": LEVELS}
    run = config.SRPOConfig.model_validate({**settings, "margin": 5.0})
    rollout = config.RolloutConfig(num_inference_steps=3)
    method = method_class("srpo")(family, reward, run, rollout)
    (loss,) = read(method.losses(batch := Batch(0, PROMPTS)))
    weights = list(family.denoiser.parameters())
    found = torch.autograd.grad(loss.value, weights)

    x0, noise, _ = method.clean_latents(batch)
    sigma = torch.tensor(loss.levels["sigma"], dtype=torch.float64)[:, None, None, None]
    gain = torch.tensor(loss.levels["gain"], dtype=torch.float64)[:, None, None, None]
    x_t = (1 - sigma) * x0 + sigma * noise
    pred = family.denoiser(x_t, sigma.flatten(), 0.0)
    target = path.target("flow", "velocity", x0, noise, sigma.flatten())
    features = reward.encode(x0 + gain * (target - pred))
    pos, neg = (
        reward.score(features, [f"{phrases[0]}. {prompt}" for prompt in PROMPTS])
        for phrases in PHRASES.values()
    )
    theirs = torch.autograd.grad(torch.relu(5.0 - (pos - neg)).mean(), weights)
    for ours, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-9)
        assert ours.abs().max() > 0


LEVELS = {"kind": "uniform", "sigma_high": 0.9, "sigma_low": 0.5, "jump": 0.1}


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"python", "dpo"}))
def test_no_method_decodes_for_it(name):
    given = {"name": name, "form": "absolute", "control_phrases": {"positive": ["Photo"]}}
    settings = TypeAdapter(config.MethodConfig).validate_python(given)
    rollout = config.RolloutConfig(num_inference_steps=4)
    family = Undecoded()
    for loss in method_class(name)(family, Seeing(), settings, rollout).losses(Batch(0, PROMPTS)):
        loss.value.backward()
    assert all(each.grad is not None for each in family.denoiser.parameters())


def test_the_real_flux_learns_without_its_decoder(flux, reward, monkeypatch):
    run = load_run("world_srpo", [OVERRIDE, "rollout.num_inference_steps=2"])
    monkeypatch.setattr(flux.vae, "decode", None)
    for loss in load_method(run, flux, reward).losses(Batch(0, PROMPTS)):
        loss.value.backward()
    gradients = [each.grad for each in trainable(flux).values()]
    assert sum(g is not None and bool(g.abs().max() > 0) for g in gradients) > 0.9 * len(gradients)
    flux.denoiser.zero_grad()


def test_the_command_trains_with_it(tmp_path):
    small = ["train.num_steps=2", "data.batch_size=2", "evaluate.num_samples=2", "evaluate.every=0"]
    small += [
        "method.anchor.reference_updates=1",
        "train.sample_prompts=[a red star]",
        "rollout.num_inference_steps=2",
    ]
    given = [f"--set={each}" for each in (OVERRIDE, *small, "evaluate.references=false")]
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", "world_srpo", *given, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert (out / "summary.json").exists() and list((out / "samples").glob("*.png"))


def test_a_class_of_the_user_may_see_latents(flux):
    class Own:
        sees = "latents"

        def __call__(self, given: Tensor, prompts: list[str]) -> Tensor:
            assert given.shape[1:] == (16, 8, 8)
            return given.mean((1, 2, 3))

    run = load_run("world_srpo", ["method={form: absolute}", "rollout.num_inference_steps=2"])
    method = load_method(run, flux, PythonReward(Own(), differentiable=True))
    (loss,) = method.losses(Batch(0, PROMPTS))
    assert loss.value.requires_grad
    Own.sees = "nothing"
    with refused(r"own\.py: sees is 'nothing'; set 'pixels' or 'latents'"):
        PythonReward(Own(), source="own.py")


# --- refusals -------------------------------------------------------------------------------------


def test_a_model_of_another_vae_or_scale_is_refused(reward, flux, tmp_path, monkeypatch):
    reward.check_model(load_model(load_run("world_sd").model, "cpu"))  # the same VAE
    other = config.ModelConfig(architecture="sd", path=str(write_sd(tmp_path)))
    with refused(
        r"latent_clip was made for another VAE .* has other latents, 4x\d+x\d+ for 16x4x4"
    ):
        reward.check_model(load_model(other, "cpu"))
    monkeypatch.setitem(flux.vae.config, "scaling_factor", flux.vae.config["scaling_factor"] * 1.1)
    with refused("encodes its probe image otherwise, by 10%"):
        load_method(load_run("world_srpo", [OVERRIDE]), flux, reward)


def test_another_image_size_is_refused_before_anything_is_loaded(reward, traced, tmp_path):
    with refused("gives latents of 16x4x8, and it reads 16x8x8"):
        reward.encode(torch.zeros(1, 16, 4, 8))
    run = load_run("world_srpo", [OVERRIDE, "rollout.height=32", "rollout.width=64"])
    with refused("gives latents of 16x4x8"):
        checks.plan(run, tmp_path)


def test_rewards_of_latents_and_of_pixels_are_not_mixed():
    given = [{"label": "a", "reward": SETTINGS.model_dump()}]
    for other in ({"name": "clip", "path": "world:reward"}, SETTINGS.model_dump()):
        members = [*given, {"label": "b", "reward": other}]
        mix = config.MixtureConfig.model_validate({"members": members})
        if other["name"] == "clip":
            with refused(r"reward\.members: latent_clip sees latents and others see images"):
                check_reward(mix)
        else:
            both: Any = load_reward(mix)
            assert both.sees == "latents" and len(both.encode(latents())) == 2


def test_a_python_reward_of_latents_is_mixed_with_them(tmp_path):
    lines = ("class Mean:", "    sees = 'latents'", "    def __call__(self, x, prompts):")
    code = "\n".join((*lines, "        return x.mean((1, 2, 3))\n"))
    (tmp_path / "own.py").write_text(code)
    own = {"name": "python", "path": f"{tmp_path / 'own.py'}:Mean", "differentiable": True}
    rewards = {"a": SETTINGS.model_dump(), "b": own}
    members = [{"label": label, "reward": each} for label, each in rewards.items()]
    mix = config.MixtureConfig.model_validate({"members": members})
    check_reward(mix)
    both: Any = load_reward(mix)
    assert both.sees == "latents"


@pytest.mark.parametrize(
    ("name", "path", "complaint"),
    [
        ("latent_clip", "world:reward", "has no latents.safetensors .* no reward of latents"),
        ("clip", "world:reward_latent", "preprocessor_config.json is missing"),
        ("latent_clip", "world:flux", "config.json is missing"),
    ],
)
def test_the_two_kinds_of_clip_are_not_confused(name, path, complaint):
    settings = TypeAdapter(config.SingleRewardConfig).validate_python({"name": name, "path": path})
    for each in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=complaint):
            each(settings)


def test_commands_that_have_images_only_refuse_it():
    with refused("--reward: latent_clip sees latents, and this command has images"):
        load_named_reward(SETTINGS)
    held = [EvalReward("own", SETTINGS, "--reward own")]
    group = metric_groups(held, config.ControlPhrases(), "none", None, 2)[-1]
    with refused("--reward own: latent_clip sees latents, and no run gives its VAE"):
        group.load()


def test_a_mapping_of_images_is_named_as_unused():
    run = load_run("world_srpo", [OVERRIDE, "method.image_mapping=min_max"])
    assert checks.unused_settings(run)[0].startswith("method.image_mapping: latent_clip sees no")
