"""The recovery study: its formula and its step against the core, the levels it tells, and the quick size whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from directalign.diffusion.path import determinant, target
from directalign.diffusion.recovery import gain, inject, recover
from directalign.studies import run_study
from directalign.studies.recovery_collapse import collapse, kept, lost_from
from directalign.studies.recovery_errors import HIGHEST, landings, predicted_ratio, rmse, stepped
from directalign.studies.recovery_story import deviations, upward
from directalign.studies.running.records import read_rows
from directalign.types import DirectAlignError, PathName, PredictionName
from methods.toy import ToyFamily

RECIPES = Path(__file__).parents[2] / "recipes"
CASES: list[tuple[PathName, PredictionName]] = [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v")]
LEVELS = [(0.3, 0.1), (0.3, 0.0), (0.5, 0.55), (0.9, 0.88), (0.97, 0.96), (0.9, 0.99)]


def level(sigma: float, b: int = 2) -> torch.Tensor:
    return torch.full((b,), sigma, dtype=torch.float64)


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize(("sigma_from", "sigma_to"), LEVELS)
def test_the_predicted_ratio_is_the_gain_over_that_of_a_one_step_guess(path: PathName, prediction: PredictionName, sigma_from: float, sigma_to: float):
    start, end = level(sigma_from, 1), level(sigma_to, 1)
    expected = gain(path, prediction, start, end) * determinant(path, prediction, start).abs() / start
    assert predicted_ratio(path, sigma_from, sigma_to) == pytest.approx(expected.abs().item(), rel=1e-9)


def test_on_flow_the_ratio_is_the_jump_over_what_is_left_to_recover():
    assert predicted_ratio("flow", 0.9, 0.88) == pytest.approx(0.02 / (0.12 * 0.9))
    assert predicted_ratio("flow", 0.4, 0.0) == 1  # a step to clean is the one-step guess
    assert predicted_ratio("flow", 0.94, 0.98) > 2  # a jump up next to pure noise is worse than no recovery


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_stepping_and_subtracting_is_the_closed_form(path: PathName, prediction: PredictionName):
    x0, noise, error = torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sigma_from, sigma_to in LEVELS:
        noised = inject(path, x0, noise, level(sigma_from))
        pred = target(path, prediction, x0, noise, noised.sigma) + error
        closed = recover(path, prediction, noised, pred, level(sigma_to)).x0
        by_steps = stepped(ToyFamily(path, prediction), noised, pred, level(sigma_to))
        assert torch.allclose(by_steps, closed, rtol=0, atol=1e-12)
        assert rmse(closed, x0) > 0


def test_landings_go_both_ways_and_stay_between_clean_and_noise():
    assert landings(0.5, (0.02, 0.1)) == [0.48, 0.52, 0.4, 0.6]
    assert landings(0.1, (0.1, 0.2)) == [0.0, 0.2, 0.3]
    assert max(landings(0.97, (0.005, 0.02, 0.05))) == HIGHEST


def test_the_picture_is_lost_from_where_less_than_half_is_left_for_good():
    assert lost_from([(0.1, 1.0), (0.5, 0.4), (0.7, 0.6), (0.8, 0.3), (0.9, 0.1)]) == 0.8
    assert lost_from([(0.1, 1.0), (0.9, 0.5)]) is None
    assert lost_from([(0.1, 0.2), (0.9, 0.1)]) == 0.1


def planted(**values: Any) -> dict[str, Any]:
    return {"arm": "flux", "title": "FLUX", "seed": 0, "noise": "fresh", **values}


def test_what_is_kept_is_measured_from_chance():
    clean = planted(image="clean", reward=0.9, chance=0.7, content=0.8)
    guesses = [planted(image="x0_hat", sigma=sigma, reward=reward, content=content) for sigma, reward, content in ((0.2, 0.9, 0.8), (0.9, 0.75, 0.2))]
    recovered = planted(image="recovered", sigma=0.2, jump=0.02, reward=0.8, content=0.4)
    other_jump = planted(image="recovered", sigma=0.2, jump=0.2, reward=0.0, content=0.0)
    rows = [clean, *guesses, recovered, other_jump]
    assert kept(rows, "flux", "x0_hat", "fresh", "reward") == [(0.2, pytest.approx(1.0)), (0.9, pytest.approx(0.25))]
    assert kept(rows, "flux", "x0_hat", "fresh", "content") == [(0.2, pytest.approx(1.0)), (0.9, pytest.approx(0.25))]
    assert kept(rows, "flux", "recovered", "fresh", "reward") == [(0.2, pytest.approx(0.5))]
    assert kept(rows, "flux", "recovered", "rollout", "content") == []


def test_sentences_count_what_the_rows_hold():
    rows = [
        planted(image="recovered", sigma=sigma, jump=jump, ratio=ratio, predicted=2 * ratio) for sigma, jump, ratio in ((0.5, 0.1, 0.2), (0.94, -0.05, 0.9))
    ]
    assert [found for found, _ in deviations(rows)] == [0.5, 0.5]
    assert upward(rows, "flux").startswith("In 1 of the 2 pairs") and "sigma 0.94" in upward(rows, "flux") and "0.05" in upward(rows, "flux")
    assert upward(rows[:1], "flux").startswith("In none of the 1 cases")


def test_half_lost_is_told_by_name():
    clean = planted(image="clean", reward=0.9, chance=0.7, content=1.0, agreement=1.0, style=1.0, sharpness=2.0)
    numbers = {"reward": 0.9, "content": 1.0, "agreement": 0.9, "style": 1.0}
    rows = [clean, planted(image="x0_hat", sigma=0.9, sharpness=0.4, **numbers), planted(image="recovered", sigma=0.9, jump=0.02, sharpness=1.9, **numbers)]
    assert "one-step guess of sharpness (from sigma 0.9), in the recovered image of nothing." in collapse(rows)


# --- the quick size ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "recovery"
    assert run_study("recovery", out, True, RECIPES) == out / "README.md"
    return out


def test_on_the_embedded_models_the_measured_ratio_is_the_predicted_one(quick: Path):
    rows = [row for row in read_rows(quick / "results.jsonl") if row["image"] == "recovered"]
    assert {row["arm"] for row in rows} == {"flux", "sd", "sd_v"} and {row["noise"] for row in rows} == {"rollout", "fresh"}
    assert any(row["jump"] < 0 for row in rows)
    for row in rows:
        assert row["ratio"] == pytest.approx(row["predicted"], rel=1e-3), row
    guesses = {(row["arm"], row["noise"], row["sigma"]): row for row in read_rows(quick / "results.jsonl") if row["image"] == "x0_hat"}
    for row in rows:
        guess = guesses[row["arm"], row["noise"], row["sigma"]]
        assert row["latents_rmse"] == pytest.approx(row["predicted"] * guess["latents_rmse"], rel=1e-3)


def test_the_page_holds_tables_and_pictures(quick: Path):
    page = (quick / "README.md").read_text(encoding="utf-8")
    assert page.count("reward's ranking |") == 6 and "half is lost in the one-step guess of" in page
    for title in ("FLUX (flow, velocity)", "SD (vp, epsilon)", "SD (vp, v)"):
        assert f"### {title}" in page
    for name in ("recovery_errors.png", "recovery_scores.png"):
        assert f"({name})" in page and (quick / name).stat().st_size > 1000


def test_a_second_call_measures_nothing_and_other_settings_are_refused(quick: Path, tmp_path: Path):
    before = {file: file.read_bytes() for file in (quick / "pieces").iterdir()}
    run_study("recovery", quick, True, RECIPES)
    assert {file: file.read_bytes() for file in (quick / "pieces").iterdir()} == before and len(before) == 6
    recipes = shutil.copytree(RECIPES, tmp_path / "recipes")
    given = yaml.safe_load((recipes / "world_sd.yaml").read_text())
    (recipes / "world_sd.yaml").write_text(yaml.safe_dump(given | {"seed": 5}))
    with pytest.raises(DirectAlignError, match=r"sd-seed0\.jsonl was measured under other settings .*: remove .*sd-seed0\.jsonl, or choose another --out"):
        run_study("recovery", quick, True, recipes)
