"""Checks of a run before any weight is loaded, for `directalign check` and `directalign train`.

Each check raises one `DirectAlignError` that names the key, the value and the remedy; what may be
intended is a warning. Order: the recipe itself, then models, data, disk and trackers, then memory.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import config, rewards
from ..data.buckets import check_buckets, fill_buckets
from ..data.hf_datasets import is_address, parse
from ..data.prompts import read_prompts
from ..evaluation import adherence
from ..evaluation.eval_prompts import (
    CONTROL_KEY,
    measured_prompts,
    measured_source,
    read_control_prompts,
)
from ..evaluation.scores import check_labels, held_out_key, user_metrics
from ..io import hub
from ..methods import method_class, objective
from ..models import model_class
from ..models.attention import check_attention, check_inputs, set_attention
from ..models.block_cache import check_block_cache
from ..models.checkpoint_source import Source, open_source, separate_parts
from ..models.components import check_parts, load_parts
from ..models.lora import lora_file
from ..models.quantization import check_quantization
from ..models.rollout_lora import RolloutLoRA
from ..models.weight_files import read_json
from ..rewards import mixture
from ..rewards.soft_prompts import check_phrases, is_tokens_file
from ..toyworld.assets import resolve
from ..toyworld.judges import foreign_prompt
from ..toyworld.worlds import WORLDS
from ..training import trackers
from ..training.data import accumulation, scanned
from ..training.distributed import check_cached_ranks
from ..types import DirectAlignError
from .cost import Cost, cost_of
from .early_stopping import check_early_stopping, early_stopping_warnings
from .files import ModelFiles, files_of
from .guidance import check_guidance, guidance_warnings
from .lower_memory import suggestions
from .memory import Estimate, Place, binary, estimate, image_size, this_machine
from .meta_models import (
    MetaModel,
    ModelFolder,
    encoder_cuts,
    meta_model,
    model_folder,
    nearest_size,
)

Findings = list[tuple[str, str]]
"""(name, finding) in the order of display."""


@dataclass(frozen=True)
class Plan:
    """Result of the checks. `memory` may exceed that of the device."""

    findings: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    memory: Estimate
    files: tuple[ModelFiles, ...] = ()
    cost: Cost | None = None
    """None if nothing could be traced."""
    update_flops: float | None = None
    """FLOPs of an update on one rank; None if that is unknown, or not alike for all updates."""


def survey(run: config.RunConfig, out: Path, place: Place, online: bool = False) -> Plan:
    """Check a run and estimate its memory at `place`. Loads no weight and writes nothing in `out`.

    If `online`, configs of models on the hub are downloaded and datasets there are read. Raises
    DirectAlignError at the first mistake; too little memory is not an error.
    """
    check_reward(run)
    check_method(run)
    check_steps(run)
    check_adapters(run, out)
    used, tracker_warnings = check_trackers(run, place.is_here)
    user_metrics(run.evaluate.metrics)
    rules = check_early_stopping(run)
    fetch(run, online)
    about, machine_warnings = check_model_here(run, place, online)
    data, data_warnings, prompts = check_data(run, place.ranks, online)
    measured, measured_warnings = check_measured_prompts(run, online)
    data += measured + check_control_prompts(run, online) + check_adherence(run, online)
    memory = estimate(run, place)
    disk, disk_warnings = check_disk(run, out, memory)
    warnings = (
        *unused_settings(run),
        *held_out_warnings(run),
        *early_stopping_warnings(run),
        *tracker_warnings,
        *machine_warnings,
        *data_warnings,
        *measured_warnings,
        *cut_prompts(run, place, prompts, online),
        *memory.warnings,
        *disk_warnings,
    )
    findings = [("model", about), *data, *rules, *used, ("output", f"{out}, {disk}")]
    files = tuple[ModelFiles, ...]()
    cost = None if memory.work is None else cost_of(run, memory.work, place.group)
    with suppress(Exception):  # any error of user code; `estimate` names it
        model = meta_model(run.model, place.is_gpu)
        files = tuple(files_of(run, model.folder, model, memory))
    varies = run.rollout.sizes or run.data.buckets or run.data.offline_steps
    flops = None if cost is None or varies else cost.update
    return Plan(tuple(findings), warnings, memory, files, cost, flops)


def check_model_here(run: config.RunConfig, place: Place, online: bool) -> tuple[str, list[str]]:
    """The model in words, and warnings. A class that fails on fake tensors is not checked.

    Raises: DirectAlignError for a size or guidance that does not fit it, or what is lacking here.
    """
    about, warnings = f"{run.model.path}, {run.model.tune}", list[str]()
    try:
        folder = model_folder(run.model)
        check_checkpoint(run.model, folder)
        model = meta_model(run.model, place.is_gpu)
    except DirectAlignError:
        raise
    except Exception:  # any error of user code; `estimate` names it
        return about, warnings
    check_model(run, model)
    check_cached_ranks(run, place.group)
    warnings = guidance_warnings(run, model.model)
    if place.is_here:
        warnings += check_machine(run.model, model, online)
    height, width = image_size(run, model)
    state = f", {folder.state}" if folder.state else ""
    return f"{run.model.path}{state}, {run.model.tune}, {height}x{width}", warnings


def plan(run: config.RunConfig, out: Path) -> Plan:
    """`survey` of a run that is about to start on this machine.

    Raises DirectAlignError for a mistake, or if weights and optimizer exceed the memory; if
    only the activations do, that is a warning.
    """
    place = this_machine()
    found = survey(run, out, place, online=True)
    if found.memory.fits:
        return found
    has = f"{place.name} has {binary(place.capacity)}"
    if found.memory.counted > place.capacity:
        needed = f"model: needs {binary(found.memory.counted)} before any activation, and {has}"
        best = next(iter(suggestions(run, place)), None)
        remedy = "" if best is None else f"set {best.change} ({binary(best.estimate.peak)}), "
        raise DirectAlignError(f"{needed}; {remedy}see directalign check")
    warning = f"memory: about {binary(found.memory.peak)}, and {has}; see directalign check"
    return replace(found, warnings=(*found.warnings, warning))


# The recipe itself


def check_reward(run: config.RunConfig) -> None:
    """Every reward has its files, and prompts and gradient as the method needs them."""
    rewards.check_reward(run.reward)
    if isinstance(run.reward, config.MixtureConfig):
        if not run.method.DIFFERENTIATES_REWARD:
            objective.require_no_normalization(run.reward, run.method.name)
        for index, member in enumerate(run.reward.members):
            form = objective.member_settings(index, member, run.method).form
            _check_fits_method(mixture.key_of(index), member.reward, form, run.method)
            _check_sources(mixture.key_of(index), member.reward, run.data)
    else:
        _check_fits_method("reward", run.reward, run.method.form, run.method)
        _check_sources("reward", run.reward, run.data)
    for label, held_out in run.evaluate.rewards.items():
        rewards.check_reward(held_out, held_out_key(label))
        _check_sources(held_out_key(label), held_out, run.data)
    check_labels(list(run.evaluate.rewards))


def _check_fits_method(
    key: str, reward: config.SingleRewardConfig, form: str, method: config.MethodConfig
) -> None:
    kind = rewards.reward_class(reward.name)
    if not kind.reads_prompt and form != "absolute":
        place = "method" if key == "reward" else key.removesuffix(".reward")
        raise DirectAlignError(
            f"{key}.name: {reward.name} ignores control phrases, and method.form: {form} "
            f"compares two; set {place}.form: absolute or {key}.name: clip"
        )
    differentiable = getattr(reward, "differentiable", kind.differentiable)
    if not differentiable and method.DIFFERENTIATES_REWARD:
        names = {"key": key, "name": reward.name, "method": method.name}
        raise DirectAlignError(objective.NO_GRADIENT.format(**names))


def _check_sources(key: str, reward: config.SingleRewardConfig, data: config.DataConfig) -> None:
    if data.edits is None and rewards.reward_class(reward.name).reads_sources:
        raise DirectAlignError(
            f"{key}.name: {reward.name} compares images with their sources: give data.edits, or "
            "another reward"
        )


def check_method(run: config.RunConfig) -> None:
    """Control phrases and noise levels of the method, and the cache of its rollouts."""
    mixed = isinstance(run.reward, config.MixtureConfig)
    words, key = run.method.control_phrases, "control_phrases"
    _check_phrases(f"method.{key}", words, None if mixed else run.reward)
    for index, member in enumerate(run.reward.members if mixed else ()):
        own = member.control_phrases or config.ControlPhrases()
        _check_phrases(f"reward.members.{index}.{key}", own, member.reward)
    if run.rollout.cache is not None:
        name = run.model.architecture
        check_block_cache(model_class(name), name, run.rollout.cache)
    check = getattr(method_class(run.method.name), "check", None)
    if check is not None:
        check(run.method, run.rollout, model_class(run.model.architecture).path)


def _check_phrases(
    key: str, words: config.ControlPhrases, reward: config.SingleRewardConfig | None
) -> None:
    """No blank phrase; learned tokens fit the reward. Several rewards (None) share no tokens."""
    supported = reward is not None and rewards.reward_class(reward.name).supports_soft_prompts
    for side, phrases in (("positive", words.positive), ("negative", words.negative)):
        if any(not phrase.strip() for phrase in phrases):
            raise DirectAlignError(f"{key}.{side}: contains a blank phrase; remove it")
        learned = [phrase for phrase in phrases if is_tokens_file(phrase)]
        if learned and not supported:
            remedy = "set it as control_phrases of the member that it was fitted to"
            if reward is not None:
                remedy = f"{reward.name} reads text only: give phrases"
            raise DirectAlignError(
                f"{key}.{side}: {learned[0]} is a file of learned tokens, fitted to one reward; "
                f"{remedy}"
            )
        if learned and reward is not None:
            folder = None if hub.is_hub_id(reward.path) else resolve(reward.path)
            check_phrases(learned, reward.name, folder, f"{key}.{side}")


def unused_settings(run: config.RunConfig) -> list[str]:
    """Warnings for settings that have no effect; a preset or another recipe may set them."""
    method, form, unused = run.method, run.method.form, list[str]()
    if run.model.tune == "full" and run.model.lora != config.LoRAConfig():
        unused.append("model.lora: tune is full")
    if getattr(method, "kl_to", "base") != "base" and not method.kl_beta:
        unused.append("method.kl_to: kl_beta is 0")
    cheaper = {name: getattr(run.rollout, name) for name in ("training_steps", "lora", "cache")}
    cheaper["reuse"] = run.rollout.reuse > 1
    data = run.data
    samples = not data.edit_targets or data.offline_steps is not None
    if data.prompts is None and not (data.edits is not None and samples):
        key = "images" if data.edits is None else "edit_targets"
        why = f"data.{key} are trained on, without rollouts"
        unused += [f"rollout.{key}: {why}" for key, is_set in cheaper.items() if is_set]
    branches = (getattr(method, name, None) for name in ("denoise", "inversion"))
    sees = rewards.reward_class(run.reward.name).sees
    if sees == "latents" and method.image_mapping != "clamp":
        unused.append(f"method.image_mapping: {run.reward.name} sees no image")
    if form != "relative" and any(each not in (None, config.BranchConfig()) for each in branches):
        unused.append(f"method.denoise, method.inversion: form {form} has no ramps")
    negative = {*method.control_phrases.negative} - {*method.asked_phrases()}
    if form == "absolute" and negative:
        unused.append("method.control_phrases.negative: form absolute scores positive phrases only")
    return [f"{each}; they have no effect" for each in unused]


def check_adapters(run: config.RunConfig, out: Path) -> None:
    """The LoRA that a new run starts from must be there, and that of the rollouts."""
    begun = (out / "run.yaml").is_file()
    if run.model.tune == "lora" and run.model.lora.init is not None and not begun:
        lora_file(run.model.lora.init, "model.lora.init")
    if run.rollout.lora is not None:
        lora_file(run.rollout.lora, "rollout.lora")


def check_steps(run: config.RunConfig) -> None:
    """Settings for the first updates must end within the run; betas lie in [0, 1)."""
    num_steps = run.train.num_steps
    until = {
        "train.warmup_steps": run.train.warmup_steps,
        "data.offline_steps": run.data.offline_steps or 0,
    }
    if run.method.form == "anchored":
        until["method.anchor.reference_updates"] = run.method.anchor.reference_updates
    for key, value in until.items():
        if value > num_steps:
            error = f"{key}: {value} is more than train.num_steps: {num_steps}; lower it"
            raise DirectAlignError(error)
    if not all(0 <= beta < 1 for beta in run.train.betas):
        raise DirectAlignError(
            f"train.betas: {list(run.train.betas)}; both must lie in [0, 1), [0.9, 0.999] is usual"
        )


# Evaluation


def check_measured_prompts(
    run: config.RunConfig, online: bool = False
) -> tuple[Findings, list[str]]:
    """`evaluate.prompts` as a finding, and a warning if some of them are trained on.

    Raises DirectAlignError for an unreadable list, and for prompts, also of the data, that
    `evaluate.judge` cannot read.
    """
    own, judge = run.evaluate.prompts, run.evaluate.judge
    key, source = measured_source(run)
    if own is None and judge == "none":
        return [], []
    if _is_remote(source, online):
        found = f"{source}, read when the run starts"
        return [("evaluation prompts", found)] if own is not None else [], []
    prompts = measured_prompts(run)
    foreign = foreign_prompt(WORLDS[judge], prompts) if judge != "none" else None
    if foreign is not None:
        raise DirectAlignError(
            f"{key}: {source}: {foreign!r:.60} is no caption of {WORLDS[judge].title}, which is "
            f"all that evaluate.judge: {judge} can read; give its captions, or set judge: none"
        )
    if own is None:
        return [], []
    both = _trained_on(run, prompts, online)
    warning = f"{key}: {source}: {len(both)} of its {len(prompts)} prompts are trained on too"
    return [("evaluation prompts", f"{len(prompts):,} from {source}")], [warning] if both else []


def check_control_prompts(run: config.RunConfig, online: bool = False) -> Findings:
    """The control prompts, as a finding.

    Raises DirectAlignError for an unreadable list, and for a control prompt that is trained on too.
    """
    source = run.evaluate.control_prompts
    if source is None:
        return []
    if _is_remote(source, online):
        return [("control prompts", f"{source}, read when the run starts")]
    prompts = read_control_prompts(source, run.method.control_phrases)
    if both := _trained_on(run, prompts, online):
        raise DirectAlignError(
            f"{CONTROL_KEY}: {source}: {len(both)} of its prompts are trained on, first "
            f"{both[0]!r:.60}; remove them from one of the two lists"
        )
    return [("control prompts", f"{len(prompts):,} from {source}")]


def _trained_on(run: config.RunConfig, prompts: Sequence[str], online: bool) -> list[str]:
    """Those of `prompts` that are in `data.prompts` too, as far as these may be read."""
    source = run.data.prompts
    if source is None or _is_remote(source, online):
        return []
    trained = set(read_prompts(source))
    return [prompt for prompt in prompts if prompt in trained]


def check_adherence(run: config.RunConfig, online: bool = False) -> Findings:
    """The model that measures adherence, as a finding. Raises as `adherence.check_adherence`."""
    settings = run.evaluate.adherence
    if settings is None:
        return []
    adherence.check_adherence(settings, online=online)
    return [("adherence", f"measured by {settings.path} in directalign evaluate")]


def held_out_warnings(run: config.RunConfig) -> list[str]:
    """A warning for each held-out reward that is also trained on, at any scale."""
    members = run.reward.members if isinstance(run.reward, config.MixtureConfig) else []
    trained = [member.reward for member in members] or [run.reward]
    unscaled = [each.model_copy(update={"scale": 1.0}) for each in trained]
    return [
        f"{held_out_key(label)}: is also trained on, so it cannot show hacking; hold out another"
        for label, each in run.evaluate.rewards.items()
        if each.model_copy(update={"scale": 1.0}) in unscaled
    ]


# Models, data, disk, trackers


def fetch(run: config.RunConfig, online: bool) -> None:
    """Download configs of model and rewards if `online`; else only check local paths."""
    named = [run.model.args.get(key) for key in separate_parts(run.model)]
    paths = (run.model.path, run.model.components, *named)
    if online or not any(path is not None and hub.is_hub_id(path) for path in paths):
        open_source(run.model, weights=False)
    if online:
        rewards.check_reward(run.reward, online=True)
        for label, held_out in run.evaluate.rewards.items():
            rewards.check_reward(held_out, held_out_key(label), online=True)


def check_checkpoint(model: config.ModelConfig, found: ModelFolder) -> None:
    """Check that the files are complete, as loading would; skip those not downloaded yet."""
    if not found.local:
        return
    kind: Any = model_class(model.architecture)
    wanted = kind.parts_in(read_json(found.folder / "model_index.json"))
    wanted = {
        name: part
        for name, part in wanted.items()
        if name not in found.elsewhere or found.elsewhere[name].is_dir()
    }
    complete = all((found.folder / name).is_dir() for name in wanted.keys() - found.elsewhere)
    if hub.is_hub_id(model.components or model.path) and not complete:
        return  # the cache has single files of it, from another program
    single_file = Path(model.path).expanduser() if model.components is not None else None
    source = Source(model.path, found.folder, single_file, model.variant, elsewhere=found.elsewhere)
    classes = check_parts(source, kind.pipeline, wanted, weights=not found.state)
    light = {name: wanted[name] for name in classes if not issubclass(classes[name], nn.Module)}
    load_parts(source, kind.pipeline, light, {})


def check_machine(settings: config.ModelConfig, model: MetaModel, online: bool) -> list[str]:
    """Check that attention kernel and quantization work here.

    A missing library is an error if `online`, else a warning.
    """
    attention, denoiser = settings.attention, model.model.denoiser
    check_inputs(settings, model.model)
    if attention is not None:
        check_attention(denoiser, attention)
    try:
        if settings.quantization is not None:
            check_quantization(settings.quantization)
        if attention is not None and (online or "hub" not in attention):  # those are downloaded
            set_attention(denoiser, attention)
    except DirectAlignError as error:
        if online:
            raise
        return [str(error)]
    return []


def check_model(run: config.RunConfig, meta: MetaModel) -> None:
    """Every image size in the recipe fits the model, and so do guidance and `rollout.lora`."""
    model: Any = meta.model
    sizes = {
        "rollout.height, rollout.width": [image_size(run, meta)],
        "rollout.sizes": run.rollout.sizes,
        "data.buckets": run.data.buckets,
    }
    named = [(key, *size) for key, found in sizes.items() for size in found or ()]
    for key, height, width in named:
        try:
            model.latent_shape(height, width)
        except DirectAlignError as error:
            near = nearest_size(model, height, width)
            remedy = "" if near is None else f": the nearest is {near[0]}x{near[1]}"
            message = f"{key}: {height}x{width} does not fit: {error}{remedy}"
            raise DirectAlignError(message) from error
    check_guidance(run, model)
    if run.rollout.lora is not None:
        RolloutLoRA(run.rollout.lora, model)
    meta.swapped(run.model.block_swap)


def _is_remote(source: str, online: bool) -> bool:
    """Whether reading this needs the network, which may not be used."""
    if online or source in WORLDS or not is_address(source):
        return False
    return parse(source).folder is None


def cut_prompts(
    run: config.RunConfig, place: Place, prompts: Sequence[str], online: bool
) -> list[str]:
    """A warning for each text encoder and each reward that ignores the end of some prompts."""
    found = list[str]()
    if not prompts:
        return found
    with suppress(Exception):  # any error of user code; `estimate` names it
        found += encoder_cuts(meta_model(run.model, place.is_gpu).model, prompts)
    phrases = run.method.control_phrases
    if isinstance(run.reward, config.MixtureConfig):
        members = enumerate(run.reward.members)
        read = [(mixture.key_of(i), m.reward, m.control_phrases or phrases) for i, m in members]
    else:
        read = [("reward", run.reward, phrases)]
    for label, held_out in run.evaluate.rewards.items():
        read.append((held_out_key(label), held_out, config.ControlPhrases()))
    for key, reward, own in read:
        found += rewards.reward_cuts(reward, key, prompts, [*own.positive, *own.negative], online)
    return found


def check_data(
    run: config.RunConfig, ranks: int, online: bool
) -> tuple[Findings, list[str], list[str]]:
    """Read prompts and decode images: findings, a warning for images to be skipped, all prompts.

    Datasets on the hub are read if `online`. Raises DirectAlignError for a bucket with fewer images
    than an update needs.
    """
    findings, warnings, prompts = [], [], list[str]()
    per_update = accumulation(run, ranks) * ranks * run.data.batch_size
    name, edits = run.model.architecture, run.data.edits is not None
    if getattr(model_class(name), "edits_images", False) != edits:
        raise DirectAlignError(
            f"data.edits: model.architecture: {name} makes images from prompts alone: give "
            "data.prompts, or a model that edits images (flux_kontext, qwen_image_edit)"
            if edits
            else f"model.architecture: {name} edits images, and there are none to edit: give "
            "data.edits in the place of other data"
        )
    for key in ("prompts", "images", "pairs", "edits"):
        source = getattr(run.data, key)
        if source is None:
            continue
        if _is_remote(source, online):
            findings.append((key, f"{source}, read when the run starts"))
        elif key == "prompts":
            prompts += read_prompts(source)
            findings.append((key, f"{len(prompts):,} from {source}"))
        else:
            images = scanned(run.data)
            assert images is not None
            count, skipped = len(images), images.skipped
            prompts += images.captions
            findings.append((key, f"{count:,} from {source}, {len(skipped)} skipped"))
            if skipped:
                of = f"{len(skipped)} of {count + len(skipped)} {key} are skipped"
                warnings.append(f"data.{key}: {of}: {'; '.join(skipped[:3])}")
            if run.data.buckets is not None:
                check_buckets(fill_buckets(images.sizes, run.data.buckets), per_update)
    on = f" on {ranks} ranks" if ranks > 1 else ""
    return [*findings, ("update", f"{per_update} prompts{on}")], warnings, prompts


def check_disk(run: config.RunConfig, out: Path, memory: Estimate) -> tuple[str, list[str]]:
    """Check that the output folder can be made, and that its disk has room for all checkpoints.

    The finding, and warnings: too little room is an error only on this machine.
    """
    train, trained = run.train, memory.trained
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    per_number = 4 + 8 + (4 if train.ema_decay is not None else 0)
    every = train.save_every or train.num_steps
    kept = run.kept_checkpoints or -(-train.num_steps // every)
    best = 4 * trained * (kept + 2) if run.early_stopping is not None else 0
    needed = trained * per_number * (kept + 1) + 4 * trained + best
    free = shutil.disk_usage(nearest).free
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        error = f"{nearest} is not a folder that you may write to; name another one"
    elif needed > free:
        error = (
            f"checkpoints need {binary(needed)}, and {binary(free)} are free; make room, or set a "
            "smaller train.keep_checkpoints"
        )
    else:
        return f"checkpoints up to {binary(needed)}, {binary(free)} free", []
    if memory.place.is_here:
        raise DirectAlignError(f"--out {out}: {error}")
    return "on another machine", [f"--out {out}: {error}"]


def check_trackers(run: config.RunConfig, is_here: bool) -> tuple[Findings, list[str]]:
    """Trackers besides TensorBoard, and warnings.

    A missing package or login is an error only if the run is planned for this machine.
    """
    wandb, trackio = run.trackers.wandb, run.trackers.trackio
    used = []
    try:
        if wandb is not None:
            trackers.require_wandb(wandb)
            used.append(("W&B", f"{wandb.mode}, project {wandb.project}"))
        if trackio is not None:
            trackers.require_trackio(trackio)
            where = trackio.space or "on this machine"
            used.append(("trackio", f"{where}, project {trackio.project}"))
    except DirectAlignError as error:
        if is_here:
            raise
        return [], [str(error)]
    return used, []
