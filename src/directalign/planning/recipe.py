"""What is wrong with a recipe by itself: a reward that its method cannot use, an empty window, steps that never come."""

from __future__ import annotations

from .. import config, rewards
from ..diffusion import noise_levels
from ..evaluation import scores
from ..io import hub
from ..methods import drtune, flow_grpo, leapalign, objective
from ..models import model_class
from ..rewards import mixture
from ..rewards.soft_prompts import check_phrases, is_tokens_file
from ..toyworld.assets import resolve
from ..types import DirectAlignError

BLACK_BOXES = ("python", "remote")
"""Rewards without a gradient (python unless it says otherwise)."""
TOKEN_READERS = (config.ClipConfig, config.SiglipConfig, config.ImageRewardConfig)
"""Rewards that learned control tokens can be put into."""


def check_reward(run: config.RunConfig) -> None:
    """Every reward has what its kind needs, a text side where the form compares phrasings, and a gradient where the method wants one."""
    rewards.check_reward(run.reward)
    for key, reward, asked in _asked(run):
        _check_asked(key, reward, asked)
        _check_gradient(key, reward, run.method)
    if isinstance(run.reward, config.MixtureConfig) and isinstance(
        run.method, config.FlowGRPOConfig
    ):
        objective.require_no_normalization(run.reward, run.method.name)
    for label, held_out in run.evaluate.rewards.items():
        rewards.check_reward(held_out, scores.key_of(label))
    scores.check_labels(list(run.evaluate.rewards))


def _asked(
    run: config.RunConfig,
) -> list[tuple[str, config.SingleRewardConfig, config.ObjectiveConfig]]:
    """Every single reward that is trained on: where it stands, and what it is asked."""
    if not isinstance(run.reward, config.MixtureConfig):
        return [("reward", run.reward, run.method)]
    members = enumerate(run.reward.members)
    return [
        (mixture.key_of(place), member.reward, objective.member_settings(place, member, run.method))
        for place, member in members
    ]


def _check_asked(
    key: str, reward: config.SingleRewardConfig, asked: config.ObjectiveConfig
) -> None:
    if not rewards.reward_class(reward.name).reads_prompt and asked.form != "absolute":
        remedy = (
            "set method.form: absolute"
            if key == "reward"
            else f"set {key.removesuffix('.reward')}.form: absolute"
        )
        raise DirectAlignError(
            f"{key}.name: {reward.name} ignores prompts, and method.form: {asked.form} compares two; {remedy} or {key}.name: clip"
        )


def _check_gradient(
    key: str, reward: config.SingleRewardConfig, method: config.MethodConfig
) -> None:
    black_box = reward.name in BLACK_BOXES and not getattr(reward, "differentiable", False)
    if black_box and not isinstance(method, config.FlowGRPOConfig):
        raise DirectAlignError(
            objective.NO_GRADIENT.format(key=key, name=reward.name, method=method.name)
        )


def check_method(run: config.RunConfig) -> None:
    """Control phrases say something, and what the method draws from exists."""
    members = run.reward.members if isinstance(run.reward, config.MixtureConfig) else []
    _check_words(
        "method.control_phrases",
        run.method.control_phrases,
        None if isinstance(run.reward, config.MixtureConfig) else run.reward,
    )
    for place, member in enumerate(members):
        _check_words(
            f"reward.members.{place}.control_phrases",
            member.control_phrases or config.ControlPhrases(),
            member.reward,
        )
    if isinstance(run.method, config.SRPOConfig):
        check_moves(run.method.noise_levels)
    if isinstance(run.method, config.DRTuneConfig):
        drtune.check_steps(run.method, run.rollout)
    if isinstance(run.method, config.LeapAlignConfig):
        leapalign.check_steps(run.rollout)
    if isinstance(run.method, config.FlowGRPOConfig):
        flow_grpo.check_steps(run.method, run.rollout)
        flow_grpo.check_sde(run.method, model_class(run.model.architecture).path)


def _check_words(
    key: str, words: config.ControlPhrases, reward: config.SingleRewardConfig | None
) -> None:
    """No phrase is blank, and learned tokens fit the reward that reads them; several rewards (None) have no tokens in common."""
    for side, phrases in (("positive", words.positive), ("negative", words.negative)):
        if any(not phrase.strip() for phrase in phrases):
            raise DirectAlignError(f"{key}.{side}: holds a blank phrase; remove it")
        learned = [phrase for phrase in phrases if is_tokens_file(phrase)]
        if learned and not isinstance(reward, TOKEN_READERS):
            remedy = (
                "put it into the words of the member it was fitted to"
                if reward is None
                else f"{reward.name} reads words alone: give words"
            )
            raise DirectAlignError(
                f"{key}.{side}: {learned[0]} is a file of learned tokens, fitted to one reward; {remedy}"
            )
        if isinstance(reward, TOKEN_READERS):
            folder = None if hub.is_hub_id(reward.path) else resolve(reward.path)
            check_phrases(learned, reward.name, folder, f"{key}.{side}")


def check_moves(chosen: config.NoiseLevels) -> None:
    """The window of noise levels lies below pure noise and is not empty."""
    if isinstance(chosen, config.GridNoiseLevels):
        noise_levels.GridSampler(
            chosen.schedule_steps,
            chosen.schedule_shift,
            chosen.first,
            chosen.last,
            chosen.points,
            chosen.groundtruth_ratio,
        )
        if chosen.first == 0:
            raise DirectAlignError(
                "method.noise_levels.first: 0 starts at pure noise, where nothing of the image is left to recover; give 1 or more"
            )
    elif not chosen.sigma_low < chosen.sigma_high:
        raise DirectAlignError(
            f"method.noise_levels: sigma_low {chosen.sigma_low} is not below sigma_high {chosen.sigma_high}; swap or change them"
        )


def unread(method: config.MethodConfig) -> list[str]:
    """A warning for what the recipe says and its form does not read; a preset may have brought it, so it is no error."""
    doubts = []
    blank = config.BranchConfig()
    if (
        isinstance(method, config.SRPOConfig)
        and method.form != "relative"
        and (method.denoise, method.inversion) != (blank, blank)
    ):
        doubts.append(
            f"method.denoise, method.inversion: form {method.form} reads no ramps; they have no effect"
        )
    if method.form == "absolute" and method.control_phrases.negative:
        doubts.append(
            "method.control_phrases.negative: form absolute asks about the positive phrases alone; they have no effect"
        )
    return doubts


def check_steps(run: config.RunConfig) -> None:
    """Whatever lasts for the first updates ends before the run is over, and the optimiser's averages are averages."""
    num_steps = run.train.num_steps
    until = {
        "train.warmup_steps": run.train.warmup_steps,
        "data.offline_steps": run.data.offline_steps or 0,
    }
    if run.method.form == "anchored":
        until["method.anchor.reference_updates"] = run.method.anchor.reference_updates
    for key, value in until.items():
        if value > num_steps:
            raise DirectAlignError(
                f"{key}: {value} is more than train.num_steps: {num_steps}; lower it"
            )
    if not all(0 <= beta < 1 for beta in run.train.betas):
        raise DirectAlignError(
            f"train.betas: {list(run.train.betas)}; both are at least 0 and below 1, [0.9, 0.999] is usual"
        )
