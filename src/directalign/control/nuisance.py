"""Random changes of pictures that pos − neg shall not answer to while a reward is taught: a cast of any hue, more or less light.

Fixed and stronger changes, for measuring, are `bias_probes`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..types import Images

CAST = 0.1


def draw(images: Images, generator: torch.Generator, light: float = 0.0) -> Images:
    """Each image under a cast of its own that sums to 0 over the channels, up to `CAST` long, and with up to a share `light` more or less light."""
    b = len(images)
    hue = torch.randn(b, 3, generator=generator)
    hue = F.normalize(hue - hue.mean(1, keepdim=True), dim=1) * CAST * torch.rand(b, 1, generator=generator)
    gain = 1 + light * (2 * torch.rand(b, 1, generator=generator) - 1)
    return (images * gain[:, :, None, None].to(images) + hue[:, :, None, None].to(images)).clamp(0, 1)
