"""The images of a comparison, as PNG: made by one model after the other, or taken from a folder. What is there already stays.

Everything afterwards is measured on these files, 8 bits a channel, so that all models stand alike and nothing depends on when it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from ..data.image_io import Unreadable, read_pixels
from ..io.jsonl import Say, told_where_full
from ..types import DirectAlignError, Images
from .candidates import Subject
from .eval_samples import Item
from .generate import generate, load_run_model, save_png

Files = Mapping[str, Sequence[Path]]
"""By key of a model of kind images: its file for every item."""


def file_of(key: str, index: int) -> str:
    """Where the image of an item stands, relative to the folder of the comparison."""
    return f"images/{key}/{index:05d}.png"


def draw_all(
    subjects: Sequence[Subject],
    items: Sequence[Item],
    found: Files,
    out: Path,
    batch_size: int | None,
    say: Say,
) -> None:
    """Every image that is missing, one model in memory at a time. Raises: DirectAlignError where models make images of different sizes."""
    for subject in subjects:
        missing = [item for item in items if not (out / file_of(subject.key, item.index)).is_file()]
        if not missing:
            continue
        (out / "images" / subject.key).mkdir(parents=True, exist_ok=True)
        say(
            f"{subject.label}: {len(missing)} images to {'copy' if subject.kind == 'images' else 'make'}"
        )
        if subject.kind == "images":
            _copy(subject, missing, found[subject.key], out)
        else:
            _generate_candidate(subject, items, out, batch_size)
        _check_size(subjects[0], subject, items, out)


def load_images(out: Path, key: str, items: Sequence[Item]) -> Images:
    """The images of some items, (b, 3, H, W) float32 in [0, 1]."""
    try:
        pixels = [torch.from_numpy(read_pixels(out / file_of(key, item.index))) for item in items]
    except Unreadable as error:
        raise DirectAlignError(
            f"{out / 'images' / key}: {error}; remove the image, and the same command makes it again"
        ) from error
    return torch.stack(pixels).permute(0, 3, 1, 2).float()


def _generate_candidate(
    subject: Subject, items: Sequence[Item], out: Path, batch_size: int | None
) -> None:
    """Batches are fixed by the items, whatever of them is there already: an image is the same bit by bit after an interruption."""
    run = subject.run
    assert run is not None
    size = batch_size or (1 if subject.kind == "model" else run.evaluate.batch_size)
    model = load_run_model(run, subject.trained)
    for first in range(0, len(items), size):
        batch = items[first : first + size]
        files = [out / file_of(subject.key, item.index) for item in batch]
        if all(file.is_file() for file in files):
            continue
        images = generate(
            model, [item.prompt for item in batch], [item.seed for item in batch], run.rollout, size
        )
        for file, image in zip(files, images, strict=True):
            _keep(image, file)


def _copy(subject: Subject, missing: Sequence[Item], files: Sequence[Path], out: Path) -> None:
    for item in missing:
        try:
            pixels = torch.from_numpy(read_pixels(files[item.index])).permute(2, 0, 1).float()
        except Unreadable as error:
            raise DirectAlignError(
                f"{files[item.index]}: {error}; mend it, or compare without {subject.source}"
            ) from error
        _keep(pixels, out / file_of(subject.key, item.index))


def _keep(image: torch.Tensor, file: Path) -> None:
    """Written under another name first, so that a file with its own name is whole."""
    part = file.with_name(f".{file.stem}.part.png")
    with told_where_full(file):
        save_png(image, part)
        part.replace(file)


def _check_size(first: Subject, subject: Subject, items: Sequence[Item], out: Path) -> None:
    here, there = (_size(out / file_of(each.key, items[0].index)) for each in (first, subject))
    if here != there:
        (w, h), (w2, h2) = here, there
        remedy = (
            "give --height and --width"
            if subject.kind != "images"
            else "compare images of one size"
        )
        raise DirectAlignError(
            f"{first.label} makes images of {w}x{h} pixels and {subject.label} of {w2}x{h2}: their numbers are not comparable; {remedy}"
        )


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size
