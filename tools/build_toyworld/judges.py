"""The two judges of a world, trained on renders of all styles, degraded as generated images are.

Half of the pool goes through the autoencoder with a little noise on the latents; every image of a
batch is then randomly blurred, recoloured and made noisy. In the second world the style judge also
learns an answer for images of no style (`spoil`), and the content judge sees stronger colour casts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from directalign.toyworld.judges import Classifier

from .session import fit
from .spec import Spec

POOL = 8192
LATENT_NOISE = 0.3
"""Largest noise on the latents of reconstructed images, in units of their standard deviation."""
SPOILED = 1 / 3
"""Share of spoiled images in a batch of the second world's style judge."""
CAST, KEPT_CAST, SPOILING_CAST = 0.24, 0.05, (0.12, 0.35)
"""Lengths of colour casts: under which content is read, a photo stays one, and is spoiled."""


def train_judges(
    folder: Path, autoencoder: AutoencoderKL | None, spec: Spec, device: str = "cpu"
) -> None:
    """Train both judges and write `folder/judges/{style,content}.safetensors` in float16."""
    drawn = spec.world.scenes
    images, scenes = pool(spec, POOL, autoencoder, seed=41, device=device)
    heads = {"style": {"style": len(drawn.JUDGED_STYLES)}, "content": drawn.CONTENT}
    for name, budget in spec.judges.items():
        torch.manual_seed(43)
        judge = Classifier(heads[name], spec.judge_width).to(device)
        rejects = name == "style" and "reject" in drawn.JUDGED_STYLES

        def loss_of(
            step: int,
            generator: torch.Generator,
            judge: Any = judge,
            size: int = budget.batch,
            rejects: bool = rejects,
        ) -> Tensor:
            chosen = torch.randint(len(images), (size,), generator=generator)
            shown = images[chosen].float() / 255
            truth = {head: getattr(scenes, head)[chosen] for head in judge.heads}
            if rejects:
                count = int(SPOILED * size)
                spoiled = spoil(shown[:count], generator)
                shown = torch.cat([spoiled, degrade(shown[count:], generator, KEPT_CAST)])
                truth["style"] = truth["style"].index_fill(
                    0, torch.arange(count), drawn.JUDGED_STYLES.index("reject")
                )
            else:
                shown = degrade(shown, generator, CAST)
            logits = judge(shown.to(device))
            losses = [F.cross_entropy(logits[head], truth[head].to(device)) for head in logits]
            return torch.stack(losses).mean()

        fit(f"judge_{name}", judge, loss_of, budget, folder)
        judge.cpu()
        (folder / "judges").mkdir(exist_ok=True)
        weights = {key: each.half().contiguous() for key, each in judge.state_dict().items()}
        save_file(weights, folder / "judges" / f"{name}.safetensors")
