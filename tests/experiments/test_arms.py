"""Every arm of every study is a sound run that differs from the others in what it is named after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from directalign.preflight.checks import check_method, check_steps

from directalign.config import FlowGRPOConfig, SRPOConfig
from directalign.config.load import RECIPES
from directalign.methods.objective_math import absolute_relative
from directalign.models import load_model
from experiments import (
    anchor,
    control_phrases,
    ddpm,
    defences,
    early_stopping,
    inversion,
    reward_finetuning,
    soft_prompts,
    suggested_phrases,
    timesteps,
)
from experiments.runner import Arm, num_steps_of, settings_of, sized

OUT = Path("some folder")


def every_arm() -> Iterator[tuple[str, Arm]]:
    for case in anchor.CASES:
        yield "anchor", anchor.lengthened(case, False, RECIPES)
    for form in early_stopping.FORMS:
        for rule in early_stopping.RULES:
            yield "early_stopping", early_stopping.arm_of(form, rule, False, RECIPES)
    for each in soft_prompts.VARIANTS:
        for form in soft_prompts.FORMS:
            yield "soft_prompts", each.arm(form, 1, OUT)
    for form in timesteps.FORMS:
        yield from (("timesteps", arm) for arm in timesteps.arms_of_form(form))
    yield from (("defences", arm) for arm in defences.arms(OUT))
    yield from (("reward_finetuning", arm) for arm in reward_finetuning.arms(OUT))
    yield from (("inversion", arm) for arm in inversion.ARMS)
    yield from (("control_phrases", phrases.arm) for phrases in control_phrases.PHRASES)


ARMS = [pytest.param(*each, id=f"{each[0]}-{each[1].name}") for each in every_arm()]


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_an_arm_is_a_sound_run(study: str, arm: Arm) -> None:
    run = settings_of(sized([arm], False)[0], 3, RECIPES)
    if study != "soft_prompts":  # its tokens are fitted first
        check_method(run)
    check_steps(run)
    assert run.seed == 3 and run.train.save_every == 0


def test_names_of_arms_are_unique() -> None:
    names = [(study, arm.name) for study, arm in every_arm()]
    assert len(set(names)) == len(names)


def test_anchored_cases_are_anchored_and_run_their_reach() -> None:
    for case in anchor.CASES:
        run = settings_of(anchor.lengthened(case, False, RECIPES), 0, RECIPES)
        assert run.train.num_steps == case.reach * num_steps_of(case.arm.recipe, RECIPES)
        rival = case.arm.name in anchor.RIVALS or case.arm.name.endswith("_relative")
        assert (run.method.form == "anchored") != rival and run.method.control_phrases.negative


def test_defences_differ_in_the_projection_or_the_mixture() -> None:
    for arm in defences.arms(OUT):
        run, source = settings_of(arm, 0, RECIPES), arm.name.partition("_")[2]
        wanted = f"some folder/directions/{source}.safetensors" if source else None
        assert getattr(run.reward, "project_out", None) == wanted and set(run.evaluate.rewards) == {
            "second",
            "raw",
        }
    assert defences.LEARNED_FROM not in defences.SEEDS


def test_arms_of_a_pair_differ_in_one_thing_alone() -> None:
    rewards = {arm.name: settings_of(arm, 0, RECIPES) for arm in reward_finetuning.arms(OUT)}
    for form in ("relative", "anchored", "made_up"):
        tuned, original = rewards[f"{form}_tuned"], rewards[f"{form}_original"]
        assert (
            tuned != original and tuned.model_copy(update={"reward": original.reward}) == original
        )
    tokens = {
        each.name: settings_of(each.arm("relative", 1, OUT), 1, RECIPES)
        for each in soft_prompts.VARIANTS
    }
    phrases = tokens["words"].method.control_phrases
    same = {
        name: run.model_copy(
            update={"method": run.method.model_copy(update={"control_phrases": phrases})}
        )
        for name, run in tokens.items()
    }
    assert same["tokens"] == same["style_tokens"] == tokens["words"] != tokens["tokens"]
    steps = {arm.name: settings_of(arm, 0, RECIPES).method for arm in inversion.ARMS}
    assert steps["denoise_only"] == steps["official"].model_copy(update={"branches": "denoise"})
    assert (
        settings_of(control_phrases.PHRASES[0].arm, 0, RECIPES).method
        == settings_of(Arm("", "", "world_srpo"), 0, RECIPES).method
    )


def test_the_suggested_ramp_changes_nothing_but_the_ramps() -> None:
    official, suggested, anchored = (
        settings_of(arm, 0, RECIPES) for arm in suggested_phrases.arms(RECIPES)
    )
    ramps = {"denoise", "inversion"}
    assert official.model_dump(exclude={"method"}) == suggested.model_dump(exclude={"method"})
    assert official.method.model_dump(exclude=ramps) == suggested.method.model_dump(exclude=ramps)
    branch = suggested.method.denoise
    low, high = (
        absolute_relative(getattr(branch.k_pos, end), getattr(branch.k_neg, end))
        for end in ("low_noise", "high_noise")
    )
    assert low == pytest.approx((0, 1)) and high[1] == pytest.approx(1) and 0.4 < high[0] < 0.9
    assert anchored.method.form == "anchored" and 0.02 <= anchored.method.anchor.tolerance <= 0.05


@pytest.mark.parametrize("quick", [False, True])
def test_arms_on_stable_diffusion(tmp_path: Path, quick: bool) -> None:
    groups = ddpm.groups(tmp_path, quick)
    runs = {
        arm.name: settings_of(arm, 1, RECIPES)
        for group in groups
        for arm in sized([arm for _, arm in group.parts], quick)
    }
    assert {f"epsilon-{name}" for name in ddpm.METHODS} <= runs.keys() and runs[
        "v-srpo"
    ].model.path == "world:sd_v"
    assert len(runs) == sum(len(group.parts) for group in groups) and all(
        run.model.architecture == "sd" for run in runs.values()
    )
    grpo = runs["epsilon-flow_grpo"]
    assert isinstance(grpo.method, FlowGRPOConfig) and grpo.method.trained_steps is not None
    assert grpo.method.trained_steps < grpo.rollout.num_inference_steps
    official = runs["epsilon-srpo_official"].method
    assert isinstance(official, SRPOConfig) and (official.form, official.branches) == (
        "relative",
        "both",
    )
    given = runs["grid-0"].model
    spaced, leading = (
        load_model(given.model_copy(update={"path": path}), "cpu").sigmas(10, 64, 64)
        for path in (given.path, "world:sd")
    )
    assert len(spaced) == len(leading) == 11 and spaced[0] > leading[0]
