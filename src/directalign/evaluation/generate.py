"""Generate images of prompt-seed pairs, which do not depend on batch or process."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from .. import config
from ..config.load import load_run, with_rollout
from ..device import default_device
from ..diffusion.sampling import rollout_sigmas, sample
from ..interfaces import SINGLE_PROCESS, Model, ProcessGroup
from ..io.atomic import new_file, write_text
from ..io.hub import is_hub_id
from ..io.tensors import require_finite, to_pixels
from ..models import MODELS, load_model, load_trained, model_class, single_file
from ..models.checkpoint_source import check_base, open_source
from ..models.lora import LORA_FILE
from ..models.weight_files import read_json
from ..toyworld import assets
from ..types import DirectAlignError, Images
from .eval_prompts import Pairs, seed_noise

RECORD = "images.jsonl"


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rollout: config.RolloutConfig,
    batch_size: int = 32,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Images:
    """Images (n, 3, H, W) of the prompt-seed pairs, float32 clamped to [0, 1], on the CPU.

    Each of `group` generates an equal part, and all return all images.

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
        batch = [prompts[place] for place in own[first : first + batch_size]]
        cond = model.encode_prompt(batch).guided(rollout.embedded_guidance, rollout.cfg_scale)
        x0 = sample(model, cond, noise[first : first + batch_size].to(device), sigmas)
        image = model.decode(x0).float()
        images.append(torch.where(image.isfinite(), image.clamp(0, 1), torch.nan).cpu())
    whole = group.gather(torch.cat(images))[: len(prompts)]
    for image, prompt, seed in zip(whole, prompts, seeds, strict=True):  # as one on all ranks
        require_finite(image, f"the image of {prompt!r}, seed {seed},")
    return whole


def image_size(model: Model, rollout: config.RolloutConfig) -> tuple[int, int]:
    """(height, width) in pixels: the recipe's, else the checkpoint's default."""
    return rollout.height or model.default_size[0], rollout.width or model.default_size[1]


def diffusers_call(
    model: Model, run: config.RunConfig, prompt: str, seed: int, trained: Path | None
) -> dict[str, Any]:
    """The diffusers call that makes the image again, also as Python under "code"; `trained`: the
    run's folder, None for the base model."""
    height, width = image_size(model, run.rollout)
    arguments = {"prompt": prompt, "height": height, "width": width}
    arguments |= {"num_inference_steps": run.rollout.num_inference_steps}
    arguments |= model.call_arguments(run.rollout)
    call = {
        "pipeline": model.pipeline,
        "path": str(assets.resolve(run.model.path)),
        "weights": str(trained) if trained else None,
        "scheduler": _scheduler(model, run.rollout.shift),
        "arguments": arguments,
        "seed": seed,
    }
    return {**call, "code": _code(call, model.part, run)}


def _scheduler(model: Model, shift: float | None) -> dict[str, Any]:
    """The pipeline's scheduler class, and the changes to its config."""
    if model.path == "vp":
        if shift is not None:
            raise DirectAlignError(
                f"rollout.shift {shift} shifts a flow; an SD model has its own timesteps: "
                "leave it out"
            )
        # a folder saved with another sampler may lack clip_sample, whose default in DDIM is True
        changes = {"set_alpha_to_one": True, "clip_sample": False}
        return {"class": "DDIMScheduler", "changes": changes}
    changes = {} if shift is None else {"use_dynamic_shifting": False, "shift": shift}
    return {"class": "FlowMatchEulerDiscreteScheduler", "changes": changes}


def _code(call: dict[str, Any], part: str, run: config.RunConfig) -> str:
    scheduler, changes = call["scheduler"]["class"], call["scheduler"]["changes"]
    arguments = ", ".join(f"{name}={value!r}" for name, value in call["arguments"].items())
    classes, opened = opening_code(call["pipeline"], run.model)
    lines = [
        "import torch",
        f"from diffusers import {', '.join([*classes, scheduler])}",
        f"pipe = {opened}",
    ]
    weights = call["weights"]
    if weights is not None and run.model.tune == "lora":
        lines.append(f"pipe.load_lora_weights({weights!r}, weight_name='lora.safetensors')")
    elif weights is not None:
        loaded = f"type(pipe.{part}).from_pretrained({weights!r}, subfolder={part!r})"
        lines.append(f"pipe.{part} = {loaded}")
    seeded = f"generator=torch.Generator().manual_seed({call['seed']})"
    lines += [
        f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{_keywords(changes)})",
        f"image = pipe({arguments}, {seeded}).images[0]",
    ]
    return "\n".join(lines)


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
        return [pipeline], f"{pipeline}.from_pretrained({path_of(model.path)!r}{chosen}{dtype})"
    file, folder = Path(model.path).expanduser(), path_of(model.components)
    load = f"from_single_file({path_of(str(file))!r}, config={folder!r}"
    held = single_file.contents(file) if file.is_file() else None
    if held is None or "text_encoder" in held.parts:
        return [pipeline], f"{pipeline}.{load}{dtype})"
    kinds = dict.fromkeys(held.parts, held.layout.class_name)
    kinds |= {part: "AutoencoderKL" for part in held.parts if part == "vae"}
    parts = [f", {part}={each}.{load}, subfolder={part!r}{dtype})" for part, each in kinds.items()]
    opened = f"{pipeline}.from_pretrained({folder!r}{chosen}{''.join(parts)}{dtype})"
    return [pipeline, *kinds.values()], opened


def _keywords(arguments: Mapping[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def sample_images(
    source: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    rollout: Mapping[str, Any] | None = None,
    base: bool = False,
) -> list[Path]:
    """Write one PNG per prompt-seed pair into `out`, and their diffusers calls (`images.jsonl`).

    Args:
        source: a run's folder, or a model (a diffusers folder, a hub id, world:flux or world:sd).
        prompts, seeds: equally long; pair i is image i.
        rollout: settings of `config.RolloutConfig` that replace the recipe's, or a bare model's.
        base: sample the model as it was before training.
    Raises:
        DirectAlignError: an invalid source, an `out` that holds images already, unequal lengths.
    """
    pairs = Pairs(tuple(prompts), tuple(seeds))
    _require_no_images(out)
    run, trained = run_of(source)
    run = with_rollout(run, rollout or {})
    trained = None if base else trained
    model = load_run_model(run, trained)
    images = generate(model, pairs.prompts, pairs.seeds, run.rollout, batch_size=1)
    files = [out / f"{index:04d}-seed{seed}.png" for index, seed in enumerate(pairs.seeds)]
    rows = [
        {"file": file.name, "prompt": prompt, "seed": seed}
        | {"diffusers": diffusers_call(model, run, prompt, seed, trained)}
        for file, prompt, seed in zip(files, pairs.prompts, pairs.seeds, strict=True)
    ]
    _require_no_images(out)  # another process may have written some meanwhile
    out.mkdir(parents=True, exist_ok=True)
    for image, file in zip(images, files, strict=True):
        save_png(image, file)
    write_text(out / RECORD, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return files


def _require_no_images(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"{out}: is a file; name a folder to write the images to")
    for what, name in (("images", RECORD), ("a run", "run.yaml")):
        if (out / name).exists():
            raise DirectAlignError(f"{out}: holds {what} already ({name}); name another folder")


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
    pipelines = {model_class(each).pipeline: each for each in MODELS}
    if pipeline not in pipelines:
        raise DirectAlignError(f"{folder}: holds a {pipeline}, and {', '.join(pipelines)} are read")
    name = pipelines[pipeline]
    network = read_json(folder / model_class(name).part / "config.json")
    recipe = {
        "name": str(source),
        "model": {"architecture": name, "path": str(source)},
        "reward": {"name": "pixels", "statistic": "brightness"},
        "method": {"form": "absolute"},
        "rollout": {"embedded_guidance": 3.5 if network.get("guidance_embeds") else None},
        "data": {"prompts": "none"},
        "train": {"num_steps": 1},
    }
    return config.RunConfig.model_validate(recipe), None


def trained_weights(run: config.RunConfig, folder: Path) -> Path:
    """`lora.safetensors` of the run in `folder`, or the folder of its trained denoiser.

    Raises: DirectAlignError for a run that is not finished, or whose base or adapters changed.
    """
    check_base(run.model, folder)
    is_lora, part = run.model.tune == "lora", model_class(run.model.architecture).part
    weights = folder / (LORA_FILE if is_lora else part)
    if not weights.exists():
        saved = sorted((folder / "checkpoints").glob("step-*"))
        remedy = f"continue it with directalign train RECIPE --resume --out {folder}"
        if saved:
            remedy += (
                f", or take its last checkpoint, {saved[-1].name}: directalign average {folder} "
                "--last 1 --out NEW"
            )
        raise DirectAlignError(f"{weights}: no such file, the run is not finished; {remedy}")
    return weights


def load_run_model(run: config.RunConfig, trained: Path | None) -> Model:
    """The run's model on the best device, with the weights in `trained` or the base model's."""
    if trained is not None:
        trained_weights(run, trained)
    model = load_model(run.model, default_device())
    if trained is not None:
        load_trained(model, trained)
    return model


def save_png(image: Float[Tensor, "3 H W"], file: Path) -> None:
    """An image in [0, 1] as 8-bit PNG, rounded as diffusers rounds; complete or not at all."""
    with new_file(file) as partial:
        Image.fromarray(to_pixels(image, str(file))).save(partial, format="PNG")
