"""SRPO and its trust region on a model of a few numbers, in float64."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from directalign.config import RolloutConfig
from directalign.config import SRPOConfig as Settings
from directalign.diffusion import noise_levels, rng
from directalign.diffusion.rng import KL_NOISE, NOISE, NOISE_LEVEL, draw_noise, generator_for
from directalign.diffusion.sampling import start_rollout
from directalign.methods.objective import map_images, select_phrases
from directalign.methods.srpo import SRPO
from directalign.types import Batch, Conditioning, DirectAlignError, Latents, LossTerm, PerSample
from methods.by_hand import CASES, PROMPTS, read
from methods.toy import ToyDenoiser, ToyFamily, ToyReward

PHRASES = {"positive": ["Photo", "Real"], "negative": ["Render", "Flat", "Oil"], "order": "cycle"}
ROLLOUT = RolloutConfig(num_inference_steps=3, embedded_guidance=1.0)
KL_BETA = 0.7


def method(family: Any = None, reward: Any = None, **settings: Any) -> SRPO:
    chosen = Settings.model_validate({"control_phrases": PHRASES, **settings})
    return SRPO(family or ToyFamily(), reward or ToyReward(), chosen, ROLLOUT)


def losses(srpo: SRPO, step: int = 0) -> list[LossTerm]:
    return list(read(srpo.losses(Batch(step, PROMPTS))))


def first(step: int = 0, **settings: Any) -> LossTerm:
    return losses(method(branches="denoise", **settings), step)[0]


def gradient(srpo: SRPO, batch: Batch) -> list[Tensor]:
    loss = sum(loss.value for loss in srpo.losses(batch))
    return list(torch.autograd.grad(loss, list(srpo.model.denoiser.parameters())))


def euler(family: ToyFamily, noise: Tensor, steps: int) -> Tensor:
    x, levels = noise.double(), torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    with torch.no_grad():
        for high, low in pairwise(levels):
            x = x + (low - high) * family.denoiser(x, high.expand(len(x)), 1.0)
    return x


# --- the step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3])
def test_the_official_step_is_the_released_one_with_swapped_prompts(step):
    """Step, then subtract the known noise; the inversion branch swaps the two rewards."""
    family, reward = ToyFamily(), ToyReward()
    ramps = {
        "denoise": {"k_pos": {"low_noise": 0.1, "high_noise": 0.25}},
        "inversion": {"k_neg": {"low_noise": 0.3, "high_noise": 0.01}},
    }
    guided = {"embedded_guidance": 3.5, "truncate_timestep": 1000}
    srpo = method(family, reward, branches="both", margin=0.7, **guided, **ramps)
    ours = gradient(srpo, Batch(step, PROMPTS, seed=7))

    noise = rng.draw_noise((2, 4, 4, 4), rng.generator_for(7, NOISE, step, 0, 0, 0)).double()
    x0, grid = euler(family, noise, 3), noise_levels.GridSampler()
    m = grid.draw(2, rng.generator_for(7, NOISE_LEVEL, step, 0, 0, 0))
    positive, negative = PHRASES["positive"][step % 2], PHRASES["negative"][step % 3]
    total = torch.zeros((), dtype=torch.float64)
    for phrases, move, ramp in (
        ((positive, negative), grid.denoise(m), (0.1, 0.25)),
        ((negative, positive), grid.inversion(m), (0.3, 0.01)),
    ):
        start, end = (s[:, None, None, None] for s in (move.sigma_from, move.sigma_to))
        x_t = (1 - start) * x0 + start * noise
        truncated = ((move.sigma_from.float() * 1000).floor().double() / 1000).float()
        x_to = x_t + (end - start) * family.denoiser(x_t, truncated.double(), 3.5)
        features = family.decode((x_to - end * noise) / (1 - end)).clamp(0, 1).mean((2, 3))
        own, other = (
            reward.score(features, [f"{phrase}. {p}" for p in PROMPTS]) for phrase in phrases
        )
        k = ramp[0] + (ramp[1] - ramp[0]) * move.position
        total = total + torch.relu(0.7 - ((1 + k) * own - other)).mean() / 2
    theirs = torch.autograd.grad(total, list(family.denoiser.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # the known noise is float32


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_both_branches_on_every_path(path, prediction):
    family = ToyFamily(path, prediction)
    found = losses(method(family, branches="both"))
    assert [loss.branch for loss in found] == ["denoise", "inversion"]
    assert all(torch.isfinite(loss.value) and loss.value.requires_grad for loss in found)
    assert min(found[0].levels["gain"]) > 0 > max(found[1].levels["gain"])
    assert min(found[0].levels["recovery_error"]) > 0 and len(found[0].levels["sigma"]) == 2
    # in float64: near 1, timesteps of a DDPM are closer than float32 can represent
    assert family.calls[-1][0].dtype == torch.float64


def test_a_reward_that_ignores_the_prompt_has_one_direction_in_both_branches():
    """Swapped prompts would leave gradients that nearly cancel; the signed direction does not."""
    each = []
    for branch in ("denoise", "inversion"):
        settings = {"form": "absolute", "control_phrases": {}, "branches": branch}
        srpo = method(reward=ToyReward(reads_prompt=False), **settings)
        each.append(torch.cat([g.flatten() for g in gradient(srpo, Batch(0, PROMPTS, seed=1))]))
    assert torch.cosine_similarity(each[0], each[1], dim=0) > 0.9


def test_injections_share_one_rollout_and_are_averaged():
    family = ToyFamily()
    found = losses(method(family, branches="denoise", injections=4))
    assert len(found) == 4
    assert len(family.calls) == 3 + 4  # three sampling steps, then one call per injection
    assert len({tuple(loss.levels["sigma"]) for loss in found}) == 4
    expected = -sum(sum(loss.levels["reward"]) / 2 for loss in found) / 4
    assert sum(float(loss.value.detach()) for loss in found) == pytest.approx(expected)


def test_rollout_and_training_call_have_their_own_guidance_and_offline_images_no_rollout():
    family = ToyFamily()
    losses(method(family, branches="denoise", embedded_guidance=3.5))
    assert [guidance for _, guidance in family.calls] == [1.0, 1.0, 1.0, 3.5]
    family = ToyFamily()
    assert len(list(method(family, branches="both").losses(Batch(0, PROMPTS, offline())))) == 2
    assert len(family.calls) == 2


@pytest.mark.parametrize(("resolution", "on_grid"), [(1000, True), (None, False)])
def test_levels_are_truncated_if_the_recipe_says_so(resolution, on_grid):
    family = ToyFamily()
    losses(method(family, branches="denoise", truncate_timestep=resolution))
    given = family.calls[-1][0].double() * 1000
    assert bool(((given - given.round()).abs() < 1e-3).all()) is on_grid
    family = ToyFamily()
    srpo = method(family, branches="denoise")
    srpo.rollout = ROLLOUT.model_copy(update={"truncate_timestep": resolution})
    losses(srpo)
    sampled = torch.stack([sigma for sigma, _ in family.calls[:3]]).double() * 1000
    assert bool(((sampled - sampled.round()).abs() < 1e-3).all()) is on_grid


@pytest.mark.parametrize(
    ("scope", "per_sample", "per_update"),
    [("per_rank", True, True), ("shared", False, True), ("fixed", False, False)],
)
def test_the_scope_of_the_noise(scope, per_sample, per_update):
    batches = [Batch(n // 2, PROMPTS, offset=n % 2 * 2, global_size=4, seed=5) for n in (0, 1, 2)]
    first, other_rank, later = (
        start_rollout(ToyFamily(), ROLLOUT, each, scope).noise for each in batches
    )
    same_rows = torch.equal(first, other_rank), torch.equal(first[0], first[1])
    assert same_rows == (not per_sample,) * 2
    assert torch.equal(first, later) is not per_update
    settings = {"noise": {"source": "fresh", "scope": scope}, "branches": "denoise"}
    recovered = losses(method(**settings), 0)[0], losses(method(**settings), 1)[0]
    assert recovered[0].levels != recovered[1].levels  # fresh noise is new at every update


def test_cycling_phrases_begin_where_the_recipe_says():
    prompts = ToyReward(), ToyReward()
    for reward, start in zip(prompts, (0, 1), strict=True):
        phrases = {**PHRASES, "cycle_start": start}
        losses(method(reward=reward, branches="denoise", control_phrases=phrases))
    firsts = [{texts[0].split(".")[0] for texts in each.prompts} for each in prompts]
    assert firsts == [{"Photo", "Render"}, {"Real", "Flat"}]


class Watching(ToyFamily):
    """Stores what the network gets: (x_t, sigma, whether the prediction has a graph)."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Tensor, Tensor, bool]] = []

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        pred = super().predict(x_t, sigma, cond)
        self.given.append((x_t.detach(), sigma, pred.requires_grad))
        return pred


@pytest.mark.parametrize("source", ["fresh", "rollout"])
def test_the_known_noise_is_that_of_the_rollout_or_a_new_one(source):
    family = Watching()
    losses(method(family, branches="denoise", noise={"source": source}))
    noise, (x_t, sigma, _) = family.given[0][0], family.given[-1]
    x0, share = euler(ToyFamily(), noise, 3), sigma.double()[:, None, None, None]
    injected = (x_t - (1 - share) * x0) / share
    assert torch.allclose(injected, noise.double(), atol=1e-5) is (source == "rollout")


# --- the reward -----------------------------------------------------------------------------------


def test_phrases_cycle_at_their_own_lengths_or_are_fixed_or_averaged():
    assert [select_phrases(["a", "b"], "cycle", step) for step in range(3)] == [["a"], ["b"], ["a"]]
    assert [select_phrases(["a", "b"], "fixed", step) for step in range(2)] == [["a"], ["a"]]
    reward = ToyReward()
    loss = first(reward=reward, control_phrases=PHRASES | {"order": "average"})
    features = reward.images[0].mean((2, 3))
    pos = [reward.score(features, [f"{w}. {p}" for p in PROMPTS]) for w in PHRASES["positive"]]
    assert loss.metrics["score_pos"] == pytest.approx(float(torch.stack(pos).mean()))


@pytest.mark.parametrize(("phrases", "before"), [({"positive": ["Photo"]}, "Photo. "), ({}, "")])
def test_the_absolute_form_scores_the_positive_phrase_or_the_bare_prompt(phrases, before):
    reward = ToyReward()
    first(reward=reward, form="absolute", control_phrases=phrases)
    assert reward.prompts == [tuple(before + prompt for prompt in PROMPTS)]


def test_the_discount_scales_the_loss_but_not_the_reward():
    plain, discounted = first(), first(discount_shift=3.0)
    grid, generator = noise_levels.GridSampler(), rng.generator_for(0, NOISE_LEVEL, 0, 0, 0, 0)
    p = grid.denoise(grid.draw(2, generator)).discount_position
    rewards = torch.tensor(plain.levels["reward"], dtype=torch.float64)
    assert discounted.levels["reward"] == plain.levels["reward"]
    assert float(discounted.value.detach()) == pytest.approx(
        -float((rewards * 3 * p / (1 + 2 * p)).mean())
    )


def test_the_anchor_is_the_mean_of_the_first_updates():
    anchor = {"tolerance": 0.05, "reference_updates": 2}
    srpo = method(form="anchored", branches="denoise", anchor=anchor)
    plain = [losses(srpo, step)[0].metrics["score_plain"] for step in range(3)]
    assert srpo.objective.reference.value == pytest.approx((plain[0] + plain[1]) / 2)


def test_min_max_stretches_each_image_and_ignores_brightness():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64) * 3 - 1
    stretched = map_images(images, "min_max")
    assert stretched.amin() == 0 and stretched.amax() == 1
    torch.testing.assert_close(map_images(images * 0.5 + 0.3, "min_max"), stretched)
    assert map_images(images, "clamp").equal(images.clamp(0, 1))


# --- the trust region -----------------------------------------------------------------------------


def offline() -> Tensor:
    """Real images: their latents do not depend on the weights, as those of a rollout do."""
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def held(family: ToyFamily, kl_beta: float = KL_BETA, **settings: Any) -> SRPO:
    return method(family, noise={"source": "fresh"}, kl_beta=kl_beta, **settings)


def offline_losses(srpo: SRPO, step: int = 0) -> list[LossTerm]:
    return list(read(srpo.losses(Batch(step, PROMPTS, offline(), seed=3))))


@torch.no_grad()
def move(family: ToyFamily, seed: int = 6, stride: float = 0.1) -> list[Tensor]:
    """Shift the weights in a random direction, which is returned."""
    generator = torch.Generator().manual_seed(seed)
    along = []
    for p in family.denoiser.parameters():
        along.append(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        p += stride * along[-1]
    return along


@pytest.mark.parametrize("form", ["absolute", "relative", "anchored"])
def test_the_kl_is_zero_at_the_base_and_adds_its_weighted_mean_square(form):
    """Two branches of two injections, at their own x_t and level; the discount is not on the KL."""
    settings = {"form": form, "branches": "both", "injections": 2, "discount_shift": 3.0}
    settings |= {"truncate_timestep": 100, "embedded_guidance": 3.5}
    family = Watching()
    srpo, free = held(family, **settings), held(family, 0.0, **settings)
    assert free.centre is None and srpo.centre is not None
    found, plain = offline_losses(srpo), offline_losses(free)
    assert all(loss.metrics["kl"] == 0 and loss.levels["kl"] == [0, 0] for loss in found)
    assert [loss.value.item() for loss in found] == [loss.value.item() for loss in plain]
    batch = Batch(0, PROMPTS, offline(), seed=3)
    assert all(map(torch.equal, gradient(srpo, batch), gradient(free, batch)))

    move(family)
    family.given.clear()
    found, base = offline_losses(srpo), ToyDenoiser()
    given = family.given.copy()
    assert [with_graph for _, _, with_graph in given] == [False, True] * 4
    for loss, plain_loss, (x_t, sigma, _), (own_x_t, own_sigma, _) in zip(
        found, offline_losses(free), given[::2], given[1::2], strict=True
    ):
        assert x_t.equal(own_x_t) and sigma.equal(own_sigma)
        ours, theirs = (net(x_t.double(), sigma, 3.5).detach() for net in (family.denoiser, base))
        kl = (ours - theirs).square().flatten(1).mean(1)
        assert loss.levels["kl"] == pytest.approx(kl.tolist())
        assert loss.metrics["kl"] == pytest.approx(float(kl.mean()))
        added = (loss.value - plain_loss.value).item()
        assert added == pytest.approx(KL_BETA * float(kl.mean()) / 4)
        assert loss.levels["reward"] == plain_loss.levels["reward"]


def test_the_gradient_with_a_kl_is_the_slope():
    family = ToyFamily()
    srpo = held(family, form="absolute", branches="both")
    move(family)
    ours, step = gradient(srpo, Batch(0, PROMPTS, offline(), seed=3)), 1e-6
    for seed in range(3):
        along, ends = move(family, seed, step), []
        ends.append(sum(float(loss.value.detach()) for loss in offline_losses(srpo)))
        move(family, seed, -2 * step)
        ends.append(sum(float(loss.value.detach()) for loss in offline_losses(srpo)))
        move(family, seed, step)
        expected = sum(float((g * a).sum()) for g, a in zip(ours, along, strict=True))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-5)


def test_the_kl_may_have_a_call_and_levels_of_its_own():
    """The reward's losses are those without it; one term follows, at its levels, of weight beta."""
    low = {"kind": "uniform", "sigma_low": 0.1, "sigma_high": 0.3, "jump": 0.02}
    settings = {"form": "relative", "injections": 2, "embedded_guidance": 3.5}
    family = Watching()
    srpo, free = held(family, kl_noise_levels=low, **settings), held(family, 0.0, **settings)
    move(family)
    *found, term = offline_losses(srpo)
    for ours, theirs in zip(found, offline_losses(free), strict=True):
        assert ours.value.equal(theirs.value) and "kl" not in ours.metrics

    assert term.branch == "kl" and all(0.1 <= s <= 0.32 for s in term.levels["sigma"])
    family.given.clear()
    *_, term = offline_losses(srpo)
    x_t, sigma, _ = family.given[-1]
    noise = draw_noise((2, 4, 4, 4), generator_for(3, KL_NOISE, 0, 0, 0, 0)).double()
    wide = sigma.double()[:, None, None, None]
    x0 = family.encode_image(offline()).double()
    torch.testing.assert_close(x_t.double(), (1 - wide) * x0 + wide * noise, rtol=1e-5, atol=1e-6)
    ours, base = (
        net(x_t.double(), sigma, 3.5).detach() for net in (family.denoiser, ToyDenoiser())
    )
    kl = (ours - base).square().flatten(1).mean(1)
    assert term.levels["kl"] == pytest.approx(kl.tolist())
    assert term.value.item() == pytest.approx(KL_BETA * float(kl.mean()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kl_beta": 0.0}, "kl_noise_levels is for the KL term: set kl_beta"),
        ({"kl_beta": 1.0}, "kl_noise_levels: sigma_low 0.8 is not below sigma_high 0.1"),
    ],
)
def test_levels_of_the_kl_that_cannot_be_used(given, message):
    levels = {"kind": "uniform", "sigma_low": 0.8, "sigma_high": 0.1}
    with pytest.raises(ValueError, match=message):
        Settings.model_validate({"form": "absolute", "kl_noise_levels": levels, **given})


def test_with_the_rollouts_levels_the_network_is_called_at_no_other():
    family = ToyFamily()
    srpo = method(family, branches="denoise", noise_levels={"kind": "rollout"})
    own = {float(level) for level in family.sigmas(3, 8, 8)}
    for step in range(8):
        (loss,) = losses(srpo, step)
        assert {round(level, 6) for level in loss.levels["sigma"]} <= {round(x, 6) for x in own}


def test_a_rollouts_levels_have_no_second_branch():
    settings = Settings.model_validate(
        {"control_phrases": PHRASES, "noise_levels": {"kind": "rollout"}}
    )
    with pytest.raises(DirectAlignError, match="set branches: denoise"):
        SRPO.check(settings, ROLLOUT, "method")
