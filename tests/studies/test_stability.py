"""The stability study: diffusers' samplers on our network, chains, the sentences, and the quick size whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from directalign.diffusion.path import flow_sigmas
from directalign.diffusion.rng import FRESH_NOISE, draw_noise, generator_for
from directalign.diffusion.sampling import sample
from directalign.studies import run_study
from directalign.studies.running.records import read_rows
from directalign.studies.sampling_ways import CHAIN_STEPS, SAMPLERS, STRENGTH, chain, euler, in_batches, scheduled
from directalign.studies.stability_story import conditions, gain, spread, spread_verdict, summary, verdict
from methods.toy import ToyFamily

RECIPES = Path(__file__).parents[2] / "recipes"
NOISE = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Perfect(ToyFamily):
    """Knows the one clean image that there is, and says the velocity that leads to it."""

    x0 = torch.full((1, 4, 4, 4), 0.7, dtype=torch.float64)

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        return (x_t - self.x0) / sigma[:, None, None, None]


def test_eulers_schedule_is_our_rollout():
    family = ToyFamily()
    cond = family.encode_prompt(["a", "b"])
    ours = sample(family, cond, NOISE, flow_sigmas(8))
    assert torch.allclose(scheduled(family, cond, NOISE, euler(8)).double(), ours, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_reaches_the_image_that_a_perfect_network_knows(name: str):
    family = Perfect()
    found = scheduled(family, family.encode_prompt(["a", "b"]), NOISE, SAMPLERS[name](8))
    assert (found - family.x0).abs().max() < 1e-2


def test_samplers_agree_in_the_limit_of_many_steps():
    family = ToyFamily()
    cond = family.encode_prompt(["a", "b"])
    exact = sample(family, cond, NOISE, flow_sigmas(500))
    for name, sampler in SAMPLERS.items():
        assert (scheduled(family, cond, NOISE, sampler(60)).double() - exact).abs().max() < 0.05, name


class Invertible(Perfect):
    """Latents are the image with a fourth channel: encoding takes back what decoding gave."""

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, images[:, :1]], dim=1).double()

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return x0[:, :3]


def test_a_chain_starts_each_round_where_the_last_one_ended():
    family, images = Invertible(), torch.rand(2, 3, 4, 4)
    cond = family.encode_prompt(["a", "b"])
    rounds = list(chain(family, cond, images, 3, 3))
    assert len(rounds) == 3
    assert all((after - 0.7).abs().max() < 1e-6 for after in rounds)  # a perfect network leads every round to its image
    slow = ToyFamily()
    first, second = chain(slow, slow.encode_prompt(["a", "b"]), images, 3, 2)
    noise = draw_noise((2, 4, 4, 4), generator_for(3, FRESH_NOISE, 1))
    x_t = (1 - STRENGTH) * slow.encode_image(first) + STRENGTH * noise
    again = slow.decode(sample(slow, cond, x_t, torch.linspace(STRENGTH, 0, CHAIN_STEPS + 1, dtype=torch.float64)))
    assert torch.allclose(second, again.float().clamp(0, 1), atol=1e-6)


def test_batches_are_put_together_in_order():
    images = torch.rand(5, 3, 4, 4)
    assert torch.equal(in_batches(lambda first, last: images[first:last], 5, 2), images)


# --- sentences --------------------------------------------------------------------------------------------------------


def planted(arm: str, seed: int, photo: float, content: float = 1.0, kind: str = "cfg_scale", what: str | int | float = 2.0) -> dict[str, Any]:
    row = {"arm": arm, "seed": seed, "kind": kind, "what": what, "photo_rate": photo, "content": content, "color_drift": 0.1}
    return {**row, "images": 16}


def test_the_gain_is_paired_by_seed_and_sure_only_with_more_than_one():
    rows = [planted("base", seed, 0.1 * seed) for seed in range(3)] + [planted("srpo", seed, 0.1 * seed + 0.5) for seed in range(3)]
    found = gain(rows, "cfg_scale", 2.0, "photo_rate")
    assert found["value"] == pytest.approx(0.5) and found["low"] == pytest.approx(0.5) and found["n"] == 3
    assert summary(rows).startswith("In 1 of 1 conditions")
    one = [row for row in rows if row["seed"] == 0]
    assert summary(one).startswith("In 0 of 1 conditions") and "1 were trained" in summary(one)


def test_lost_content_is_named():
    rows = [planted("base", seed, 0.1, 1.0) for seed in range(2)] + [planted("srpo", seed, 0.9, 0.6 + 0.001 * seed) for seed in range(2)]
    assert "in 1 it keeps less of the content" in summary(rows) and "classifier-free guidance 2" in summary(rows)
    assert "content changes by −0.40" in verdict(rows, "cfg_scale")


def test_spread_over_image_seeds_beside_that_of_chance():
    rows = [
        planted(arm, 0, rate, kind="image_seeds", what=number)
        for arm, rates in (("base", (0.5, 0.5)), ("srpo", (0.25, 0.75)))
        for number, rate in enumerate(rates)
    ]
    assert spread(rows, "base", 0) == (0.0, pytest.approx(0.125))
    assert spread(rows, "srpo", 0) == (pytest.approx(0.5 / 2**0.5), pytest.approx(0.125))
    assert "varies more than the base's" in spread_verdict(rows)


# --- the quick size ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "stability"
    assert run_study("stability", out, True, RECIPES) == out / "README.md"
    return out


def test_base_and_aligned_are_seen_in_the_same_conditions(quick: Path):
    rows = read_rows(quick / "results.jsonl")
    kinds = {"samplers", "num_sampling_steps", "embedded_guidance", "cfg_scale", "image_seeds", "rounds"}
    assert {row["kind"] for row in rows} == kinds
    for kind in kinds:
        base, aligned = (conditions([row for row in rows if row["arm"] == arm], kind) for arm in ("base", "srpo"))
        assert base == aligned and len(base) >= 2, kind
    assert all(0 <= row[name] <= 1 for row in rows for name in ("photo_rate", "content"))


def test_two_updates_moved_the_aligned_model_and_leave_the_base_alone(quick: Path):
    rows = read_rows(quick / "results.jsonl")
    drifts = {(row["arm"], row["kind"], row["what"]): row["sharpness"] for row in rows}
    assert drifts["base", "samplers", "Euler"] != drifts["srpo", "samplers", "Euler"]
    assert drifts["base", "samplers", "Euler"] == pytest.approx(drifts["base", "rounds", 0], rel=1e-4)  # the same grid, by diffusers and by us


def test_the_page_holds_a_table_for_every_kind(quick: Path):
    page = (quick / "README.md").read_text(encoding="utf-8")
    for title in ("Samplers", "Step counts", "Embedded guidance", "Classifier-free guidance", "Rounds of image to image", "Image seeds"):
        assert f"## {title}\n" in page
    assert "(stability.png)" in page and (quick / "stability.png").stat().st_size > 1000
