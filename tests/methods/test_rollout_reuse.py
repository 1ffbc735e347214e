"""`rollout.reuse` and `training_steps`: cheaper rollouts, in float64 on the toy model."""

from typing import Any

import pytest
import torch

from directalign import config
from directalign.diffusion import rng
from directalign.diffusion.sampling import rollout_sigmas
from directalign.methods import method_class
from directalign.types import Batch, LossTerm
from methods.by_hand import read
from methods.toy import ToyFamily, ToyReward

PROMPTS = ("a star", "a ring")
PHRASES = {"positive": ["Real", "Photo"], "negative": ["Render"], "order": "cycle"}
LEVELS = {"kind": "uniform", "sigma_high": 0.9, "sigma_low": 0.5, "jump": 0.1}
STEPS = 3
RAFT = {"name": "raft", "candidates": 3, "form": "absolute"}


def made(family: ToyFamily, settings: dict[str, Any], **rollout: int) -> Any:
    recipe = {
        "name": "toy",
        "model": {"architecture": "flux", "path": "none"},
        "reward": {"name": "clip", "path": "none"},
        "method": {"control_phrases": PHRASES, "noise_levels": LEVELS, **settings},
        "rollout": {"num_inference_steps": STEPS, **rollout},
        "data": {"prompts": "world"},
        "train": {"num_steps": 9},
    }
    run = config.RunConfig.model_validate(recipe)
    kind = method_class(run.method.name)
    return kind(family, ToyReward(), run.method, run.rollout)  # pyright: ignore


def losses(method: Any, batch: Batch) -> list[LossTerm]:
    return list(read(method.losses(batch)))


@pytest.mark.parametrize("source", ["fresh", "rollout"])
@pytest.mark.parametrize("settings", [
    {"name": "srpo", "form": "absolute"},
    {"name": "srpo", "form": "relative", "branches": "both", "injections": 2},
    {"name": "srpo", "form": "anchored", "branches": "denoise", "kl_beta": 0.5},
    {"name": "prompt_distillation"},
])  # fmt: skip
def test_later_updates_train_on_the_same_images_at_new_levels(settings, source):
    """Equal to training on these latents as real images, with the weights as they are by then."""
    family, noise = ToyFamily(), {"source": source}
    method = made(family, settings | {"noise": noise}, reuse=3)
    first = losses(method, Batch(4, PROMPTS, seed=7, rollout=4))
    x0, kept = (method.rollouts[0][name] for name in ("x0", "noise"))
    assert (kept is None) == (source == "fresh") and len(family.calls) > STEPS
    with torch.no_grad():
        family.denoiser.bias.add_(0.3)
    state = method.state_dict()
    method = made(family, settings | {"noise": noise}, reuse=3)  # a resumed run
    method.load_state_dict(state)
    family.calls.clear()
    second = losses(method, Batch(5, PROMPTS, seed=7, rollout=4))
    calls = len(family.calls)

    plain = made(family, settings | {"noise": {"source": "fresh"}}, reuse=1)
    plain.load_state_dict({name: state[name] for name in state if name != "rollouts"})
    family.encode_image = lambda images: x0
    with pytest.MonkeyPatch.context() as patch:
        if kept is not None:
            patch.setattr(rng, "batch_noise", lambda *_: kept)
        twin = losses(plain, Batch(5, PROMPTS, torch.zeros(2, 3, 4, 4), seed=7))
    assert len(family.calls) == 2 * calls
    for ours, theirs, before in zip(second, twin, first, strict=True):
        assert torch.equal(ours.value, theirs.value) and ours.levels == theirs.levels
        assert ours.metrics == theirs.metrics
        assert not set(ours.levels["sigma"]) & set(before.levels["sigma"])
    losses(method, Batch(6, PROMPTS, seed=7, rollout=4))
    assert method.rollouts == {} and method.state_dict().keys() == plain.state_dict().keys()


def test_raft_keeps_the_best_images_for_all_updates_of_a_rollout():
    """Phrases that take turns do so by rollout."""
    family = ToyFamily()
    method, found, x0 = made(family, RAFT, reuse=2), [], []
    for step in range(4):
        family.calls.clear()
        found += losses(method, Batch(step, PROMPTS, seed=7, rollout=step - step % 2))
        assert len(family.calls) == 1 + (step % 2 == 0) * STEPS * 3
        x0 += [each["x0"] for each in method.rollouts.values()]
    rewards = [loss.levels["reward"] for loss in found]
    assert rewards[0] == rewards[1] != rewards[2] == rewards[3]
    assert len({loss.levels["sigma"][0] for loss in found}) == 4 and not torch.equal(*x0)
    phrases = [
        {text.split(".")[0] for text in texts} for texts in method.objective.reward_model.prompts
    ]
    assert phrases == [{"Real"}] * 3 + [{"Photo"}] * 3


@pytest.mark.parametrize("settings", [{"name": "srpo"}, {"name": "prompt_distillation"}, RAFT])
def test_training_steps_are_those_of_rollouts_alone(settings):
    own = {"training_steps": STEPS}
    longer = {**own, "num_inference_steps": 2 * STEPS, "reuse": 2}
    methods = [made(ToyFamily(), settings, **rollout) for rollout in ({}, own, longer)]
    batch = Batch(4, PROMPTS, seed=7)
    first, *others = ([each.value for each in losses(m, batch)] for m in methods)
    assert all(found == first for found in others)
    levels = [len(rollout_sigmas(m.model, m.rollout, 4, 4)) for m in methods]
    assert levels == [STEPS + 1, STEPS + 1, 2 * STEPS + 1]
