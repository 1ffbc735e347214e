"""A run to export, and the model that it was trained from: public name and license.

The license is read from the README beside the weights, else from the list in published.yaml, and is
otherwise unknown. Nothing is downloaded. A local path appears by its last name only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load

from .. import config
from ..config.load import load_run
from ..evaluation.run_weights import RunWeights, find_weights
from ..io import hub
from ..models import model_class
from ..models.weight_files import read_json
from ..report.read import RunFiles, read_run
from ..toyworld.worlds import world_of
from ..types import DirectAlignError


@dataclass(frozen=True)
class License:
    """`id` as on the Hub; "other" has a `name` and a `link` to the text."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def title(self) -> str:
        return self.name or self.id


@dataclass(frozen=True)
class BaseModelInfo:
    """`hub_id`: owner/name, None if the model is not on the Hub; `license`: None if unknown."""

    name: str
    hub_id: str | None
    license: License | None


PUBLISHED: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "published.yaml").read_text(encoding="utf-8")
)
"""Layer names of other formats, names of models in metadata, licenses."""


def base_model_info(model: config.ModelConfig) -> BaseModelInfo:
    """Name and license of a recipe's `model.path`, without loading it."""
    if world_of(model.path):
        return BaseModelInfo(f"{model.path} (embedded in directalign)", None, License("apache-2.0"))
    path, hub_id = Path(model.path).expanduser(), model.path
    if path.exists():  # diffusers records the id of a model that it downloaded
        index = path / "model_index.json"
        hub_id = str(read_json(index).get("_name_or_path", "")) if index.is_file() else ""
    known = hub_id if hub.HUB_ID.fullmatch(hub_id) else None
    listed = PUBLISHED["licenses"].get(known)
    license = _readme_license(path / "README.md") or (License(*listed) if listed else None)
    return BaseModelInfo(known or path.name, known, license)


def _readme_license(readme: Path) -> License | None:
    """The license in a README's metadata; None if there is none or the metadata is unreadable."""
    try:
        metadata = metadata_load(readme) if readme.is_file() else None
    except (ValueError, yaml.YAMLError):
        return None
    if metadata is None or not isinstance(metadata.get("license"), str):
        return None
    name, link = (metadata.get(key) for key in ("license_name", "license_link"))
    return License(metadata["license"], str(name) if name else None, str(link) if link else None)


@dataclass(frozen=True)
class FinishedRun:
    """`pipeline`: diffusers class that runs the model; `part`: the denoiser's name in it."""

    folder: Path
    run: config.RunConfig
    records: RunFiles
    weights: RunWeights
    pipeline: str
    part: str

    @property
    def title(self) -> str:
        """The run's name, and which of its weights if they are not the exported ones."""
        return ", ".join([self.run.name, *self.weights.words])

    @property
    def slug(self) -> str:
        """The title for use in file names."""
        letters = "".join(c if c.isalnum() else "_" for c in self.title.lower())
        return "_".join(word for word in letters.split("_") if word) or "directalign"

    @property
    def num_steps(self) -> int:
        """Updates of the weights."""
        step = self.weights.step
        return self.run.train.num_steps if step is None else step

    @property
    def adapter(self) -> str:
        """LoRA, DoRA or LoKr."""
        lora = self.run.model.lora
        return "LoKr" if lora.type == "lokr" else "DoRA" if lora.use_dora else "LoRA"


def load_run_config(folder: Path) -> config.RunConfig:
    """The configuration of the run in `folder`. Raises: DirectAlignError if there is no run."""
    if not (folder / "run.yaml").is_file():
        raise DirectAlignError(
            f"{folder}: holds no run (no run.yaml); give the folder that directalign train wrote"
        )
    return load_run(folder / "run.yaml")


def read_finished_run(folder: Path, step: int | None = None, strength: float = 1.0) -> FinishedRun:
    """Read a run's folder; the weights are those of `evaluation.run_weights.find_weights`.

    Raises: DirectAlignError without a run or without weights.
    """
    run = load_run_config(folder)
    model, weights = model_class(run.model.architecture), find_weights(run, folder, step, strength)
    return FinishedRun(folder, run, read_run(folder), weights, model.pipeline, model.part)
