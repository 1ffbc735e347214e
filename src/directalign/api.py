"""The Python API: `align` a pipeline in memory, `Run` a recipe, `load_reward`, `compare`.

Import it as `import directalign`; docs/python_api.md is its manual. Everything runs through the
code of the command line, so results are the same to the bit.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import nn

from . import config, rewards
from .config.base import Strict
from .config.load import load_run, parse_section, recipe_path, resumed_run, run_of_sections
from .config.presets import merged
from .evaluation import compare as comparison
from .evaluation.scores import user_metrics
from .interfaces import Reward
from .io import atomic
from .io.text import checked_prompt
from .models import in_memory, lora, model_class
from .preflight import checks, early_stopping, guidance, plan
from .rewards.black_box import PythonReward, path_of
from .rewards.common import BaseReward
from .training import run as train_run
from .training import run_folder
from .training.loop import Callback
from .training.run import InMemory
from .training.run_log import configure_logging
from .types import DirectAlignError

logger = logging.getLogger(__name__)
Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)
WHERE = "align"
"""Start of errors about the arguments of `align`."""
LORA_STEPS, LORA_RATE = 60, 1e-4
"""Defaults of `align`, those of the LoRA recipes of the package."""
GUIDANCE = 3.5
"""Embedded guidance where a network takes it, as in the calls of diffusers."""
PROMPTS = "prompts.jsonl"


def align(
    pipe: Pipeline,
    reward: Any,
    prompts: Sequence[str] | str | None = None,
    method: str | Mapping[str, Any] | Strict = "srpo",
    *,
    control_phrases: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **sections: Any,
) -> Pipeline:
    """Align a loaded diffusers pipeline; the same pipeline then samples aligned images.

    Its weights are used where they are, without a copy. Afterwards it is in eval mode on its
    device, with an active LoRA called "default"; an error before the first update removes it again.
    Aligning once more continues from that LoRA. With equal settings the weights equal those of
    `directalign train` to the bit.

    Args:
        pipe: of an architecture in `models.MODELS`, float32 or bfloat16, on one device.
        reward: a section of a recipe, a hub id or folder of a CLIP, a reward of `load_reward`, or
            a function, torch module, or object with `encode` and `score`. A function gets images
            (b, 3, H, W), float32 in [0, 1], on the pipeline's device in their graph, and b prompts;
            it returns (b,) scores, larger is better, with a gradient if the method needs one.
        prompts: texts, or a file, dataset or list as in `data.prompts`; None only with data.images.
        method: its name, or its section: {"name": "refl"}.
        control_phrases: {"positive": ["Realistic photo"], "negative": ["CG render"]}, which SRPO
            compares. Without them it maximises the score of the bare prompt.
        callbacks: called after each step with its record: "step" (from 1), "loss", "reward",
            "grad_norm", "seconds", ... Training ends after the step for which one returns True.
        out: folder for a complete run. None keeps no file and measures nothing without `evaluate`.
        resume: continue the interrupted run in `out` from its newest checkpoint.
        progress: print progress and messages; False prints warnings only.
        sections: other sections and keys of a recipe: `train={"num_steps": 30}`, `rollout={...}`,
            `model={"tune": "full"}`, `seed=1`. Defaults are those of recipes, and for a LoRA 60
            steps at a learning rate of 1e-4.

    Returns:
        `pipe` itself.

    Raises:
        DirectAlignError: one line about a pipeline, key, value or file that cannot be used.
        Interrupted: Ctrl-C; the pipeline has the weights of the last step.
        NonFiniteError: a loss or gradient is not finite; the step is not taken.

    Examples:
        >>> phrases = {"positive": ["Realistic photo"], "negative": ["CG render"]}
        >>> directalign.align(pipe, reward, ["a red star"], control_phrases=phrases)
        >>> pipe("a red star").images[0]
    """
    configure_logging(True, progress)
    source, own = in_memory.source_of(pipe), _sections(sections)
    _check_functions(callbacks)
    architecture = own.get("model", {}).get("architecture") or in_memory.architecture_of(pipe)
    part = getattr(model_class(architecture), "part", None)
    if part not in pipe.components:
        raise DirectAlignError(f"{WHERE}: model.architecture: {architecture}: not of this pipeline")
    _check_arguments(source.name, own, resume, keeps_files=out is not None)
    with _output(out, resume) as folder:
        given = merged(_defaults(pipe, architecture, part, own, source.name), own)
        given["method"] = _method(method, control_phrases, given)
        given["data"] = given.get("data", {}) | _data(prompts, folder)
        run, reward = _with_reward(given, reward)
        measures = out is not None or "evaluate" in own
        inputs = InMemory(source, reward, callbacks, out is not None, measures, progress)
        with _frozen(reward, source.device), in_memory.borrowed(pipe, part):
            train_run(run, folder, resume, given=inputs)
    return pipe


def save_lora(pipe: DiffusionPipeline, folder: str | Path) -> Path:
    """Write the LoRA of an aligned pipeline, for `load_lora_weights` of diffusers.

    Args:
        pipe: a pipeline that `align` trained with a LoRA.
        folder: where `lora.safetensors` is written; one that is there is replaced.

    Returns:
        The path of the file.

    Raises:
        DirectAlignError: the pipeline has no such LoRA, or is not supported.

    Examples:
        >>> directalign.save_lora(pipe, "my_lora")
        >>> fresh.load_lora_weights("my_lora", weight_name="lora.safetensors")
    """
    part = model_class(in_memory.architecture_of(pipe)).part
    denoiser = getattr(pipe, part)
    if in_memory.adapter_of(denoiser) is None:
        raise DirectAlignError(
            "save_lora: the pipeline has no LoRA of align; a pipeline that was trained whole is "
            "written by pipe.save_pretrained(folder)"
        )
    folder = Path(folder)
    atomic.make_folder(folder)
    for parameter in lora.adapter_parameters(denoiser):
        parameter.requires_grad_(True)
    lora.save(denoiser, folder, part, type(pipe))
    return folder / lora.LORA_FILE


@dataclass(frozen=True)
class Run:
    """A recipe that is ready to train: `Run.from_recipe(...).train(...)`.

    Attributes:
        config: the whole recipe, resolved and checked; read it as `run.config.train.num_steps`.
        overrides: what was changed, as `--set` takes it.
        recipe: its file; None for a config that was made in Python.
    """

    config: config.RunConfig
    overrides: tuple[str, ...] = ()
    recipe: Path | None = None

    @classmethod
    def from_recipe(cls, recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> "Run":
        """Read a recipe.

        Args:
            recipe: a YAML file, or the name of a recipe of the package, such as "world_srpo".
            overrides: keys to change, dotted or nested: {"train.num_steps": 30} or {"train":
                {"num_steps": 30}}; {} or None removes a section.

        Raises:
            DirectAlignError: no such recipe; an unknown key, or a value that it cannot have.

        Examples:
            >>> run = directalign.Run.from_recipe("world_srpo", {"train.num_steps": 30})
        """
        _check_dicts("Run", overrides=overrides or {})
        pairs = _plain(overrides or {}).items()
        given = tuple(f"{key}={json.dumps(value)}" for key, value in pairs)
        path = recipe_path(recipe)
        return cls(load_run(path, given), given, path)

    def train(
        self,
        out: str | Path,
        *,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> dict[str, Any]:
        """Train, as `directalign train` does; under torchrun on all its processes.

        Args:
            out: output folder: weights, metrics.jsonl, samples, checkpoints and report.html.
            resume: continue the run in `out` from its newest checkpoint, as its run.yaml says with
                `overrides`; keys that the recipe has otherwise now are named and not used.
            callbacks: see `align`; under torchrun each process calls its own.
            progress: print progress and messages; False prints warnings only.

        Returns:
            The content of `out`/summary.json: "num_steps", "align_seconds", "before", "after", ...

        Raises:
            DirectAlignError: the folder holds another run, a file is missing or broken, too
                little memory, ...
            Interrupted: Ctrl-C or SIGTERM; the state is saved, `resume=True` continues.

        Examples:
            >>> summary = run.train("runs/mine")
            >>> summary["after"]["photo_rate"]["value"]
        """
        folder, run, overrides = Path(out), self.config, list(self.overrides)
        _check_functions(callbacks)
        run_folder.check(folder, resume)
        configure_logging(os.environ.get("RANK", "0") == "0", progress)
        if resume and self.recipe is not None:
            found = resumed_run(self.recipe, folder, overrides)
            run, overrides = found.run, found.overrides
            if found.unused:
                logger.warning(found.unused_line(self.recipe, folder))
        checked = plan(run, folder)
        for warning in checked.warnings:
            logger.warning(warning)
        inputs = InMemory(callbacks=callbacks, is_shown=progress, update_flops=checked.update_flops)
        train_run(run, folder, resume, overrides, inputs)
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def load_reward(reward: Any, device: torch.device | str = "cpu") -> Reward:
    """Load a reward model, frozen.

    Args:
        reward: a section of a recipe ({"name": "clip", "path": ...}), a recipe, a CLIP or SigLIP
            by folder or hub id, "world:reward"; or a function, torch module or object as `align`
            takes it.
        device: where its weights are; a function chooses its own device.

    Returns:
        A reward with `encode(images)`, images (b, 3, H, W) float32 in [0, 1], and
        `score(features, prompts)`, which gives (b,) scores, larger is better. Gradients flow
        to the images if `differentiable`.

    Raises:
        DirectAlignError: an unknown name, or a missing or damaged file.

    Examples:
        >>> reward = directalign.load_reward({"name": "clip", "path": "world:reward"})
        >>> reward.score(reward.encode(images), ["a red star", "a blue ring"])
    """
    section, loaded = _reward(reward)
    if loaded is not None:
        return loaded
    settings = parse_section(config.RewardConfig, section, "reward", "see docs/rewards.md")
    return rewards.load_reward(settings, device)


def compare(
    sources: Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path,
    *,
    base: bool = False,
    prompts: str | None = None,
    num_samples: int | None = None,
    seeds_per_prompt: int | None = None,
    rollout: Mapping[str, Any] | None = None,
    rewards: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    judge: config.Judge | None = None,
    control_prompts: str | None = None,
    adherence: str | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare models on the same prompts and seeds, as `directalign compare` does.

    Args:
        sources: folders of runs, diffusers folders, hub ids, or folders of images; a dict gives
            each a label.
        out: folder for images, results and report.html; an interrupted comparison continues.
        base: add the model that the runs began with, as the reference.
        prompts: a prompt list or set, as `--prompts`; None takes those of the first run.
        num_samples, seeds_per_prompt: images per model; seeds of each prompt, 2 by default.
        rollout: sampling settings for all models: {"num_inference_steps": 20}.
        rewards: further held-out rewards by label, each a section, a recipe or a CLIP.
        metrics: metrics of one's own, each "file.py:name".
        positive, negative: phrases of the style gap; by default those of the first run.
        judge: the classifiers of a toy world, "world" or "world2", or "none".
        control_prompts: prompts to measure leakage on.
        adherence: model that measures prompt adherence, as `--adherence`.
        batch_size: images generated or evaluated at once.
        progress: print messages; False prints warnings only.

    Returns:
        The content of summary.json: "models" by key and metric: "value", "low", "high", "n"; ...

    Raises:
        DirectAlignError: an unknown source, unequal images, a file that cannot be read, ...

    Examples:
        >>> found = directalign.compare({"SRPO": "runs/a", "ReFL": "runs/b"}, "runs/both")
        >>> found["models"]["srpo"]["photo_rate"]["value"]
    """
    _check_counts(num_samples=num_samples, seeds_per_prompt=seeds_per_prompt, batch_size=batch_size)
    _check_dicts("compare", rewards=rewards or {}, rollout=rollout or {})
    _check_lists(sources=sources, metrics=metrics, positive=positive, negative=negative)
    configure_logging(True, progress)
    named = sources.items() if isinstance(sources, Mapping) else ((None, each) for each in sources)
    texts = {
        label: each if isinstance(each, str) else json.dumps(_plain(each))
        for label, each in (rewards or {}).items()
    }
    request = comparison.Request(
        sources=tuple(f"{label}={each}" if label else str(each) for label, each in named),
        out=Path(out),
        base=base,
        prompts=prompts,
        num_samples=num_samples,
        seeds_per_prompt=seeds_per_prompt,
        rollout=_plain(rollout or {}),
        rewards=tuple(f"{label}={text}" for label, text in texts.items()),
        metrics=tuple(metrics),
        positive=tuple(positive),
        negative=tuple(negative),
        judge=judge,
        control_prompts=control_prompts,
        adherence=adherence,
        batch_size=batch_size,
        command="directalign.compare(...)",
        where=run_folder.where(),
    )
    folder = comparison.compare(request)
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def _check_counts(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise DirectAlignError(f"compare: {name} is {value!r}: give 1 or more")


def _check_lists(**given: Any) -> None:
    """A text in the place of a list would be one of letters."""
    for name, value in given.items():
        if isinstance(value, str | Path):
            raise DirectAlignError(f"compare: {name}: {str(value)!r:.60} is no list: give [...]")


# --- the arguments of `align` as a recipe ---------------------------------------------------------


def _check_arguments(
    origin: str, given: Mapping[str, Any], resume: bool, keeps_files: bool
) -> None:
    """Refuse what cannot be done with a pipeline in memory; `origin`: where it was loaded from."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise DirectAlignError(
            f"{WHERE}: runs in one process; for several GPUs: torchrun -m directalign train RECIPE"
        )
    if resume and not keeps_files:
        raise DirectAlignError(f"{WHERE}: resume: give the folder of the run in out")
    model = given.get("model", {})
    if keeps_files and not origin and "path" not in model:
        raise DirectAlignError(
            f"{WHERE}: out: the run's files need the base model, and the pipeline does not say "
            'where it was loaded from: give model={"path": ...}, or no out'
        )
    if model.get("text_encoders") == "free":
        raise DirectAlignError(
            f"{WHERE}: model.text_encoders: free: the pipeline needs them afterwards: give offload"
        )


def _sections(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sections as a recipe has them; those that `align` completes are dicts."""
    own = _plain(given)
    _check_dicts(WHERE, **{name: own.get(name, {}) for name in ("model", "rollout", "data")})
    return own


def _check_dicts(where: str, **given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, Mapping | Strict):
            raise DirectAlignError(f"{where}: {name}: {value!r:.60} is no section: give a dict")


def _check_functions(callbacks: Any) -> None:
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise DirectAlignError(f"callbacks: {callbacks!r:.60} is no list of functions: give [...]")


def _defaults(
    pipe: Any, architecture: str, part: str, given: Mapping[str, Any], origin: str
) -> dict[str, Any]:
    """The sections of a recipe that the pipeline itself determines, and the defaults of `align`."""
    denoiser, own = getattr(pipe, part), given.get("model", {})
    dtype, adapter = in_memory.dtype_of(pipe, part), in_memory.adapter_of(denoiser)
    tune, wanted = own.get("tune"), own.get("dtype", dtype)
    if wanted != dtype:
        raise DirectAlignError(
            f"{WHERE}: model.dtype: {wanted}, and the pipeline is {dtype}: leave it out, or "
            f"pipe.to(torch.{wanted}) before"
        )
    if adapter is not None and (own.get("lora") or {}).get("init") is not None:
        raise DirectAlignError(
            f"{WHERE}: model.lora.init: the pipeline has a LoRA, which training continues: leave "
            "init out, or pipe.unload_lora_weights() before"
        )
    if tune == "full" and adapter is not None:
        raise DirectAlignError(
            f"{WHERE}: model.tune: full: the pipeline has a LoRA: pipe.fuse_lora() and "
            "pipe.unload_lora_weights() before"
        )
    model: dict[str, Any] = {"architecture": architecture, "dtype": dtype}
    model["path"] = origin or type(pipe).__name__
    if adapter is not None:
        model["lora"] = adapter
    found: dict[str, Any] = {"name": f"{type(pipe).__name__}, aligned", "model": model}
    found["trackers"] = {"tensorboard": False}
    if "preset" not in given:
        rate = {} if tune == "full" else {"learning_rate": LORA_RATE}
        found["train"] = {"num_steps": LORA_STEPS, **rate}
        embeds = getattr(denoiser.config, "guidance_embeds", False)
        found["rollout"] = {"embedded_guidance": GUIDANCE} if embeds else {}
        found["rollout"] |= guidance.usual(architecture, Path(origin).name, pipe.config)
    return found


def _method(
    method: Any, control_phrases: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The method's section. SRPO is called with the guidance of the rollout, and compares two
    phrasings only if there are control phrases."""
    if not isinstance(method, str | Mapping | Strict):
        raise DirectAlignError(
            f"{WHERE}: method: {method!r:.60} is none: give its name, or its section as a dict; a "
            'class of your own is {"name": "python", "path": "my.py:MyMethod"}'
        )
    section = {"name": method} if isinstance(method, str) else dict(_plain(method))
    guidance = given.get("rollout", {}).get("embedded_guidance")
    if control_phrases is not None:
        section["control_phrases"] = _plain(control_phrases)
    if section.get("name", "srpo") != "srpo" or "preset" in given:
        return section
    if guidance is not None:
        section = {"embedded_guidance": guidance, **section}
    if not section.get("control_phrases") and "form" not in section:
        logger.info("no control_phrases: the score of the bare prompt is maximised")
        section["form"] = "absolute"
    return section


def _data(prompts: Any, folder: Path) -> dict[str, str]:
    """The key `data.prompts`; a list of texts is written into the folder of the run."""
    if prompts is None:
        return {}
    if isinstance(prompts, str | Path):
        return {"prompts": str(prompts)}
    if not isinstance(prompts, Iterable):
        raise DirectAlignError(f"{WHERE}: prompts: {prompts!r:.60} is no list: give texts in one")
    texts, file = list(prompts), folder / PROMPTS
    for place, text in enumerate(texts):
        where = f"{WHERE}: prompts[{place}]"
        if not isinstance(text, str) or not checked_prompt(text, where):
            raise DirectAlignError(f"{where}: {text!r:.60} is no text; correct it")
    if not texts:
        raise DirectAlignError(f"{WHERE}: prompts: empty; give at least one text")
    lines = "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts)
    if file.exists() and file.read_text(encoding="utf-8") != lines:
        raise DirectAlignError(f"{file}: holds other prompts; name another folder in out")
    atomic.write_text(file, lines)
    return {"prompts": str(file)}


@contextmanager
def _output(out: str | Path | None, resume: bool) -> Iterator[Path]:
    """The folder of the run; a temporary one, removed afterwards, if `out` is None.

    A run that does not begin leaves no folder.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="directalign-") as name:
            yield Path(name)
        return
    folder = Path(out)
    run_folder.check(folder, resume)
    is_new = not folder.exists()
    atomic.make_folder(folder)
    try:
        yield folder
    finally:
        if not (folder / "run.yaml").exists():
            (folder / PROMPTS).unlink(missing_ok=True)
            if is_new and not any(folder.iterdir()):
                folder.rmdir()


def _check(run: config.RunConfig, reward: Reward | None) -> None:
    """What `directalign train` refuses or warns of before it starts, as far as it applies."""
    if reward is None:
        checks.check_reward(run)
    checks.check_method(run)
    checks.check_steps(run)
    user_metrics(run.evaluate.metrics)
    early_stopping.check_early_stopping(run)
    checks.check_control_prompts(run, online=True)
    for warning in (
        *checks.unused_settings(run),
        *checks.held_out_warnings(run),
        *early_stopping.early_stopping_warnings(run),
        *checks.check_trackers(run, is_here=True)[1],
        *checks.check_measured_prompts(run, online=True)[1],
    ):
        logger.warning(warning)


# --- rewards in memory ----------------------------------------------------------------------------


def _reward(given: Any) -> tuple[dict[str, Any], Any]:
    """The recipe section of a reward, and the reward if it is in memory already."""
    if isinstance(given, str):
        return _plain(rewards.reward_settings(given)), None
    if isinstance(given, Mapping | Strict):
        return dict(_plain(given)), None
    if not isinstance(given, BaseReward):
        key = f"{WHERE}: reward"
        if isinstance(given, type):
            raise DirectAlignError(f"{key}: {given.__name__} is a class; give an instance of it")
        two_calls = all(callable(getattr(given, name, None)) for name in ("encode", "score"))
        if not (callable(given) or two_calls):
            raise DirectAlignError(
                f"{key}: {given!r:.60} is none; give a section of a recipe, a reward of "
                "load_reward, or a function of images and prompts"
            )
        needs_gradient = bool(getattr(given, "differentiable", True))
        given = PythonReward(given, source=key, differentiable=needs_gradient)
    if given.settings is not None:
        return _plain(given.settings), given
    return {"name": "python", "path": path_of(getattr(given, "function", given))}, given


def _with_reward(given: dict[str, Any], reward: Any) -> tuple[config.RunConfig, Any]:
    """The checked run, and the reward if it is in memory.

    A function gets images with their graph only if the method needs a gradient.
    """
    section, loaded = _reward(reward)
    run = run_of_sections(given | {"reward": section}, WHERE)
    if loaded is not None and loaded.settings is None:
        needed = getattr(loaded.function, "differentiable", run.method.DIFFERENTIATES_REWARD)
        loaded.differentiable = bool(needed)
        own = run.reward.model_copy(update={"differentiable": loaded.differentiable})
        run = run.model_copy(update={"reward": own})
    _check(run, loaded)
    return run, loaded


@contextmanager
def _frozen(reward: Any, device: torch.device | None) -> Iterator[None]:
    """A torch module that is a reward, or part of one, is in eval mode and frozen inside."""
    held = [each for each in vars(reward).values() if isinstance(each, nn.Module)] if reward else []
    parameters = {p: p.requires_grad for module in held for p in module.parameters()}
    modes = {each: each.training for module in held for each in module.modules()}
    for parameter in parameters:
        if parameter.device != device:
            raise DirectAlignError(
                f"{WHERE}: reward: its weights are on {parameter.device} and the pipeline is on "
                f"{device}: move it there with .to()"
            )
        parameter.requires_grad_(False)
    try:
        for module in held:
            module.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in parameters.items():
            parameter.requires_grad_(requires_grad)


def _plain(value: Any) -> Any:
    """Configs, paths and tuples as the dicts, texts and lists of a recipe."""
    if isinstance(value, Strict):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
