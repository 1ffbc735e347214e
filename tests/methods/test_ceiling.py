"""The ceiling of the relative term, and its measurement, against their formulas in float64."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from directalign import config
from directalign.diffusion.rng import NOISE, draw_noise, generator_for
from directalign.interfaces import SINGLE_PROCESS
from directalign.methods.ceiling import measure_ceiling, unmeasured
from directalign.methods.objective import build_objective
from directalign.types import Batch
from methods import by_hand
from methods.by_hand import CASES, METHODS, PHRASES, PROMPTS, make
from methods.toy import ToyFamily, ToyReward

TOLERANCE, MARGIN = 0.05, 0.1
TEXTS = ("a red star", "a blue ring", "a green disc", "a gray star", "a pink ring")


def objective(form: str, **given: Any) -> Any:
    settings = {"form": form, "control_phrases": PHRASES, "ceiling": {"margin": MARGIN, **given}}
    return build_objective(ToyReward(), config.SRPOConfig.model_validate(settings))


def scores(images: Tensor, texts: Any = PROMPTS, phrase: str = "Photo. ") -> Tensor:
    return ToyReward().score(images.mean((2, 3)), [f"{phrase}{text}" for text in texts])


@pytest.mark.parametrize("form", ["relative", "anchored"])
def test_above_the_ceiling_only_the_other_parts_pull(form):
    """In the relative form with ramps: mu·(pos + neg)/2 + nu·min(pos − neg, ceiling)."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    pos, neg, plain = (scores(images, phrase=phrase) for phrase in ("Photo. ", "Render. ", ""))
    gaps = (pos - neg).tolist()
    gap = sum(gaps) / 2 - MARGIN  # one image lies above gap + margin, one below
    k_pos, k_neg = (0.3, 0.1) if form == "relative" else (0.0, 0.0)
    relative = torch.minimum(pos - neg, torch.full_like(pos, gap + MARGIN))
    expected = (1 + (k_pos + k_neg) / 2) * relative + (k_pos - k_neg) * (pos + neg) / 2
    if form == "anchored":
        expected = expected - (plain - plain.detach().mean()) ** 2 / (2 * TOLERANCE)
    output = objective(form, gap=gap)(images, Batch(0, PROMPTS), k_pos, k_neg)
    torch.testing.assert_close(output.reward, expected, rtol=1e-12, atol=1e-12)
    assert output.metrics["ceiling"] == pytest.approx(gap + MARGIN)
    ours, theirs = (
        torch.autograd.grad(each.sum(), images, retain_graph=True)[0]
        for each in (output.reward, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    high = objective(form, gap=max(gaps) + 1)(images, Batch(0, PROMPTS), k_pos, k_neg)
    settings = {"form": form, "control_phrases": PHRASES}
    free = build_objective(ToyReward(), config.SRPOConfig.model_validate(settings))
    assert torch.equal(high.reward, free(images, Batch(0, PROMPTS), k_pos, k_neg).reward)


class Obedient(ToyFamily):
    """Prompts change the image: each is a shift of its prediction."""

    def encode_prompt(self, prompts):
        cond = super().encode_prompt(prompts)
        shift = [len(prompt) / 30 for prompt in prompts]
        object.__setattr__(cond, "tensors", {"shift": torch.tensor(shift, dtype=torch.float64)})
        return cond

    def predict(self, x_t, sigma, cond):
        return super().predict(x_t, sigma, cond) + cond.tensors["shift"][:, None, None, None]


class Rank:
    """One of several processes, which keeps what it would send."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum(self, values):
        raise NotImplementedError

    def gather(self, values):
        self.sent = values
        return torch.cat([values] * self.size)


def measured(method: Any, family: ToyFamily, group: Any = SINGLE_PROCESS, batch_size: int = 2):
    given = {
        "name": "toy",
        "model": {"architecture": "flux", "path": "world:flux"},
        "reward": {"name": "clip", "path": "world:reward"},
        "rollout": by_hand.ROLLOUT.model_dump(),
        "method": {"form": "absolute"},
        "data": {"prompts": "world", "batch_size": batch_size},
        "train": {"num_steps": 1},
        "seed": 5,
    }
    run = config.RunConfig.model_validate(given)
    measure_ceiling(method, family, run, TEXTS, group)
    return method.objective.base_means


@pytest.mark.parametrize("path", CASES)
def test_it_is_measured_on_images_asked_with_the_positive_phrases(path):
    """Sampled by hand: phrases in turn, scored under the mean of both, plain under the prompt."""
    family, noise = Obedient(*path), draw_noise((5, 4, 4, 4), generator_for(5, NOISE, -1)).double()
    rows = []
    for row, text in enumerate(TEXTS):
        shift, x_t = (len(f"{PHRASES['positive'][row % 2]}. {text}")) / 30, noise[row : row + 1]
        for high, low in pairwise(by_hand.levels(family)):
            pred = by_hand.predict(family, x_t, high).detach() + shift
            x_t = by_hand.take(family, x_t, pred, high, low)
        image = by_hand.images_of(family, x_t)
        pos = (scores(image, [text], "Photo. ") + scores(image, [text], "Real. ")) / 2
        rows.append([pos - scores(image, [text], "Render. "), scores(image, [text], "")])
    expected = torch.tensor(rows).mean(0).tolist()
    method = make("refl", family, form="anchored", control_phrases=PHRASES, ceiling={"images": 5})
    assert unmeasured(method) == [method.objective]
    with pytest.raises(RuntimeError, match="not measured"):
        _ = method.objective.ceiling
    assert measured(method, family) == pytest.approx(expected, rel=1e-6)
    assert not unmeasured(method) and method.objective.ceiling == pytest.approx(expected[0] + 0.03)

    whole = make("refl", family, form="anchored", control_phrases=PHRASES, ceiling={"images": 5})
    whole.load_state_dict(method.state_dict())
    assert whole.objective.base_means == method.objective.base_means and not unmeasured(whole)
    ranks, sent = [Rank(0, 2), Rank(1, 2)], []
    for rank in ranks:
        part = make("refl", family, form="anchored", control_phrases=PHRASES, ceiling={})
        measured(part, family, rank)
        sent.append(rank.sent)
    assert torch.cat(sent)[:5].mean(0).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("best", "chosen"), [(0.1, 1), (0.5, 3), (0.6, 3)])
def test_unasked_it_is_the_mean_of_the_best_by_hand(best, chosen):
    """The bare prompts are sampled; the plain score is the mean of all images."""
    family, noise = Obedient(), draw_noise((5, 4, 4, 4), generator_for(5, NOISE, -1)).double()
    gaps, plain = [], []
    for row, text in enumerate(TEXTS):
        x_t = noise[row : row + 1]
        for high, low in pairwise(by_hand.levels(family)):
            pred = by_hand.predict(family, x_t, high).detach() + len(text) / 30
            x_t = by_hand.take(family, x_t, pred, high, low)
        image = by_hand.images_of(family, x_t)
        pos = (scores(image, [text], "Photo. ") + scores(image, [text], "Real. ")) / 2
        gaps.append(float(pos - scores(image, [text], "Render. ")))
        plain.append(float(scores(image, [text], "")))
    expected = sum(sorted(gaps)[-chosen:]) / chosen, sum(plain) / len(plain)
    settings = {"form": "anchored", "control_phrases": PHRASES, "ceiling": {"best": best}}
    assert measured(make("refl", family, **settings), family) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_it_and_the_anchor_its_plain_score(name):
    """Far above the ceiling and at the reference nothing but the anchor pulls."""
    family = ToyFamily()
    settings = {"form": "anchored", "control_phrases": PHRASES, "ceiling": {}}
    made = make(name, family, ToyReward(), **settings)
    made.objective.base_means = (-100.0, 0.25)
    for loss in made.losses(Batch(0, PROMPTS, seed=1)):
        metrics = loss.metrics
        assert metrics["ceiling"] == pytest.approx(-100 + 0.03)
        assert metrics["reward"] < -99  # the relative term is at the ceiling
    state = made.state_dict()
    assert tuple(state["base_means"]) == (-100.0, 0.25)


@pytest.mark.parametrize(("settings", "message"), [
    ({"form": "absolute", "ceiling": {}}, "ceiling is for the relative and the anchored form"),
    ({"form": "relative", "ceiling": {}, "control_phrases": {
        "positive": ["a.safetensors"], "negative": ["b"]}}, "cannot read it: give text"),
    ({"form": "relative", "ceiling": {"gap": 0.1, "best": 0.1}}, "remove one of them"),
])  # fmt: skip
def test_what_has_no_ceiling_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make("refl", **{"control_phrases": PHRASES, **settings})


def test_learned_phrases_do_where_nothing_is_asked():
    learned = {"positive": ["a.safetensors"], "negative": ["b.safetensors"]}
    settings = {"form": "relative", "control_phrases": learned, "ceiling": {"best": 0.1}}
    assert not config.SRPOConfig.model_validate(settings).asked_phrases()
