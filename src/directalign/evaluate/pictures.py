"""Images of before and after a training, paired: two folders with the same file names, or a run's base model and its trained weights.

A folder's prompts are read from the `images.jsonl` that `directalign sample` leaves, or from a .txt beside each image; they may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..images.folder import ENDINGS
from ..images.pixels import Unreadable, read_pixels
from ..texts import json_rows, read_text
from ..types import DirectAlignError
from .generate import generate
from .pairs import fixed_pairs, measured_prompts
from .sampling import RECORD, run_of, trained_family


@dataclass(frozen=True)
class Pictures:
    """Images in [0, 1] under names of their own, of one size or of several; `prompts` is None where one of them has none."""

    names: tuple[str, ...]
    images: list[Tensor]
    prompts: tuple[str, ...] | None

    def chosen(self, names: list[str]) -> Pictures:
        """Those of the names, in their order."""
        places = [self.names.index(name) for name in names]
        prompts = self.prompts and tuple(self.prompts[place] for place in places)
        return Pictures(tuple(names), [self.images[place] for place in places], prompts)


def pictures_of(source: Path, base: bool, num_pairs: int, key: str) -> Pictures:
    """The images of a folder, or `num_pairs` samples of a run on its fixed pairs: of its base model, or of what it trained.

    Raises: DirectAlignError, which blames the option `key`: no such folder, no image in it, one that cannot be decoded.
    """
    if (source / "run.yaml").is_file():
        return _sampled(source, base, num_pairs)
    files = sorted(file for file in source.iterdir() if file.suffix.lower() in ENDINGS) if source.is_dir() else []
    if not files:
        raise DirectAlignError(f"{key} {source}: holds neither images nor a run (run.yaml); give a folder of images, or one that directalign train left")
    prompts = _prompts(source, files)
    return Pictures(tuple(file.stem for file in files), [_read(file, key) for file in files], prompts)


def paired(before: Pictures, after: Pictures) -> tuple[Pictures, Pictures]:
    """Both cut to the names that both have, in one order.

    Raises: DirectAlignError for fewer than two such names, and for a name whose two prompts differ.
    """
    names = [name for name in before.names if name in set(after.names)]
    if len(names) < 2:
        raise DirectAlignError(f"--before, --after: {len(names)} names in common, and two are the least: pair images by their names ({after.names[0]})")
    here, there = before.chosen(names), after.chosen(names)
    for name, one, other in zip(names, here.prompts or (), there.prompts or (), strict=False):
        if one != other:
            raise DirectAlignError(f"--before, --after: {name} is of {one!r:.60} before and of {other!r:.60} after: pair images of one prompt and seed")
    return here, there


def _sampled(folder: Path, base: bool, num_pairs: int) -> Pictures:
    run, trained = run_of(folder)
    pairs = fixed_pairs(measured_prompts(run.data), num_pairs)
    images = generate(trained_family(run, None if base else trained), pairs.prompts, pairs.seeds, run.rollout, run.evaluate.batch_size)
    return Pictures(tuple(f"{seed} {prompt}" for seed, prompt in zip(pairs.seeds, pairs.prompts, strict=True)), list(images), pairs.prompts)


def _read(file: Path, key: str) -> Tensor:
    try:
        return torch.from_numpy(read_pixels(file)).permute(2, 0, 1).float()
    except Unreadable as error:
        raise DirectAlignError(f"{key} {file}: {error}; mend or remove it") from error


def _prompts(folder: Path, files: list[Path]) -> tuple[str, ...] | None:
    record = folder / RECORD
    if record.is_file():
        known = {str(row.get("file")): str(row.get("prompt")) for _, row in json_rows(record, "record of samples")}
        return tuple(known[file.name] for file in files) if all(file.name in known for file in files) else None
    texts = [file.with_suffix(".txt") for file in files]
    return tuple(read_text(text, "caption file").strip() for text in texts) if all(text.is_file() for text in texts) else None
