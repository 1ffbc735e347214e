"""Methods that differentiate the reward, against their formulas in float64."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from directalign import config
from directalign.config.load import load_run
from directalign.diffusion import sampling
from directalign.diffusion.rng import FRESH_NOISE, draw_noise, update_generator
from directalign.methods import METHODS
from directalign.methods.leapalign import similarity_weight
from directalign.preflight.checks import check_method
from directalign.types import Batch, DirectAlignError
from methods import by_hand
from methods.by_hand import (
    CASES,
    GUIDANCE,
    PHRASES,
    PROMPTS,
    levels,
    make,
    predict,
    read,
    take,
    walk,
)
from methods.toy import ToyFamily, ToyReward

EXACT = {"rtol": 1e-10, "atol": 1e-12}
BATCHES = [Batch(step, PROMPTS, seed=7) for step in range(300)]
PAIRS = list(combinations(range(4), 2))
LEAPS = {"nested_scale": 0.0, "similarity_floor": None}

on_every_path = pytest.mark.parametrize(("path", "prediction"), CASES)


def steps(count: int) -> config.RolloutConfig:
    return config.RolloutConfig(num_inference_steps=count, embedded_guidance=GUIDANCE)


@pytest.fixture(autouse=True)
def float64_noise(monkeypatch):
    """Noise is drawn in float32; in float64 every step of a toy rollout is exact."""
    drawn = sampling.batch_noise
    monkeypatch.setattr(sampling, "batch_noise", lambda *given: drawn(*given).double())


def drawn_alike(counts: dict[Any, int], weights: dict[Any, float]) -> bool:
    """Whether counts of draws are those of the weights, within four standard deviations."""
    scale = sum(counts.values()) / sum(weights.values())
    near = (abs(counts[key] - scale * w) < 4 * (scale * w) ** 0.5 for key, w in weights.items())
    return counts.keys() == weights.keys() and all(near)


def draws(made: Any, batch: Batch) -> list[list[Any]]:
    """What a method draws for each sample of the batch."""
    names = {"refl": "trained_step", "alignprop": "depth"}
    drawn = getattr(made, names.get(made.settings.name, "steps"), lambda batch: ())(batch)
    columns = drawn if isinstance(drawn, tuple) else (drawn,)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def batches_alike(made: Any) -> list[Batch]:
    """Batches whose two samples have equal draws, so that formulas for one draw apply."""
    return [batch for batch in BATCHES if len({str(each) for each in draws(made, batch)}) < 2]


@pytest.mark.parametrize("name", ["refl", "alignprop", "drtune", "flowbp", "leapalign"])
def test_each_sample_has_draws_of_its_own(name):
    """The gradient of a batch is the mean of those of its samples, wherever these are computed."""
    settings = {"flowbp": {"trained_steps": 2}, "refl": {"last_steps": 3}}.get(name, {})
    made = make(name, **settings)
    batch = next(each for each in BATCHES if each not in batches_alike(made))
    rows = [replace(batch, prompts=(PROMPTS[n],), offset=n, global_size=2) for n in range(2)]
    single = [by_hand.gradients(made, row)[0] for row in rows]
    assert not torch.allclose(*single)
    torch.testing.assert_close(by_hand.gradients(made, batch)[0], sum(single) / 2, **EXACT)


# --- the whole graph of the last steps, or of one step --------------------------------------------


def beginning_at(name: str, begin: int, family: ToyFamily) -> tuple[Any, Batch]:
    """A method and a batch with the gradient from step `begin` of four on."""
    if name == "draft":
        return make(name, family, grad_steps=4 - begin), BATCHES[1]
    made = make(name, family, last_steps=4) if name == "refl" else make(name, family)
    wanted = begin if name == "refl" else 4 - begin
    return made, next(batch for batch in BATCHES if draws(made, batch) == [(wanted,)] * 2)


@on_every_path
@pytest.mark.parametrize("begin", range(4))
@pytest.mark.parametrize("name", ["draft", "alignprop", "refl"])
def test_the_gradient_is_that_of_the_steps_unrolled(path, prediction, begin, name):
    """From the state before the first trained step: to x0, or for ReFL to its one-step guess."""
    family = ToyFamily(path, prediction)
    made, batch = beginning_at(name, begin, family)
    x_t, sigmas = by_hand.states(family, batch)[begin], levels(family)
    rest = [sigmas[begin], 0.0] if name == "refl" else sigmas[begin:]
    expected = by_hand.numerical_gradient(
        family, lambda: by_hand.absolute_loss(family, walk(family, x_t, rest))
    )
    graphs = by_hand.watch_gradients(family)
    (loss,) = read(made.losses(batch))
    assert graphs == [False] * begin + [True] * (len(rest) - 1)
    found = by_hand.gradient(family, loss.value)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    if name == "alignprop":  # the trained steps ran again, from the end of the chain
        called = [float(sigma[0]) for sigma, _ in family.calls]
        assert called[4:] == called[begin:4][::-1]
        plain = make("draft", family, grad_steps=4 - begin)
        assert torch.equal(by_hand.gradients(plain, batch)[0], found)


@pytest.mark.parametrize(
    ("name", "field"), [("alignprop", "max_grad_steps"), ("refl", "last_steps")]
)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_trained_steps_are_uniform_over_the_last_ones(name, field, count):
    made = make(name, **{field: count})
    batches = [Batch(step, PROMPTS) for step in range(1200)]
    drawn = [draws(made, batch)[1][0] for batch in batches]
    first = Counter(step if name == "refl" else 4 - step for step in drawn)
    assert drawn_alike(first, dict.fromkeys(range(4 - count, 4), 1.0))


# --- DRaFT-LV -------------------------------------------------------------------------------------


def fresh(batch: Batch, index: int) -> Tensor:
    return draw_noise((2, 4, 4, 4), update_generator(batch, FRESH_NOISE, index)).double()


@on_every_path
def test_renoised_copies_denoise_the_sample_from_the_last_level(path, prediction):
    """The first loss is that of the sample. Each is yielded with a graph of its own."""
    family, batch = ToyFamily(path, prediction), BATCHES[1]
    graphs, found = by_hand.watch_gradients(family), []
    for count, loss in enumerate(read(make("draft", family, lv_samples=3).losses(batch)), start=1):
        assert graphs == [False] * 3 + [True] * count
        assert loss.branch == ("sampled" if count == 1 else "noised_anew")
        found.append(3 * by_hand.gradient(family, loss.value))
    (single,) = by_hand.gradients(make("draft", family), batch)
    torch.testing.assert_close(found[0], single, rtol=1e-14, atol=0)
    x0, sigma = by_hand.states(family, batch)[-1], levels(family)[-2]
    alpha = 1 - sigma if path == "flow" else (1 - sigma**2) ** 0.5
    for index in (1, 2):
        x_t = alpha * x0 + sigma * fresh(batch, index)
        loss = by_hand.absolute_loss(family, walk(family, x_t, [sigma, 0.0]))
        torch.testing.assert_close(found[index], by_hand.gradient(family, loss), **EXACT)
    assert not torch.allclose(found[1], found[2])


# --- chains whose inputs are detached -------------------------------------------------------------

CHAINS: dict[str, tuple[dict[str, Any], int, Callable[[Any, Batch], tuple[int, Any]]]] = {
    "draft": ({}, 4, lambda made, batch: (3, [3])),
    "alignprop": ({"max_grad_steps": 1}, 4, lambda made, batch: (3, [3])),
    "refl": ({"last_steps": 4}, 4, lambda made, batch: draws(made, batch)[0] * 2),
    "drtune": ({"early_stop": 3}, 4, lambda made, batch: draws(made, batch)[0]),
    "flowbp": ({"trained_steps": 4}, 4, lambda made, batch: (3, range(4))),
    "leapalign": (LEAPS, 2, lambda made, batch: (1, range(2))),
}
"""Settings, sampling steps, and from a batch: the step that ends in x0_hat, the trained steps."""


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("path", "prediction", "form"),
    [(*case, "absolute") for case in CASES] + [(*CASES[0], "relative"), (*CASES[0], "anchored")],
)
def test_loss_and_gradient_are_those_of_the_form_along_the_chain(
    name, number, path, prediction, form
):
    (settings, count, trained_of), family = CHAINS[name], ToyFamily(path, prediction)
    reward = ToyReward()
    asked = {"form": form, "control_phrases": PHRASES, "anchor": {"reference_updates": 300}}
    made = make(name, family, reward, steps(count), **asked, **settings)
    batch = batches_alike(made)[number]
    graphs = by_hand.watch_gradients(family)
    (loss,) = read(made.losses(batch))
    stop, trained = trained_of(made, batch)
    trained = [trained] if isinstance(trained, int) else trained
    if name in ("refl", "drtune"):
        assert graphs == [index in trained for index in range(stop + 1)]
        assert loss.levels["sigma"] == pytest.approx([levels(family)[stop]] * 2)
    assert {guidance for _, guidance in family.calls} == {GUIDANCE}
    sigmas = [*levels(family, count)[: stop + 1], 0.0]
    x0 = by_hand.walk_cut(family, by_hand.batch_noise(batch), sigmas, dict.fromkeys(trained, 1.0))
    images = by_hand.images_of(family, x0)
    torch.testing.assert_close(reward.images[0], images.detach(), rtol=1e-12, atol=1e-12)
    expected = by_hand.maximised(images, form, batch.step).mean()
    assert loss.metrics["reward"] == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(loss.value, -expected, **EXACT)
    ours, theirs = (by_hand.gradient(family, each) for each in (loss.value, -expected))
    torch.testing.assert_close(ours, theirs, **EXACT)


# --- DRTune ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_inference_steps", "trained_steps", "early_stop"),
    [(8, 3, 2), (25, 3, 10), (4, 1, 4), (3, 2, 2)],
)
def test_drtune_draws_a_uniform_stop_and_equally_spaced_steps(
    num_inference_steps, trained_steps, early_stop
):
    rollout = config.RolloutConfig(num_inference_steps=num_inference_steps)
    drtune = make("drtune", None, None, rollout, trained_steps=trained_steps, early_stop=early_stop)
    drawn = [draws(drtune, Batch(step, PROMPTS))[1] for step in range(1200)]
    stops = range(num_inference_steps - early_stop, num_inference_steps)
    assert drawn_alike(Counter(stop for stop, _ in drawn), dict.fromkeys(stops, 1.0))
    for stop, trained in drawn:
        assert len(trained) == trained_steps and trained[0] >= 0 and trained[-1] <= stop
        spacing = {after - before for before, after in pairwise(trained)}
        assert trained_steps == 1 or spacing == {(stop + 1) // trained_steps}
    last = {tuple(trained) for stop, trained in drawn if stop == num_inference_steps - 1}
    assert {trained[0] for trained in last} == set(range(len(last)))
    assert max(trained[-1] for trained in last) == num_inference_steps - 1


def test_rollouts_that_are_too_short_are_refused():
    """When the method is built, and before anything is loaded."""
    message = r"method\.trained_steps 3 .*early_stop 3 .*num_inference_steps 4 may end after 2"
    with pytest.raises(DirectAlignError, match=message):
        make("drtune", trained_steps=3, early_stop=3)
    with pytest.raises(DirectAlignError, match=r"rollout\.num_inference_steps 1.*at least 2"):
        make("leapalign", rollout=steps(1))
    check_method(load_run("world_drtune", ["method.trained_steps=6"]))
    with pytest.raises(DirectAlignError, match="may end after 6"):
        check_method(load_run("world_drtune", ["method.trained_steps=7"]))
    with pytest.raises(DirectAlignError, match="leaps from two steps"):
        check_method(load_run("world_leapalign", ["rollout.num_inference_steps=1"]))


# --- FlowBP ---------------------------------------------------------------------------------------


def cut_gradient(family: ToyFamily, batch: Batch, factors: dict[int, float]) -> Tensor:
    """Of the loss at the sampled image, through the predictions with a factor."""
    noise = by_hand.batch_noise(batch)
    x0 = by_hand.walk_cut(family, noise, levels(family), factors)
    return by_hand.gradient(family, by_hand.absolute_loss(family, x0))


def lengths(family: ToyFamily) -> list[float]:
    """How much each step's prediction moves x0 with held inputs; x0 is linear in them."""
    sigmas, found = levels(family), []
    for moved in range(4):
        x_t = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        for index, (high, low) in enumerate(pairwise(sigmas)):
            x_t = take(family, x_t, torch.full_like(x_t, float(index == moved)), high, low)
        found.append(abs(float(x_t)))
    return found


@on_every_path
@pytest.mark.parametrize("rescale", [0.0, 0.5, 1.0])
def test_a_few_steps_count_for_all_by_their_length(path, prediction, rescale):
    family = ToyFamily(path, prediction)
    flowbp = make("flowbp", family, trained_steps=2, rescale=rescale)
    batch = batches_alike(flowbp)[0]
    graphs = by_hand.watch_gradients(family)
    (found,) = by_hand.gradients(flowbp, batch)
    trained, length = flowbp.steps(batch)[0].tolist(), lengths(family)
    assert graphs == [False] * 4 + [True] * 2
    repeated = [float(sigma[0]) for sigma, _ in family.calls[4:]]
    assert repeated == [levels(family)[index] for index in trained]
    factor = 1 + rescale * (sum(length) / sum(length[index] for index in trained) - 1)
    expected = cut_gradient(family, batch, dict.fromkeys(trained, factor))
    torch.testing.assert_close(found, expected, **EXACT)


def test_flowbp_draws_different_steps_and_late_ones_more_often():
    batches = [Batch(step, PROMPTS) for step in range(1500)]
    late = make("flowbp", trained_steps=1, late_bias=2.0)
    counts = Counter(int(late.steps(batch)[1]) for batch in batches)
    assert drawn_alike(counts, {step: (step + 1.0) ** 2 for step in range(4)})
    several = make("flowbp", trained_steps=3, late_bias=0.0)
    drawn = {tuple(several.steps(batch)[0].tolist()) for batch in batches[:200]}
    assert drawn == set(combinations(range(4), 3))


# --- LeapAlign ------------------------------------------------------------------------------------


def leap(
    family: ToyFamily, x_t: Tensor, origin: int, end: int, shift: Tensor | float = 0
) -> Tensor:
    """From step `origin` to step `end` in one prediction, made at `x_t + shift`."""
    sigmas = levels(family)
    pred = predict(family, x_t + shift, sigmas[origin])
    return take(family, x_t, pred, sigmas[origin], sigmas[end])


def batch_of_pair(k: int, j: int) -> Batch:
    leapalign = make("leapalign")
    return next(batch for batch in BATCHES if draws(leapalign, batch) == [(k, j)] * 2)


@on_every_path
@pytest.mark.parametrize(("k", "j"), PAIRS)
@pytest.mark.parametrize("nested_scale", [0.0, 0.3, 1.0])
def test_the_gradient_is_the_difference_quotient_of_the_pinned_leaps(
    path, prediction, k, j, nested_scale
):
    """Both leaps start on the path and move with the weights.

    The second prediction is made where `nested_scale` of the first one's change leads.
    """
    family, reward, batch = ToyFamily(path, prediction), ToyReward(), batch_of_pair(k, j)
    settings = {"nested_scale": nested_scale, "similarity_floor": None}
    graphs = by_hand.watch_gradients(family)
    (found,) = by_hand.gradients(make("leapalign", family, reward, **settings), batch)
    assert graphs == [index in (k, j) for index in range(4)]
    x = by_hand.states(family, batch)
    image = by_hand.images_of(family, x[-1])
    torch.testing.assert_close(reward.images[0], image, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        at_j, at_0 = leap(family, x[k], k, j), leap(family, x[j], j, 4)

    def surrogate() -> Tensor:
        change = leap(family, x[k], k, j) - at_j
        end = leap(family, x[j] + change, j, 4, (nested_scale - 1) * change)
        return by_hand.absolute_loss(family, x[-1] + end - at_0)

    expected = by_hand.numerical_gradient(family, surrogate)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@on_every_path
@pytest.mark.parametrize("floor", [0.1, 0.5])
def test_a_sample_counts_by_how_close_its_leaps_are_to_the_path(path, prediction, floor):
    family, batch = ToyFamily(path, prediction), batch_of_pair(0, 2)
    (loss,) = read(make("leapalign", family, similarity_floor=floor).losses(batch))
    x = by_hand.states(family, batch)
    with torch.no_grad():
        apart = leap(family, x[0], 0, 2) - x[2], leap(family, x[2], 2, 4) - x[-1]
        far = [each.abs().mean((1, 2, 3)) for each in apart]
        rewards = ToyReward().score(by_hand.images_of(family, x[-1]).mean((2, 3)), PROMPTS)
    weight = 1 / (far[0].clamp(min=floor) + far[1].clamp(min=floor))
    assert float(loss.value.detach()) == pytest.approx(-float((weight * rewards).mean()))
    assert loss.metrics["leap_weight"] == pytest.approx(float(weight.mean()))
    assert loss.metrics["distance_j"] == pytest.approx(float(far[0].mean()))


def test_neighbouring_last_steps_have_no_distance_and_pairs_are_drawn_alike():
    leapalign = make("leapalign")
    (loss,) = read(leapalign.losses(batch_of_pair(2, 3)))
    assert max(loss.metrics["distance_j"], loss.metrics["distance_0"]) < 1e-12
    assert loss.metrics["leap_weight"] == pytest.approx(1 / 0.2)
    assert torch.equal(similarity_weight(torch.rand(3), torch.rand(3), None), torch.ones(3))
    counts = Counter(draws(leapalign, Batch(step, PROMPTS))[1] for step in range(1200))
    assert drawn_alike(counts, dict.fromkeys(PAIRS, 1.0))


# --- all methods ----------------------------------------------------------------------------------

NAMES = [name for name in METHODS if name not in ("python", "dpo")]  # dpo: see test_dpo.py


def values(made: Any, step: int) -> list[Tensor]:
    return [loss.value for loss in made.losses(Batch(step, PROMPTS, seed=1))]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_refuses_rewards_and_resumes_exactly(name):
    phrases = {"form": "anchored", "control_phrases": PHRASES, "anchor": {"reference_updates": 2}}
    with pytest.raises(DirectAlignError, match=r"method\.form"):
        make(name, None, ToyReward(reads_prompt=False), **phrases)
    black_box = ToyReward(differentiable=False)
    if name in ("flow_grpo", "raft", "diffusion_nft", "awm", "prompt_distillation"):
        make(name, None, black_box, **phrases)
    else:
        with pytest.raises(DirectAlignError, match=rf"{name} needs its gradient.*flow_grpo"):
            make(name, None, black_box, form="absolute")
    made, resumed = make(name, **phrases), make(name, **phrases)
    for step in range(2):
        values(made, step)
    resumed.load_state_dict(made.state_dict())
    ours, theirs = values(resumed, 2), values(made, 2)
    assert ours and all(map(torch.equal, ours, theirs))
