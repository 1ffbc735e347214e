"""README.md of an export: a model card whose front matter the Hub can read and whose text claims no more than the run's records say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from PIL import Image, ImageDraw, ImageFont

from .. import config
from ..metrics import metric
from ..report.format import number
from ..report.read import RunFiles
from ..report.run_page import reward_of
from .finished_run import Base, Finished

WEB_UI = {"sd": "A1111 or Forge", "sdxl": "A1111 or Forge", "flux": "Forge"}
"""Which of the two web interfaces runs a model."""


def how_to_load(finished: Finished, base: Base, form: str, target: Path) -> str:
    """Markdown for this export; `target` holds its files."""
    model = finished.run.model.architecture
    if form == "folder":
        return _python(
            finished,
            [f"pipe = {finished.pipeline}.from_pretrained(FOLDER, torch_dtype=torch.bfloat16)"],
        )
    file = next(target.glob("*.safetensors")).name
    lines = []
    if not (form == "kohya" and model == "sd3"):
        lines.append("diffusers:\n\n" + _python(finished, _load(finished, base, file)))
    if form in ("comfyui", "kohya"):
        lines.append(
            f"ComfyUI: put `{file}` into `models/loras` and add a *LoraLoaderModelOnly* node, strength 1."
        )
    if model in WEB_UI and (form == "kohya" or (form == "comfyui" and model != "flux")):
        stem = file.removesuffix(".safetensors")
        lines.append(
            f"{WEB_UI[model]}: put `{file}` into `models/Lora` and write `<lora:{stem}:1>` in the prompt."
        )
    if form == "diffusers":
        lines.append(
            "For ComfyUI, A1111 and Forge export the run again with `--format comfyui` or `--format kohya`."
        )
    return "\n\n".join(lines)


def _load(finished: Finished, base: Base, file: str) -> list[str]:
    place = base.hub_id or f"<folder of {base.name}>"
    return [
        f"pipe = {finished.pipeline}.from_pretrained({place!r}, torch_dtype=torch.bfloat16)",
        f"pipe.load_lora_weights(FOLDER, weight_name={file!r})",
    ]


def _python(finished: Finished, load: list[str]) -> str:
    rollout = finished.run.rollout
    guidance = (
        f"embedded guidance {rollout.embedded_guidance:g}"
        if rollout.embedded_guidance is not None
        else f"cfg scale {rollout.cfg_scale:g}"
    )
    code = [
        "import torch",
        f"from diffusers import {finished.pipeline}",
        "",
        "FOLDER = '.'  # this folder, or owner/name once it is on the Hub",
        *load,
        f"image = pipe('a prompt', num_inference_steps={rollout.num_inference_steps}).images[0]",
    ]
    told = f"Training sampled with {rollout.num_inference_steps} steps and {guidance}; other settings work as with the base, but were not trained on."
    return "```python\n" + "\n".join(code) + "\n```\n\n" + told


NOT_NUMBERS = ("step", "event", "seconds")
UNMEASURED = """Not measured: what people prefer; prompts, sizes, samplers, step counts and guidance other than the recipe's; text in images, bias and
safety. A reward that rises is what training asked for, not evidence of better images. All limits of the base model remain."""


def measured(run: config.RunConfig, summary: dict[str, Any]) -> str:
    """A table of the first and the last measurement, how they were made, and what they leave open."""
    before, after = summary.get("before"), summary.get("after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return f"Nothing: the run's records hold no measurement before and after.\n\n{UNMEASURED}"
    rows = [
        _row(name, before, after)
        for name in after
        if name not in NOT_NUMBERS and number(after[name]) is not None
    ]
    table = "\n".join(["| | before | after | meaning |", "|---|---|---|---|", *rows])
    return f"{table}\n\n{_how(run)}\n\n{UNMEASURED}"


def _row(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    told = metric(name)
    direction = f" ({told.direction})" if told.direction else ""
    return f"| {name} | {_cell(before.get(name))} | {_cell(after[name])} | {told.description}{direction} |"


def _cell(value: Any) -> str:
    found = number(value)
    if found is None:
        return "-"
    if isinstance(value, dict) and {"low", "high", "n"} <= value.keys():
        return f"{found:.3f} ({value['low']:.3f} to {value['high']:.3f}, n = {value['n']})"
    return f"{found:.4g}"


def _how(run: config.RunConfig) -> str:
    judges = {
        "world": "the embedded style and content judges, which training never saw",
        "none": "no judge: the reward and drift statistics alone",
    }
    return f"On {run.evaluate.num_samples} fixed prompt-seed pairs, before and after alike, with {judges[run.evaluate.judge]}. Brackets are 95 % intervals."


MARGIN = 24
"""Pixels of the strip above each grid that says what it is."""


def before_and_after(records: RunFiles) -> Image.Image | None:
    """The first grid above the last one, each under its name; None where a run has fewer than two."""
    if len(records.samples) < 2:
        return None
    (first, before), (last, after) = records.samples[0], records.samples[-1]
    return _stacked([(_title(first), before), (_title(last), after)])


def _title(step: int) -> str:
    return "before" if step == 0 else f"after {step} updates"


def _stacked(grids: list[tuple[str, Path]]) -> Image.Image:
    images = []
    for _, file in grids:
        with Image.open(file) as opened:
            images.append(opened.convert("RGB"))
    whole = Image.new(
        "RGB",
        (max(image.width for image in images), sum(image.height + MARGIN for image in images)),
        "white",
    )
    pen, top = ImageDraw.Draw(whole), 0
    for (title, _), image in zip(grids, images, strict=True):
        pen.text(
            (MARGIN // 4, top + MARGIN // 4), title, fill="black", font=ImageFont.load_default()
        )
        whole.paste(image, (0, top + MARGIN))
        top += image.height + MARGIN
    return whole


GRID = "before_after.png"
LOCAL = "<local>"
"""Stands for the folder of a path on the machine that trained."""


def write_card(finished: Finished, base: Base, form: str, target: Path) -> None:
    """Write README.md into the exported folder `target`, and the picture it shows."""
    picture = before_and_after(finished.records)
    if picture is not None:
        picture.save(target / GRID)
    sections = [
        f"---\n{front_matter(finished, base, form)}\n---",
        f"# {finished.run.name}",
        _what(finished, base, form),
        _shown(finished, picture is not None),
        "## Use\n" + how_to_load(finished, base, form, target),
        "## Measured\n" + measured(finished.run, finished.records.summary),
        "## Licence\n" + _licence(base),
        f"## Recipe\n{_origin(finished)}\n\n```yaml\n{shareable_recipe(finished)}```",
    ]
    (target / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def front_matter(finished: Finished, base: Base, form: str) -> str:
    """The card's metadata as YAML; the licence is the base's, "unknown" where that is not known."""
    licence = base.licence
    tags = [
        "text-to-image",
        "diffusers",
        "directalign",
        finished.run.method.name,
        finished.run.model.architecture,
        *(["lora"] if form != "folder" else []),
    ]
    given: dict[str, Any] = {
        "license": licence.id if licence else "unknown",
        "license_name": licence and licence.name,
        "license_link": licence and licence.link,
        "base_model": base.hub_id,
        "base_model_relation": base.hub_id and ("finetune" if form == "folder" else "adapter"),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": tags,
    }
    return ModelCardData(
        **{key: value for key, value in given.items() if value is not None}
    ).to_yaml()


def shareable_recipe(finished: Finished) -> str:
    """run.yaml as it was resolved, with paths of the training machine cut to their last name."""
    return yaml.safe_dump(
        _without_paths(finished.run.model_dump(mode="json")),
        sort_keys=False,
        allow_unicode=True,
        width=1000,
    )


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    scheme, path = (
        ("hf:", value[3:]) if isinstance(value, str) and value.startswith("hf:") else ("", value)
    )
    is_local = isinstance(path, str) and path.startswith(("/", "~", "..")) and "/" in path
    return f"{scheme}{LOCAL}/{path.rstrip('/').rsplit('/', 1)[-1]}" if is_local else value


def _what(finished: Finished, base: Base, form: str) -> str:
    run = finished.run
    source = f"[{base.name}](https://huggingface.co/{base.hub_id})" if base.hub_id else base.name
    if form != "folder":
        kind = f"A LoRA (rank {run.model.lora.rank}) for"
    else:
        kind = (
            f"A LoRA (rank {run.model.lora.rank}) merged into"
            if run.model.tune == "lora"
            else "All weights of the denoiser, tuned from"
        )
    held = (
        f" The base was held in {run.model.quantization} while training."
        if run.model.quantization
        else ""
    )
    return (
        f"{kind} {source}, aligned to a reward model with directalign: method `{run.method.name}`, {run.train.num_steps} updates, "
        f"reward `{reward_of(_without_paths(run.reward.model_dump(mode='json')))}`.{held} No trigger words."
    )


def _shown(finished: Finished, has_picture: bool) -> str:
    if not has_picture:
        return "The run left no pair of sample grids to show."
    prompts = finished.records.sample_info.get("prompts") or []
    listed = "\n".join(f"{place}. {prompt}" for place, prompt in enumerate(prompts, start=1))
    told = "The same prompts and seeds before and after, row by row, none left out"
    return f"![Sample grids before and after training]({GRID})\n\n{told}{':' if listed else '.'}\n\n{listed}".rstrip()


def _licence(base: Base) -> str:
    if base.licence is None:
        return (
            f"**To be filled in.** The licence of the base model {base.name} could not be found; weights made from it fall under its terms. "
            "Put its id into `license` above before you publish this."
        )
    text = f" ([text]({base.licence.link}))" if base.licence.link else ""
    return f"Weights made from {base.name} fall under its licence: {base.licence.title}{text}."


def _origin(finished: Finished) -> str:
    commit = finished.records.summary.get("commit")
    versions = finished.records.summary.get("versions") or {}
    named = ", ".join(
        f"{name} {versions[name]}"
        for name in ("directalign", "torch", "diffusers", "peft")
        if name in versions
    )
    told = [
        f"Seed {finished.run.seed}",
        f"directalign commit {commit}" if commit else "commit not recorded",
        named or "versions not recorded",
    ]
    return "; ".join(told) + f". `{LOCAL}/` stands for folders of the machine that trained."
