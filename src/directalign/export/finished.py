"""A finished run, opened for export: its recipe, its records, and where its weights lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import config
from ..config.load import load_run
from ..models.loading import FAMILIES
from ..models.lora import LORA_FILE
from ..report.read import RunFiles, read_run
from ..types import DirectAlignError


@dataclass(frozen=True)
class Finished:
    """`pipeline` is the class of diffusers that runs the model, `part` the denoiser's name in it."""

    folder: Path
    run: config.Run
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
        raise DirectAlignError(f"{folder}: holds no run (no run.yaml): give the folder that directalign train wrote")
    run = load_run(folder / "run.yaml")
    family = FAMILIES[run.model.family]
    found = Finished(folder, run, read_run(folder), family.pipeline, family.part)
    if not found.weights.exists():
        raise DirectAlignError(f"{found.weights}: no such file: the run is not finished, go on with directalign train ... --resume --out {folder}")
    return found
