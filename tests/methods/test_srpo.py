from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from directalign.config import RolloutConfig, RunConfig
from directalign.config import SRPOConfig as Settings
from directalign.diffusion import noise_levels, rng
from directalign.diffusion.rng import NOISE, NOISE_LEVEL
from directalign.diffusion.sampling import start_rollout
from directalign.methods.objective import map_images, select_phrases
from directalign.methods.srpo import SRPO
from directalign.types import Batch
from methods.toy import ToyFamily, ToyReward

WORDS = {"positive": ["Photo", "Real"], "negative": ["Render", "Flat", "Oil"], "order": "cycle"}
RAMPS = {
    "denoise": {"k_pos": {"low_noise": 0.1, "high_noise": 0.25}},
    "inversion": {"k_neg": {"low_noise": 0.3, "high_noise": 0.01}},
}
ROLLOUT = RolloutConfig(num_inference_steps=3, embedded_guidance=1.0)
PROMPTS = ("a red star", "a blue ring")


def method(family=None, reward=None, rollout=None, **settings) -> SRPO:
    chosen_settings = Settings.model_validate({"control_phrases": WORDS, **settings})
    return SRPO(
        family or ToyFamily(),
        reward or ToyReward(),
        chosen_settings,
        rollout or RolloutConfig(num_inference_steps=3, embedded_guidance=1.0),
    )


def gradient(srpo: SRPO, batch: Batch) -> list[torch.Tensor]:
    parameters = list(srpo.model.denoiser.parameters())
    loss = sum(loss.value for loss in srpo.losses(batch))
    return list(torch.autograd.grad(loss, parameters))


def euler(family: ToyFamily, noise: torch.Tensor, steps: int) -> torch.Tensor:
    x, levels = noise.double(), torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    with torch.no_grad():
        for high, low in pairwise(levels):
            x = x + (low - high) * family.denoiser(x, high.expand(len(x)), 1.0)
    return x


@pytest.mark.parametrize("step", [0, 3])
def test_the_official_step_equals_the_one_written_out_by_swapping_prompts(step):
    """Step, then subtract the known noise; in the inversion branch the rewards change places: as
    the released code does it."""
    family, reward = ToyFamily(), ToyReward()
    srpo = method(
        family,
        reward,
        branches="both",
        margin=0.7,
        embedded_guidance=3.5,
        truncate_timestep=1000,
        **RAMPS,
    )
    ours = gradient(srpo, Batch(step, PROMPTS, seed=7))

    noise = rng.draw_noise((2, 4, 4, 4), rng.generator_for(7, NOISE, step, 0, 0, 0)).double()
    x0 = euler(family, noise, 3)
    grid = noise_levels.GridSampler()
    m = grid.draw(2, rng.generator_for(7, NOISE_LEVEL, step, 0, 0, 0))
    total = torch.zeros((), dtype=torch.float64)
    for own_word, other_word, move, ramp in (
        (WORDS["positive"][step % 2], WORDS["negative"][step % 3], grid.denoise(m), (0.1, 0.25)),
        (WORDS["negative"][step % 3], WORDS["positive"][step % 2], grid.inversion(m), (0.3, 0.01)),
    ):
        start_rollout, end = (
            move.sigma_from[:, None, None, None],
            move.sigma_to[:, None, None, None],
        )
        x_t = (1 - start_rollout) * x0 + start_rollout * noise
        shown = ((move.sigma_from.float() * 1000).floor().double() / 1000).float()
        x_to = x_t + (end - start_rollout) * family.denoiser(x_t, shown.double(), 3.5)
        images = family.decode((x_to - end * noise) / (1 - end)).clamp(0, 1)
        own, other = (
            reward.score(images.mean((2, 3)), [f"{word}. {p}" for p in PROMPTS])
            for word in (own_word, other_word)
        )
        k = ramp[0] + (ramp[1] - ramp[0]) * move.position
        total = total + torch.relu(0.7 - ((1 + k) * own - other)).mean()
    for a, b in zip(
        ours, torch.autograd.grad(total, list(family.denoiser.parameters())), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # the known noise is float32


@pytest.mark.parametrize(
    ("path", "prediction"), [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v")]
)
def test_one_method_serves_every_path_and_prediction(path, prediction):
    srpo = method(ToyFamily(path, prediction), branches="both")
    found = list(srpo.losses(Batch(0, PROMPTS)))
    assert [loss.branch for loss in found] == ["denoise", "inversion"]
    assert all(torch.isfinite(loss.value) and loss.value.requires_grad for loss in found)
    assert min(found[0].levels["gain"]) > 0 > max(found[1].levels["gain"])


def test_a_prompt_blind_reward_pulls_both_branches_the_same_way():
    """Swapping prompts would leave such a reward with gradients that nearly cancel; the direction
    does not."""
    each = []
    for branch in ("denoise", "inversion"):
        srpo = method(
            reward=ToyReward(reads_prompt=False),
            form="absolute",
            control_phrases={},
            branches=branch,
        )
        each.append(torch.cat([g.flatten() for g in gradient(srpo, Batch(0, PROMPTS, seed=1))]))
    assert torch.cosine_similarity(each[0], each[1], dim=0) > 0.9


def test_injections_share_one_rollout_and_average():
    family = ToyFamily()
    srpo = method(family, branches="denoise", injections=4)
    losses = list(srpo.losses(Batch(0, PROMPTS)))
    assert len(losses) == 4
    assert len(family.calls) == 3 + 4  # three sampling steps once, then one call per injection
    assert len({tuple(loss.levels["sigma"]) for loss in losses}) == 4
    expected = -sum(sum(loss.levels["reward"]) / 2 for loss in losses) / 4
    assert sum(float(loss.value) for loss in losses) == pytest.approx(expected)


def test_offline_images_need_no_rollout_and_take_fresh_noise():
    family = ToyFamily()
    srpo = method(family, branches="both")
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert len(list(srpo.losses(Batch(0, PROMPTS, images)))) == 2
    assert len(family.calls) == 2


def test_rollout_and_training_call_have_their_own_guidance():
    family = ToyFamily()
    list(method(family, branches="denoise", embedded_guidance=3.5).losses(Batch(0, PROMPTS)))
    assert [guidance for _, guidance in family.calls] == [1.0, 1.0, 1.0, 3.5]


def test_the_network_is_shown_the_truncated_level_only_if_asked():
    for resolution, on_grid in ((1000, True), (None, False)):
        family = ToyFamily()
        list(
            method(family, branches="denoise", truncate_timestep=resolution).losses(
                Batch(0, PROMPTS)
            )
        )
        shown = family.calls[-1][0].double() * 1000
        assert bool(((shown - shown.round()).abs() < 1e-3).all()) is on_grid


def test_shared_noise_is_one_draw_for_samples_and_ranks():
    batch = [Batch(0, PROMPTS, offset=place, global_size=4, seed=5) for place in (0, 2)]
    draws = [start_rollout(ToyFamily(), ROLLOUT, b, shared_noise=True).noise for b in batch]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0][0], draws[0][1])
    draws = [start_rollout(ToyFamily(), ROLLOUT, b).noise for b in batch]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0][0], draws[0][1])


@pytest.mark.parametrize("source", ["fresh", "rollout"])
def test_the_known_noise_is_the_rollouts_or_a_new_one(source):
    """One step to the landing of a perfect start: the noise in x_t tells which was injected."""
    seen = []

    class Watching(ToyFamily):
        def predict(self, x_t, sigma, cond):
            seen.append((x_t.detach(), sigma.detach()))
            return super().predict(x_t, sigma, cond)

    list(method(Watching(), branches="denoise", noise={"source": source}).losses(Batch(0, PROMPTS)))
    first, (x_t, sigma) = seen[0][0], seen[-1]
    x0 = euler(ToyFamily(), first, 3)
    share = sigma.double()[:, None, None, None]
    injected = (x_t - (1 - share) * x0) / share
    assert torch.allclose(injected, first.double(), atol=1e-5) is (source == "rollout")


def test_words_cycle_at_their_own_lengths_or_stand_or_are_averaged():
    assert [select_phrases(["a", "b"], "cycle", step) for step in range(3)] == [["a"], ["b"], ["a"]]
    assert [select_phrases(["a", "b"], "fixed", step) for step in range(2)] == [["a"], ["a"]]
    reward = ToyReward()
    loss = next(
        method(
            reward=reward, control_phrases=WORDS | {"order": "average"}, branches="denoise"
        ).losses(Batch(0, PROMPTS))
    )
    features = reward.images[0].mean((2, 3))
    pos = sum(reward.score(features, [f"{w}. {p}" for p in PROMPTS]) for w in WORDS["positive"]) / 2
    assert loss.metrics["score_pos"] == pytest.approx(float(pos.mean()))


def test_absolute_form_scores_the_positive_phrase_or_the_bare_prompt():
    reward = ToyReward()
    list(
        method(
            reward=reward,
            form="absolute",
            control_phrases={"positive": ["Photo"]},
            branches="denoise",
        ).losses(Batch(0, PROMPTS))
    )
    assert reward.asked == [("Photo. a red star", "Photo. a blue ring")]
    reward = ToyReward()
    list(
        method(reward=reward, form="absolute", control_phrases={}, branches="denoise").losses(
            Batch(0, PROMPTS)
        )
    )
    assert reward.asked == [PROMPTS]


def test_discount_scales_the_loss_and_not_the_reward():
    plain, discounted = (
        next(method(branches="denoise", discount_shift=s).losses(Batch(0, PROMPTS[:1], seed=2)))
        for s in (None, 3.0)
    )
    position = (
        noise_levels.GridSampler()
        .denoise(noise_levels.GridSampler().draw(1, rng.generator_for(2, NOISE_LEVEL, 0, 0, 0, 0)))
        .position.item()
    )
    assert discounted.levels["reward"] == plain.levels["reward"]
    assert float(discounted.value) == pytest.approx(
        float(plain.value) * 3 * position / (1 + 2 * position)
    )


def test_the_anchor_refers_to_the_first_updates_and_survives_a_resume():
    anchor = {"tolerance": 0.05, "reference_updates": 2}
    srpo = method(form="anchored", branches="denoise", anchor=anchor)
    plain = [next(srpo.losses(Batch(step, PROMPTS))).metrics["score_plain"] for step in range(3)]
    assert srpo.objective.reference.value == pytest.approx((plain[0] + plain[1]) / 2)
    again = method(form="anchored", branches="denoise", anchor=anchor)
    again.load_state_dict(srpo.state_dict())
    assert float(next(again.losses(Batch(3, PROMPTS))).value) == float(
        next(srpo.losses(Batch(3, PROMPTS))).value
    )


def test_min_max_stretches_each_image_and_ignores_brightness():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64) * 3 - 1
    stretched = map_images(images, "min_max")
    assert stretched.amin() == 0 and stretched.amax() == 1
    torch.testing.assert_close(map_images(images * 0.5 + 0.3, "min_max"), stretched)
    assert map_images(images, "clamp").equal(images.clamp(0, 1))


def test_recovery_error_is_gain_times_residual():
    family = ToyFamily()
    loss = next(method(family, branches="denoise").losses(Batch(0, PROMPTS)))
    assert all(error > 0 for error in loss.levels["recovery_error"])
    assert len(loss.levels["sigma"]) == len(PROMPTS)


@pytest.mark.parametrize("preset", ["official_flux", "official_pickscore", "official_qwen"])
def test_presets_carry_the_published_values_and_give_way_to_the_recipe(preset):
    recipe = {
        "name": "x",
        "preset": preset,
        "model": {"architecture": "flux", "path": "p"},
        "reward": {"name": "clip", "path": "r"},
    }
    run = RunConfig.model_validate(
        recipe | {"data": {"prompts": "world"}, "train": {"num_steps": 1, "learning_rate": 1e-3}}
    )
    expected = {
        "official_flux": (25, 0.7, "both", 0.25, 0.3, 1.0, 1.0),
        "official_pickscore": (30, 0.7, "both", 0.5, 0.6, 2.0, 5.0),
        "official_qwen": (40, None, "denoise", 0.0, 0.0, None, 1.0),
    }[preset]
    m = run.method
    ramps = (m.denoise.k_pos.high_noise, m.inversion.k_neg.low_noise)
    assert (
        m.noise_levels.last,
        m.margin,
        m.branches,
        *ramps,
        run.rollout.embedded_guidance,
        run.reward.scale,
    ) == expected
    assert run.train.learning_rate == 1e-3
    assert (
        m.control_phrases.positive == ["Natural-lighting", "Detail", "Detailed", "Real"]
        and len(m.control_phrases.negative) == 5
    )


def test_the_network_is_shown_levels_in_float64():
    """Near 1, a DDPM's timesteps lie closer together than float32 can tell apart."""
    family = ToyFamily()
    list(method(family, branches="denoise").losses(Batch(0, PROMPTS)))
    assert family.calls[-1][0].dtype == torch.float64
