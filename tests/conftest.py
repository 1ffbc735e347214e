"""Every annotation of the package, the experiments and the tools is checked while tests run; one
thread, and no deadline for a slow machine."""

import os
import signal

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["directalign", "experiments", "tools"], "beartype.beartype")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
# A shell ignores SIGINT for what it starts in the background, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tiny import tiny_flux, tiny_sd, tiny_sd_v  # noqa: E402
from tiny_rewards import clip_folder, siglip_folder, vlm_folder  # noqa: E402
from tiny_world import tiny_assets, world2  # noqa: E402

__all__ = ["clip_folder", "siglip_folder", "tiny_flux", "tiny_sd", "tiny_sd_v", "vlm_folder"]
__all__ += ["tiny_assets", "world2"]
"""Session fixtures: tiny checkpoints, read-only."""

settings.register_profile("directalign", deadline=None, max_examples=50)
settings.load_profile("directalign")
