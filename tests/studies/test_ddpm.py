"""The ddpm study: the closed form against diffusers' step on three tables, every arm's settings, the sentences, the quick size whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from planted import run

from directalign.config import SRPOConfig, ConstantGainNoiseLevels, FlowGRPOConfig, ReFLConfig
from directalign.diffusion.path import DDPMTable, target
from directalign.diffusion.recovery import inject
from directalign.models import load_model
from directalign.studies import run_study
from directalign.studies.ddpm import METHODS, OFFICIAL_RAMPS, ON_V, groups, with_spacing
from directalign.studies.ddpm_levels import schedule_verdict, short_verdict
from directalign.studies.ddpm_story import at_photo_rate, level_table, orders, verdict
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import read_rows
from directalign.studies.running.sizes import sized
from directalign.studies.schedules import SCHEDULES, by_step, ddim, exactness

RECIPES = Path(__file__).parents[2] / "recipes"


# --- other schedules --------------------------------------------------------------------------------------------------


def test_the_closed_form_is_diffusers_own_step_on_every_table():
    rows = exactness(0)
    assert {(row["arm"], row["prediction"]) for row in rows} == {(name, said) for name, schedule in SCHEDULES.items() for said in schedule.predictions}
    for row in rows:
        assert row["largest"] < 1e-8 and row["roundtrip"] < 1e-9 and row["steps"] == 50, row
        assert row["closed_float32"] < row["stepped_float32"], row
    assert next(row for row in rows if row["arm"] == "zero_snr")["sigma_high"] == 1.0


def test_a_perfect_network_returns_x0_by_diffusers_step_too():
    stepper = ddim(SCHEDULES["cosine"], "v")
    table, timestep = DDPMTable(stepper.alphas_cumprod), stepper.timesteps[10]
    x0, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma_from, sigma_to = table.sigma_of(timestep[None]), table.sigma_of(stepper.timesteps[11][None])
    noised = inject("vp", x0, noise, sigma_from)
    said = target("vp", "v", x0, noise, sigma_from)
    assert torch.allclose(by_step(stepper, timestep, noised, said, sigma_to), x0, atol=1e-10)
    assert (by_step(stepper, timestep, noised, said + 1, sigma_to) - x0).abs().max() > 1e-3


def test_the_sentence_on_schedules_names_the_worst():
    numbers = {"kind": "schedule", "closed_float32": 1e-7, "stepped_float32": 4e-7}
    rows = [numbers | {"title": "near", "prediction": "v", "largest": 1e-14}, numbers | {"title": "far", "prediction": "epsilon", "largest": 1e-9}]
    assert "1e-09 at most (far, epsilon)" in schedule_verdict(rows) and "4.0 to 4.0 times smaller" in schedule_verdict(rows)


# --- arms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
def test_every_arm_is_a_sound_run(tmp_path: Path, quick: bool):
    arms = sized([arm for group in groups(tmp_path, quick) for _, arm in group.parts], quick)
    assert len({arm.name for arm in arms}) == len(arms)
    runs = {arm.name: settings_of(arm, 1, RECIPES) for arm in arms}
    assert all(found.seed == 1 and found.model.family == "sd" for found in runs.values())
    assert {f"epsilon-{name}" for name in METHODS} <= runs.keys()
    assert quick or {name for name in runs if name.startswith("v-")} == {f"v-{name}" for name in ON_V}
    refl, grpo = runs["epsilon-refl"].method, runs["epsilon-flow_grpo"].method
    assert isinstance(refl, ReFLConfig) and refl.last_steps <= runs["epsilon-refl"].rollout.num_sampling_steps
    assert isinstance(grpo, FlowGRPOConfig) and grpo.sde == "ddim" and grpo.trained_steps is not None
    assert grpo.trained_steps < runs["epsilon-flow_grpo"].rollout.num_sampling_steps
    assert runs["v-srpo"].model.path == "world:sd_v"


def test_the_arms_differ_from_the_recipe_in_what_they_are_named_after(tmp_path: Path):
    found = {
        group.name: {what: settings_of(arm, 0, RECIPES) for what, arm in group.parts} for group in groups(tmp_path, False) if group.prediction == "epsilon"
    }
    anchored, official = (found["methods"][name].method for name in ("srpo", "srpo_official"))
    assert isinstance(anchored, SRPOConfig) and isinstance(official, SRPOConfig)
    assert (official.form, official.branches, official.inversion.k_neg.low_noise) == ("relative", "both", 0.3) and len(OFFICIAL_RAMPS) == 5
    assert official.moves == anchored.moves and isinstance(anchored.moves, ConstantGainNoiseLevels)
    windows = [each.method.moves for each in found["windows"].values() if isinstance(each.method, SRPOConfig)]
    assert windows[0] == anchored.moves and len({repr(moves) for moves in windows}) == len(windows)
    assert {each.rollout.num_sampling_steps for each in found["grids"].values()} == {5, 10}


def test_another_spacing_is_another_grid_of_the_same_model(tmp_path: Path):
    folder = with_spacing(tmp_path / "models", "trailing")
    assert with_spacing(tmp_path / "models", "trailing") == folder and [each.name for each in folder.parent.iterdir()] == ["sd-trailing"]
    arm = next(arm for group in groups(tmp_path, True) for what, arm in group.parts if what == "10 steps, trailing")
    given = settings_of(arm, 0, RECIPES).model
    spaced, leading = (load_model(given.model_copy(update={"path": path}), "cpu").sigmas(10, 64, 64) for path in (given.path, "world:sd"))
    assert len(spaced) == len(leading) == 11 and spaced[0] > leading[0]


# --- sentences --------------------------------------------------------------------------------------------------------


def methods_run(what: str, seed: int, photo: list[float], prediction: str = "epsilon", **more: Any) -> list[dict[str, Any]]:
    named = {"group": "methods", "prediction": prediction, "what": what, "reward": 0.8}
    return run(f"{prediction}-{what}", seed, photo, 100, **named, **more)


ROWS = [
    *methods_run("srpo", 0, [0.1, 0.5, 0.9]),
    *methods_run("srpo", 1, [0.1, 0.3, 0.7]),
    *methods_run("refl", 0, [0.1, 0.1, 0.6], content=0.5, color_drift=0.4),
    *methods_run("refl", 1, [0.1, 0.2, 0.2], content=0.5, color_drift=0.4),
]


def test_methods_are_compared_where_they_make_equally_many_photos():
    found = at_photo_rate(ROWS, "epsilon-srpo")
    assert [row["call_equivalents"] for row in found] == [100, pytest.approx(150)]
    assert [row["color_drift"] for row in found] == [pytest.approx(0.05)] * 2
    assert len(at_photo_rate(ROWS, "epsilon-refl")) == 1 and at_photo_rate(ROWS, "epsilon-refl", 0.95) == []
    table = level_table(ROWS, "epsilon").splitlines()
    assert table[2].startswith("| SRPO, anchored | 2 of 2 | 125 |") and table[3].startswith("| ReFL | 1 of 2 |")


def test_the_verdict_names_who_makes_photos_who_holds_content_who_drifts_least():
    said = verdict(ROWS, "epsilon")
    assert "SRPO, anchored ends with the highest photo rate, 80 %, and content 100 %" in said
    assert "is left after SRPO, anchored; less after ReFL (50 %)" in said
    assert "to the most: SRPO, anchored (0.050); ReFL (0.400)" in said
    assert "No method reaches photo rate 50 %" in verdict([row for row in ROWS if row["step"] == 0], "epsilon")


def test_orders_are_compared_between_predictions():
    alike = [row | {"prediction": "v", "arm": f"v-{row['what']}"} for row in ROWS]
    turned = [row | {"what": {"srpo": "refl", "refl": "srpo"}[row["what"]]} for row in alike]
    assert "the same on all" in orders([*ROWS, *alike]) and "not the same on all" in orders([*ROWS, *turned])


def test_windows_are_ranked():
    rows = [row | {"group": "windows", "arm": f"window-{row['what']}"} for row in ROWS]
    assert "highest with srpo, 80 %" in short_verdict(rows, "windows") and "least content is left with refl, 50 %" in short_verdict(rows, "windows")


# --- the quick size ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "ddpm"
    assert run_study("ddpm", out, True, RECIPES) == out / "README.md"
    return out


def test_every_method_trains_and_stands_in_the_tables(quick: Path):
    rows = read_rows(quick / "results.jsonl")
    trained = {row["what"] for row in rows if row.get("group") == "methods" and row["prediction"] == "epsilon" and row["step"] == 2}
    assert trained == set(METHODS)
    assert {row["prediction"] for row in rows} == {"epsilon", "v"} and any(row.get("kind") == "schedule" for row in rows)
    page = (quick / "README.md").read_text(encoding="utf-8")
    for title in ("## Methods, epsilon", "## Methods, v", "## Sampling grids", "## The closed form on other schedules"):
        assert title in page
    for name in ("ddpm_epsilon.png", "ddpm_v.png", "ddpm_levels.png"):
        assert f"({name})" in page and (quick / name).stat().st_size > 1000
