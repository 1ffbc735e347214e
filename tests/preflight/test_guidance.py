"""Guidance and steps that do not fit a model are said; in memory, a pipeline has its usual ones."""

from pathlib import Path

import pytest
from preflight_runs import a_run, changed

from directalign import api
from directalign.models import MODELS, model_class
from directalign.preflight.guidance import guidance_warnings
from models.cases import CASES

CASES_OF_WARNINGS = {
    ("sdxl", "any/base", 1.0, 25): "unguided, and SDXL is usually sampled with 5",
    ("sd3", "any/base", 1.0, 25): "SD3 is usually sampled with 4.5",
    ("sdxl", "any/base", 5.0, 25): "",
    ("flux", "any/base", 1.0, 25): "",
    ("z_image", "any/Z-Image-Turbo", 1.0, 8): "",
    ("z_image", "any/Z-Image-Turbo", 4.0, 8): "rollout.cfg_scale: 4, and Z-Image-Turbo is by its",
    ("z_image", "any/Z-Image-Turbo", 1.0, 25): "num_inference_steps: 25, and Z-Image-Turbo is by",
    ("sdxl", "any/sdxl_lightning_4step", 1.0, 8): "num_inference_steps: 8, and sdxl_lightning",
    ("flux", "any/FLUX.1-schnell", 1.0, 25): "num_inference_steps: 25, and FLUX.1-schnell",
    ("sd", "world:sd", 1.0, 25): "",
}


@pytest.mark.parametrize("case", CASES_OF_WARNINGS, ids=str)
def test_unusual_guidance_and_steps(case):
    (name, path, scale, steps), wanted = case, CASES_OF_WARNINGS[case]
    rollout = {"cfg_scale": scale, "num_inference_steps": steps}
    run = changed(a_run(name, Path("folder"), path=path), rollout=rollout)
    found = guidance_warnings(run, model_class(name))
    assert len(found) == bool(wanted)
    if wanted:
        assert wanted in found[0]


def test_a_lora_that_distils_makes_the_model_few_step():
    run = a_run("sdxl", Path("base"), lora={"init": "any/sdxl-lightning.safetensors"})
    run = changed(
        run,
        rollout={"num_inference_steps": 4},
        method={**run.method.model_dump(), "cfg_scale": 5.0},
    )
    (found,) = guidance_warnings(run, model_class("sdxl"))
    assert found.startswith("method.cfg_scale: 5, and sdxl-lightning.safetensors is by its name")


def test_a_shift_that_a_few_step_model_has_not_learned():
    run = changed(
        a_run("flux", Path("base"), path="world:flux_turbo"),
        rollout={"num_inference_steps": 4, "shift": 3.0},
    )
    (shift,) = guidance_warnings(run, model_class("flux"))
    assert shift.startswith("rollout.shift: 3, and world:flux_turbo")


@pytest.mark.parametrize(("embeds", "count"), [(False, 1), (True, 0)])
def test_a_checkpoint_that_says_that_it_is_distilled_is_few_step_without_a_guidance_input(
    embeds, count
):
    kind = type("Distilled", (model_class("flux2"),), {"is_distilled": True})
    kind.embeds_guidance = embeds
    run = changed(a_run("flux2", Path("any/klein")), rollout={"num_inference_steps": 25})
    assert len(guidance_warnings(run, kind)) == count


@pytest.mark.parametrize(("folder", "wanted"), [("base", 5.0), ("SDXL-Turbo", None)])
def test_a_pipeline_in_memory_is_sampled_with_its_usual_guidance(folder, wanted, tmp_path):
    case = CASES["sdxl"]
    pipe = case.pipeline(case.folder(tmp_path / folder))
    origin = str(tmp_path / folder)
    found = api._defaults(pipe, "sdxl", "unet", {}, origin)
    assert found["rollout"].get("cfg_scale") == wanted


def test_every_architecture_says_what_it_is_usually_sampled_with():
    usual = {name: model_class(name).usual_cfg for name in MODELS}
    assert all(1 <= scale < 10 for scale in usual.values())
    assert {name for name, scale in usual.items() if scale == 1} == {
        "flux",
        "flux2",
        "flux_kontext",
    }
