"""The second toy world's sheet of drawings, from three pinned npm packages (licences: NOTICE)."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from directalign.toyworld.drawings import SPRITE_SIZE, THINGS
from directalign.types import DirectAlignError

REGISTRY = "https://registry.npmjs.org"
FLUENT, NOTO, TWEMOJI = (
    "@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
    "emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz",
    "emoji-datasource-twitter/-/emoji-datasource-twitter-16.0.0.tgz",
)
SHA256 = {
    FLUENT: "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    NOTO: "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    TWEMOJI: "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
}
SHORT_NAMES = {
    "fox": "fox_face",
    "panda": "panda_face",
    "unicorn": "unicorn_face",
    "cake": "birthday",
    "ice cream": "icecream",
    "fir tree": "evergreen_tree",
    "clover": "four_leaf_clover",
    "soccer ball": "soccer",
    "diamond": "gem",
    "light bulb": "bulb",
    "teddy bear": "teddy_bear",
    "flame": "fire",
}
"""Unicode's short name of a thing where it is another word."""


def draw_sheet(folder: Path) -> Image.Image:
    """One column per thing, one row per family: Fluent 3D, Noto, Twemoji; RGBA.

    Packages that `folder` lacks are downloaded into it, 150 MB in all. Raises: DirectAlignError for
    one with other content than the pinned.
    """
    fluent, noto, twemoji = (_package(name, folder) for name in SHA256)
    rows = json.loads(_members(noto, [["package/emoji.json"]])[0])
    by_name = {name: row for row in rows for name in row["short_names"]}
    found = [by_name[SHORT_NAMES.get(thing, thing)] for thing in THINGS]
    assert all(row["has_img_google"] and row["has_img_twitter"] for row in found)
    codes = [row["unified"].lower().removesuffix("-fe0f") for row in found]
    families = (
        (fluent, [[f"package/assets/{code}{end}.webp" for end in ("", "-fe0f")] for code in codes]),
        (noto, [[f"package/img/google/64/{row['image']}"] for row in found]),
        (twemoji, [[f"package/img/twitter/64/{row['image']}"] for row in found]),
    )
    sheet = Image.new("RGBA", (len(THINGS) * SPRITE_SIZE, len(families) * SPRITE_SIZE))
    for line, (package, names) in enumerate(families):
        for place, file in enumerate(_members(package, names)):
            drawn = Image.open(io.BytesIO(file)).convert("RGBA")
            drawn = drawn.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)
            sheet.paste(drawn, (place * SPRITE_SIZE, line * SPRITE_SIZE))
    return sheet


def _package(name: str, folder: Path) -> Path:
    """The package's archive in `folder`, checked."""
    file = folder / name.rpartition("/")[2]
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        urllib.request.urlretrieve(f"{REGISTRY}/{name}", partial)
        partial.replace(file)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256[name]:
        raise DirectAlignError(f"{file}: sha256 {found} is not the pinned one: delete the file")
    return file


def _members(archive: Path, names: Sequence[Sequence[str]]) -> list[bytes]:
    """Some files of an archive, each by any of its names."""
    wanted = {name for each in names for name in each}
    with tarfile.open(archive) as opened:
        found = {
            member.name: file.read()
            for member in opened
            if member.name in wanted and (file := opened.extractfile(member)) is not None
        }
    missing = [each for each in names if not found.keys() & set(each)]
    if missing:
        raise DirectAlignError(f"{archive}: holds no {missing[0][0]}")
    return [next(found[name] for name in each if name in found) for each in names]
