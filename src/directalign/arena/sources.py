"""Images to compare, from a comparison folder or from folders of images with equal prompts.

`directalign compare` writes comparison.json, results.jsonl and images/; `directalign sample` writes
images.jsonl. Records may name only regular files inside their folder: `..`, absolute paths and
symbolic links are refused, and no other path is ever opened.

Browsers receive re-encoded PNG files without name, EXIF or text, at one size per item, so that
nothing but the pixels can reveal the model; transparent ones are composited on white, and colour
profiles are converted to sRGB.
"""

import hashlib
import io
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..io.colour import upright_srgb
from .records import ArenaError

COMPARISON, RESULTS, SAMPLES = "comparison.json", "results.jsonl", "images.jsonl"
CONTROL_GROUP = "control_prompts"
"""Group of the control prompts, which are not compared."""
HASHED_BYTES = 65536
"""Bytes of each file that enter an item's digest, beside its length."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 8192 * 8192
CACHE_BYTES = 256 * 2**20
DECODED_PIXELS = 4096 * 4096
"""Pixels that are decoded at a time, or a single image; each takes some 12 bytes of memory."""
ASPECT_TOLERANCE = 0.01
"""Largest relative difference between the aspect ratios of an item's images."""
UNREADABLE = (OSError, EOFError, SyntaxError, Image.DecompressionBombError, ValueError)

Size = tuple[int, int]
"""Width and height in pixels."""
SqlInteger = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Record(BaseModel):
    """A line of images.jsonl: exact types; other keys are ignored."""

    model_config = ConfigDict(strict=True)
    prompt: str
    seed: SqlInteger | None = None
    file: str = Field(pattern=r"^[^\x00]+$")


class ComparisonRecord(Record):
    """A line of results.jsonl."""

    model: str
    index: SqlInteger
    group: str | None = None


class ComparisonFile(BaseModel):
    """comparison.json."""

    class Model(BaseModel):
        key: str
        label: str | None = None

    format: Literal[1]
    models: list[Model]


AnyRecord = TypeVar("AnyRecord", bound=BaseModel)
Entry = tuple[str, int | None, Path]
"""Prompt, seed and image file of one record."""


@dataclass(frozen=True)
class Item:
    """A prompt and seed, and the image file of each model (by key)."""

    index: int
    prompt: str
    seed: int | None
    files: Mapping[str, Path]

    def digest(self) -> str:
        """Hash of prompt, seed and images, by which a database recognises the item."""
        head = json.dumps([self.prompt, self.seed, sorted(self.files)])
        found = hashlib.sha256(head.encode())
        for _, path in sorted(self.files.items()):
            with path.open("rb") as file:
                found.update(str(path.stat().st_size).encode() + file.read(HASHED_BYTES))
        return found.hexdigest()


@dataclass(frozen=True)
class Collection:
    """Models ({key: label}) and the items (by index) of which every model has an image.

    `left_out` counts the items that some model lacks.
    """

    title: str
    models: Mapping[str, str]
    items: Mapping[int, Item]
    left_out: int


def read_sources(sources: Sequence[Path]) -> Collection:
    """Read one comparison folder, or two or more folders of images.

    Raises: ArenaError with file and line for a missing, malformed or inconsistent record, and for
    fewer than two models.
    """
    if not sources:
        raise ArenaError("no source: give a folder of compare, or two or more of sample")
    return _comparison(sources[0]) if len(sources) == 1 else _folders(sources)


def _comparison(folder: Path) -> Collection:
    file = _existing(folder / COMPARISON)
    listed = _parsed(ComparisonFile, file.read_bytes(), str(file)).models
    models = {model.key: model.label or model.key for model in listed}
    rows: dict[int, dict[str, Entry]] = {}
    for where, row in _records(ComparisonRecord, folder / RESULTS):
        if row.group == CONTROL_GROUP:
            continue
        if row.model not in models:
            remedy = "remove the line or compare again"
            raise ArenaError(f"{where}: model {row.model!r:.40} is not in {COMPARISON}; {remedy}")
        rows.setdefault(row.index, {})[row.model] = _entry(folder, row, where)
    return _collection(folder.name, models, rows, str(folder / RESULTS))


def _folders(folders: Sequence[Path]) -> Collection:
    """Pair images by prompt and seed, in the order of the first folder."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ArenaError(f"{folders[0]}: the same folder is given twice; give each once")
    distinct = len({folder.name for folder in folders}) == len(folders)
    names = [folder.name if distinct else str(folder) for folder in folders]
    rows: dict[tuple[str, int | None, int], dict[str, Entry]] = {}
    for name, folder in zip(names, folders, strict=True):
        counts: Counter[tuple[str, int | None]] = Counter()
        for where, row in _records(Record, folder / SAMPLES):
            repeat = counts[row.prompt, row.seed]
            counts[row.prompt, row.seed] += 1
            key = row.prompt, row.seed, repeat
            rows.setdefault(key, {})[name] = _entry(folder, row, where)
    models = {name: name for name in names}
    where = str(folders[0] / SAMPLES)
    return _collection(" / ".join(names), models, dict(enumerate(rows.values())), where)


def _collection(
    title: str, models: Mapping[str, str], rows: Mapping[int, Mapping[str, Entry]], where: str
) -> Collection:
    if len(models) < 2:
        raise ArenaError(f"{where}: {len(models)} models; give at least two")
    items = {}
    for index, entries in sorted(rows.items()):
        prompts = {prompt for prompt, _, _ in entries.values()}
        if len(prompts) > 1:
            found = f"{len(prompts)} prompts ({', '.join(sorted(prompts))!r:.120})"
            raise ArenaError(f"{where}: index {index} has {found}; compare images of one prompt")
        if len(entries) == len(models):
            prompt, seed, _ = next(iter(entries.values()))
            items[index] = Item(index, prompt, seed, {key: entries[key][2] for key in models})
    if not items:
        missing = f"no prompt and seed with an image of each of {', '.join(models)}"
        raise ArenaError(f"{where}: {missing}; sample them with equal prompts and seeds")
    return Collection(title, models, items, len(rows) - len(items))


def _entry(folder: Path, row: Record, where: str) -> Entry:
    root = folder.resolve()
    file = root / row.file
    if ".." in Path(row.file).parts or file.resolve() != file or not file.is_relative_to(root):
        reason = f"is outside of {folder} or a symbolic link; name a regular file inside it"
        raise ArenaError(f"{where}: {row.file!r:.120} {reason}")
    if not file.is_file():
        raise ArenaError(f"{where}: {row.file!r:.120} does not exist; copy the folder again")
    return row.prompt, row.seed, file


def _records(kind: type[AnyRecord], file: Path) -> Iterator[tuple[str, AnyRecord]]:
    """Yield ("file:line", record) per line; skip a last line that is still being written."""
    with _existing(file).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and line.endswith((b"\n", b"}")):
                yield f"{file}:{number}", _parsed(kind, line, f"{file}:{number}")


def _existing(file: Path) -> Path:
    if not file.is_file():
        remedy = "give a folder of directalign compare, or two or more of directalign sample"
        raise ArenaError(f"{file.parent}: no {file.name} in it; {remedy}")
    return file


def _parsed(kind: type[AnyRecord], text: bytes, where: str) -> AnyRecord:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "content"
        reason = f"{key} is {first['input']!r:.60}: {first['msg']}"
        raise ArenaError(f"{where}: {reason}; repair or remove it") from None


def common_size(item: Item) -> Size:
    """Size at which all images of an item are displayed: the smallest among them.

    Raises: ArenaError for an unreadable file, or for aspect ratios that would reveal a model.
    """
    sizes = {file: _size(file) for file in item.files.values()}
    smallest = min(sizes.values(), key=lambda size: size[0] * size[1])
    for file, (width, height) in sizes.items():
        if abs(width * smallest[1] / (height * smallest[0]) - 1) > ASPECT_TOLERANCE:
            raise ArenaError(
                f"{file}: is {width} x {height}, another model's image "
                f"{smallest[0]} x {smallest[1]}; sample all in one aspect ratio"
            )
    return smallest


def _size(file: Path) -> Size:
    """Decode the whole image, so that a defect shows before an annotator asks for it."""
    with _open_image(file) as image:
        image.load()
        rotated = image.getexif().get(0x0112, 1) >= 5
        return (image.height, image.width) if rotated else image.size


@contextmanager
def _open_image(file: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """An open still image of moderate size. Raises: ArenaError, also for errors in the block."""
    try:
        opened = file if content is None else io.BytesIO(content)
        with Image.open(opened, formats=IMAGE_FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise ArenaError(f"{file}: is {size}; make it at most {MAX_PIXELS} pixels")
            if frames > 1:
                raise ArenaError(f"{file}: has {frames} frames; save one of them as PNG")
            if image.mode[0] in "IF":  # Pillow would clip the values
                bits = f"more than 8 bits per channel ({image.mode})"
                raise ArenaError(f"{file}: has {bits}; save it with 8")
            yield image
    except ArenaError:
        raise
    except UnidentifiedImageError:
        formats = ", ".join(IMAGE_FORMATS)
        raise ArenaError(f"{file}: not a {formats} image; save it as PNG") from None
    except UNREADABLE as error:
        reason = f"not a readable image ({error}); repair it, or copy it again"
        raise ArenaError(f"{file}: {reason}") from None


class ImageCache:
    """PNG files by opaque token, the most recently used kept in memory. Thread-safe.

    `files` has the image file and size by token; no other file is opened, and none that was
    replaced or changed since the cache was made. An image is decoded once however many ask for it
    at a time, and as many images at a time as have `DECODED_PIXELS` in all.
    """

    def __init__(self, files: Mapping[str, tuple[Path, Size]]) -> None:
        self._files = files
        self._known = {token: _known(file) for token, (file, _) in files.items()}
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._decoding: dict[str, int] = {}
        self._changed = threading.Condition()

    def png(self, token: str) -> bytes | None:
        """The image as PNG, None for an unknown token.

        Raises: ArenaError if the file is unreadable, or not the one of the start.
        """
        if token not in self._files:
            return None
        _, pixels = self._known[token]

        def is_next() -> bool:
            room = DECODED_PIXELS - sum(self._decoding.values())
            is_idle = token not in self._decoding and (room >= pixels or not self._decoding)
            return token in self._cache or is_idle

        with self._changed:
            self._changed.wait_for(is_next)
            if token in self._cache:
                self._cache.move_to_end(token)
                return self._cache[token]
            self._decoding[token] = pixels
        try:
            content = self._encoded(token)
            with self._changed:
                self._cache[token] = content
                while sum(map(len, self._cache.values())) > CACHE_BYTES and len(self._cache) > 1:
                    self._cache.popitem(last=False)
        finally:
            with self._changed:
                del self._decoding[token]
                self._changed.notify_all()
        return content

    def _encoded(self, token: str) -> bytes:
        file, size = self._files[token]
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ArenaError(f"{file}: cannot be read ({error.strerror}); restore it") from None
        if file.resolve() != file or _digest(content) != self._known[token][0]:
            raise ArenaError(f"{file}: was replaced after the start; restore it and start again")
        return _encode_png(file, content, size)


def _known(file: Path) -> tuple[bytes, int]:
    """Digest and number of pixels."""
    content = file.read_bytes()
    with _open_image(file, content) as image:
        return _digest(content), image.width * image.height


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _encode_png(file: Path, content: bytes, size: Size) -> bytes:
    """The pixels without any metadata, upright and resized; `file` is named in errors."""
    with _open_image(file, content) as image:
        pixels = upright_srgb(image)
    if pixels.size != size:
        pixels = pixels.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    bare = Image.frombytes("RGB", pixels.size, pixels.tobytes())
    bare.save(stream, format="PNG", compress_level=4)
    return stream.getvalue()
