"""Half-cost algebra, gradients taken apart where the truth is known, what the text says of planted runs, and the study in its quick size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from directalign.config import SRPOConfig as Settings
from directalign.config import RolloutConfig, GridNoiseLevels
from directalign.config.load import load_run
from directalign.diffusion import noise_levels
from directalign.methods.objective_math import absolute_relative, from_absolute_relative
from directalign.studies import STUDIES, coefficients, inversion, inversion_story, run_study
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import Row, read_rows
from directalign.types import Batch, DirectAlignError
from methods.toy import ToyFamily, ToyReward

RECIPES = Path(__file__).parents[2] / "recipes"
WORDS = {"positive": ["Photo"], "negative": ["Render"], "order": "cycle"}
ROLLOUT = RolloutConfig(num_sampling_steps=3, embedded_guidance=1.0)
BATCH = Batch(0, ("a red star", "a blue ring"), seed=4)
POSITIONS = torch.linspace(0, 1, 7, dtype=torch.float64)


def settings(**given: object) -> Settings:
    return Settings.model_validate({"words": WORDS, **given})


def branch(k_pos: float, k_neg: float) -> dict[str, dict[str, float]]:
    return {"k_pos": {"low_noise": k_pos, "high_noise": k_pos}, "k_neg": {"low_noise": k_neg, "high_noise": k_neg}}


def method_of(recipe: str) -> Settings:
    found = load_run(RECIPES / f"{recipe}.yaml").method
    assert isinstance(found, Settings)
    return found


def ramp(given: object) -> torch.Tensor:
    return noise_levels.Ramp(given.low_noise, given.high_noise).at(POSITIONS)


# --- half cost --------------------------------------------------------------------------------------------------------


def test_half_cost_has_half_of_both_weights_of_the_two_branches() -> None:
    official, half = method_of("world_official"), method_of("world_half_cost")
    k_d, k_i = ramp(official.denoise.k_pos), ramp(official.inversion.k_neg)
    mu, nu = k_d - k_i, (4 + k_d + k_i) / 2
    branches = [absolute_relative(k_d, torch.zeros_like(k_d)), absolute_relative(torch.zeros_like(k_i), k_i)]
    assert torch.allclose(sum(m for m, _ in branches), mu, atol=1e-15) and torch.allclose(sum(n for _, n in branches), nu, atol=1e-15)
    k_pos, k_neg = from_absolute_relative(mu / 2, nu / 2)
    assert torch.allclose(ramp(half.denoise.k_pos), k_pos, atol=1e-15) and torch.allclose(ramp(half.denoise.k_neg), k_neg, atol=1e-15)
    assert torch.allclose(k_pos, k_d / 2, atol=1e-15) and torch.allclose(k_neg, k_i / 2, atol=1e-15)


def test_half_cost_differs_from_official_in_its_branches_alone() -> None:
    official, half = load_run(RECIPES / "world_official.yaml"), load_run(RECIPES / "world_half_cost.yaml")
    same = {name: getattr(official.method, name) for name in ("branches", "denoise", "inversion")}
    assert half.method.model_copy(update=same) == official.method and half.method.branches == "denoise"
    assert half.model_copy(update={"name": official.name, "preset": official.preset, "method": official.method}) == official


@pytest.mark.parametrize("point", [6, 101, 102, 250, 500, 750, 994])
def test_along_the_window_the_weights_halve_but_for_the_place_of_the_inversion_ramp(point: int) -> None:
    official, half = method_of("world_official"), method_of("world_half_cost")
    window = coefficients.grid_of(official)
    (mu, nu), (half_mu, half_nu) = coefficients.derived(official, window, point), coefficients.derived(half, window, point)
    assert half_mu == pytest.approx(mu / 2, abs=0.015) and half_nu == pytest.approx(nu / 2, abs=0.008)


def test_derived_weights_are_those_of_the_documented_table() -> None:
    official = method_of("world_official")
    weights = [coefficients.derived(official, coefficients.grid_of(official), point)[0] for point in (6, 250, 500, 750, 994)]
    assert weights == pytest.approx([-0.199, -0.119, -0.009, 0.101, 0.236], abs=6e-4)


# --- gradients taken apart --------------------------------------------------------------------------------------------


def test_a_planted_mixture_is_found_to_the_last_digits() -> None:
    generator = torch.Generator().manual_seed(1)
    absolute, relative, rest = torch.randn(3, 500, generator=generator, dtype=torch.float64)
    fit = coefficients.project(-0.2 * absolute + 2.1 * relative, absolute, relative)
    assert (fit.absolute, fit.relative, fit.explained) == pytest.approx((-0.2, 2.1, 1.0), abs=1e-12)
    basis = torch.linalg.qr(torch.stack([absolute, relative, rest]).T).Q.T
    noisy = coefficients.project(3 * basis[0] + 4 * basis[1] + 5 * basis[2], basis[0], basis[1])
    assert (noisy.absolute, noisy.relative, noisy.explained) == pytest.approx((3, 4, 0.5), abs=1e-12)


@pytest.mark.parametrize("branches", ["denoise", "inversion"])
def test_one_branch_has_exactly_the_weights_of_its_ramps(branches: str) -> None:
    official = settings(branches=branches, denoise=branch(0.25, 0.0), inversion=branch(0.0, 0.3))
    found = coefficients.measured(ToyFamily(), ToyReward(), {"it": official}, official, ROLLOUT, BATCH, 400)
    fit, alignment = found["it"]
    expected = (0.25, 1.125) if branches == "denoise" else (-0.3, 1.15)
    assert (fit.absolute, fit.relative) == pytest.approx(expected, abs=1e-9)
    assert fit.explained == pytest.approx(1, abs=1e-9) and alignment == pytest.approx(1, abs=1e-9)


def test_two_branches_under_one_reward_add_up_exactly() -> None:
    official = settings(branches="both", denoise=branch(0.2, 0.1), inversion=branch(0.2, 0.1))
    fit, _ = coefficients.measured(ToyFamily(), ToyReward(), {"it": official}, official, ROLLOUT, BATCH, 400)["it"]
    window = coefficients.grid_of(official)
    assert (fit.absolute, fit.relative) == pytest.approx(coefficients.derived(official, window, 400), abs=1e-9)
    assert coefficients.derived(official, window, 400) == pytest.approx((0.2, 2.3), abs=1e-12)


def test_other_moves_are_refused_by_name() -> None:
    with pytest.raises(DirectAlignError, match=r"method\.moves\.kind uniform: .* set method\.moves\.kind: window"):
        coefficients.grid_of(settings(moves={"kind": "uniform"}))
    assert isinstance(settings().moves, GridNoiseLevels)


# --- told -------------------------------------------------------------------------------------------------------------


def run_rows(arm: str, seed: int, photo: float, content: float, seconds: float) -> list[Row]:
    """Three measurements of a run that rises to `photo` and ends at `content`."""
    named: Row = {"arm": arm, "title": arm, "seed": seed}
    return [
        {**named, "step": 30 * i, "photo_rate": 0.1 + (photo - 0.1) * i / 3, "content": 1 - (1 - content) * i / 3, "color_drift": 0.1, "seconds": seconds * i,
         "call_equivalents": 100 * seconds * i}
        for i in range(4)
    ]  # fmt: skip


def weight_rows(arm: str) -> list[Row]:
    named: Row = {"kind": "coefficients", "arm": arm, "title": arm, "seed": 0, "explained": 0.99, "alignment": 0.98, "relative": 2.0, "derived_relative": 2.0}
    levels = [(50, 0.75, -0.2), (500, 0.85, -0.1), (950, 0.95, 0.1)]
    return [
        {**named, "batch": batch, "point": point, "sigma": sigma, "absolute": weight, "derived_absolute": weight + 0.05}
        for point, sigma, weight in levels
        for batch in (0, 1)
    ]


@pytest.fixture
def planted() -> list[Row]:
    runs = [row for seed in range(3) for row in [*run_rows("official", seed, 0.9, 0.5, 8 + seed), *run_rows("half_cost", seed, 0.9, 0.9, 4 + seed / 2)]]
    return [*runs, *weight_rows("official"), *weight_rows("half_cost")]


def test_the_text_reads_costs_and_content_off_the_rows(planted: list[Row]) -> None:
    text = inversion_story.tell(planted)
    assert "After 90 updates content is highest under “half_cost”" in text
    assert "half cost takes 0.50 (0.50–0.50) of the official network calls" in text and "differ beyond their intervals in content" in text
    assert "| after 30 updates |" in text and "| at photo rate 0.90 |" in text


def test_the_change_of_sign_is_interpolated(planted: list[Row]) -> None:
    fitted = [row for row in planted if "kind" in row]
    assert inversion_story.sign_change(fitted, "absolute") == pytest.approx(0.9)
    assert inversion_story.sign_change(fitted, "derived_absolute") == pytest.approx(0.875)
    assert inversion_story.sign_change(fitted, "relative") is None


def test_arms_differ_from_official_as_they_say() -> None:
    found = {arm.name: settings_of(arm, 0, RECIPES).method for arm in inversion.ARMS}
    assert found["denoise_only"] == found["official"].model_copy(update={"branches": "denoise"})
    assert found["no_ramp"].denoise == settings().denoise and found["no_ramp"].branches == "denoise"
    assert (found["negative_ramp"].denoise.k_pos.low_noise, found["negative_ramp"].denoise.k_pos.high_noise) == (-0.1, 0.2)
    assert STUDIES[inversion.NAME] == inversion.TITLE and inversion.LONGER == 2


def test_the_quick_study_leaves_rows_a_text_and_figures(tmp_path: Path) -> None:
    page = run_study("inversion", tmp_path / "inversion", quick=True, recipes=RECIPES)
    rows = read_rows(page.parent / "results.jsonl")
    fitted = {row["arm"]: row for row in rows if row.get("kind") == "coefficients"}
    assert set(fitted) == {"official", "half_cost"} and fitted["official"]["explained"] > 0.99
    assert fitted["official"]["relative"] == pytest.approx(fitted["official"]["derived_relative"], rel=0.05)
    assert {file.name for file in page.parent.glob("*.png")} == {"inversion_curves.png", "inversion_weights.png"}
    assert "## Half cost against official" in page.read_text(encoding="utf-8")
