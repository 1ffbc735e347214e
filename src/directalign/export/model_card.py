"""README.md of an export: a Hugging Face model card from the run's records.

The text is in templates/model_card.md.j2.
"""

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image, ImageDraw, ImageFont

from ..evaluation.generate import adapter_code, opening_code, separate_code
from ..io import hub
from ..report.format import number
from ..report.read import RunFiles, metric_of
from ..report.run_page import reward_of
from .finished_run import BaseModelInfo, FinishedRun

logger = logging.getLogger(__name__)
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"
GRID = "before_after.png"
LOCAL = "<local>"
"""Replaces the folder of a path on the machine that trained."""
WHOLE = ("checkpoint", "folder")
"""Formats that hold the base model too."""
MARGIN = 24
"""Pixels of the title above each grid."""
WEB_UI = {"sd": "A1111 or Forge", "sdxl": "A1111 or Forge", "flux": "Forge"}
"""Web interfaces that run a model; for FLUX only with kohya's format."""
NOT_MEASURES = ("step", "event", "seconds")
JUDGED = "the embedded style and content judges, which are not used in training"
NOT_JUDGED = "no judge: only the reward and drift statistics"


def write_card(finished: FinishedRun, base: BaseModelInfo, form: str, target: Path) -> None:
    """Write README.md and its image into the exported folder `target`."""
    run, summary = finished.run, finished.records.summary
    weights, architecture = finished.weights, run.model.architecture
    grid = before_and_after(finished.records, weights.step) if weights.strength == 1 else None
    if grid is not None:
        grid.save(target / GRID)
    is_whole = form in WHOLE
    kind = (
        f"A {finished.adapter} (rank {run.model.lora.rank}) {'merged into' if is_whole else 'for'}"
    )
    if run.model.tune == "full":
        kind = "All weights of the denoiser, finetuned from"
    recipe = _without_paths(run.model_dump(mode="json"))
    versions = summary.get("versions") or {}
    libraries = ("directalign", "torch", "diffusers", "peft")
    file = "" if form == "folder" else next(target.glob("*.safetensors")).name
    model, show = run.model, partial(_shown, base=base, path=run.model.path)
    if form == "checkpoint":
        source = {"path": str(target / file), "components": model.components or model.path}
        model = model.model_copy(update=source)
        show = partial(_shown_checkpoint, show, str(target / file))
    model = model.model_copy(update={"dtype": "bfloat16"})
    classes, opened = opening_code(finished.pipeline, model, show)
    imports, separate = separate_code(model, show)
    has_web_ui = form == "kohya" or (form == "comfyui" and architecture != "flux")
    card = ModelCard.from_template(
        card_data(finished, base, form),
        template_path=str(TEMPLATE),
        run=run,
        title=finished.title,
        words=", ".join(weights.words),
        num_steps=finished.num_steps,
        evaluate=f"directalign evaluate RUN{weights.options}",
        loading=adapter_code(run.model, finished.part, "FOLDER", file),
        base=base,
        form=form,
        architecture=architecture,
        pipeline=finished.pipeline,
        classes=", ".join([finished.pipeline] if form == "folder" else classes),
        opened=opened,
        imports=imports,
        separate=separate,
        kind=kind,
        reward=reward_of(recipe["reward"]),
        grid=GRID if grid is not None else None,
        prompts=finished.records.sample_info.get("prompts") or [],
        file=file,
        web_ui=WEB_UI.get(architecture) if has_web_ui else None,
        rows=[] if weights.words else measured(finished.records),
        judge=NOT_JUDGED if run.evaluate.judge == "none" else JUDGED,
        commit=summary.get("commit"),
        versions=", ".join(f"{name} {versions[name]}" for name in libraries if name in versions),
        local=LOCAL,
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=1000),
    )
    (target / "README.md").write_text(card.content.rstrip() + "\n", encoding="utf-8")


def _shown(path_or_id: str, base: BaseModelInfo, path: str) -> str:
    """A path as others can read it: the hub id, or the last part of a local one."""
    if path_or_id == path and base.hub_id:
        return base.hub_id
    name = base.name if path_or_id == path else Path(path_or_id).name
    return path_or_id if hub.HUB_ID.fullmatch(path_or_id) else f"<path of {name}>"


def _shown_checkpoint(show: Callable[[str], str], file: str, path: str) -> str:
    """`show`, with the exported file by its name."""
    return f"./{Path(file).name}" if path == file else show(path)


def card_data(finished: FinishedRun, base: BaseModelInfo, form: str) -> ModelCardData:
    """The card's metadata; the license is the base model's, "unknown" if it is not known."""
    run, license = finished.run, base.license
    relation = "finetune" if form in WHOLE else "adapter"
    task = "text-to-image" if run.data.edits is None else "image-to-image"
    tags = [task, "diffusers", "directalign", run.method.name, run.model.architecture]
    values: dict[str, Any] = {
        "license": license.id if license else "unknown",
        "license_name": license and license.name,
        "license_link": license and license.link,
        "base_model": base.hub_id,
        "base_model_relation": relation if base.hub_id else None,
        "library_name": "diffusers",
        "pipeline_tag": task,
        "tags": tags if form in WHOLE else [*tags, "lora"],
    }
    return ModelCardData(**{key: value for key, value in values.items() if value is not None})


def measured(records: RunFiles) -> list[tuple[str, str, str, str]]:
    """(name, before, after, meaning) of every measure; empty without both measurements."""
    before, after = records.summary.get("before"), records.summary.get("after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    rows = []
    for name in after:
        if name not in NOT_MEASURES and number(after[name]) is not None:
            info = metric_of([records], name)
            meaning = info.description + (f" ({info.direction})" if info.direction else "")
            rows.append((name, _cell(before.get(name)), _cell(after[name]), meaning))
    return rows


def _cell(value: Any) -> str:
    found = number(value)
    if found is None:
        return "-"
    if isinstance(value, dict) and {"low", "high", "n"} <= value.keys():
        return f"{found:.3f} ({value['low']:.3f} to {value['high']:.3f}, n = {value['n']})"
    return f"{found:.4g}"


def before_and_after(records: RunFiles, step: int | None = None) -> Image.Image | None:
    """The first sample grid above that of `step` (None: the last one), with titles; None without
    both."""
    after = [each for each in records.samples if step is None or each[0] == step]
    if len(records.samples) < 2 or not after or after[-1] == records.samples[0]:
        return None
    images = []
    for step, file in (records.samples[0], after[-1]):
        try:
            with Image.open(file, formats=["PNG"]) as opened:
                title = "before" if step == 0 else f"after {step} updates"
                images.append((title, opened.convert("RGB")))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow's
            logger.warning(f"{file}: damaged ({error}), and the card has no images")
            return None
    width = max(image.width for _, image in images)
    height = sum(image.height + MARGIN for _, image in images)
    whole, top = Image.new("RGB", (width, height), "white"), 0
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default()
    for title, image in images:
        draw.text((MARGIN // 4, top + MARGIN // 4), title, fill="black", font=font)
        whole.paste(image, (0, top + MARGIN))
        top += image.height + MARGIN
    return whole


def _without_paths(value: Any) -> Any:
    """A recipe with the folders of local paths replaced by `LOCAL`."""
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    if not isinstance(value, str):
        return value
    scheme = "hf:" if value.startswith("hf:") else ""
    path = value.removeprefix(scheme)
    if re.match(r"/|~.*/|\.\..*/|\\\\|[A-Za-z]:[\\/]", path) is None:  # the last two of Windows
        return value
    name = re.split(r"[\\/]", path.rstrip("/"))[-1]
    return f"{scheme}{LOCAL}/{name}"
