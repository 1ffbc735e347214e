"""Edits: a prompt, the image that it edits, and optionally where, and an edited image to train on.

    {"prompt": "make the star red", "source": "a.png", "mask": "a_mask.png", "target": "a_red.png"}

Paths are relative to the file. The mask has the size of its source, and is white where the edit may
change it.
"""

from pathlib import Path

from .image_dataset import ImageSet, ImageSource, in_list, usable


def scan_edits(source: str | Path, targets: bool = False, strict: bool = False) -> ImageSet:
    """Decode all images of every line once; the set has the sources, or the targets, and `source`.

    Raises:
        DirectAlignError: no such file, a line without a source (or, with `targets`, a target), an
            invalid prompt, no usable line, or, with `strict`, the first with an unreadable image.
    """
    file, key = Path(source), "target" if targets else "source"
    entries, paths = in_list(file, "edits file", sorted({"source", key}), ("mask",))
    found = ImageSource(
        str(file), entries, lambda i: paths[i][key], "it has no lines", key, lambda i: paths[i]
    )
    return usable(found, strict)
