"""Generate images of prompt-seed pairs, which do not depend on batch or process."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from .. import config
from ..config.load import load_run, with_rollout
from ..data.image_io import Source, load_sources
from ..device import default_device
from ..diffusion.sampling import (
    FLOW_SOLVER,
    SOLVERS,
    RolloutStart,
    encode,
    flow_shift,
    image_size,
    rollout_sigmas,
    sample_rollout,
)
from ..interfaces import SINGLE_PROCESS, Model, ProcessGroup
from ..io.atomic import new_file, write_text
from ..io.hub import is_hub_id
from ..io.tensors import require_finite, to_pixels
from ..models import architectures, load_model, model_class, single_file
from ..models.checkpoint_source import open_source, separate_parts
from ..models.lora import LORA_FILE
from ..models.weight_files import read_json
from ..toyworld import assets
from ..types import DirectAlignError, Images
from .eval_prompts import Pairs, seed_noise
from .run_weights import RunWeights, find_weights, suffix_of

RECORD = "images.jsonl"


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rollout: config.RolloutConfig,
    batch_size: int = 32,
    group: ProcessGroup = SINGLE_PROCESS,
    sources: Sequence[Source] = (),
) -> Images:
    """Images (n, 3, H, W) of the prompt-seed pairs, float32 clamped to [0, 1], on the CPU.

    `sources`: what each prompt edits; empty for prompts alone. Each of `group` generates an equal
    part, and all return all images.

    Raises: NonFiniteError on all ranks for an image with NaN or infinite values.
    """
    if not prompts:
        raise DirectAlignError("no prompts to sample: give at least one")
    each = -(-len(prompts) // group.size)
    places = range(group.rank * each, (group.rank + 1) * each)
    own = [min(place, len(prompts) - 1) for place in places]  # the last pair fills up
    height, width = image_size(model, rollout)
    sigmas = rollout_sigmas(model, rollout, height, width)
    noise = seed_noise([seeds[place] for place in own], model.latent_shape(height, width))
    device = next(model.denoiser.parameters()).device
    images = []
    for first in range(0, len(own), batch_size):
        rows = own[first : first + batch_size]
        edited = (
            load_sources([sources[place] for place in rows], height, width) if sources else None
        )
        cond = encode(model, [prompts[place] for place in rows], edited and edited.images)
        cond = cond.guided(rollout.embedded_guidance, rollout.cfg_scale)
        own_noise = noise[first : first + batch_size].to(device)
        start = RolloutStart(cond, own_noise, sigmas, rollout.solver)
        image = model.decode(sample_rollout(model, start)).float()
        images.append(torch.where(image.isfinite(), image.clamp(0, 1), torch.nan).cpu())
    whole = group.gather(torch.cat(images))[: len(prompts)]
    for image, prompt, seed in zip(whole, prompts, seeds, strict=True):  # as one on all ranks
        require_finite(image, f"the image of {prompt!r}, seed {seed},")
    return whole


def diffusers_call(
    model: Model,
    run: config.RunConfig,
    prompt: str,
    seed: int,
    trained: RunWeights | None,
    source: Path | None = None,
) -> dict[str, Any]:
    """The diffusers call that makes the image again, also as Python under "code"; `trained`: the
    run's weights, None for the base model; `source`: the image that the prompt edits."""
    height, width = image_size(model, run.rollout)
    arguments = {"prompt": prompt, "height": height, "width": width}
    arguments |= {"num_inference_steps": run.rollout.num_inference_steps}
    arguments |= model.call_arguments(run.rollout)
    settings = getattr(model, "call_settings", None)  # of diffusers' architectures
    call = {
        "pipeline": model.pipeline,
        "path": str(assets.resolve(run.model.path)),
        "weights": str(_diffusers_folder(trained)) if trained else None,
        "scheduler": _scheduler(model, run.rollout),
        "settings": settings(height, width) if settings is not None else {},
        "arguments": arguments,
        "seed": seed,
        **({} if source is None else {"source": str(source)}),
    }
    return {**call, "code": _code(call, model.part, run, trained)}


def _diffusers_folder(trained: RunWeights) -> Path:
    """Where diffusers finds the weights: other than the exported ones after an export."""
    form = "diffusers" if trained.run.model.tune == "lora" else "folder"
    return export_folder(trained, form) if trained.words else trained.folder


def export_folder(trained: RunWeights, form: str) -> Path:
    """Where `directalign export` writes weights of a run unless it is told otherwise."""
    return trained.folder / "export" / f"{form}{suffix_of(trained.step, trained.strength)}"


def _scheduler(model: Model, rollout: config.RolloutConfig) -> dict[str, Any]:
    """The pipeline's scheduler class, and the changes to its config."""
    shift = rollout.shift
    if model.path == "vp":
        if shift is not None:
            raise DirectAlignError(
                f"rollout.shift {shift} shifts a flow; an SD model has its own timesteps: "
                "leave it out"
            )
        if rollout.solver != "euler":
            return {"class": SOLVERS[rollout.solver].__name__, "changes": {}}
        # a folder saved with another sampler may lack clip_sample, whose default in DDIM is True
        changes = {"set_alpha_to_one": True, "clip_sample": False}
        return {"class": "DDIMScheduler", "changes": changes}
    fixed = {} if shift is None else {"use_dynamic_shifting": False}
    if rollout.solver != "euler":
        sigmas = rollout_sigmas(model, rollout, *image_size(model, rollout))
        changes = {**FLOW_SOLVER, **fixed, "flow_shift": flow_shift(sigmas)}
        return {"class": SOLVERS[rollout.solver].__name__, "changes": changes}
    changes = {} if shift is None else {**fixed, "shift": shift}
    return {"class": "FlowMatchEulerDiscreteScheduler", "changes": changes}


def _code(
    call: dict[str, Any], part: str, run: config.RunConfig, trained: RunWeights | None
) -> str:
    scheduler, changes = call["scheduler"]["class"], call["scheduler"]["changes"]
    arguments = ", ".join(f"{name}={value!r}" for name, value in call["arguments"].items())
    classes, opened = opening_code(call["pipeline"], run.model)
    lines = ["import torch", f"from diffusers import {', '.join([*classes, scheduler])}"]
    lines += separate_code(run.model)[0]
    loaded = []
    if "source" in call:
        size = call["arguments"]["width"], call["arguments"]["height"]
        arguments += f", image=ImageOps.fit(load_image({call['source']!r}), {size})"
        lines += ["from diffusers.utils import load_image", "from PIL import ImageOps"]
    if trained is not None:
        folder, is_lora = call["weights"], run.model.tune == "lora"
        name = "pytorch_lora_weights.safetensors" if trained.words else LORA_FILE
        if trained.words:
            form = "diffusers" if is_lora else "folder --dtype float32"
            command = f"directalign export {trained.folder}{trained.options} --format {form}"
            lines.insert(0, f"# after: {command}")
        if is_lora:
            loaded = [adapter_code(run.model, part, repr(folder), name)]
        else:
            kept = f"type(pipe.{part}).from_pretrained({folder!r}, subfolder={part!r})"
            loaded = [f"pipe.{part} = {kept}"]
    seeded = f"generator=torch.Generator().manual_seed({call['seed']})"
    lines += [
        f"pipe = {opened}",
        *loaded,
        f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{_keywords(changes)})",
        *[f"pipe.{name} = {value!r}" for name, value in call["settings"].items()],
        f"image = pipe({arguments}, {seeded}).images[0]",
    ]
    return "\n".join(lines)


def adapter_code(model: config.ModelConfig, part: str, folder: str, name: str) -> str:
    """The statement that loads the adapter file `name` of `folder`, an expression, into `pipe`."""
    if model.lora.type == "lora":
        return f"pipe.load_lora_weights({folder}, weight_name={name!r})"
    arguments = f"{folder}, prefix={part!r}, weight_name={name!r}"
    return f"pipe.{part}.load_lora_adapter({arguments})"  # most pipelines read LoRA only


def opening_code(
    pipeline: str, model: config.ModelConfig, path_of: Callable[[str], str] | None = None
) -> tuple[list[str], str]:
    """The classes and the expression that open the base model, with parts of a single file.

    `path_of` replaces paths; None takes those on this machine.
    """
    path_of = path_of or (lambda path: str(assets.resolve(path)))
    dtype = "" if model.dtype == "float32" else f", torch_dtype=torch.{model.dtype}"
    version = {"revision": model.revision, "variant": model.variant}
    chosen = _keywords({name: value for name, value in version.items() if value is not None})
    if model.components is None:
        chosen += separate_code(model, path_of)[1]
        return [pipeline], f"{pipeline}.from_pretrained({path_of(model.path)!r}{chosen}{dtype})"
    file, folder = Path(model.path).expanduser(), path_of(model.components)
    load = f"from_single_file({path_of(str(file))!r}, config={folder!r}"
    architecture = model_class(model.architecture)
    parts = [architecture.part]  # of a file that is no longer here, unless it is of LDM's layout
    parts = ["text_encoder"] if not file.is_file() and architecture.part == "unet" else parts
    if file.is_file():
        parts = list(single_file.contents(file).parts)
    if "text_encoder" in parts:
        return [pipeline], f"{pipeline}.{load}{dtype})"
    kinds = {
        part: "AutoencoderKL" if part == "vae" else architecture.parts[part].__name__
        for part in parts
    }
    given = [f", {part}={each}.{load}, subfolder={part!r}{dtype})" for part, each in kinds.items()]
    opened = f"{pipeline}.from_pretrained({folder!r}{chosen}{''.join(given)}{dtype})"
    return [pipeline, *kinds.values()], opened


def separate_code(
    model: config.ModelConfig, path_of: Callable[[str], str] = str
) -> tuple[list[str], str]:
    """Imports, and arguments of `from_pretrained`, for parts that `model.args` names."""
    dtype = "" if model.dtype == "float32" else f", torch_dtype=torch.{model.dtype}"
    arguments, classes = "", set[str]()
    for key, parts in separate_parts(model).items():
        for part in parts if key in model.args else ():
            is_tokenizer = part.startswith("tokenizer")
            kind = model_class(model.architecture).parts[part]
            name = "AutoTokenizer" if is_tokenizer else kind.__name__
            options = "" if is_tokenizer else dtype
            path = path_of(model.args[key])
            arguments += f", {part}={name}.from_pretrained({path!r}{options})"
            classes.add(name)
    imports = [f"from transformers import {', '.join(sorted(classes))}"] if classes else []
    return imports, arguments


def _keywords(arguments: Mapping[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def sample_images(
    source: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    rollout: Mapping[str, Any] | None = None,
    base: bool = False,
    step: int | None = None,
    strength: float = 1.0,
    image: Path | None = None,
) -> list[Path]:
    """Write one PNG per prompt-seed pair, and their diffusers calls (`images.jsonl`).

    Args:
        source: a run's folder, or a model (a diffusers folder, a hub id, world:flux or world:sd).
        prompts, seeds: equally long; pair i is image i.
        out: their folder; if it holds images already, the next of `out`-2, `out`-3, ...
        rollout: settings of `config.RolloutConfig` that replace the recipe's, or a bare model's.
        base: sample the model as it was before training.
        step, strength: see `run_weights.find_weights`.
        image: what the prompts edit, for a model that edits images.
    Raises:
        DirectAlignError: an invalid source, an `out` that is a run or a file, unequal lengths.
    """
    pairs = Pairs(tuple(prompts), tuple(seeds))
    _free_folder(out)
    run, folder = run_of(source)
    run, is_plain = with_rollout(run, rollout or {}), step is None and strength == 1
    if not is_plain and (base or folder is None):
        reason = "with --base they have no effect" if base else f"{source} is a model"
        raise DirectAlignError(
            f"--step, --strength: for the trained weights of a run, and {reason}; omit them"
        )
    trained = None if base or folder is None else find_weights(run, folder, step, strength)
    model = load_run_model(run, trained)
    edited = () if image is None else [Source(image)] * len(pairs)
    images = generate(model, pairs.prompts, pairs.seeds, run.rollout, batch_size=1, sources=edited)
    out = _free_folder(out)  # another process may have written some meanwhile
    files = [out / f"{index:04d}-seed{seed}.png" for index, seed in enumerate(pairs.seeds)]
    rows = [
        {"file": file.name, "prompt": prompt, "seed": seed}
        | {"diffusers": diffusers_call(model, run, prompt, seed, trained, image)}
        for file, prompt, seed in zip(files, pairs.prompts, pairs.seeds, strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    for made, file in zip(images, files, strict=True):
        save_png(made, file)
    write_text(out / RECORD, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return files


def _free_folder(out: Path) -> Path:
    """`out`, or with the first number from 2 that holds no images yet."""
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"{out}: is a file; name a folder to write the images to")
    if (out / "run.yaml").exists():
        raise DirectAlignError(f"{out}: holds a run already (run.yaml); name another folder")
    names = chain([out], (out.with_name(f"{out.name}-{number}") for number in count(2)))
    return next(each for each in names if not (each / RECORD).exists())


def run_of(source: Path) -> tuple[config.RunConfig, Path | None]:
    """The recipe of a run's folder and that folder; for a model, a bare recipe and None.

    A bare model is sampled in 25 steps without classifier-free guidance, with embedded guidance 3.5
    where the network takes it.
    """
    if (source / "run.yaml").is_file():
        return load_run(source / "run.yaml"), source
    if is_hub_id(str(source)) and source.parent.is_dir():  # runs/typo beside other runs
        raise DirectAlignError(
            f"{source}: no such folder in {source.parent}; "
            "give a run's folder, a diffusers folder or a hub id"
        )
    if source.suffix == ".safetensors":
        raise DirectAlignError(
            f"{source}: a single file brings no configs and tokenizers; "
            "give a run that was trained from it, or a diffusers folder or hub id"
        )
    # the architecture is read from the folder's index below
    settings = config.ModelConfig(architecture="flux", path=str(source))
    folder = open_source(settings, weights=False).folder
    index = folder / "model_index.json"
    if not index.is_file():
        raise DirectAlignError(
            f"{source}: neither a run (no run.yaml) nor a diffusers pipeline "
            "(no model_index.json); give one of the two"
        )
    pipeline = read_json(index).get("_class_name")
    pipelines = architectures()
    if pipeline not in pipelines:
        raise DirectAlignError(f"{folder}: holds a {pipeline}, and {', '.join(pipelines)} are read")
    name = pipelines[pipeline]
    kind = model_class(name)
    network = read_json(folder / kind.part / "config.json")
    recipe = {
        "name": str(source),
        "model": {"architecture": name, "path": str(source)},
        "reward": {"name": "pixels", "statistic": "brightness"},
        "method": {"form": "absolute"},
        "rollout": {"embedded_guidance": 3.5 if network.get("guidance_embeds") else None},
        "data": {"edits" if kind.edits_images else "prompts": "none"},
        "train": {"num_steps": 1},
    }
    return config.RunConfig.model_validate(recipe), None


def load_run_model(run: config.RunConfig, trained: RunWeights | None) -> Model:
    """The run's model on the best device, with these trained weights or the base model's."""
    model = load_model(run.model, default_device())
    if trained is not None:
        trained.load(model)
    return model


def save_png(image: Float[Tensor, "3 H W"], file: Path) -> None:
    """An image in [0, 1] as 8-bit PNG, rounded as diffusers rounds; complete or not at all."""
    with new_file(file) as partial:
        Image.fromarray(to_pixels(image, str(file))).save(partial, format="PNG")
