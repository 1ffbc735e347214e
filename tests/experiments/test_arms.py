"""Every arm of every study is a valid run that differs from the others in what its name says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from directalign.models import load_model
from directalign.preflight.checks import check_method, check_steps
from experiments import (
    anchor,
    control_phrases,
    ddpm,
    defences,
    early_stopping,
    frontier,
    inversion,
    reward_finetuning,
    soft_prompts,
    timesteps,
)
from experiments.runner import Arm, settings_of, sized

OUT = Path("some folder")


def every_arm() -> Iterator[tuple[str, Arm]]:
    for case in anchor.CASES:
        yield "anchor", anchor.lengthened(case, False)
    for form in early_stopping.FORMS:
        for rule in early_stopping.RULES:
            yield "early_stopping", early_stopping.arm_of(form, rule, False)
    for each in soft_prompts.VARIANTS:
        for form in soft_prompts.FORMS:
            yield "soft_prompts", each.arm(form, 1, OUT)
    for form in timesteps.FORMS:
        yield from (("timesteps", arm) for arm in timesteps.arms_of_form(form))
    yield from (("defences", arm) for arm in defences.arms(OUT))
    yield from (("reward_finetuning", arm) for arm in reward_finetuning.arms(OUT))
    yield from (("inversion", arm) for arm in inversion.ARMS)
    yield from (("frontier", arm) for arm in [*frontier.ARMS, *frontier.LEVERS, *frontier.RIVALS])
    for name in frontier.OFF_POLICY:
        yield "frontier", frontier.off_policy(name, OUT)
    yield from (("control_phrases", phrases.arm) for phrases in control_phrases.PHRASES)


def test_every_arm_is_a_valid_run_with_its_own_name():
    arms = list(every_arm())
    assert len({(study, arm.name) for study, arm in arms}) == len(arms)
    for study, arm in arms:
        run = settings_of(sized([arm], False)[0], 3)
        if study != "soft_prompts":  # their tokens are fitted first
            check_method(run)
        check_steps(run)
        assert run.seed == 3 and run.train.save_every == 0, (study, arm.name)


def test_arms_of_a_pair_differ_in_one_thing_alone():
    rewards = {arm.name: settings_of(arm, 0) for arm in reward_finetuning.arms(OUT)}
    for form in ("relative", "anchored", "made_up"):
        tuned, original = rewards[f"{form}_tuned"], rewards[f"{form}_original"]
        assert tuned != original
        assert tuned.model_copy(update={"reward": original.reward}) == original
    same, phrases = {}, None
    for each in soft_prompts.VARIANTS:
        run = settings_of(each.arm("relative", 1, OUT), 1)
        phrases = phrases or run.method.control_phrases  # those of the words come first
        method = run.method.model_copy(update={"control_phrases": phrases})
        same[each.name] = run.model_copy(update={"method": method})
        assert (run == same[each.name]) == (each.name == "words")
    assert same["tokens"] == same["style_tokens"] == same["words"]
    steps = {arm.name: settings_of(arm, 0).method for arm in inversion.ARMS}
    assert steps["denoise_only"] == steps["official"].model_copy(update={"branches": "denoise"})
    recipe = settings_of(Arm("", "", "world_srpo"), 0).method
    assert settings_of(control_phrases.PHRASES[0].arm, 0).method == recipe


@pytest.mark.parametrize("quick", [False, True])
def test_arms_on_stable_diffusion(tmp_path, quick):
    arms = [arm for group in ddpm.groups(tmp_path, quick) for _, arm in group.parts]
    runs = {arm.name: settings_of(arm, 1) for arm in sized(arms, quick)}
    assert len(runs) == len(arms) and {f"epsilon-{name}" for name in ddpm.METHODS} <= runs.keys()
    assert all(run.model.architecture == "sd" for run in runs.values())
    assert runs["v-srpo"].model.path == "world:sd_v"
    grpo, official = runs["epsilon-flow_grpo"], runs["epsilon-srpo_official"].method
    assert 0 < grpo.method.trained_steps < grpo.rollout.num_inference_steps
    assert (official.form, official.branches) == ("relative", "both")
    given, grids = runs["grid-0"].model, []
    for path in (given.path, "world:sd"):
        model = load_model(given.model_copy(update={"path": path}), "cpu")
        grids.append(model.sigmas(10, 64, 64))
    assert len(grids[0]) == len(grids[1]) == 11 and grids[0][0] > grids[1][0]
