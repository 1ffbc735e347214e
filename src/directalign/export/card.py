"""README.md of an export: a model card whose front matter the Hub can read and whose text claims no more than the run's records say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from ..report.run_page import reward_of
from .base import Base
from .finished import Finished
from .how_to_load import how_to_load
from .measured import measured
from .pictures import before_and_after

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
    tags = ["text-to-image", "diffusers", "directalign", finished.run.method.name, finished.run.model.family, *(["lora"] if form != "folder" else [])]
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
    return ModelCardData(**{key: value for key, value in given.items() if value is not None}).to_yaml()


def shareable_recipe(finished: Finished) -> str:
    """run.yaml as it was resolved, with paths of the training machine cut to their last name."""
    return yaml.safe_dump(_without_paths(finished.run.model_dump(mode="json")), sort_keys=False, allow_unicode=True, width=1000)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    scheme, path = ("hf:", value[3:]) if isinstance(value, str) and value.startswith("hf:") else ("", value)
    is_local = isinstance(path, str) and path.startswith(("/", "~", "..")) and "/" in path
    return f"{scheme}{LOCAL}/{path.rstrip('/').rsplit('/', 1)[-1]}" if is_local else value


def _what(finished: Finished, base: Base, form: str) -> str:
    run = finished.run
    source = f"[{base.name}](https://huggingface.co/{base.hub_id})" if base.hub_id else base.name
    if form != "folder":
        kind = f"A LoRA (rank {run.model.lora.rank}) for"
    else:
        kind = f"A LoRA (rank {run.model.lora.rank}) merged into" if run.model.tune == "lora" else "All weights of the denoiser, tuned from"
    held = f" The base was held in {run.model.quantization} while training." if run.model.quantization else ""
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
    named = ", ".join(f"{name} {versions[name]}" for name in ("directalign", "torch", "diffusers", "peft") if name in versions)
    told = [f"Seed {finished.run.seed}", f"directalign commit {commit}" if commit else "commit not recorded", named or "versions not recorded"]
    return "; ".join(told) + f". `{LOCAL}/` stands for folders of the machine that trained."
