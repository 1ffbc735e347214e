"""What can be known to go wrong before any weight is loaded: `directalign check`, and the first act of `directalign train`.

Each check raises one `DirectAlignError` naming the key and the remedy; what is merely doubtful becomes a warning.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import config
from .core import moves
from .families.loading import FAMILIES
from .families.parts import read_json
from .images import scan_images
from .memory import DENOISER, Estimate, estimate, image_size, size_multiple
from .methods import drtune, flow_grpo, leapalign
from .prompts import read_prompts
from .rewards import load_reward, require_gradient
from .types import DirectAlignError
from .world.assets import resolve

PIPELINES = {"flux": "FluxPipeline", "sd": "StableDiffusionPipeline"}


@dataclass(frozen=True)
class Plan:
    """A run found sound: what it will use (name, finding), what is doubtful, and its memory."""

    findings: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    memory: Estimate


def plan(run: config.Run, out: Path) -> Plan:
    """Check a run and its surroundings. Raises DirectAlignError at the first mistake; loads no weight and writes nothing."""
    check_reward(run)
    check_method(run)
    check_steps(run)
    folder = resolve(run.model.path)
    check_model(run, folder)
    data, warnings = check_data(run)
    memory = estimate(run)
    height, width = image_size(run, folder)
    disk = check_disk(run, out, memory.trained)
    findings = [("model", f"{run.model.path}, {run.model.tune}, {height}x{width}"), *data, ("output", f"{out}, {disk}")]
    return Plan(tuple(findings), (*unread(run.method), *warnings, *check_memory(memory)), memory)


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
        if not resolve(reward.path).is_dir():
            raise DirectAlignError(f"reward.path: {reward.path}: no such folder; give a CLIPModel folder, or world:reward")
    if reward.name == "python":
        black_box = load_reward(reward)
        if not isinstance(run.method, config.FlowGRPO):
            require_gradient(black_box, run.method.name)


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


def check_model(run: config.Run, folder: Path) -> None:
    """A diffusers folder of the right architecture, at a size and with a guidance that it can take."""
    if not folder.is_dir():
        raise DirectAlignError(f"model.path: {run.model.path}: no such folder; give a diffusers folder, or world:flux, world:sd, world:sd_v")
    pipeline, wanted = read_json(folder / "model_index.json").get("_class_name"), PIPELINES[run.model.family]
    if pipeline != wanted:
        raise DirectAlignError(f"model.path: {folder} holds a {pipeline}, and model.family: {run.model.family} needs a {wanted}; change one of the two")
    multiple, size = size_multiple(run, folder), image_size(run, folder)
    if size[0] % multiple or size[1] % multiple:
        raise DirectAlignError(f"rollout.height, rollout.width: {size[0]}x{size[1]} does not fit; both are multiples of {multiple} for this model")
    embeds = bool(read_json(folder / DENOISER[run.model.family] / "config.json").get("guidance_embeds"))
    _check_guidance("rollout", run.rollout.embedded_guidance, embeds)
    if isinstance(run.method, config.SRPO):
        _check_guidance("method", run.method.embedded_guidance, embeds)


def _check_guidance(section: str, guidance: float | None, embeds: bool) -> None:
    key = f"{section}.embedded_guidance"
    if embeds and guidance is None:
        raise DirectAlignError(f"{key}: missing; this model takes its guidance as an input, 3.5 is usual")
    if not embeds and guidance is not None:
        raise DirectAlignError(f"{key}: {guidance}, and this model has no input for it; leave it out (set it to null over a preset), or use cfg_scale")


def check_data(run: config.Run) -> tuple[list[tuple[str, str]], list[str]]:
    """Read the prompt list and decode the image set: what was found, and a warning for images that will be skipped."""
    findings, warnings = [], []
    if run.data.prompts is not None:
        findings.append(("prompts", f"{len(read_prompts(run.data.prompts)):,} from {run.data.prompts}"))
    if run.data.images is not None:
        images = scan_images(run.data.images, run.data.strict)
        findings.append(("images", f"{len(images):,} from {run.data.images}, {len(images.skipped)} skipped"))
        if images.skipped:
            warnings.append(f"data.images: {len(images.skipped)} of {len(images) + len(images.skipped)} images are skipped: {'; '.join(images.skipped[:3])}")
    return findings, warnings


def check_disk(run: config.Run, out: Path, trained: int) -> str:
    """The output folder can be made, and its disk holds the checkpoints: weights, AdamW's averages, the EMA, all float32."""
    nearest = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise DirectAlignError(f"--out {out}: {nearest} is not a folder that you may write to; name another one")
    per_number = 4 + 8 + (4 if run.train.ema_decay is not None else 0)
    needed = trained * per_number * (run.train.keep_checkpoints + 1) + 4 * trained
    free = shutil.disk_usage(nearest).free
    if needed > free:
        raise DirectAlignError(f"--out {out}: checkpoints need {readable(needed)}, and {readable(free)} are free; make room, or lower train.keep_checkpoints")
    return f"checkpoints up to {readable(needed)}, {readable(free)} free"


def check_memory(memory: Estimate) -> list[str]:
    """An error if weights and optimiser alone do not fit, a warning if they do but the allowance for activations does not."""
    remedy = "set model.tune: lora, model.dtype: bfloat16, model.gradient_checkpointing: true or a smaller data.batch_size"
    if memory.counted > memory.capacity:
        raise DirectAlignError(f"model: needs {readable(memory.counted)} before any activation, and {memory.device} has {readable(memory.capacity)}; {remedy}")
    if memory.total > memory.capacity:
        return [f"memory: about {readable(memory.total)}, and {memory.device} has {readable(memory.capacity)}; {remedy}"]
    return []


def readable(size: int) -> str:
    """Bytes as people read them: 1.5 MB, 23.8 GB (powers of 1000)."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
