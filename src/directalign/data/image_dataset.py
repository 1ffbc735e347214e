"""Real images with captions, for offline training.

`scan_images` decodes every image of a folder or a Hugging Face dataset once, so that a broken one
is reported before training starts; it stores captions and sizes, not pixels. `ImageStream` serves
them in aspect-ratio buckets.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.text import MAX_CHARACTERS, checked_prompt, json_rows, prompt_of_row, read_text
from ..types import DirectAlignError, Images, Sources
from .buckets import Bucket
from .hf_datasets import is_address, open_rows
from .image_io import Picture, Source, Unreadable, load_image, load_sources, read_pixels
from .shuffle import indices, turn

ENDINGS = set(
    ".jpg .jpeg .png .webp .bmp .tif .tiff .gif .ppm .pgm .heic .avif .jxl".split()  # noqa: SIM905
)
"""Endings of image files; those that cannot be decoded (.heic) are reported, not ignored."""
LISTS = {"metadata.jsonl": "file_name", "images.jsonl": "file"}
"""Lists of the images of a folder, Hugging Face's and that of `directalign sample`, and the key of
an image's name in each."""
MIN_SIDE = 4
"""Smallest side of a usable image, in pixels."""


@dataclass(frozen=True)
class Entry:
    """One image: its name in the source, its caption, and why it cannot be used, if known.

    `caption_file`: the file that would hold its caption, if that is missing.
    """

    name: str
    caption: str
    fault: str | None = None
    caption_file: Path | None = None


@dataclass(frozen=True)
class ImageSource:
    """All images of a source in order; `where` names it in errors, `picture(i)` opens the i-th."""

    where: str
    entries: tuple[Entry, ...]
    picture: Callable[[int], Picture]
    hint: str
    """What to check when there are no images."""
    key: str = ""
    """What the images are called in a list of several images a line."""
    beside: Callable[[int], Mapping[str, Path]] | None = None
    """The images on the i-th line by key: with pairs `rejected`, with edits `source` and `mask`."""


def captioned(name: str, text: str, where: str, blank: str) -> Entry:
    """An entry with its caption; a blank or too long one is a fault, an invalid one raises."""
    if len(text.strip()) > MAX_CHARACTERS:
        try:
            checked_prompt(text, where)
        except DirectAlignError as error:
            return Entry(name, "", f"no caption: {error}")
    caption = checked_prompt(text, where)
    return Entry(name, caption, None if caption else f"no caption: {blank} is blank")


def in_list(
    file: Path, what: str, keys: Sequence[str], optional: Sequence[str] = ()
) -> tuple[tuple[Entry, ...], list[dict[str, Path]]]:
    """The entries of a JSONL of prompts and images, and each line's paths, relative to it, by key.

    Raises: DirectAlignError for a missing file, an invalid prompt, and a line that lacks a key.
    """
    entries, paths = list[Entry](), list[dict[str, Path]]()
    for line, row in json_rows(file, what):
        where = f"{file}:{line}"
        named = [*keys, *(key for key in optional if row.get(key) is not None)]
        for key in named:
            if not isinstance(row.get(key), str) or not row[key] or "\0" in row[key]:
                raise DirectAlignError(
                    f"{where}: {key} is {row.get(key)!r:.60}, and the path of an image is needed"
                )
        name = f"line {line} ({', '.join(row[key] for key in named)})"
        entries.append(captioned(name, prompt_of_row(row, where), where, name))
        paths.append({key: file.parent / row[key] for key in named})
    return tuple(entries), paths


def in_dataset(source: str) -> ImageSource:
    """The images of `hf:owner/name[@split][#captions]` or `hf:folder[...]`, in row order.

    Raises:
        DirectAlignError: as `hf_datasets.open_rows`; no column of images or of captions; an invalid
            caption.
    """
    from datasets import Image

    opened = open_rows(source)
    column = opened.image_column()
    encoded = opened.table.select_columns([column]).cast_column(column, Image(decode=False))
    entries = tuple(
        captioned(f"row {row}", text, f"{source}: row {row}", "its text")
        for row, text in opened.texts()
    )
    return ImageSource(source, entries, lambda i: _picture(encoded[i][column]), "it has no rows")


def _picture(cell: dict[str, Any] | None) -> Picture:
    """A cell of an image column: encoded bytes, or the path of a file."""
    cell = cell or {}
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if cell.get("path") is None:
        raise Unreadable("no image in this row")
    return Path(cell["path"])


def in_folder(folder: Path) -> ImageSource:
    """The images of a folder by name, or in the order of its list, a file of `LISTS`.

    Raises:
        DirectAlignError: no such folder, unreadable metadata, an invalid caption.
    """
    if not folder.is_dir():
        raise DirectAlignError(
            f"{folder}: no such image folder; check data.images (a dataset is written "
            "hf:owner/name)"
        )
    metadata = next((folder / name for name in LISTS if (folder / name).exists()), None)
    entries = tuple(_from_metadata(folder, metadata) if metadata else _from_files(folder))
    hint = f"none ends in {', '.join(sorted(ENDINGS))}"
    return ImageSource(str(folder), entries, lambda i: folder / entries[i].name, hint)


def _from_files(folder: Path) -> Iterator[Entry]:
    files = _all_files(folder)
    captions = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    images = [file for file in files if file.suffix.lower() in ENDINGS]
    counts = Counter(file.with_suffix("") for file in images)
    for file in images:
        name, stem = str(file.relative_to(folder)), file.with_suffix("")
        own = file.with_name(f"{file.name}.txt") if counts[stem] > 1 else file.with_suffix(".txt")
        text = captions.get(file) or captions.get(stem) or own
        if not name.isascii() and name != (printable := name.encode(errors="replace").decode()):
            yield Entry(printable, "", "its name is not Unicode; rename it")
            continue
        if text.is_file():
            yield captioned(name, read_text(text, "caption file"), str(text), text.name)
        else:
            yield Entry(name, "", f"no caption: {text.name} is missing", text)


def _all_files(folder: Path) -> list[Path]:
    """Files in any depth but hidden ones and those of hidden folders, each folder once.

    Links to folders are followed after all other folders, so that a link inside changes no name.
    """
    found, seen, folders, links = [], set(), [folder], []
    while folders or links:
        here = (folders or links).pop(0)
        if here.resolve() in seen:
            continue
        seen.add(here.resolve())
        for each in sorted(here.iterdir()):
            if each.name.startswith("."):
                continue
            if each.is_dir():
                (links if each.is_symlink() else folders).append(each)
            else:
                found.append(each)
    return sorted(found)


def _from_metadata(folder: Path, metadata: Path) -> Iterator[Entry]:
    listed, key = set[Path](), LISTS[metadata.name]
    for line, row in json_rows(metadata, "metadata file"):
        where, name = f"{metadata}:{line}", row.get(key)
        if not isinstance(name, str):
            raise DirectAlignError(
                f"{where}: {key} is {name!r:.60}, and the name of an image in {folder} is needed"
            )
        listed.add(folder / name)
        yield captioned(name, prompt_of_row(row, where), where, f"{metadata.name}:{line}")
    for file in _all_files(folder):
        if file.suffix.lower() in ENDINGS and file not in listed:
            yield Entry(str(file.relative_to(folder)), "", f"not in {metadata.name}")


@dataclass(frozen=True)
class ImageSet:
    """The usable images of a source in its order, and what was skipped and why.

    `names` are paths in the folder `where`, or rows of the dataset `where`; `sizes` are (height,
    width) in pixels.
    """

    where: str
    names: tuple[str, ...]
    captions: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    picture: Callable[[int], Picture]
    skipped: tuple[str, ...] = ()
    beside: Callable[[int], Mapping[str, Path]] | None = None
    """As of an `ImageSource`."""

    def __len__(self) -> int:
        return len(self.names)

    def image(
        self, index: int, height: int, width: int, key: str | None = None
    ) -> Float[Tensor, "3 H W"]:
        """The index-th image in this size (see `image_io.load_image`), or that of another key."""
        picture = self.picture(index) if key is None else self._beside(index)[key]
        return load_image(picture, height, width, f"{self.where}: {self.names[index]}")

    def has(self, key: str) -> bool:
        """Whether there is an image of this key beside each."""
        return key in self._beside(0)

    def source(self, index: int) -> Source:
        """What the index-th prompt edits."""
        found = self._beside(index)
        return Source(found["source"], found.get("mask"))

    def _beside(self, index: int) -> Mapping[str, Path]:
        return {} if self.beside is None else self.beside(index)


def scan_images(source: str | Path, strict: bool = False) -> ImageSet:
    """Decode every image of a folder or a dataset (`hf:...`) once and pair it with its caption.

    Raises:
        DirectAlignError: no such folder or dataset, no usable image in it, an invalid caption, or,
            with `strict`, the first image that is unreadable, truncated, empty or uncaptioned.
    """
    return usable(
        in_dataset(str(source)) if is_address(source) else in_folder(Path(source)), strict
    )


def usable(found: ImageSource, strict: bool = False) -> ImageSet:
    """Decode every image of a source once. Raises: as `scan_images`."""
    beside = found.beside
    kept: list[tuple[int, Entry, tuple[int, int]]] = []
    skipped: list[str] = []
    for index, entry in enumerate(found.entries):
        fault = entry.fault
        try:
            if fault is None:
                kept.append((index, entry, _size(found, index)))
                continue
        except Unreadable as error:
            fault = str(error)
        if strict:
            raise DirectAlignError(
                f"{found.where}: {entry.name}: {fault}; repair or remove it, or set data.strict: "
                "false to skip such images"
            )
        skipped.append(f"{entry.name}: {fault}")
    if not kept:
        reason = f"all {len(skipped)} were skipped, first {skipped[0]}" if skipped else found.hint
        raise DirectAlignError(f"{found.where}: no usable image: {reason}")
    return ImageSet(
        found.where,
        tuple(entry.name for _, entry, _ in kept),
        tuple(entry.caption for _, entry, _ in kept),
        tuple(size for *_, size in kept),
        lambda i: found.picture(kept[i][0]),
        tuple(skipped),
        beside and (lambda i: beside(kept[i][0])),
    )


def _size(found: ImageSource, index: int) -> tuple[int, int]:
    """(height, width) of the image of an entry. Raises: Unreadable, also for a tiny one, and for
    one beside it."""
    pictures: dict[str, Picture] = {found.key: found.picture(index)}
    pictures |= {} if found.beside is None else found.beside(index)
    sizes = dict[str, tuple[int, int]]()
    for key, picture in pictures.items():
        name = f"{key} {picture}: " if key else ""
        try:
            height, width = _decoded_size(picture)
        except Unreadable as error:
            raise Unreadable(f"{name}{error}") from error
        if min(height, width) < MIN_SIDE:
            raise Unreadable(f"{name}{width}x{height} pixels, less than {MIN_SIDE} a side")
        sizes[key] = height, width
    if sizes.get("mask") not in (None, sizes.get("source")):
        raise Unreadable(f"mask {pictures['mask']}: not of the size of its source")
    return sizes[found.key]


def _decoded_size(picture: Picture) -> tuple[int, int]:
    if not isinstance(picture, Path) or not picture.is_file():
        height, width, _ = read_pixels(picture).shape
        return height, width
    state = picture.stat()
    return _size_of_file(picture, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=2**17)
def _size_of_file(file: Path, length: int, changed: int) -> tuple[int, int]:
    """Decoded once as long as the file stays as it is: checks, training and measurements scan the
    same data."""
    del length, changed
    height, width, _ = read_pixels(file).shape
    return height, width


@dataclass(frozen=True)
class ImageStream:
    """Endless seeded order over images, without state: a batch depends on the arguments only."""

    images: ImageSet
    buckets: tuple[Bucket, ...]
    """At least one, none empty."""
    seed: int

    def batch(
        self, step: int, size: int = 1, offset: int = 0, global_size: int | None = None
    ) -> tuple[tuple[str, ...], Images]:
        """(captions, images (size, 3, height, width) in [0, 1]) of update `step`.

        They are items `offset` to `offset + size - 1` of the update's `global_size` (default size).
        """
        chosen, shape = self._indices(step, size, offset, global_size), self.size(step)
        captions = tuple(self.images.captions[i] for i in chosen)
        return captions, torch.stack([self.images.image(i, *shape) for i in chosen])

    def rejected(
        self, step: int, size: int = 1, offset: int = 0, global_size: int | None = None
    ) -> Images | None:
        """The images that those of the same batch were preferred to; None without pairs."""
        if not self.images.has("rejected"):
            return None
        chosen, shape = self._indices(step, size, offset, global_size), self.size(step)
        return torch.stack([self.images.image(i, *shape, "rejected") for i in chosen])

    def sources(
        self, step: int, size: int = 1, offset: int = 0, global_size: int | None = None
    ) -> Sources | None:
        """What the prompts of the same batch edit; None without edits."""
        if not self.images.has("source"):
            return None
        chosen = self._indices(step, size, offset, global_size)
        return load_sources([self.images.source(i) for i in chosen], *self.size(step))

    def captions(
        self, step: int, size: int = 1, offset: int = 0, global_size: int | None = None
    ) -> tuple[str, ...]:
        """The captions of the same batch; reads no image."""
        return tuple(
            self.images.captions[i] for i in self._indices(step, size, offset, global_size)
        )

    def size(self, step: int) -> tuple[int, int]:
        """(height, width) of the images of update `step`."""
        return self._turn(step)[0].size

    def _indices(self, step: int, size: int, offset: int, global_size: int | None) -> list[int]:
        bucket, earlier = self._turn(step)
        first = earlier * (size if global_size is None else global_size) + offset
        return [bucket.members[i] for i in indices(len(bucket.members), self.seed, first, size)]

    def _turn(self, step: int) -> tuple[Bucket, int]:
        """The bucket of update `step`, and the number of earlier updates with the same bucket."""
        weights = tuple(len(bucket.members) for bucket in self.buckets)
        choice, earlier = turn(weights, self.seed, step, "buckets")
        return self.buckets[choice], earlier
