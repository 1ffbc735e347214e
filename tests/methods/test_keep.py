"""Prompts that keep a negative phrase: no reward, and the plain base as their target."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from directalign.training.data import kept_phrases
from directalign.types import Batch, DirectAlignError
from methods import by_hand
from methods.by_hand import METHODS, PHRASES, PROMPTS, make, read
from methods.test_kl_term import Watching, moved
from methods.test_objective import mix
from methods.toy import ToyDenoiser, ToyReward

KEPT = Batch(0, (PROMPTS[0], f"Render. {PROMPTS[1]}"), seed=7, kept=(False, True))
KL = {"kl_beta": 0.5, "kl_to": "base_with_phrases", "asked": {"guidance": 3.0}}
SETTINGS: dict[str, Any] = {"control_phrases": PHRASES, "form": "anchored", "keep_every": 2, **KL}
EXTRA = {
    "srpo": {"branches": "denoise"},
    "flow_grpo": {"group_size": 2},
    "raft": {"candidates": 2},
    "diffusion_nft": {"group_size": 2},
    "awm": {"group_size": 2, "old_kl_beta": 0.0},
}


def losses(name: str, batch: Batch, **settings: Any):
    family = Watching()
    made = make(name, family, ToyReward(), **SETTINGS, **EXTRA.get(name, {}), **settings)
    moved(family)
    found = []
    for loss in read(made.losses(batch)):
        found.append((loss, by_hand.gradient(family, loss.value)))
    return made, found, family


@pytest.mark.parametrize("name", METHODS[1:7])
def test_a_kept_prompt_has_no_gradient_of_the_reward_and_is_left_out_of_the_log(name):
    """With the kept prompt's score moved by any amount the reward's gradient stays the same."""
    made, found, _ = losses(name, KEPT)
    alone = Batch(0, KEPT.prompts[:1], seed=7, global_size=2)
    single, other, _ = losses(name, alone)
    for (ours, its), (theirs, wanted) in zip(found[:-1], other[:-1], strict=True):
        torch.testing.assert_close(its, wanted / 2, rtol=1e-9, atol=1e-12)
        for key in ("reward", "score_pos", "score_neg", "score_plain"):
            assert ours.metrics[key] == pytest.approx(theirs.metrics[key])
    assert made.objective.reference.count == single.objective.reference.count
    assert made.objective.reference.value == pytest.approx(single.objective.reference.value)


@pytest.mark.parametrize("name", METHODS[1:7])
def test_its_target_is_the_plain_base_and_that_of_others_the_asked_one(name):
    _, found, family = losses(name, KEPT)
    term, x_t = found[-1][0], family.noised[-1]
    sigma = torch.tensor(term.levels["sigma"], dtype=torch.float64)
    base, own = ToyDenoiser()(x_t, sigma, 1.0), family.denoiser(x_t, sigma, 1.0)
    asked = torch.tensor([3 * 0.3, 0.0], dtype=torch.float64)  # the base obeys both phrases alike
    expected = (own - base - asked[:, None, None, None]).square().mean((1, 2, 3))
    assert term.levels["kl"] == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize("name", ["srpo", "flow_grpo", "raft", "diffusion_nft", "awm"])
def test_methods_with_a_kl_of_their_own_keep_alike(name):
    """The kept half alone has the gradient of its KL term, that of the plain base."""
    own = Batch(0, KEPT.prompts[1:], seed=7, offset=1, global_size=2, kept=KEPT.kept)
    _, found, _ = losses(name, own)
    plain = {**SETTINGS, "kl_to": "base", "asked": {}, "keep_every": None}
    family = Watching()
    made = make(name, family, ToyReward(), **plain, **EXTRA[name])
    moved(family)
    for (ours, its), theirs in zip(found, read(made.losses(own)), strict=True):
        assert ours.metrics["kl"] == pytest.approx(theirs.metrics["kl"], rel=1e-9)
        torch.testing.assert_close(its, by_hand.gradient(family, theirs.value), rtol=1e-8, atol=0)
        assert ours.metrics["reward"] == 0


@pytest.mark.parametrize(("every", "total"), [(8, 8), (4, 8), (3, 2), (8, 4)])
def test_one_of_so_many_prompts_is_kept_and_the_phrases_take_turns(every, total):
    phrases = SimpleNamespace(negative=["Render", "Anime"])
    method = SimpleNamespace(keep_every=every, control_phrases=phrases)
    flat = [each for step in range(3 * every) for each in kept_phrases(method, step, total)]
    places = [place for place, each in enumerate(flat) if each is not None]
    assert places == list(range(every - 1, len(flat), every))
    said = [flat[place] for place in places]
    assert said == [["Anime", "Render"][n % 2] for n in range(len(said))]
    method.updates_per_rollout = 2  # the prompts of the odd steps are never sampled
    assert [each for n in range(3 * every) for each in kept_phrases(method, 2 * n, total)] == flat
    method.keep_every = None
    assert kept_phrases(method, 0, total) == []


def test_what_cannot_be_kept_is_refused():
    for changes, message in (
        ({"kl_beta": 0.0, "kl_to": "base", "asked": {}}, "holds by the KL term: set kl_beta"),
        ({"control_phrases": {"positive": ["a"]}, "form": "absolute"}, "control_phrases.negative"),
        ({"keep_every": 1}, "greater than or equal to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make("refl", **{**SETTINGS, **changes})
    with pytest.raises(DirectAlignError, match="keep_every: 2 is not supported"):
        make("refl", None, mix(({}, ToyReward()), ({}, ToyReward())), **SETTINGS)
