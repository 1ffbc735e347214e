"""From pairs to images: an image depends on its prompt, its seed and the weights, never on the batch or process it was made in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from .. import config
from ..config.load import load_run
from ..diffusion.sampling import rollout_sigmas, sample
from ..interfaces import SINGLE_PROCESS, Model, ProcessGroup
from ..io.hub import is_hub_id
from ..models import MODELS, load_model, load_trained, model_class, single_file
from ..models.checkpoint_source import open_source
from ..models.reference_model import ReferenceModel, has_adapters
from ..models.weight_files import read_json
from ..toyworld import assets
from ..types import DirectAlignError, Images
from .eval_prompts import Pairs, seed_noise


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rollout: config.RolloutConfig,
    batch_size: int = 32,
    together: ProcessGroup = SINGLE_PROCESS,
) -> Images:
    """Images (n, 3, H, W) of the prompt-seed pairs, float32 clamped to [0, 1], on the CPU.

    Ranks that come here `together` each make an equal part and all return all images.
    """
    if not prompts:
        raise DirectAlignError("no prompts to sample: give at least one")
    each = -(-len(prompts) // together.size)
    own = [
        min(place, len(prompts) - 1)
        for place in range(together.rank * each, (together.rank + 1) * each)
    ]  # the last pair fills up
    images = _generate_images(
        model,
        [prompts[place] for place in own],
        [seeds[place] for place in own],
        rollout,
        batch_size,
    )
    return together.gather(images)[: len(prompts)]


def _generate_images(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rollout: config.RolloutConfig,
    batch_size: int,
) -> Images:
    height, width = image_size(model, rollout)
    sigmas = rollout_sigmas(model, rollout, height, width)
    noise = seed_noise(seeds, model.latent_shape(height, width))
    device = next(model.denoiser.parameters()).device
    images = []
    for first in range(0, len(prompts), batch_size):
        cond = model.encode_prompt(prompts[first : first + batch_size]).guided(
            rollout.embedded_guidance, rollout.cfg_scale
        )
        x0 = sample(model, cond, noise[first : first + batch_size].to(device), sigmas)
        images.append(model.decode(x0).float().clamp(0, 1).cpu())
    return torch.cat(images)


def image_size(model: Model, rollout: config.RolloutConfig) -> tuple[int, int]:
    """(height, width) in pixels: the recipe's, or what the checkpoint was made for."""
    return rollout.height or model.default_size[0], rollout.width or model.default_size[1]


@contextmanager
def base_weights(model: Model) -> Iterator[None]:
    """The model as it was before training, for as long as the context lasts: LoRA adapters off, then on again."""
    if not has_adapters(model.denoiser):
        raise DirectAlignError(
            "all weights were trained, so the base model is not in here: load it by itself from model.path"
        )
    with ReferenceModel(model.denoiser).active():
        yield


def diffusers_call(
    model: Model, run: config.RunConfig, prompt: str, seed: int, trained: Path | None
) -> dict[str, Any]:
    """Everything the call needs, and the same as lines of Python under "code"; `trained` is the run folder, None for the base model."""
    call = {
        "pipeline": model.pipeline,
        "path": str(assets.resolve(run.model.path)),
        "weights": str(trained) if trained else None,
        "scheduler": _scheduler(model, run),
        "arguments": {"prompt": prompt, **_arguments(model, run.rollout)},
        "seed": seed,
    }
    return {**call, "code": _code(call, model, run)}


def _arguments(model: Model, rollout: config.RolloutConfig) -> dict[str, Any]:
    height, width = image_size(model, rollout)
    return {
        "height": height,
        "width": width,
        "num_inference_steps": rollout.num_inference_steps,
        **model.call_arguments(rollout),
    }


def _scheduler(model: Model, run: config.RunConfig) -> dict[str, Any]:
    """Which scheduler the pipeline must have, and what of its config is changed."""
    if model.path == "vp":
        if run.rollout.shift is not None:
            raise DirectAlignError(
                f"rollout.shift {run.rollout.shift} shifts a flow; an SD model has its own timesteps: leave it out"
            )
        # a folder saved with another sampler may say nothing of clipping, and DDIM's default is to clip
        return {
            "class": "DDIMScheduler",
            "changes": {"set_alpha_to_one": True, "clip_sample": False},
        }
    changes = (
        {}
        if run.rollout.shift is None
        else {"use_dynamic_shifting": False, "shift": run.rollout.shift}
    )
    return {"class": "FlowMatchEulerDiscreteScheduler", "changes": changes}


def _code(call: dict[str, Any], model: Model, run: config.RunConfig) -> str:
    scheduler, changes = call["scheduler"]["class"], call["scheduler"]["changes"]
    arguments = ", ".join(f"{name}={value!r}" for name, value in call["arguments"].items())
    classes, opened = _opened(call["pipeline"], run.model)
    lines = [
        "import torch",
        f"from diffusers import {', '.join([*classes, scheduler])}",
        f"pipe = {opened}",
        *_load_lines(call, model.part, run),
        f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{_extra(changes)})",
        f"image = pipe({arguments}, generator=torch.Generator().manual_seed({call['seed']})).images[0]",
    ]
    return "\n".join(lines)


def _opened(pipeline: str, model: config.ModelConfig) -> tuple[list[str], str]:
    """The expression that opens the base model, and the classes in it; what a single file holds takes the place of its components' parts."""
    dtype = "" if model.dtype == "float32" else f", torch_dtype=torch.{model.dtype}"
    chosen = _extra(
        {
            name: value
            for name, value in {"revision": model.revision, "variant": model.variant}.items()
            if value is not None
        }
    )
    if model.components is None:
        return [
            pipeline
        ], f"{pipeline}.from_pretrained({str(assets.resolve(model.path))!r}{chosen}{dtype})"
    file, folder = str(Path(model.path).expanduser()), str(assets.resolve(model.components))
    held = single_file.contents(Path(file))
    if "text_encoder" in held.parts:
        return [pipeline], f"{pipeline}.from_single_file({file!r}, config={folder!r}{dtype})"
    kinds = {
        part: "AutoencoderKL" if part == "vae" else held.layout.class_name for part in held.parts
    }
    own = "".join(
        f", {part}={kind}.from_single_file({file!r}, config={folder!r}, subfolder={part!r}{dtype})"
        for part, kind in kinds.items()
    )
    return [
        pipeline,
        *kinds.values(),
    ], f"{pipeline}.from_pretrained({folder!r}{chosen}{own}{dtype})"


def _extra(arguments: dict[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def _load_lines(call: dict[str, Any], part: str, run: config.RunConfig) -> list[str]:
    if call["weights"] is None:
        return []
    if run.model.tune == "lora":
        return [f"pipe.load_lora_weights({call['weights']!r}, weight_name='lora.safetensors')"]
    return [
        f"pipe.{part} = type(pipe.{part}).from_pretrained({call['weights']!r}, subfolder={part!r})"
    ]


RECORD = "images.jsonl"


def sample_images(
    source: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    rollout: Mapping[str, Any] | None = None,
    base: bool = False,
) -> list[Path]:
    """Write one PNG per prompt-seed pair into `out`, and `images.jsonl` with the diffusers call that makes each again.

    Args:
        source: a run's folder, or a model (a diffusers folder, a hub id or world:flux, world:sd, world:sd_v), sampled as it is.
        prompts, seeds: equally long; pair i is image i.
        rollout: what of `config.Rollout` is to differ from the recipe's, or from a bare model's settings; each name with its value.
        base: sample the model as it was before training.
    Raises:
        DirectAlignError: nothing to sample from, an `out` that holds images already, numbers that do not match.
    """
    pairs = Pairs(tuple(prompts), tuple(seeds))
    _claim(out)
    run, trained = run_of(source)
    run = run.model_copy(update={"rollout": run.rollout.model_copy(update=dict(rollout or {}))})
    trained = None if base else trained
    model = load_run_model(run, trained)
    images = generate(model, pairs.prompts, pairs.seeds, run.rollout, batch_size=1)
    return _write(
        out,
        pairs,
        images,
        [
            diffusers_call(model, run, p, s, trained)
            for p, s in zip(pairs.prompts, pairs.seeds, strict=True)
        ],
    )


def run_of(source: Path) -> tuple[config.RunConfig, Path | None]:
    """The recipe behind a run's folder and that folder; or a bare recipe for a model, and None."""
    if (source / "run.yaml").is_file():
        return load_run(source / "run.yaml"), source
    _check_model(source)
    folder = open_source(
        config.ModelConfig(architecture="flux", path=str(source)), weights=False
    ).folder  # which model it is, its index will say
    if not (folder / "model_index.json").is_file():
        raise DirectAlignError(
            f"{source}: neither a run (no run.yaml) nor a diffusers pipeline (no model_index.json); give one of the two"
        )
    name = read_json(folder / "model_index.json").get("_class_name")
    pipelines = {model_class(each).pipeline: each for each in MODELS}
    if name not in pipelines:
        raise DirectAlignError(f"{folder}: holds a {name}, and {', '.join(pipelines)} are read")
    return _bare_recipe(str(source), folder, pipelines[name]), None


def _check_model(source: Path) -> None:
    """Refuses what would be looked for on the hub and is no repository: runs/typo beside other runs, a checkpoint in one file."""
    if is_hub_id(str(source)) and source.parent.is_dir():
        raise DirectAlignError(
            f"{source}: no such folder in {source.parent}; give a run's folder, a diffusers folder or a hub id"
        )
    if source.suffix == ".safetensors":
        raise DirectAlignError(
            f"{source}: a single file brings no configs and tokenizers; give a run that was trained from it, or a diffusers folder or hub id"
        )


def _bare_recipe(path: str, folder: Path, model: str) -> config.RunConfig:
    """Sampling settings for a model that no run is behind: 25 steps, no classifier-free guidance, embedded guidance 3.5 where the network takes it."""
    part = folder / model_class(model).part / "config.json"
    guidance = 3.5 if read_json(part).get("guidance_embeds") else None
    given = {
        "name": path,
        "model": {"architecture": model, "path": path},
        "reward": {"name": "pixels", "statistic": "brightness"},
        "method": {"form": "absolute"},
        "rollout": {"embedded_guidance": guidance},
        "data": {"prompts": "none"},
        "train": {"num_steps": 1},
    }
    return config.RunConfig.model_validate(given)


def load_run_model(run: config.RunConfig, trained: Path | None) -> Model:
    """The run's model on the best device, with the weights of `trained`, or the base model's for None."""
    model = load_model(run.model, "cuda" if torch.cuda.is_available() else "cpu")
    if trained is not None:
        load_trained(model, trained)
    return model


def save_png(image: Float[Tensor, "3 H W"], file: Path) -> None:
    """An image in [0, 1] as 8-bit PNG, rounded as diffusers rounds."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file)


def _claim(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"{out}: is a file; name a folder to write the images to")
    if (out / RECORD).exists():
        raise DirectAlignError(f"{out}: holds images already ({RECORD}); name another folder")


def _write(
    out: Path, pairs: Pairs, images: Float[Tensor, "n 3 H W"], calls: list[dict[str, object]]
) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{index:04d}-seed{seed}.png" for index, seed in enumerate(pairs.seeds)]
    lines = []
    for file, prompt, seed, image, call in zip(
        files, pairs.prompts, pairs.seeds, images, calls, strict=True
    ):
        save_png(image, file)
        lines.append(
            json.dumps(
                {"file": file.name, "prompt": prompt, "seed": seed, "diffusers": call},
                ensure_ascii=False,
            )
            + "\n"
        )
    (out / RECORD).write_text("".join(lines), encoding="utf-8")
    return files
