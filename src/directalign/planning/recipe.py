"""What is wrong with a recipe by itself: a reward that its method cannot use, an empty window, steps that never come."""

from __future__ import annotations

from .. import config, hub
from ..core import moves
from ..families.loading import FAMILIES
from ..methods import drtune, flow_grpo, leapalign
from ..rewards import clip_like, load_reward, require_gradient
from ..types import DirectAlignError
from ..world.assets import resolve


def check_reward(run: config.Run) -> None:
    """The reward has what its kind needs, and a text side where the form compares phrasings."""
    reward, form = run.reward, run.method.form
    if reward.name == "pixels" and form != "absolute":
        raise DirectAlignError(f"reward.name: pixels ignores prompts, and method.form: {form} compares two; set method.form: absolute or reward.name: clip")
    if reward.name == "pixels" and reward.statistic is None:
        raise DirectAlignError("reward.statistic: missing; reward.name: pixels needs brightness, saturation or redness")
    if reward.name == "clip":
        if reward.path is None:
            raise DirectAlignError("reward.path: missing; reward.name: clip needs a CLIPModel folder, or world:reward")
        if not hub.is_hub_id(reward.path):
            _check_clip(reward.path, reward.processor)
    if reward.name == "python":
        black_box = load_reward(reward)
        if not isinstance(run.method, config.FlowGRPO):
            require_gradient(black_box, run.method.name)


def _check_clip(path: str, processor: str | None) -> None:
    """A folder holds a CLIPModel with its tokenizer and image settings, or another one brings those."""
    if not resolve(path).is_dir():
        raise DirectAlignError(f"reward.path: {path}: no such folder; give a CLIPModel folder, a hub id (owner/name), or world:reward")
    clip_like.check_folder(resolve(path))
    if processor is None or not hub.is_hub_id(processor):
        clip_like.check_reader(*((resolve(path), "reward.path") if processor is None else (resolve(processor), "reward.processor")))


def check_method(run: config.Run) -> None:
    """Control phrases say something, and what the method draws from exists."""
    for side in ("positive", "negative"):
        if any(not phrase.strip() for phrase in getattr(run.method.words, side)):
            raise DirectAlignError(f"method.words.{side}: holds a blank phrase; remove it")
    if isinstance(run.method, config.SRPO):
        check_moves(run.method.moves)
    if isinstance(run.method, config.DRTune):
        drtune.check_steps(run.method, run.rollout)
    if isinstance(run.method, config.LeapAlign):
        leapalign.check_steps(run.rollout)
    if isinstance(run.method, config.FlowGRPO):
        flow_grpo.check_steps(run.method, run.rollout)
        flow_grpo.check_sde(run.method, FAMILIES[run.model.family].path)


def check_moves(chosen: config.Moves) -> None:
    """The window of noise levels lies below pure noise and is not empty."""
    if isinstance(chosen, config.WindowMoves):
        moves.WindowGrid(chosen.schedule_steps, chosen.schedule_shift, chosen.first, chosen.last, chosen.points, chosen.groundtruth_ratio)
        if chosen.first == 0:
            raise DirectAlignError("method.moves.first: 0 starts at pure noise, where nothing of the image is left to recover; give 1 or more")
    elif not chosen.sigma_low < chosen.sigma_high:
        raise DirectAlignError(f"method.moves: sigma_low {chosen.sigma_low} is not below sigma_high {chosen.sigma_high}; swap or change them")


def unread(method: config.Method) -> list[str]:
    """A warning for what the recipe says and its form does not read; a preset may have brought it, so it is no error."""
    doubts = []
    blank = config.Branch()
    if isinstance(method, config.SRPO) and method.form != "relative" and (method.denoise, method.inversion) != (blank, blank):
        doubts.append(f"method.denoise, method.inversion: form {method.form} reads no ramps; they have no effect")
    if method.form == "absolute" and method.words.negative:
        doubts.append("method.words.negative: form absolute asks about the positive phrases alone; they have no effect")
    return doubts


def check_steps(run: config.Run) -> None:
    """Whatever lasts for the first updates ends before the run is over, and the optimiser's averages are averages."""
    num_steps = run.train.num_steps
    until = {"train.warmup_steps": run.train.warmup_steps, "data.offline_steps": run.data.offline_steps or 0}
    if run.method.form == "anchored":
        until["method.anchor.reference_updates"] = run.method.anchor.reference_updates
    for key, value in until.items():
        if value > num_steps:
            raise DirectAlignError(f"{key}: {value} is more than train.num_steps: {num_steps}; lower it")
    if not all(0 <= beta < 1 for beta in run.train.betas):
        raise DirectAlignError(f"train.betas: {list(run.train.betas)}; both are at least 0 and below 1, [0.9, 0.999] is usual")
