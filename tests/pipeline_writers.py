"""One writer of a tiny diffusers folder for each architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiny import write_flux, write_sd
from tiny_klein import write_klein
from tiny_qwen import write_qwen_image
from tiny_sd3 import write_sd3
from tiny_sdxl import write_sdxl
from tiny_z_image import write_z_image

WRITERS: dict[str, Callable[..., Path]] = {
    "flux": write_flux,
    "flux2_klein": write_klein,
    "sd3": write_sd3,
    "sd": write_sd,
    "sdxl": write_sdxl,
    "qwen_image": write_qwen_image,
    "z_image": write_z_image,
}
