"""The model a run started from: its name for others, and the licence that its derivatives inherit.

The licence comes from the metadata of the README beside the weights, else from the list of well-known models below, and is
otherwise unknown, which the card then says. Nothing is downloaded; a path on this machine is never shown, only its last name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import config
from ..config.load import load_run
from ..io import hub
from ..models import model_class
from ..models.lora import LORA_FILE
from ..models.weight_files import read_json
from ..report.read import RunFiles, read_run
from ..types import DirectAlignError

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Licence:
    """`id` as the Hub lists them ("other" has a `name` and a `link` to its text)."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def title(self) -> str:
        return self.name or self.id


@dataclass(frozen=True)
class Base:
    """`name` for people; `hub_id` (owner/name) where the model is on the Hub, None otherwise; `licence` None where unknown."""

    name: str
    hub_id: str | None
    licence: Licence | None


def _other(name: str, repo: str, file: str = "LICENSE.md") -> Licence:
    return Licence("other", name, f"{HUB}/{repo}/blob/main/{file}")


FLUX_DEV = _other("flux-1-dev-non-commercial-license", "black-forest-labs/FLUX.1-dev")
STABILITY = _other("stabilityai-ai-community", "stabilityai/stable-diffusion-3.5-large")
KNOWN: dict[str, Licence] = {
    "black-forest-labs/FLUX.1-dev": FLUX_DEV,
    "black-forest-labs/FLUX.1-Krea-dev": FLUX_DEV,
    "black-forest-labs/FLUX.1-schnell": Licence("apache-2.0"),
    "black-forest-labs/FLUX.2-klein-4B": Licence("apache-2.0"),
    "black-forest-labs/FLUX.2-klein-base-4B": Licence("apache-2.0"),
    "stabilityai/stable-diffusion-3-medium-diffusers": STABILITY,
    "stabilityai/stable-diffusion-3.5-medium": STABILITY,
    "stabilityai/stable-diffusion-3.5-large": STABILITY,
    "stabilityai/stable-diffusion-3.5-large-turbo": STABILITY,
    "stabilityai/stable-diffusion-xl-base-1.0": Licence("openrail++"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Licence("creativeml-openrail-m"),
    "runwayml/stable-diffusion-v1-5": Licence("creativeml-openrail-m"),
    "Qwen/Qwen-Image": Licence("apache-2.0"),
    "Tongyi-MAI/Z-Image": Licence("apache-2.0"),
    "Tongyi-MAI/Z-Image-Turbo": Licence("apache-2.0"),
}
"""Of models whose licence is well known, in case their README is not at hand."""


def base_of(model: config.ModelConfig) -> Base:
    """What a recipe's `model.path` is, without loading it."""
    if model.path.startswith("world:"):
        return Base(f"{model.path} (embedded in directalign)", None, Licence("apache-2.0"))
    path = Path(model.path).expanduser()
    hub_id = (
        _hub_id(path)
        if path.exists()
        else (model.path if hub.HUB_ID.fullmatch(model.path) else None)
    )
    told = _told(path / "README.md") if path.is_dir() else None
    return Base(hub_id or path.name, hub_id, told or KNOWN.get(hub_id or ""))


def _hub_id(path: Path) -> str | None:
    """The id that diffusers noted in a folder it had downloaded from the Hub."""
    index = path / "model_index.json"
    noted = str(read_json(index).get("_name_or_path", "")) if index.is_file() else ""
    return noted if hub.HUB_ID.fullmatch(noted) else None


def _told(readme: Path) -> Licence | None:
    """The licence in a README's metadata; none there, or metadata that cannot be read, is None."""
    found = (
        re.match(
            r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL
        )
        if readme.is_file()
        else None
    )
    if found is None:
        return None
    try:
        metadata: Any = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("license"), str):
        return None
    name, link = (metadata.get(key) for key in ("license_name", "license_link"))
    return Licence(metadata["license"], str(name) if name else None, str(link) if link else None)


@dataclass(frozen=True)
class Finished:
    """`pipeline` is the class of diffusers that runs the model, `part` the denoiser's name in it."""

    folder: Path
    run: config.RunConfig
    records: RunFiles
    pipeline: str
    part: str

    @property
    def weights(self) -> Path:
        """`lora.safetensors`, or the folder of the trained denoiser."""
        return self.folder / (LORA_FILE if self.run.model.tune == "lora" else self.part)

    @property
    def slug(self) -> str:
        """The run's name for use in file names."""
        letters = "".join(c if c.isalnum() else "_" for c in self.run.name.lower())
        return "_".join(word for word in letters.split("_") if word) or "directalign"


def open_finished(folder: Path) -> Finished:
    """Read a run's folder. Raises DirectAlignError where there is no run, or where its weights are not written yet."""
    if not (folder / "run.yaml").is_file():
        raise DirectAlignError(
            f"{folder}: holds no run (no run.yaml): give the folder that directalign train wrote"
        )
    run = load_run(folder / "run.yaml")
    model = model_class(run.model.architecture)
    found = Finished(folder, run, read_run(folder), model.pipeline, model.part)
    if not found.weights.exists():
        raise DirectAlignError(
            f"{found.weights}: no such file: the run is not finished, go on with directalign train ... --resume --out {folder}"
        )
    return found
