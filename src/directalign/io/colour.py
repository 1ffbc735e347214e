"""Pictures as RGB: upright, composited on white, in sRGB. Needs no torch."""

import functools
import logging
from io import BytesIO

from PIL import Image, ImageCms, ImageOps

log = logging.getLogger("directalign")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def upright_srgb(opened: Image.Image) -> Image.Image:
    """The first frame in mode RGB. A colour profile that cannot be used is ignored, with one
    warning per kind."""
    image = ImageOps.exif_transpose(opened)
    icc = image.info.get("icc_profile") or opened.info.get("icc_profile")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return (_to_srgb(image, icc) if icc else image).convert("RGB")


def _to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        space = profile.profile.xcolor_space.strip()  # pyright: ignore
        if (space == "CMYK") != (image.mode == "CMYK") or space not in _MODES:
            warn_of_profile(f"a profile of {space} on a picture of {image.mode}")
            return image
        srgb = ImageCms.createProfile("sRGB")
        mode = _MODES[space]
        found = ImageCms.profileToProfile(image.convert(mode), profile, srgb, outputMode="RGB")
        return image if found is None else found
    except (ImageCms.PyCMSError, OSError) as error:
        warn_of_profile(f"an unreadable profile ({error})")
        return image


@functools.cache
def warn_of_profile(what: str) -> None:
    """Warn once that the colours of a picture are read without its profile."""
    log.warning("%s: its colours are read as sRGB; convert such pictures to sRGB", what)
